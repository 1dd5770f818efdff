"""How lmms-eval finds the model: the entry point ``lmmprune`` of the group ``lmms_eval.models``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Return what ``--model lmmprune`` stands for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="lmmprune", chat_class_path="lmmprune.compiler.harness.chat_model.LmmpruneChat")
