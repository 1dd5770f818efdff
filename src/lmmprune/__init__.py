"""Prune visual tokens inside the graph of a large multimodal model, quantize it, and compile it.

What is named here is public; everything else may change. Each name is loaded when it is first used::

    import lmmprune

    lmmprune.export("tiny-llava", "out", tokens=lmmprune.Ratio(0.5))
    with lmmprune.load("out") as model:
        print(model.ask("photo.png", "What is this?").text)

Loading and asking need the base install and a back end; ``export``, ``rewrite``, ``verify``, ``study`` and methods need
the extra ``export``. Whatever you can mend is an ``lmmprune.LmmpruneError`` of one line.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from lmmprune.version import __version__

# ONNX Runtime reports to its makers unless it is told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from lmmprune import errors
    from lmmprune.api.conversation import Conversation
    from lmmprune.api.deploy import build, deploy, plan, triton_repository
    from lmmprune.api.look import (
        card,
        doctor,
        inspect,
        list_families,
        list_methods,
        list_models,
        list_targets,
        show,
        verify,
    )
    from lmmprune.api.make import export, rewrite
    from lmmprune.api.measure import bench, compare, draw_chart, evaluate, explain, flops, flops_of_model, read_result
    from lmmprune.api.model import Model, load
    from lmmprune.api.serve import serve
    from lmmprune.api.study import study
    from lmmprune.api.tune import tune
    from lmmprune.compiler.build.build import Built
    from lmmprune.compiler.build.options import BuildOptions
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.bundle.manifest import Manifest
    from lmmprune.compiler.card.card import Card
    from lmmprune.compiler.compare.comparison import Comparison
    from lmmprune.compiler.data.questions import Question
    from lmmprune.compiler.deploy.deploy import Deployed
    from lmmprune.compiler.deploy.write_plan import Plan
    from lmmprune.compiler.explain.rows import Explanation
    from lmmprune.compiler.export.request import Report
    from lmmprune.compiler.export.values import Auto, Buckets, Int4, Int8, Keep, Ratio
    from lmmprune.compiler.inspect.doctor import Diagnosis
    from lmmprune.compiler.measure.evaluate import Evaluation
    from lmmprune.compiler.measure.report import BenchReport
    from lmmprune.compiler.rewrite.rewrite import RewriteReport
    from lmmprune.compiler.runtime.answer import Answer, FinishReason, Stats
    from lmmprune.compiler.runtime.image_features import ImageFeatures, SiteTokens
    from lmmprune.compiler.runtime.open_picture import Picture
    from lmmprune.compiler.runtime.open_video import Clip
    from lmmprune.compiler.runtime.show_kept import Drawing
    from lmmprune.compiler.serve.options import ServeOptions
    from lmmprune.compiler.study.run_study import StudyResult
    from lmmprune.compiler.targets.target import Target
    from lmmprune.compiler.triton.repository import Repository
    from lmmprune.compiler.tune.run_tune import TuneResult
    from lmmprune.compiler.verify.verify import Check
    from lmmprune.errors import (
        BundleError,
        GraphRefusal,
        InputError,
        LmmpruneError,
        LmmpruneWarning,
        MissingExtraError,
        ModelError,
        TargetError,
    )
    from lmmprune.passes.methods.method import Method
    from lmmprune.passes.reduce.site_context import SiteContext
    from lmmprune.progress import Progress

__all__ = [  # noqa: RUF022  # the order of the reference
    "export",
    "Ratio",
    "Keep",
    "Auto",
    "Buckets",
    "Int4",
    "Int8",
    "Report",
    "load",
    "Model",
    "Conversation",
    "Picture",
    "Clip",
    "ImageFeatures",
    "SiteTokens",
    "Answer",
    "Stats",
    "FinishReason",
    "verify",
    "Check",
    "show",
    "Drawing",
    "inspect",
    "bench",
    "BenchReport",
    "draw_chart",
    "read_result",
    "explain",
    "Explanation",
    "compare",
    "Comparison",
    "evaluate",
    "Evaluation",
    "Question",
    "flops",
    "flops_of_model",
    "card",
    "Card",
    "study",
    "StudyResult",
    "tune",
    "TuneResult",
    "serve",
    "ServeOptions",
    "build",
    "BuildOptions",
    "Built",
    "plan",
    "Plan",
    "deploy",
    "Deployed",
    "triton_repository",
    "Repository",
    "rewrite",
    "RewriteReport",
    "list_methods",
    "list_models",
    "list_families",
    "list_targets",
    "Target",
    "doctor",
    "Diagnosis",
    "Bundle",
    "Manifest",
    "Progress",
    "Method",
    "SiteContext",
    "errors",
    "LmmpruneError",
    "InputError",
    "ModelError",
    "GraphRefusal",
    "BundleError",
    "TargetError",
    "MissingExtraError",
    "LmmpruneWarning",
    "__version__",
]

_HOMES = {
    "api.conversation": "Conversation",
    "api.deploy": "build deploy plan triton_repository",
    "api.look": "card doctor inspect list_families list_methods list_models list_targets show verify",
    "api.make": "export rewrite",
    "api.measure": "bench compare draw_chart evaluate explain flops flops_of_model read_result",
    "api.model": "Model load",
    "api.serve": "serve",
    "api.study": "study",
    "api.tune": "tune",
    "compiler.build.build": "Built",
    "compiler.build.options": "BuildOptions",
    "compiler.bundle.bundle": "Bundle",
    "compiler.bundle.manifest": "Manifest",
    "compiler.card.card": "Card",
    "compiler.compare.comparison": "Comparison",
    "compiler.data.questions": "Question",
    "compiler.deploy.deploy": "Deployed",
    "compiler.deploy.write_plan": "Plan",
    "compiler.explain.rows": "Explanation",
    "compiler.export.request": "Report",
    "compiler.export.values": "Auto Buckets Int4 Int8 Keep Ratio",
    "compiler.inspect.doctor": "Diagnosis",
    "compiler.measure.evaluate": "Evaluation",
    "compiler.measure.report": "BenchReport",
    "compiler.rewrite.rewrite": "RewriteReport",
    "compiler.runtime.answer": "Answer FinishReason Stats",
    "compiler.runtime.image_features": "ImageFeatures SiteTokens",
    "compiler.runtime.open_picture": "Picture",
    "compiler.runtime.open_video": "Clip",
    "compiler.runtime.show_kept": "Drawing",
    "compiler.serve.options": "ServeOptions",
    "compiler.study.run_study": "StudyResult",
    "compiler.targets.target": "Target",
    "compiler.triton.repository": "Repository",
    "compiler.tune.run_tune": "TuneResult",
    "compiler.verify.verify": "Check",
    "errors": "BundleError GraphRefusal InputError LmmpruneError LmmpruneWarning MissingExtraError ModelError"
    " TargetError",
    "passes.methods.method": "Method",
    "passes.reduce.site_context": "SiteContext",
    "progress": "Progress",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


if not TYPE_CHECKING:  # a checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name == "errors":
            return importlib.import_module("lmmprune.errors")
        if name not in _HOME_OF:
            raise AttributeError(f"module 'lmmprune' has no attribute '{name}'")
        home = _HOME_OF[name]
        if home.startswith("passes."):
            importlib.import_module("lmmprune.errors").require("onnx_ir", "export")
        found = getattr(importlib.import_module(f"lmmprune.{home}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return __all__
