"""Names that torch and transformers don't promise: each one does here what this package takes it for."""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from typing import Any

import pytest
import random_qwen
import torch
import transformers
from random_llava import random_llava
from transformers.cache_utils import DynamicCache

import lmmprune
from lmmprune.models import private_names


def config() -> Any:
    """Return the configuration of a tiny LLaVA."""
    sizes = {"grid": 2, "vision_layers": 2, "vision_heads": 2, "vision_head_dim": 4, "llm_layers": 1, "heads": 2}
    return copy.deepcopy(random_llava(0, has_cls=True, kv_heads=2, head_dim=4, **sizes).config)


@pytest.fixture(scope="module")
def llava() -> Any:
    return transformers.AutoModelForImageTextToText.from_config(config())


def test_fake_tensors() -> None:
    with private_names.fake_tensors():
        made = torch.zeros(2**40, 2**20)
    assert made.shape == (2**40, 2**20), "no machine has this memory"


def test_without_initialization(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight was drawn")

    made = config()
    with private_names.without_initialization():
        monkeypatch.setattr(transformers.PreTrainedModel, "initialize_weights", drawn)
        private_names.module_class(made)(made)


def test_module_class() -> None:
    assert private_names.module_class(config()) is transformers.LlavaForConditionalGeneration


def test_buffers_are_the_modules_own(llava: Any) -> None:
    rotary = llava.get_decoder().rotary_emb
    right = rotary.inv_freq.clone()
    private_names.buffers(rotary)["inv_freq"] = torch.full(right.shape, -1.0)
    assert (rotary.inv_freq == -1).all()
    private_names.fill_buffers(llava, rotary)
    assert torch.equal(rotary.inv_freq, right)


def test_attention_in_one_node() -> None:
    made = config()
    made._attn_implementation = "eager"
    private_names.attend_in_one_node(made)
    assert private_names.module_class(made)(made).config._attn_implementation == "sdpa"


def test_renaming_of_an_older_checkpoint(llava: Any) -> None:
    rename = private_names.renaming(llava, llava.state_dict())
    old = "language_model.model.layers.0.mlp.up_proj.weight"
    assert rename(old) == "model.language_model.layers.0.mlp.up_proj.weight"
    assert rename(old) in llava.state_dict()


def test_ties() -> None:
    made = config()
    made.tie_word_embeddings = made.text_config.tie_word_embeddings = True
    model = private_names.module_class(made)(made)
    ((target, source),) = private_names.asked_ties(model).items()
    assert private_names.ties(model) == {target: source}
    assert model.get_parameter(target) is model.get_parameter(source)
    with private_names.without_initialization():
        fresh = private_names.module_class(made)(made)
    private_names.tie(fresh, {})
    assert private_names.ties(fresh) == {}
    assert fresh.get_parameter(target) is not fresh.get_parameter(source)


def test_cached() -> None:
    cache = DynamicCache()
    pairs = [(torch.full((1, 2, 3, 4), float(i)), torch.full((1, 2, 3, 4), -float(i))) for i in range(2)]
    for layer, (key, value) in enumerate(pairs):
        cache.update(key, value, layer)
    for found, wanted in zip(private_names.cached(cache), pairs, strict=True):
        assert all(map(torch.equal, found, wanted))


def test_deepstack_is_replaced() -> None:
    made = random_qwen.config("qwen3_vl")
    model = private_names.module_class(made)(made).eval()
    language, seen = model.get_decoder(), []

    def add(hidden: torch.Tensor, is_image: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        seen.append((hidden.shape, is_image.shape, rows.shape))
        return hidden

    private_names.replace_deepstack(language, add)
    embeds = torch.zeros(1, 3, made.text_config.hidden_size)
    language(
        inputs_embeds=embeds,
        position_ids=torch.zeros(3, 1, 3, dtype=torch.int64),
        visual_pos_masks=torch.ones(1, 3, dtype=torch.bool),
        deepstack_visual_embeds=[embeds, embeds],
    )
    assert seen == [(embeds.shape, (1, 3), embeds.shape)] * 2


def test_kinds_of_models() -> None:
    assert private_names.serves_pictures("llava")
    assert not private_names.serves_pictures("llama")
    assert private_names.serves_text("llama")
    assert not private_names.serves_text("no_such_model")


def test_processor_without_a_part() -> None:
    whole = private_names.processor_class(random_qwen.config("qwen2_5_vl"))
    assert whole is transformers.Qwen2_5_VLProcessor
    assert set(private_names.parts_of(whole)) == {"image_processor", "tokenizer", "video_processor"}
    less = private_names.without_part(whole, "video_processor")
    assert set(private_names.parts_of(less)) == {"image_processor", "tokenizer"}
    # What from_pretrained takes the parts from: one entry for each part of the whole class, in its order.
    assert issubclass(less, whole)
    assert callable(whole._get_arguments_from_pretrained)


def test_render_chat() -> None:
    each = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos }}{% endfor %}"
    template = each + "{% if add_generation_prompt %}A:{% endif %}"
    assert private_names.render_chat([{"role": "user", "content": "hi"}], template, {"eos": "</s>"}) == "user: hi</s>A:"


ALLOWED = {("local.py", "os._exit"), ("progress.py", "self._tasks")}
"""Private names of others than torch and transformers."""
PROMISED = {"transformers.cache_utils", "transformers.processing_utils", "transformers.utils"}
"""Modules that transformers' documentation has a page on."""


def test_they_stand_in_one_file() -> None:
    root = Path(lmmprune.__file__).resolve().parents[2]
    found = set()
    for file in [file for folder in ("compiler", "passes", "models") for file in (root / folder).rglob("*.py")]:
        if file.name == "private_names.py":
            continue
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
        own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        own |= {
            str(node.target.id)
            for node in nodes
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                found |= {(file.name, ast.unparse(node))} if node.attr not in own else set()
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("torch.", "transformers.")):
                found |= {(file.name, str(node.module))} if node.module not in PROMISED else set()
    assert found == ALLOWED
