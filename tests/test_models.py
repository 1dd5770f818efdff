"""Checkpoints: every naming of the tensors, damage, refusals; lazily read weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmmprune.errors import ModelError
from lmmprune.models import config_file, registry, shards, trace
from lmmprune.models.registry import tiny_llava_dir
from lmmprune.models.source import resolve
from lmmprune.models.weight_names import by_module_name


@pytest.fixture(scope="module")
def fake() -> object:
    return trace.fake_model(resolve("tiny-llava"))


def _module_names(name: str) -> str:
    """The loaded module's own names, as a plain state_dict has them."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


NAMINGS = {
    "as transformers saves it": lambda name: name,
    "as the module calls it": _module_names,
    "with the tower's inner module": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_of_a_checkpoint_is_found(naming: str, fake: object, tmp_path: Path) -> None:
    tensors = load_file(tiny_llava_dir() / "model.safetensors")
    assert "language_model.model.embed_tokens.weight" in tensors
    save_file({NAMINGS[naming](name): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    found = by_module_name(fake, shards.entries(tmp_path))
    key = "model.language_model.layers.1.mlp.up_proj.weight"
    expected = tensors["language_model.model.layers.1.mlp.up_proj.weight"].float()
    assert torch.equal(torch.from_numpy(found[key].read().astype("float32")), expected)
    assert len(found) == len(dict(fake.named_parameters()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shards_of_any_float_type_are_read(dtype: torch.dtype, fake: object, tmp_path: Path) -> None:
    tensors = {name: t.to(dtype) for name, t in load_file(tiny_llava_dir() / "model.safetensors").items()}
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"shard-{number}.safetensors")
        index.update(dict.fromkeys(part, f"shard-{number}.safetensors"))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = by_module_name(fake, shards.entries(tmp_path))
    expected = tensors["language_model.lm_head.weight"].float()
    assert torch.equal(torch.from_numpy(found["lm_head.weight"].read().astype("float32")), expected)
    (tmp_path / "shard-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"shard-1\.safetensors' is missing"):
        shards.entries(tmp_path)


def test_a_truncated_file_and_a_lying_index_are_refused(tmp_path: Path) -> None:
    data = (tiny_llava_dir() / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="truncated"):
        shards.entries(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "shard.safetensors")
    (tmp_path / "shard.safetensors").write_bytes(data)
    index = {"weight_map": {"nothing.weight": "shard.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names 'nothing\.weight'"):
        shards.entries(tmp_path)


def test_a_lost_tensor_and_another_shape_are_named(fake: object, tmp_path: Path) -> None:
    tensors = load_file(tiny_llava_dir() / "model.safetensors")
    tensors.pop("language_model.model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks 'model\.language_model\.norm\.weight'"):
        by_module_name(fake, shards.entries(tmp_path))
    save_file(tensors | {"language_model.model.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"shape \[3\], config\.json says \[128\]"):
        by_module_name(fake, shards.entries(tmp_path))


def test_pickles_and_remote_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickled weights"):
        shards.entries(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat", "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ModelError, match="remote code"):
        config_file.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="can't be read"):
        config_file.read_config(tmp_path)


def test_configurations_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("3")
    with pytest.raises(ModelError, match="holds int, expected an object"):
        config_file.read_config(tmp_path)
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "num_hidden_layers": "four"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"text_config.num_hidden_layers is 'four': expected a whole number in 1\.\."):
        config_file.read_config(tmp_path)
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "rms_norm_eps": "small"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"reading '.*config\.json' with .*rms_norm_eps"):
        config_file.read_config(tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("llava-1.5-7", "did you mean 'llava-1.5-7b'"),
        ("./nowhere", "there is no directory './nowhere'"),
    ],
)
def test_unknown_models_are_refused(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        registry.locate(model)


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "line"),
    [
        ("paligemma", r"'paligemma' has no family here \(there are: .*llava_next.*\): missing is a module"),
        ("bert", r"'bert' is a language model alone, .*: give a multimodal model \(.*llava_next"),
        ("clip", r"'clip' has no family here .*: expected a multimodal model .*with 'lmmprune rewrite'"),
    ],
)
def test_models_of_other_kinds_are_told_what_they_are(model_type: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": model_type, "text_config": {}, "vision_config": {}})
    )
    with pytest.raises(ModelError, match=line):
        resolve(str(tmp_path))


def test_a_local_directory_is_the_same_model(tmp_path: Path) -> None:
    source = resolve(str(tiny_llava_dir()))
    assert source.vision == resolve("tiny-llava").vision
    assert source.vision.layers == 5
    assert source.vision.tokens == 144


def test_the_canonical_graph_reads_no_weight() -> None:
    """Weights that can't be read at all don't disturb tracing and canonicalization."""
    from lmmprune.models.canonicalize import canonicalize

    source = resolve("tiny-llava")
    model = trace.fake_model(source)

    def refuse() -> None:
        raise AssertionError("a weight was read")

    decoder = trace.trace_decoder(model, source, image_token_id=4)
    trace.bind(decoder, dict.fromkeys(source.readers(model), refuse))  # type: ignore[arg-type]
    canonicalize(decoder)
    kinds = [node.op_type for node in decoder.graph]
    assert kinds.count("Attention") == source.decoder.layers
    assert kinds.count("RotaryEmbedding") == 2 * source.decoder.layers
    assert kinds.count("RMSNormalization") == 2 * source.decoder.layers + 1
    assert kinds.count("Transpose") == 4 * source.decoder.layers, "weights are transposed while they are read"
    shapes = {str(value.name): [str(dim) for dim in value.shape or ()] for value in decoder.graph.inputs}
    assert shapes["input_ids"] == shapes["position_ids"] == ["1", "seq"]
    assert shapes["image_features"] == ["1", "image_tokens", "128"], "passes.shapes.bind_dims gives it a number"
    assert shapes["past_key_values.3.value"] == ["1", "2", "past", "32"]
