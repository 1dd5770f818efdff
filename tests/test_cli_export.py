"""Exports that can't work, as the user meets them: exit code 2, one line that says what to do, nothing on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from short_request import short_request
from transformers import LlamaConfig, LlavaConfig, SiglipVisionConfig

from lmmprune.compiler.assets.text_layout import text_layout
from lmmprune.compiler.bundle.manifest import Prompt
from lmmprune.compiler.export.export import export
from lmmprune.errors import ModelError
from lmmprune.models.canonical import Canonical
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.passes.methods import METHODS

Refusal = Callable[..., str]


@pytest.fixture
def refusal(refusal: Refusal, tmp_path: Path) -> Refusal:
    """Call ``export`` with a mistake in it; return the one line that it says."""

    def call(*arguments: object, model: object = "tiny-llava") -> str:
        return refusal("export", "--model", model, "-o", tmp_path / "out", *arguments)

    return call


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA whose tower has no CLS token; its configuration alone."""
    folder = tmp_path_factory.mktemp("siglip")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = SiglipVisionConfig(**sizes, num_hidden_layers=3, image_size=28, patch_size=7, vision_use_head=False)
    text = LlamaConfig(**sizes, num_hidden_layers=4, vocab_size=64)
    options = {"vision_feature_layer": -2, "vision_feature_select_strategy": "full", "image_token_index": 4}
    LlavaConfig(vision_config=vision, text_config=text, **options).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].needs_cls])
def test_a_method_that_needs_cls_on_a_tower_without(method: str, siglip: Path, refusal: Refusal) -> None:
    found = refusal("--weights", "dummy", "--method", method, "--ratio", 0.5, model=siglip)
    assert f"method '{method}' needs a CLS token and has no rule for an encoder without one: use freepruner" in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Four layers: the first two see all 144 tokens.
        (
            ("--method", "fastv", "--keep", 30),
            "can't bring this model to 30 visual tokens per decoder layer on average",
        ),
        (("--method", "pyramiddrop", "--ratio", 0.9), "the nearest is 36.8 of 144; ask for --ratio 0.7"),
        (("--method", "tome", "--keep", 4), "halves the tokens at most, 5 times: keep 5 or more, not 4"),
        (("--method", "prumerge", "--keep", 1), "keep 2 or more"),
        (("--method", "fastv", "--ratio", 0.5, "--set", "layr=3"), "method 'fastv' has no option 'layr'; did you mean"),
        (("--method", "tome", "--ratio", 0.5, "--set", "r=8"), "method 'tome' has no option 'r'; it has none"),
        (("--method", "fastv", "--set", "layer"), "--set layer: expected name=value"),
        (("--method", "fastv", "--ratio", 0.5, "--set", "layer=32"), "layers 32: expected ascending numbers in 2..31"),
        (("--method", "fastv", "--ratio", 0.5, "--set", "layer=1"), "layers 1: expected ascending numbers in 2..31"),
        (("--method", "sparsevlm", "--ratio", 0.5, "--set", "layers=2,6,x"), "expected a list such as 2,6,15"),
        (("--method", "sparsevlm", "--ratio", 0.5, "--set", "layers=6,2"), "layers 6,2: expected ascending numbers"),
        (("--method", "vtc-cls", "--ratio", 0.5, "--set", "first_layer=23"), "first_layer=23: expected 0..22"),
        (("--method", "freepruner", "--ratio", 0.5, "--set", "shallow_layer=23"), "shallow_layer=23: expected 0..22"),
        (("--method", "fast-v", "--ratio", 0.5), "no method 'fast-v'; did you mean 'fastv'?"),
        (("--method", "ficoco-v", "--ratio", 0.5, "--set", "eps=2"), "eps=2: expected 0 <= value <= 1"),
        (("--method", "ficoco-v", "--ratio", 0.5, "--set", "targets=3"), "targets=3: expected auto or 0 or quantile"),
    ],
)
def test_what_the_method_cant_do(arguments: tuple[object, ...], message: str, refusal: Refusal) -> None:
    assert message in refusal(*arguments)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "fastv",
            "scores a decoder layer behind the first one, and needs 3 layers for a cut: this decoder has 2",
        ),
        ("inflection", "this decoder has 2 layers: give --set llm_keep=1"),
    ],
)
def test_a_decoder_of_two_layers_has_only_the_first_to_score(method: str, message: str, refusal: Refusal) -> None:
    arguments = ("--weights", "dummy", "--layers", 2, "--method", method, "--ratio", 0.5)
    assert message in refusal(*arguments, model="llava-1.5-7b")


# Asks first and shows the picture then: how many tokens stand before it depends on the question.
BACKWARDS = (
    "{% for m in messages %}{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }} "
    "{% endfor %}{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}{% endfor %}"
    " ASSISTANT:"
)


@pytest.fixture(scope="module")
def backwards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("backwards") / "model"
    shutil.copytree(tiny_llava_dir(), model, ignore=shutil.ignore_patterns("*.py", "calib", "examples"))
    (model / "chat_template.jinja").write_text(BACKWARDS)
    return model


def test_cuts_in_the_decoder_need_the_image_at_one_place(backwards: Path, refusal: Refusal) -> None:
    found = refusal("--method", "ficoco-vl", "--ratio", 0.5, model=backwards)
    assert "the image stands behind 2 to 7 tokens, depending on the question" in found
    assert "use a method that prunes at the vision output" in found


def test_the_images_place_is_checked_before_the_trace(backwards: Path, tmp_path: Path) -> None:
    def slow(source: object) -> Canonical:
        raise AssertionError("the model was traced")

    request = short_request(model=str(backwards), output=tmp_path / "out", method="fastv", ratio=0.5)
    with pytest.raises(ModelError, match="the image stands behind"):
        export(request, traced=slow)


def test_the_layout_of_prompts() -> None:
    tokenizer = tiny_llava_dir() / "tokenizer.json"

    def prompt(template: str) -> Prompt:
        return Prompt(template=template, image_token="<image>", image_token_id=4, eos_token_ids=(2,))

    first = text_layout(prompt("USER: <image>\n{prompt} ASSISTANT:"), tokenizer, in_decoder=True)
    assert first.prefix == 3
    assert 4 in first.special_ids
    # Without cuts in the decoder the place may vary: positions are told from the prompt itself.
    second = prompt("{prompt} <image> ASSISTANT:")
    text_layout(second, tokenizer, in_decoder=False)
    with pytest.raises(ModelError, match="the image stands behind"):
        text_layout(second, tokenizer, in_decoder=True)
