"""One checkpoint with all that hub files have at once: answers against transformers' ``generate``."""

from __future__ import annotations

import json
from pathlib import Path

import prompt_checkpoints as pc
import pytest
import torch
from PIL import Image
from random_llava import random_llava

from lmmprune.compiler.cli import main

QUESTIONS = ("what is this?", " where\n\nis it? ", "a")
SETTINGS = {
    "repetition_penalty": 1.4,
    "no_repeat_ngram_size": 3,
    "suppress_tokens": [270],
    "do_sample": True,
    "top_k": 5,
}
FILES = {
    "processor_config.json": {"chat_template": "{{ bos_token }}" + pc.PARTS.replace("p['text']", "p['text'] | trim")},
    "chat_template.jinja": "{{ raise_exception('never asked') }}",
    "generation_config.json": {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": [2, 280], **SETTINGS},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    model = random_llava(
        3, has_cls=True, grid=pc.SIDE, vision_layers=3, vision_heads=2, vision_head_dim=8, llm_layers=2, heads=2,
        kv_heads=1, head_dim=8, vocab=320,
    )  # fmt: skip
    model.config.image_token_index = model.config.image_token_id = pc.IMAGE
    with torch.no_grad():
        model.lm_head.weight[pc.IMAGE] = 0
    pc.checkpoint(folder / "model", FILES, tokenizer=pc.letters(bos=True, pad=True))
    model.save_pretrained(folder / "model")
    # Saving a model writes one of its own.
    pc.write(folder / "model", {"generation_config.json": FILES["generation_config.json"]})
    rows = torch.randint(0, 255, (9, 7, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(rows.numpy()).save(folder / "picture.png")
    return folder


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert not end.value.code, err
    found: dict[str, object] = json.loads(out)
    return found


def test_answers_are_transformers_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    report = printed(capsys, "export", "--model", folder / "model", "-o", folder / "out")
    settings, drawn = report["warnings"]  # type: ignore[misc]  # a list of two
    assert "repetition_penalty=1.4, no_repeat_ngram_size=3, suppress_tokens=[270]: answers follow" in settings
    assert "do_sample, top_k=5" in drawn
    manifest = json.loads((folder / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["generation"]["applied"] == {key: SETTINGS[key] for key in list(SETTINGS)[:3]}
    assert (manifest["prompt"]["origin"], manifest["prompt"]["eos_token_ids"]) == ("processor_config.json", [2, 280])

    processor = AutoProcessor.from_pretrained(folder / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32).eval()
    picture = folder / "picture.png"
    image = Image.open(picture)
    for question in QUESTIONS:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt", processor_kwargs={"padding": False, "truncation": False},
        )  # fmt: skip
        length = inputs["input_ids"].shape[1]
        expected = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, length:].tolist()
        words = ("--image", picture, "--prompt", question, "--max-new-tokens", 24)
        found = printed(capsys, "run", folder / "out", *words)
        assert found["tokens"] == expected
        assert found["stats"]["prompt_tokens"] == length  # type: ignore[index]  # an object


def test_a_given_template_is_what_is_asked_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "q: <image>\\n{prompt} a:"
    report = printed(capsys, "export", "--model", folder / "model", "--template", text, "-o", folder / "given")
    assert len(report["warnings"]) == 2  # type: ignore[arg-type]  # a list
    prompt = json.loads((folder / "given" / "manifest.json").read_text(encoding="utf-8"))["prompt"]
    assert (prompt["template"], prompt["origin"], prompt["special_tokens"]) == (
        "q: <image>\n{prompt} a:",
        "--template",
        True,
    )
    checks = printed(capsys, "verify", folder / "given", "--samples", 1, "--model", folder / "model")["checks"]
    found = {row["name"]: row for row in checks}  # type: ignore[attr-defined]  # a list of objects
    assert (found["prompt"]["passed"], found["logits"]["passed"]) == (None, True)
    assert found["prompt"]["found"] == "not compared: the template was given with --template"
