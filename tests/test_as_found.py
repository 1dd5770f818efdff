"""Folders as people have them: the right files are read, and what is no checkpoint is told what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import EMBEDDING, HEAD, Tensors, copy_tiny
from safetensors.torch import save_file

from lmmprune.errors import ModelError
from lmmprune.models import trace
from lmmprune.models.source import resolve
from lmmprune.models.weight_names import by_module_name


def test_a_single_file_goes_before_a_stale_index(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model")
    save_file({HEAD: torch.zeros(2, 2)}, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {HEAD: "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    source = resolve(str(folder))
    assert {entry.file.name for entry in source.entries.values()} == {"model.safetensors"}
    assert any("the single file is read, as transformers does" in line for line in source.remarks)


def test_the_file_that_the_configuration_names_goes_before_all(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model", config={"transformers_weights": "better.safetensors"})
    (folder / "better.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert {entry.file.name for entry in resolve(str(folder)).entries.values()} == {"better.safetensors"}
    outside = copy_tiny(tmp_path / "outside", config={"transformers_weights": "../model/better.safetensors"})
    with pytest.raises(ModelError, match="expected a plain file name"):
        _ = resolve(str(outside)).entries


INSTEAD = {
    "adapter_model.safetensors": "a PEFT adapter's weights.* as --adapter",
    "adapter_model.bin": "a PEFT adapter's weights",
    "consolidated.safetensors": "'consolidated' weights",
    "model.fp16.safetensors": r"rename a single file to model\.safetensors",
    "pytorch_model.bin": r"only pickled weights \(pytorch_model\.bin\), which are never loaded",
    "model-q4.gguf": "GGUF weights",
    "README.md": "download them, or use --weights dummy",
}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_a_folder_has_instead_of_weights_is_said(name: str, tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=INSTEAD[name]):
        _ = resolve(str(folder)).entries


def test_a_folder_that_is_an_adapter_says_whose(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}))
    with pytest.raises(ModelError, match=r"adapter of 'llava-hf/llava-1\.5-7b-hf'.* as --model, .* as --adapter"):
        resolve(str(tmp_path))


def test_an_adapter_beside_a_model_is_mentioned(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    assert any("isn't merged unless --adapter names it" in line for line in resolve(str(folder)).remarks)


def test_a_folder_above_a_model_names_it(tmp_path: Path) -> None:
    copy_tiny(tmp_path / "checkpoint-500")
    with pytest.raises(ModelError, match="did you mean its 'checkpoint-500'"):
        resolve(str(tmp_path))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "original LLaVA": (
        {
            "architectures": ["LlavaLlamaForCausalLM"],
            "hidden_size": 4096,
            "image_grid_pinpoints": None,
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "model_type": "llava",
        },
        r"original LLaVA \(LlavaLlamaForCausalLM, .*take 'llava-hf/llava-1\.5-7b-hf'",
    ),
    "original LLaVA of tiles": (
        {
            "architectures": ["LlavaMistralForCausalLM"],
            "hidden_size": 4096,
            "image_grid_pinpoints": [[336, 672]],
            "model_type": "llava_mistral",
        },
        r"take 'llava-hf/llava-v1\.6-mistral-7b-hf'",
    ),
    "LLaVA's first name": ({"model_type": "llava_llama", "mm_vision_tower": "x"}, "original LLaVA"),
    "no sizes": ({"model_type": "llava"}, "has no 'text_config'"),
    "remote code": ({"model_type": "internvl_chat", "auto_map": {"AutoModel": "m.M"}}, "InternVL3-1B-hf"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations_of_other_layouts_say_what_they_are(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[kind][0]))
    with pytest.raises(ModelError, match=CONFIGS[kind][1]):
        resolve(str(tmp_path))
    # The same where nothing but sizes are asked for.
    with pytest.raises(ModelError, match=CONFIGS[kind][1]):
        resolve(str(tmp_path), weights="dummy")


def test_leftover_remote_code_of_a_family_that_is_served_is_passed_over(tmp_path: Path) -> None:
    assert resolve(str(copy_tiny(tmp_path / "model", config={"auto_map": {"AutoModel": "m.M"}}))).family.name == "llava"


@pytest.mark.parametrize("kind", ["gpt_neox", "mixtral", "gemma2", "phi3", "gpt2", "qwen3_moe"])
def test_decoders_that_arent_known_are_named(kind: str, tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model", config={"text_config": {"model_type": kind}})
    with pytest.raises(ModelError, match=rf"the language model is a '{kind}', which isn't served: expected .*llama"):
        resolve(str(folder))


@pytest.mark.parametrize("layer", [-7, 6, 100])
def test_a_feature_layer_outside_of_the_tower_is_refused(layer: int, tmp_path: Path) -> None:
    states = resolve("tiny-llava").config.vision_config.num_hidden_layers + 1
    folder = copy_tiny(tmp_path / "model", config={"vision_feature_layer": layer if abs(layer) > states else states})
    with pytest.raises(ModelError, match=rf"the states -{states} to {states - 1}"):
        resolve(str(folder))


def test_a_setting_that_is_missing_is_one_line(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model", text={"max_position_embeddings": "many"})
    with pytest.raises(ModelError, match="max_position_embeddings"):
        resolve(str(folder))


def _tied(folder: Path, tensors: Any) -> Path:
    return copy_tiny(folder, config={"tie_word_embeddings": True}, tensors=tensors)


def _own_head(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[EMBEDDING] + 1}


def _same_head(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[EMBEDDING].clone()}


def _head_in_another_type(tensors: Tensors) -> Tensors:
    half = tensors[EMBEDDING].to(torch.float16)
    return tensors | {EMBEDDING: half, HEAD: half.float()}


def _no_head(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if name != HEAD}


def _no_embedding(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if name != EMBEDDING}


@pytest.mark.parametrize(
    ("change", "head", "embedding", "warned"),
    [
        (_own_head, HEAD, EMBEDDING, True),
        (_same_head, HEAD, EMBEDDING, False),
        (_head_in_another_type, HEAD, EMBEDDING, False),
        (_no_head, EMBEDDING, EMBEDDING, False),
        (_no_embedding, HEAD, HEAD, False),
    ],
)
def test_tied_embeddings_are_read_as_transformers_does(
    change: Any, head: str, embedding: str, warned: bool, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    folder = _tied(tmp_path / "model", change)
    source, said = resolve(str(folder)), []
    model = trace.fake_model(source, said.append)
    found = by_module_name(model, source.entries)
    assert found["lm_head.weight"].name == head
    assert found["model.language_model.embed_tokens.weight"].name == embedding
    assert [("both are read" in line) for line in said] == [True] * warned
    wanted = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        assert torch.equal(wanted[name], torch.from_numpy(found[name].read().astype("float32"))), name


def test_names_that_peft_wrapped_are_told_apart(tmp_path: Path) -> None:
    wrapped = copy_tiny(
        tmp_path / "model", tensors=lambda found: {f"base_model.model.{name}": value for name, value in found.items()}
    )
    source = resolve(str(wrapped))
    with pytest.raises(ModelError, match="saved while PEFT had wrapped it; merge"):
        by_module_name(trace.fake_model(source), source.entries)
