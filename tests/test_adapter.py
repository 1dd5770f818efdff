"""LoRA adapters merged while weights are read, held against PEFT's own merge_and_unload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import copy_tiny
from peft import LoraConfig, get_peft_model
from short_request import short_request

from lmmprune.compiler.export.export import export
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import ModelError
from lmmprune.models import trace
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.models.source import resolve

KINDS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 16},
    "everything, each at its own rank": {
        "target_modules": "all-linear",
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"down_proj": 3, r"layers\.1\.self_attn\.o_proj": 5},
    },
    "a projector trained whole": {"target_modules": ["o_proj"], "modules_to_save": ["multi_modal_projector"]},
    "embeddings": {"target_modules": ["embed_tokens", "up_proj"], "r": 3},
    "patches": {"target_modules": ["patch_embedding"], "r": 2},
}


def _trained(directory: Path, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Save a random adapter of tiny-llava; return what PEFT makes of model and adapter."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny_llava_dir(), dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(7)  # PEFT draws one of the factors
        adapted = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(directory)
    merged: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return merged


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_pefts(kind: str, tmp_path: Path) -> None:
    wanted = _trained(tmp_path, KINDS[kind])
    base = resolve("tiny-llava")
    source = resolve("tiny-llava", adapter=tmp_path)
    model = trace.fake_model(source)
    plain, readers = base.readers(model), source.readers(model)
    changed = 0
    for name, read in readers.items():
        found = torch.from_numpy(read().astype("float32"))
        assert torch.allclose(found, wanted[name], rtol=0, atol=2e-6), name
        changed += not torch.equal(found, torch.from_numpy(plain[name]().astype("float32")))
    assert changed, "an adapter that changes nothing shows nothing"


def test_a_bundle_with_an_adapter_is_verified_and_says_so(tmp_path: Path) -> None:
    _trained(tmp_path / "adapter", KINDS["attention"])
    request = short_request(model="tiny-llava", adapter=tmp_path / "adapter", output=tmp_path / "bundle", ratio=0.5)
    manifest = export(request).manifest
    assert manifest.adapter is not None
    assert (manifest.adapter.kind, manifest.adapter.name) == ("directory", "adapter")
    checks = verify(tmp_path / "bundle", samples=1, adapter=tmp_path / "adapter")
    assert [check for check in checks if check.passed is not True] == []


def _refused(tmp_path: Path, line: str, **settings: Any) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    def use() -> None:
        source = resolve("tiny-llava", adapter=tmp_path)
        source.readers(trace.fake_model(source))

    with pytest.raises(ModelError, match=line):
        use()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"use_dora": True}, "use_dora true: expected a plain LoRA; merge it with PEFT"),
        ({"peft_type": "IA3"}, 'peft_type "IA3"'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights "pissa"'),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_alpha": "much"}, "lora_alpha of .* is 'much'"),
    ],
)
def test_what_isnt_a_plain_lora_is_refused(settings: dict[str, Any], line: str, tmp_path: Path) -> None:
    _trained(tmp_path, {"target_modules": ["q_proj"], "r": 2})
    _refused(tmp_path, line, **settings)


def test_adapters_that_dont_fit_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _trained(tmp_path, {"target_modules": ["q_proj"], "r": 2})
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("layers.3", "layers.30"): value for name, value in tensors.items()}, file)
    _refused(tmp_path, r"layers\.30.*which this model doesn't have: was it trained on another one")
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    save_file(tensors | {name: torch.ones(2, 5)}, file)
    source = resolve("tiny-llava", adapter=tmp_path)
    readers = source.readers(trace.fake_model(source))
    with pytest.raises(ModelError, match=r"don't fit a weight of \[128, 128\]"):
        [read() for read in readers.values()]
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    _refused(tmp_path, "one factor of")


def test_adapters_of_tied_weights_are_refused(tmp_path: Path) -> None:
    _trained(tmp_path / "adapter", {"target_modules": ["embed_tokens"], "r": 2})
    tied = copy_tiny(
        tmp_path / "model",
        config={"tie_word_embeddings": True},
        tensors=lambda found: {name: value for name, value in found.items() if "lm_head" not in name},
    )
    source = resolve(str(tied), adapter=tmp_path / "adapter")
    with pytest.raises(ModelError, match="which are one in this model"):
        source.readers(trace.fake_model(source))


def test_folders_that_are_no_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no adapter_config\.json .*--adapter takes a directory that PEFT saved"):
        resolve("tiny-llava", adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="it is pickled"):
        resolve("tiny-llava", adapter=tmp_path)
    with pytest.raises(ModelError, match="--adapter with --weights dummy"):
        resolve("tiny-llava", adapter=tmp_path, weights="dummy")
