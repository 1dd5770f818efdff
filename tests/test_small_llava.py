"""The scenes, questions and training of small-llava (`scripts/small_llava`)."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path[:0] = [str(SCRIPTS / "tiny_llava"), str(SCRIPTS / "small_llava")]

from small_llava import glyphs, photos  # noqa: E402  # found by the path above
from small_llava.captions import MENTIONED, draw_captions  # noqa: E402
from small_llava.heldout import QUESTIONS, heldout, read_questions, write_questions  # noqa: E402
from small_llava.language import language_step  # noqa: E402
from small_llava.model import build_model, deepen  # noqa: E402
from small_llava.packing import HEAD, block_mask, hits, pack, positions, tokens_of  # noqa: E402
from small_llava.pools import Pool, as_arrays  # noqa: E402
from small_llava.questions import ASK, Question, ask  # noqa: E402
from small_llava.scenes import GRID, IMAGE_SIZE, PATCH_SIZE, Scene, Thing, scenes  # noqa: E402
from small_llava.text import build_processor, build_tokenizer  # noqa: E402
from small_llava.tower import build_tower, grow  # noqa: E402
from small_llava.vision import Heads, vision_step  # noqa: E402
from small_llava.windows import IGNORE, draw_windows  # noqa: E402
from training.packing import Decoder  # noqa: E402
from training.vision import WindowTower  # noqa: E402

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return list(scenes("train", 24, seed=11))


@pytest.fixture(scope="module")
def pool(drawn: list[Scene]) -> Pool:
    pixels, truth, owners, glyph = as_arrays(drawn)
    return Pool(pixels=pixels, truth=truth, owners=owners, glyphs=glyph)


def test_scenes_are_deterministic(drawn: list[Scene]) -> None:
    again = next(scenes("train", 1, seed=11, first=7))
    assert (again.pixels == drawn[7].pixels).all()
    assert again.things == drawn[7].things
    assert (next(scenes("heldout", 1, seed=11, first=7)).pixels != again.pixels).any()


def test_splits_share_no_photograph_and_no_font_size() -> None:
    assert not set(photos.PHOTOGRAPHS["train"]) & set(photos.PHOTOGRAPHS["heldout"])
    assert not set(glyphs.SIZES["train"]) & set(glyphs.SIZES["heldout"])
    one, other = (photos.photographs(split) for split in ("train", "heldout"))
    assert not any(a.shape == b.shape and (a == b).all() for a in one for b in other)


def test_objects_lie_where_the_truth_says(drawn: list[Scene]) -> None:
    """The colour of an object stands out in its box, and the owners are patches of that box."""
    for scene in drawn[:8]:
        for slot, thing in enumerate(scene.things):
            left, top = round(thing.x - thing.width / 2), round(thing.y - thing.height / 2)
            box = scene.pixels[top : top + thing.height, left : left + thing.width].astype(int)
            assert box.max() > 150  # brighter than any photograph, which ends at 110
            rows, columns = np.nonzero(scene.owners == slot)
            assert (rows * PATCH_SIZE < top + thing.height).all()
            assert ((rows + 1) * PATCH_SIZE > top).all()
            assert (columns * PATCH_SIZE < left + thing.width).all()
            assert ((columns + 1) * PATCH_SIZE > left).all()


def find(things: tuple[Thing, ...], name: str) -> Thing:
    """Find the one object of a name, by other means than the questions' own."""
    words = name.split()
    mine = [
        thing
        for thing in things
        if all(word in {thing.kind, thing.colour, thing.content} for word in words)
        and (len(words) > 1 or thing.kind == "shape")
    ]
    assert len(mine) == 1, (name, things)
    return mine[0]


