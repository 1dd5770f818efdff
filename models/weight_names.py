"""From a checkpoint's tensor names to the parameters of the loaded module, and which of those are one and the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from lmmprune.errors import ModelError
from lmmprune.models import private_names
from lmmprune.stored import Stored

_FLOATS = {ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_WRAPPED = "base_model.model."
"""What PEFT puts before every name while a model is wrapped."""


def renamed(model: Any, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Rename checkpoint tensors as transformers does when it loads this module.

    Args:
        model: The module whose ``state_dict`` names are wanted (its parameters may be fake).
        tensors: Where they lie, by their names on disk.

    Returns:
        Parameter name -> tensor; names that the module doesn't have are there, too.
    """
    rename = renaming(model)
    return {rename(key): entry for key, entry in tensors.items()}


def renaming(model: Any) -> Any:
    """Return the function that turns a checkpoint's name of a tensor into the module's."""
    # Once: building it takes as long as there are parameters.
    state = model.state_dict()
    by_table = private_names.renaming(model, state)

    def rename(key: str) -> str:
        name = by_table(key)
        # Older files keep the CLIP tower's inner module in the name.
        return name if name in state else name.replace("vision_tower.vision_model.", "vision_tower.")

    return rename


def tie(model: Any, tensors: Mapping[str, Stored]) -> str | None:
    """Let parameters that the configuration ties be one, unless the checkpoint brings different values for them.

    transformers 5 decides so, too: a fine-tuned head beside tied embeddings is a head of its own.

    Args:
        model: Fresh, nothing tied yet; ``private_names.ties`` has what is tied afterwards.
        tensors: The checkpoint's, by their names on disk; none with synthetic weights.

    Returns:
        What the user should know; None if all is as the configuration says.
    """
    asked = private_names.asked_ties(model)
    found = renamed(model, tensors) if asked and tensors else {}
    own = {
        target: source
        for target, source in asked.items()
        if target in found and source in found and not found[target].same_values(found[source])
    }
    private_names.tie(model, {target: source for target, source in asked.items() if target not in own})
    if not own:
        return None
    pairs = ", ".join(f"'{found[target].name}' and '{found[source].name}'" for target, source in own.items())
    return (
        f"config.json ties the embeddings (tie_word_embeddings), but the checkpoint holds different values in {pairs}:"
        " both are read, as transformers does"
    )


def by_module_name(model: Any, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Find the tensor of every parameter, by transformers' own table of names.

    Args:
        model: The module, what is tied tied (see ``tie``).
        tensors: Where they lie, by their names on disk.

    Raises:
        ModelError: A parameter has no tensor, or one of another shape or type.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    found = renamed(model, tensors)
    for target, source in private_names.ties(model).items():
        # Either one may be the one that was saved.
        for name, other in ((target, source), (source, target)):
            if name in wanted and name not in found and other in found:
                found[name] = found[other]
    _check(wanted, found, tensors)
    return {name: found[name] for name in wanted}


def _check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Stored], tensors: Mapping[str, Stored]) -> None:
    """Refuse a checkpoint that isn't this module's."""
    lost = sorted(set(wanted) - set(found))
    if lost and any(key.startswith(_WRAPPED) for key in tensors):
        raise ModelError(
            f"the tensors' names begin with '{_WRAPPED}': the model was saved while PEFT had wrapped it; merge the"
            " adapter (merge_and_unload) and save the model itself"
        )
    if lost:
        raise ModelError(
            f"the checkpoint lacks '{lost[0]}' (and {len(lost) - 1} more of {len(wanted)} tensors): is it whole, and"
            " does config.json belong to it?"
        )
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise ModelError(f"'{name}' has shape {list(found[name].shape)}, config.json says {list(shape)}")
        if found[name].dtype not in _FLOATS:
            raise ModelError(
                f"'{name}' is {found[name].dtype.name}: expected floating-point weights of 16 bits or more"
            )
