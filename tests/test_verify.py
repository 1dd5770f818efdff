"""``verify``: bundles of every kind of method against PyTorch, and manifests that don't tell the truth."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edit_json
import numpy as np
import pytest
from exports import exported_again

from lmmprune.compiler.cli import main
from lmmprune.compiler.verify import parity
from lmmprune.compiler.verify.parity import Difference
from lmmprune.compiler.verify.verify import Check, verify

FILES = ["checksums", "checker vision.onnx", "checker decoder.onnx", "prompt", "kept counts", "cache lengths"]
VISION, DECODER = ["kept indices", "image features", "logits"], ["image features", "kept in the decoder", "logits"]
BOTH = ["kept indices", "image features", "kept in the decoder", "logits"]


def checked(path: Path, samples: int = 2) -> dict[str, Check]:
    return {check.name: check for check in verify(path, samples=samples, progress=lambda *_: None)}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["image features", "logits"]),
        ({"ratio": 0.5}, VISION),
        ({"ratio": 0.75, "positions": "contiguous"}, VISION),
        ({"ratio": 0.5, "method": "cls"}, VISION),
        ({"ratio": 0.75, "method": "random"}, VISION),
        ({"keep": 14, "method": "uniform"}, VISION),
        ({"ratio": 0.5, "int8": True}, VISION),
        # Merging in both graphs, at several sites of each.
        ({"ratio": 0.5, "method": "ficoco-vl"}, BOTH),
        ({"ratio": 0.5, "method": "ficoco-vl", "int8": True}, BOTH),
        # A token without a place, an order of its own, a hyper-parameter that isn't the paper's.
        ({"keep": 30, "method": "prumerge+", "options": (("neighbours", "5"),)}, VISION),
        # Tokens of the question go too.
        ({"ratio": 0.5, "method": "inflection", "options": (("prune_text", "2"),)}, BOTH),
        # Pooled patches; chosen by the question before the first layer, by keys and by change behind others.
        ({"keep": 14, "method": "downsample"}, VISION),
        ({"ratio": 0.5, "method": "mmtok", "options": (("alpha", "2"),)}, DECODER),
        ({"ratio": 0.5, "method": "dart", "options": (("text_pivots", "2"),)}, DECODER),
        ({"ratio": 0.5, "method": "v2drop"}, DECODER),
        # Merged before the decoder, cut inside it.
        ({"ratio": 0.6, "method": "aim"}, BOTH),
        ({"ratio": 0.5, "method": "sparsevlm", "positions": "contiguous"}, DECODER),
        ({"ratio": 0.5, "method": "fastv", "target": "tensorrt-rtx"}, DECODER),
        ({"ratio": 0.5, "method": "freepruner", "target": "tensorrt-11", "dtype": "bfloat16"}, VISION),
        ({"ratio": 0.5, "method": "fastv", "target": "tensorrt-10.13", "dtype": "bfloat16", "int8": True}, DECODER),
        # Synthetic weights, and fewer layers than the checkpoint has.
        ({"ratio": 0.5, "method": "ficoco-l", "weights": "dummy", "layers": 2}, DECODER),
        # Scaled to the model's five encoder layers.
        ({"ratio": 0.5, "method": "vtc-cls", "options": (("first_layer", "10"),)}, VISION),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_verify_passes(options: dict[str, Any], names: list[str]) -> None:
    path, _ = exported_again(**options)
    checks = checked(path)
    between = ["checker selection.onnx"] * (options.get("method") == "mmtok")
    assert list(checks) == [*FILES[:2], *between, *FILES[2:], *names]
    assert all(check.passed for check in checks.values()), checks
    emulated = [check.name for check in checks.values() if "emulated" in check.found]
    assert emulated == (["image features", "logits"] if options.get("dtype") == "bfloat16" else [])
    if "int8" not in options and "target" not in options:
        worst = [float(x) for check in checks.values() for x in re.findall(r"difference ([\d.e+-]+)", check.found)]
        assert len(worst) == 2
        assert max(worst) < 1e-5


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_bundle_of_links(link: str, tmp_path: Path) -> None:
    """A hub's cache holds them so; onnx's checker and onnx-ir read neither kind by themselves."""
    blobs, bundle = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    shutil.copytree(exported_again(ratio=0.5)[0], blobs)
    bundle.mkdir(parents=True)
    for file in blobs.iterdir():
        if link == "hard":
            (bundle / file.name).hardlink_to(file)
        else:
            (bundle / file.name).symlink_to(file)
    checks = checked(bundle, samples=1)
    assert list(checks) == FILES + VISION
    assert all(check.passed for check in checks.values()), checks


def test_every_bucket_is_compared_and_dynamic_counts_too() -> None:
    path, _ = exported_again(method="inflection", buckets=(0.5, 0.75))
    checks = checked(path)
    graphs = ["checker bucket_36.onnx", "checker bucket_72.onnx"]
    assert list(checks) == [*FILES[:2], *graphs, *FILES[2:], "dynamic counts", *VISION]
    assert all(check.passed for check in checks.values()), checks
    assert checks["kept counts"].found == "visual tokens 144 -> 36 or 72"


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Copy a bundle and change its manifest, which no checksum covers."""

    def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
        copy = tmp_path / "bundle"
        shutil.copytree(path, copy)
        edit_json.edit(copy / "manifest.json", change)
        return copy

    return edit