def check(question: Question, things: tuple[Thing, ...]) -> None:
    """Answer a question from the truth with regular expressions and compare."""
    text, said = question.text.split(". ")[-1], question.answer
    if match := re.fullmatch(r"which number is written in (\w+)\?", text):
        assert find(things, f"{match[1]} number").content == said
    elif match := re.fullmatch(r"what does the (\w+) word say\?", text):
        assert find(things, f"{match[1]} word").content == said
    elif match := re.fullmatch(r"what is the (\w+) digit\?", text):
        assert find(things, f"{match[1]} digit").content == said
    elif match := re.fullmatch(rf"which shape is ({'|'.join(COLOURS)})\?", text):
        assert find(things, f"{match[1]} shape").content == said
    elif match := re.fullmatch(r"what colour is the (.+)\?", text):
        assert find(things, match[1]).colour == said
    elif match := re.fullmatch(r"where is the (.+)\?", text):
        thing = find(things, match[1])
        middle = (("abcdefg".index(said[0]) + 0.5) * IMAGE_SIZE / 7, (int(said[1]) - 0.5) * IMAGE_SIZE / 7)
        assert max(abs(thing.x - middle[0]), abs(thing.y - middle[1])) <= IMAGE_SIZE / 14 - 2
    elif match := re.fullmatch(r"how many (\w+) things are there\?", text):
        assert sum(thing.colour == match[1] for thing in things) == int(said)
    elif match := re.fullmatch(r"how many (\w+)s are there\?", text):
        assert sum(match[1] in {thing.kind, "thing"} for thing in things) == int(said)
    elif match := re.fullmatch(r"is the (.+) (left of|right of|above|below) the (.+)\?", text):
        one, two = find(things, match[1]), find(things, match[3])
        dx, dy = two.x - one.x, two.y - one.y
        gap = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[match[2]]
        assert abs(gap) >= 8
        assert (gap > 0) == (said == "yes")
    elif match := re.fullmatch(r"which (\w+) is (\w+)most\?", text):
        mine = [thing for thing in things if thing.kind == match[1]]
        axis, sign = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}[match[2]]
        places = [sign * getattr(thing, axis) for thing in mine]
        assert mine[places.index(min(places))].content == said
    elif match := re.fullmatch(r"is there (?:the|a) (.+)\?", text):
        words = match[1].split()
        there = any(all(word in {thing.kind, thing.colour, thing.content} for word in words) for thing in things)
        assert there == (said == "yes")
    else:
        raise AssertionError(f"no such question: {text}")


def test_answers_are_right(drawn: list[Scene]) -> None:
    """Every kind of question comes up, and an independent reading of the truth gives its answer."""
    kinds: Counter[str] = Counter()
    yes: Counter[str] = Counter()
    for index, scene in enumerate(drawn):
        for question in ask(np.random.default_rng(index), scene.things, 20):
            check(question, scene.things)
            kinds[question.kind] += 1
            yes[question.answer] += question.kind in {"exists", "exists_pair"}
    assert set(kinds) == {*ASK, "long"}
    assert 0.35 < yes["yes"] / (yes["yes"] + yes["no"]) < 0.65


