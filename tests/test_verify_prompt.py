"""The prompt check of ``verify``: it sees what a replay of the bundle's own prompt can't."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import prompt_checkpoints as pc
import pytest
import random_qwen
import random_shuffles
import runtime_fixtures as fx

from lmmprune.compiler.assets.write_assets import write_assets
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER, Bundle
from lmmprune.compiler.bundle.manifest import File, Manifest, Prompt
from lmmprune.compiler.verify.prompt import compare_prompts
from lmmprune.models.source import Source, resolve


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return fx.make_bundle(tmp_path_factory.mktemp("verify") / "out").manifest


def bundle_of(source: Source, manifest: Manifest, target: Path, given: str | None = None, **prompt: Any) -> Bundle:
    """Return a bundle that has a model's prompt and no graphs."""
    target.mkdir(parents=True)
    assets = write_assets(source, target, given)
    files = {name: File(bytes=0, sha256="") for name in (TOKENIZER, PREPROCESSOR)}
    found: Prompt = dataclasses.replace(assets.prompt, **prompt)
    changed = dataclasses.replace(
        manifest, prompt=found, files=files, image_tokens=source.vision.tokens, schedule=(), max_positions=4096
    )
    return Bundle(path=target, manifest=changed)


def verdict(folder: Path, manifest: Manifest, given: str | None = None, **prompt: Any) -> tuple[bool | None, str]:
    source = resolve(str(folder), weights="dummy")
    found = compare_prompts(bundle_of(source, manifest, folder / "bundle", given, **prompt), source)
    assert found is not None
    return found


def test_without_a_chat_template_there_is_nothing_to_compare(manifest: Manifest, tmp_path: Path) -> None:
    source = resolve(str(pc.checkpoint(tmp_path / "model", {})), weights="dummy")
    assert compare_prompts(bundle_of(source, manifest, tmp_path / "bundle"), source) is None


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ({}, None),
        ({"special_tokens": False}, "token 0 is"),
        ({"template": "user: <image>\n{prompt}. assistant:"}, "the processor's is"),
        ({"template": "user: <image>\n{prompt} assistant"}, "is missing, the processor's is"),
        ({"strip": "both"}, "' How many"),
        ({"image_token_id": 5, "image_token": "<end>", "template": "user: <end>\n{prompt} assistant:"}, "is 5,"),
    ],
)
def test_a_wrong_prompt_is_seen(prompt: dict[str, Any], fault: str | None, manifest: Manifest, tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", {"chat_template.jinja": pc.PARTS})
    passed, found = verdict(folder, manifest, **prompt)
    assert passed is (fault is None)
    assert (fault or "4 questions as transformers' processor puts them, token for token") in found


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"chat_template": pc.PARTS}},
        {"chat_template.jinja": pc.TEXT_ONLY},
        {"chat_template.jinja": pc.TEXT_PARTS},
        {"chat_template.jinja": "{{ bos_token }}" + pc.PARTS},
        # Nothing says how large a patch is.
        {"chat_template.jinja": pc.PARTS, "processor_config.json": None},
    ],
)
def test_templates_of_each_kind_are_compared(files: dict[str, Any], manifest: Manifest, tmp_path: Path) -> None:
    assert verdict(pc.checkpoint(tmp_path / "model", files), manifest)[0] is True


def test_a_tokenizer_that_pads_and_truncates_is_compared(manifest: Manifest, tmp_path: Path) -> None:
    tokenizer = pc.letters(bos=True, pad=True)
    folder = pc.checkpoint(tmp_path / "model", {"chat_template.jinja": pc.PARTS}, tokenizer=tokenizer)
    assert verdict(folder, manifest)[0] is True


@pytest.mark.parametrize(
    ("files", "template", "why"),
    [
        ({"chat_template.jinja": pc.PARTS}, pc.PARTS, "the template was given with --template"),
        (
            {"chat_template.jinja": pc.PARTS, "processor_config.json": {"processor_class": "NoProcessor"}},
            None,
            "the checkpoint's processor fails",
        ),
        ({"chat_template.jinja": "{{ strftime_now('%f') }}" + pc.PARTS}, None, "writes today's date"),
    ],
)
def test_what_cannot_be_compared_is_said(
    files: dict[str, Any], template: str | None, why: str, manifest: Manifest, tmp_path: Path
) -> None:
    passed, found = verdict(pc.checkpoint(tmp_path / "model", files), manifest, template)
    assert passed is None
    assert found.startswith("not compared: ")
    assert why in found


def test_an_architecture_without_files_is_not_compared(manifest: Manifest, tmp_path: Path) -> None:
    source = resolve("llava-1.5-7b", weights="dummy", layers=1)
    assert compare_prompts(bundle_of(source, manifest, tmp_path / "b"), source) == (
        None,
        "not compared: there is no checkpoint, the tokenizer is tiny-llava's",
    )


def test_pictures_that_processors_mark_or_cut(manifest: Manifest, tmp_path: Path) -> None:
    """Idefics3's and InternVL's markup around a picture; Qwen's pictures of any size."""
    random_shuffles.save_idefics3(tmp_path / "idefics3", "idefics3")
    random_shuffles.save_internvl(tmp_path / "internvl")
    spelled = importlib.util.find_spec("num2words") is not None  # SmolVLM's processor isn't made without it
    if spelled:
        random_shuffles.save_idefics3(tmp_path / "smolvlm", "smolvlm")
    qwen = tmp_path / "qwen"
    qwen.mkdir()
    for file in random_qwen.checkpoint("qwen2_5_vl").iterdir():
        (qwen / file.name).symlink_to(file)
    template = (
        "{% for p in messages[0].content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ p.text }}{% endif %}{% endfor %}"
    )
    (qwen / "chat_template.jinja").write_text(template, encoding="utf-8")
    for name in ("idefics3", "internvl", "qwen", *(["smolvlm"] if spelled else [])):
        assert verdict(tmp_path / name, manifest)[0] is True, name