def stage(manifest: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = manifest["schedule"][index]
    return found


def leaves(manifest: dict[str, Any], index: int, tokens: int) -> None:
    """Let another number of tokens leave a site, and come to the next one."""
    stage(manifest, index).update(tokens_out=tokens)
    stage(manifest, index + 1).update(tokens_in=tokens)


@pytest.mark.parametrize(
    ("method", "change", "wrong"),
    [
        ("ficoco-vl", lambda m: m["parameters"].update(lambda_=0.9), {"kept indices", "image features"}),
        ("ficoco-vl", lambda m: m["parameters"].update(beta=0.0), {"kept in the decoder", "logits"}),
        ("ficoco-vl", lambda m: m["parameters"].update(eps=0.5), {"kept indices", "image features", "logits"}),
        ("ficoco-vl", lambda m: m.update(llm_positions="contiguous"), {"logits"}),
        ("ficoco-vl", lambda m: m["cache"]["length_offsets"].__setitem__(3, 0), {"cache lengths"}),
        ("ficoco-vl", lambda m: leaves(m, 3, 59), {"kept counts"}),
        ("ficoco-vl", lambda m: m["schedule"].pop(), {"kept counts"}),
        ("ficoco-vl", lambda m: m.update(prefix=2), {"kept counts"}),
        ("ficoco-vl", lambda m: m.update(method="fastv", parameters={}), {"parity"}),
        ("cls", lambda m: m.update(method="uniform", parameters={}), {"kept indices"}),
        # The graphs are held against the model from the bundle's own prompt on: only this check sees another one.
        ("cls", lambda m: m["prompt"].update(special_tokens=False), {"prompt"}),
        ("cls", lambda m: m["prompt"].update(template="USER: <image>\n{prompt} USER:"), {"prompt"}),
    ],
)
def test_verify_sees_a_manifest_that_lies(
    method: str, change: Callable[[dict[str, Any]], Any], wrong: set[str], edited: Callable[..., Path]
) -> None:
    path, _ = exported_again(ratio=0.5, method=method)
    checks = checked(edited(path, change), samples=1)
    failed = {name for name, check in checks.items() if check.passed is False}
    assert failed >= wrong, checks
    if wrong & {*FILES, "parity"}:
        assert failed == wrong
        assert ("logits" in checks) is (wrong == {"prompt"})


def test_an_edited_file_is_all_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = exported_again(ratio=0.5, method="cls")
    copy = tmp_path / "bundle"
    shutil.copytree(path, copy)
    with (copy / "vision.onnx.data").open("r+b") as file:
        file.write(b"x")
    # Opening the bundle would find it already: its files are small.
    monkeypatch.setattr("lmmprune.compiler.bundle.bundle._CHECKED_AT_OPEN", 0)
    (check,) = checked(copy).values()
    assert (check.name, check.passed) == ("checksums", False)
    assert "vision.onnx.data" in check.found
    assert main_code("verify", str(copy)) == 2


def main_code(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return int(caught.value.code or 0)


def test_what_cant_be_compared_is_said_and_doesnt_fail(
    edited: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = exported_again(ratio=0.5, method="ficoco-vl")
    copy = edited(path, lambda manifest: manifest.update(method="longest", parameters={"p": 2}))
    assert main_code("verify", str(copy), "--samples", "1", "--json") == 0
    checks = {row["name"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
    assert list(checks) == [*FILES, "parity"]
    assert all(checks[name]["passed"] for name in FILES)
    assert checks["parity"]["passed"] is None
    assert checks["parity"]["found"] == "not compared: the PyTorch reference doesn't know the method 'longest'"
    assert main_code("verify", str(copy), "--samples", "1") == 0
    assert re.search(r"parity +not checked", capsys.readouterr().out)


def test_hyper_parameters_that_the_reference_doesnt_know_are_named(edited: Callable[..., Path]) -> None:
    path, _ = exported_again(ratio=0.5, method="cls")
    checks = checked(edited(path, lambda manifest: manifest["parameters"].update(brightness=3)), samples=1)
    assert checks["parity"].passed is None
    assert "cls has no option 'brightness'" in checks["parity"].found


def test_pictures_of_ones_own(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]], refusal: Callable[..., str]
) -> None:
    path, _ = exported_again(ratio=0.5)
    own = Path("models/tiny_llava/calib/calib.jsonl")
    status, out, _ = cli("verify", path, "--data", own, "--samples", 1, "--json")
    said = {check["name"]: check["found"] for check in json.loads(out)["checks"]}
    assert status == 0
    # The first of tiny-llava's own scenes is what it takes unless told otherwise.
    assert said["logits"] == checked(path, samples=1)["logits"].found
    (tmp_path / "other.jsonl").write_text(
        json.dumps({"image": str((own.parent / "scene_005.png").resolve()), "prompt": "how many digits are there?"})
    )
    _, out, _ = cli("verify", path, "--data", tmp_path / "other.jsonl", "--json")
    assert {check["name"]: check["found"] for check in json.loads(out)["checks"]}["logits"] != said["logits"]
    assert "--data 'nowhere' doesn't exist" in refusal("verify", path, "--data", "nowhere")


def test_questions_that_the_bundle_refuses_are_left_out() -> None:
    path, _ = exported_again(ratio=0.5, method="inflection", options=(("prune_text", "12"),))
    checks = checked(path, samples=1)
    assert list(checks) == [*FILES[:4], "parity"]
    assert checks["parity"].passed is None
    assert "takes none of the questions: the question and what follows it have 7 tokens" in checks["parity"].found


def difference(**changes: Any) -> Difference:
    same: dict[str, Any] = {"overlaps": {"a": 1.0}, "same": True, "relative": 1e-6, "cosine": 1.0, "margin": 0.1}
    asked = {**same, **changes}
    row = (asked.pop("relative"), asked.pop("cosine"))
    return Difference(**asked, rows=[(0.0, 1.0), row])


FLIPPED = {"overlaps": {"a": 0.5}, "same": False, "relative": 0.2, "cosine": 0.9}


@pytest.mark.parametrize(
    ("differences", "precision", "kept", "values", "note"),
    [
        ([difference()], "float32", True, True, "IoU 1.0000 (lowest 1.0000) over 1 pictures"),
        ([difference(margin=0.0)], "float32", True, True, ""),
        ([difference(**FLIPPED)], "float32", False, False, "lowest 0.5000"),
        (
            [difference(), difference(**FLIPPED, margin=9e-6)],
            "float32",
            True,
            True,
            "left out (gap 9.0e-06)",
        ),
        ([difference(**FLIPPED, margin=9e-6)], "float32", None, None, "1 near-ties left out"),
        ([difference(relative=2e-4)], "float32", True, False, ""),
        ([difference(relative=2e-4, margin=0.0)], "float32", None, None, ""),
        ([difference(same=False)], "float32", False, True, "in another order"),
        ([difference(relative=float("nan")), difference()], "float32", True, False, ""),
        ([difference(**FLIPPED)], "int8", True, False, "IoU 0.5000"),
        ([difference(**{**FLIPPED, "cosine": 0.96})], "int8", True, True, ""),
        ([difference(cosine=0.998, relative=0.1)], "float16", True, False, ""),
        ([difference(cosine=0.7, relative=0.14)], "int8", True, True, ""),
        ([difference(cosine=0.7, relative=0.16)], "int8", True, False, ""),
        ([difference(cosine=float("nan"), relative=0.16)], "int8", True, False, ""),
        ([difference(cosine=0.7, relative=float("nan"))], "int8", True, False, ""),
        ([difference(cosine=float("nan"))] + [difference()] * 9, "int8", True, False, ""),
        ([difference(cosine=0.7, relative=0.5)] + [difference()] * 4, "int8", True, True, ""),
        ([difference(cosine=0.7, relative=0.5)] * 2 + [difference()] * 4, "int8", True, False, ""),
        ([difference(cosine=0.7)] + [difference()] * 9, "float16", True, False, ""),
    ],
)
def test_judgements(
    differences: list[Difference], precision: str, kept: bool | None, values: bool | None, note: str
) -> None:
    verdict = parity.judge_kept(differences, precision)
    assert verdict.passed is kept
    assert note in verdict.found
    assert parity.judge_values(differences, precision).passed is values


def test_sets_without_a_place_in_common() -> None:
    apart = parity._difference({"a": np.array([0, 1])}, {"a": np.array([2, 3])}, *[np.zeros((1, 0))] * 2, margin=0.1)
    assert parity.judge_kept([apart], "int8").found.startswith("IoU 0.0000")
    assert parity.judge_values([apart], "int8") == parity.Verdict(passed=None, found="no kept place in common")
    assert parity.judge_kept([apart], "float32").passed is False
    assert parity.judge_values([apart, difference()], "int8").passed


@pytest.mark.filterwarnings("error")
def test_rows_of_zeros_hold_nowhere() -> None:
    relative, cosine = parity.relative_and_cosine(np.zeros(3), np.zeros(3))
    assert np.isnan([relative, cosine]).all()
    assert parity.judge_values([difference(relative=relative, cosine=cosine)], "int8").passed is False


def test_what_is_said_behind_the_end_of_an_answer() -> None:
    assert parity.answer_length([7, 2, 9, 2], [2]) == 2
    assert parity.answer_length([7, 9], [2]) == 2
    assert parity.answer_length([5, 7], [2, 5]) == 1


def test_judgement_of_dynamic_counts() -> None:
    assert parity.judge_dynamic_counts([(5, 5, 0.1), (9, 9, 0.0)], "float32").passed
    assert parity.judge_dynamic_counts([(5, 5, 0.1), (9, 8, 1e-3)], "float32").passed is False
    verdict = parity.judge_dynamic_counts([(5, 5, 0.1), (9, 7, 1e-6)], "float32")
    assert verdict.passed
    assert verdict.found == "5, 9; at most 2 from the reference's, 1 near-ties left out"
    assert parity.judge_dynamic_counts([(9, 7, 1e-6)], "float32").passed is None
    assert parity.judge_dynamic_counts([(9, 7, 0.1)], "float16").passed