def test_tokenizer_covers_every_question_and_writes_answers_back(drawn: list[Scene]) -> None:
    tokenizer = build_tokenizer()
    template = build_processor()
    for index, scene in enumerate(drawn[:6]):
        for question in ask(np.random.default_rng(index), scene.things, 12):
            ids = tokenizer(question.text, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in ids
            assert ids == tokens_of(question.text)
            answer = tokenizer(question.answer, add_special_tokens=False).input_ids
            assert tokenizer.decode(answer) == question.answer
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where is the red word?"}]}
    prompt = template.apply_chat_template([turn], add_generation_prompt=True)
    ids = tokenizer(prompt).input_ids
    assert ids[:4] == [1, 5, 6, 4]  # the decoder's packing relies on "<s> user :" before the picture
    assert ids[4:] == tokens_of("where is the red word? assistant:")


def test_heldout_questions_are_fixed_and_survive_their_files(tmp_path: Path) -> None:
    asked = heldout(2)
    assert asked[0].questions[0] == heldout(1)[0].questions[0]
    assert [len(item.questions) for item in asked] == [QUESTIONS] * 2
    write_questions(tmp_path / "h", "h.jsonl", asked)
    assert list(read_questions(tmp_path / "h", "h.jsonl").values()) == [item.questions for item in asked]


def test_windows_tell_what_lies_on_a_patch(pool: Pool, drawn: list[Scene]) -> None:
    rows = np.arange(len(pool))
    _, whole = draw_windows(pool, np.random.default_rng(0), len(pool), GRID, rows)
    pixels, window = draw_windows(pool, np.random.default_rng(0), len(pool), 7, rows)
    for row, scene in enumerate(drawn):
        assert pool.things(row) == list(scene.things)
        for patch in (whole.owned[row] & whole.whole[row]).nonzero().flatten().tolist():
            thing = scene.things[scene.owners.flat[patch]]
            digits = [int(whole.classes[name][row, patch]) for name in ("first", "second", "third")]
            if thing.kind == "number":
                assert "".join(str(digit) for digit in digits if digit < 10) == thing.content
            else:
                assert digits == [IGNORE] * 3
            assert float(whole.centre[row, patch, 0]) * IMAGE_SIZE == pytest.approx(thing.x, abs=0.01)
        # A window is the scene seen through a hole: same pixels, same colours of patches.
        first = int(window.places[row, 0])
        top, left = first // GRID * PATCH_SIZE, first % GRID * PATCH_SIZE
        assert (pixels[row] == scene.pixels[top : top + 56, left : left + 56]).all()
        assert (window.classes["colour"][row] == whole.classes["colour"][row][window.places[row]]).all()


def test_captions_mention_objects_of_their_scene(pool: Pool) -> None:
    ids = draw_captions(pool, np.random.default_rng(0), np.arange(len(pool))).reshape(len(pool), MENTIONED, -1)
    for row in range(len(pool)):
        colours = {COLOURS.index(thing.colour) + 1 for thing in pool.things(row)}
        assert set(ids[row, :, 0].tolist()) <= colours


def test_growing_a_stack_changes_nothing() -> None:
    tower = WindowTower(build_tower(5, 0))
    for weight in tower.parameters():
        weight.requires_grad_(False)
    places = torch.arange(GRID * GRID).expand(1, -1)
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    before = tower(pixels, places)
    plan = (0, 0, 1, 1, 2, 2, 3, 3, 3, 4)
    tower.tower.encoder.layers = grow(tower.tower.encoder.layers, plan, ("self_attn.out_proj", "mlp.fc2"))
    after = tower(pixels, places)
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def test_deeper_decoder_says_the_same_and_packing_is_what_one_question_gives(drawn: list[Scene]) -> None:
    model = build_model(build_tower(10, 0), 4, 0)
    features = torch.randn(1, GRID * GRID, 128, generator=torch.Generator().manual_seed(0))
    asked = [ask(np.random.default_rng(0), drawn[0].things, 6)]

    def logits(decoder: nn.Module, questions: list[list[Question]]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = pack(questions, 150)
        mask = block_mask(batch.owners, HEAD + GRID * GRID)
        with torch.no_grad():
            out = decoder(features, batch.ids, positions(batch, GRID * GRID), mask)
        assert len(hits(out, batch)[0]) == len(batch.kept[0])
        return out, batch.owners

    packed, owners = logits(Decoder(model), asked)
    for index, question in enumerate(asked[0]):
        alone, own = logits(Decoder(model), [[question]])
        torch.testing.assert_close(alone[own == 1], packed[owners == index + 1], atol=1e-4, rtol=1e-4)
    deep, _ = logits(Decoder(deepen(model)), asked)
    torch.testing.assert_close(deep, packed, atol=1e-5, rtol=1e-5)


def test_both_trainings_take_a_step(pool: Pool) -> None:
    tower, heads = WindowTower(build_tower(2, 0)), Heads(128)
    loss, metrics = vision_step(tower, heads, pool, batch=4, side=GRID, seed=0, captions=True)(0)
    loss.backward()
    assert all(weight.grad is not None for weight in tower.tower.encoder.parameters())
    assert "caption" in metrics
    decoder = Decoder(build_model(build_tower(10, 0), 2, 0))
    features = np.zeros((len(pool), GRID * GRID, 128), np.float16)
    loss, metrics = language_step(decoder, pool, features, pictures=2, seed=0, captions=1, detailed=True)(0)
    loss.backward()
    assert decoder.projector.linear_1.weight.grad is not None
    assert 0 <= metrics["right"] <= 1


def test_committed_questions_are_the_generators_and_weights_fit_them() -> None:
    directory = SCRIPTS.parent / "models" / "small_llava"
    asked = read_questions(directory / "heldout", "heldout.jsonl")
    assert sum(map(len, asked.values())) == 2000
    assert {question.kind for mine in asked.values() for question in mine} == {*ASK, "long"}
    assert list(asked.values())[:2] == [item.questions for item in heldout(2)]
    assert all((directory / "heldout" / name).is_file() for name in asked)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert config["vision_config"]["num_hidden_layers"] >= 10
    assert config["text_config"]["num_hidden_layers"] >= 12
    written = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    assert written["model"]["vocab"] == build_tokenizer().get_vocab()
    assert not (directory / "__init__.py").exists()  # a package would go into the wheel
