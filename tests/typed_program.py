"""A user's program that names everything public; mypy --strict checks it, and nobody runs it.

An ignore marks what must be refused: where a type were lost on the way, it would be one too many.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from PIL import Image

import lmmprune
from lmmprune import Auto, Buckets, Int4, Int8, Keep, Ratio


@dataclass(frozen=True, kw_only=True)
class Longest(lmmprune.Method):
    p: int = 2

    name = "longest"
    reference = "an example"
    exactness = "exact"

    def filter(self, at: lmmprune.SiteContext) -> ir.Value:
        return at.b.op(f"ReduceL{self.p}", at.visual, [2], keepdims=0)


def make(out: Path) -> None:
    def progress(what: str, done: int, of: int) -> None:
        print(what, done, of)

    told: lmmprune.Progress = progress
    report = lmmprune.export("tiny-llava", out, tokens=Ratio(0.5), int8=Int8(policy="auto"), progress=told)
    lmmprune.export("tiny-llava", out, int4=Int4(group=64, vision=Int8()))
    assert_type(report, lmmprune.Report)
    assert_type(report.manifest, lmmprune.Manifest)
    for tokens in (Keep(72), Auto(percentile=90), Buckets([0.5, 0.75]), None):
        lmmprune.export("tiny-llava", str(out), tokens=tokens, method=Longest(p=1), force=True)
    lmmprune.export("tiny-llava", out, method="fastv", options={"layer": 2})
    lmmprune.export("tiny-llava", out, method="fastv", schedule={"llm_input_1": 9})
    lmmprune.export("tiny-llava", out, tokens=0.5)  # type: ignore[arg-type]
    lmmprune.export("tiny-llava", out, ratio=0.5)  # type: ignore[call-arg]
    assert_type(lmmprune.rewrite("in.onnx", "out.onnx", tokens=Ratio(0.5), layer=-2), lmmprune.RewriteReport)
    lmmprune.rewrite("in.onnx", "out.onnx", tokens=Auto())  # type: ignore[arg-type]


def ask(bundle: str, given: lmmprune.Picture) -> None:
    with lmmprune.load(bundle, threads=2) as model:
        assert_type(model, lmmprune.Model)
        assert_type(model.bundle, lmmprune.Bundle)
        assert_type(model.manifest.tokens_before, int)
        with Path("p.png").open("rb") as file:
            model.encode(file)
        model.encode(given)
        for picture in ("p.png", Path("p.png"), b"", io.BytesIO(), Image.new("RGB", (9, 9))):
            encoded = model.encode(picture)
            assert_type(encoded, lmmprune.ImageFeatures)
        answer = model.answer(encoded, "What is this?", max_new_tokens=9, temperature=0.7, top_p=0.9, top_k=40, seed=1)
        assert_type(answer, lmmprune.Answer)
        for piece in answer:
            assert_type(piece, str)
        whole = model.ask("p.png", "What is this?", stop=["\n", "."])
        assert_type(whole.text, str)
        assert_type(whole.tokens, list[int])
        assert_type(whole.kept, NDArray[np.int64] | None)
        assert_type(whole.finish_reason, lmmprune.FinishReason)
        assert_type(whole.stats, lmmprune.Stats)
        assert_type(whole.stats.ttft_ms, float)
        model.encode(3)  # type: ignore[arg-type]
        talk = model.conversation("p.png", reuse=True)
        assert_type(talk, lmmprune.Conversation)
        assert_type(talk.ask("And this?", Path("q.png"), seed=1).stats.reused_tokens, int)
        assert_type(talk.turns, list[tuple[str, str]])
        model.ask("p.png", "What is this?", temperature="hot")  # type: ignore[arg-type]
        if whole.finish_reason == "eos":  # type: ignore[comparison-overlap]
            model.close()


def look(bundle: Path) -> None:
    assert_type(lmmprune.verify(bundle, samples=1), list[lmmprune.Check])
    drawing = lmmprune.show(bundle, "p.png", "kept.png", site="vision_output")
    assert_type(drawing, lmmprune.Drawing)
    assert_type(drawing.sites, Mapping[str, lmmprune.SiteTokens])
    assert_type(lmmprune.inspect(bundle), dict[str, Any])
    assert_type(lmmprune.doctor(), lmmprune.Diagnosis)
    assert_type(lmmprune.list_methods()["fastv"], type[lmmprune.Method])
    assert_type(lmmprune.list_targets()["ort-cpu"], lmmprune.Target)
    print(lmmprune.list_models()["tiny-llava"].family, lmmprune.list_families()["llava"].limits, lmmprune.__version__)


def measure(bundle: Path) -> None:
    assert_type(lmmprune.bench([bundle, "other"], "p.png", "hi?", rounds=2), lmmprune.BenchReport)
    assert_type(lmmprune.read_result("result.json").report, lmmprune.BenchReport)
    lmmprune.draw_chart(lmmprune.bench([bundle], "p.png", "hi?"), "bench.png", force=True)
    assert_type(lmmprune.explain([bundle], "p.png", "hi?"), lmmprune.Explanation)
    comparison: lmmprune.Comparison = lmmprune.compare(bundle, [bundle], "photos", prompts=["What is it?"], rounds=0)
    agreement: float = comparison.others[0].measures.exact.value
    print(agreement)
    evaluation = lmmprune.evaluate(bundle, "tiny-llava", limit=3)
    assert_type(evaluation, lmmprune.Evaluation)
    questions: list[lmmprune.Question] = []
    lmmprune.evaluate(lmmprune.load(bundle), questions)
    assert_type(lmmprune.flops(bundle), dict[str, Any])
    card = lmmprune.card(bundle, "CARD.md", evaluations=["eval.json"], comparisons=[comparison.as_dict()])
    assert_type(card, lmmprune.Card)
    print(card.markdown, card.missing)
    assert_type(lmmprune.flops_of_model("llava-1.5-7b", Keep(192), method="fastv"), dict[str, Any])
    assert_type(lmmprune.tune("tiny-llava", "tuned", "tiny-llava", max_loss=1, int8="auto"), lmmprune.TuneResult)
    lmmprune.serve({"tiny": bundle}, port=0, options=lmmprune.ServeOptions(queue=4))
    assert_type(lmmprune.study("tiny-llava", "study", methods=["random"], ratios=[0.5]), lmmprune.StudyResult)


def deploy(bundle: Path) -> None:
    options = lmmprune.BuildOptions(refit=True)
    assert_type(lmmprune.build(bundle, "tensorrt-rtx", arch="sm89", options=options), list[lmmprune.Built])
    assert_type(lmmprune.plan([bundle], "plan", "jetson-orin-jp6"), lmmprune.Plan)
    assert_type(lmmprune.deploy(bundle, "jetson-orin-jp6", "board", ram=8 * 2**30), lmmprune.Deployed)
    assert_type(lmmprune.triton_repository(bundle, "repository"), lmmprune.Repository)


def see(model: lmmprune.Model, clip: lmmprune.Clip) -> None:
    assert_type(model.ask(clip, "what moves?"), lmmprune.Answer)
    assert_type(model.encode_video("clip.mp4"), list[lmmprune.ImageFeatures])


def refuse() -> None:
    try:
        lmmprune.load("none")
    except (lmmprune.BundleError, lmmprune.TargetError, lmmprune.MissingExtraError) as error:
        print(error)
    except (lmmprune.GraphRefusal, lmmprune.InputError, lmmprune.ModelError) as error:
        print(error)
    except lmmprune.errors.LmmpruneError as error:
        assert_type(error, lmmprune.LmmpruneError)
    assert issubclass(lmmprune.LmmpruneWarning, UserWarning)
    lmmprune.no_such_name  # type: ignore[attr-defined]  # noqa: B018
