"""Names of torch and transformers that their documentation doesn't promise: all that this package uses, and no others.

``tests/test_private_names.py`` holds each of them against the installed release, so that a new one that renames
something says so there first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lmmprune.errors import ModelError, said


def fake_tensors() -> AbstractContextManager[Any]:
    """Return a context in which torch's tensors have a shape and a type, but no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def without_initialization() -> AbstractContextManager[Any]:
    """Return a context in which transformers' modules are built without drawing weights."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


def module_class(config: Any) -> Any:
    """Return the class that transformers builds of a multimodal model's configuration."""
    import transformers

    mapping: Any = transformers.AutoModelForImageTextToText._model_mapping
    return mapping[type(config)]


def buffers(module: Any) -> dict[str, Any]:
    """Return a module's own buffers by name, to be changed; one that isn't set is None."""
    found: dict[str, Any] = module._buffers
    return found


def fill_buffers(owner: Any, module: Any) -> None:
    """Give the buffers of a module the values that the model it is a part of knows."""
    owner._init_weights(module)


def attend_in_one_node(config: Any) -> None:
    """Let a model that is built of a configuration call torch's attention, which is one node of a trace."""
    config._attn_implementation = "sdpa"


def renaming(model: Any, state: dict[str, Any]) -> Callable[[str], str]:
    """Return the function that turns a checkpoint's name of a tensor into the module's.

    Args:
        model: The module.
        state: Its ``state_dict``.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    return lambda key: str(rename_source_key(key, renamings, [], model.base_model_prefix, state)[0])


def asked_ties(model: Any) -> dict[str, str]:
    """Return the parameters that the configuration ties, target -> source."""
    return dict(model.get_expanded_tied_weights_keys(all_submodels=True))


def ties(model: Any) -> dict[str, str]:
    """Return the parameters that are tied, target -> source."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def tie(model: Any, pairs: Mapping[str, str]) -> None:
    """Tie these parameters, target -> source, and no others."""
    model.all_tied_weights_keys = dict(pairs)
    model.tie_weights(recompute_mapping=False)


def cached(cache: Any) -> list[tuple[Any, Any]]:
    """Return each layer's keys and values of a ``DynamicCache``."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def replace_deepstack(language: Any, function: Callable[..., Any]) -> None:
    """Let a decoder with DeepStack add the deeper features by a function of ``hidden, is_image, rows``."""
    assert callable(language._deepstack_process)
    language._deepstack_process = function


def serves_pictures(model_type: str) -> bool:
    """Return whether transformers has a multimodal model of a ``model_type``."""
    from transformers.models.auto import modeling_auto

    return model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def serves_text(model_type: str) -> bool:
    """Return whether transformers has a language model of a ``model_type``."""
    from transformers.models.auto import modeling_auto

    return model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def processor_class(config: Any) -> Any:
    """Return the class of a configuration's processor."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    mapping: Any = PROCESSOR_MAPPING
    return mapping[type(config)]


def parts_of(processor: Any) -> Sequence[str]:
    """Return the names of what a class of processors is made of, such as ``video_processor``."""
    found: Sequence[str] = processor.get_attributes()
    return found


def without_part(processor: Any, part: str) -> Any:
    """Return a class of processors that has None for one of its parts, and doesn't load it."""

    class Without(processor):  # type: ignore[misc]  # the class is found at run time
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != part]

        @classmethod
        def _get_arguments_from_pretrained(cls, *words: Any, **named: Any) -> list[Any]:
            loaded: Iterator[Any] = iter(super()._get_arguments_from_pretrained(*words, **named))
            return [None if name == part else next(loaded) for name in processor.get_attributes()]

    return Without


def render_chat(messages: Sequence[Mapping[str, Any]], template: str, special: Mapping[str, str]) -> str:
    """Return messages as a chat template puts them, up to where the answer begins.

    Args:
        messages: With ``role`` and ``content`` each.
        template: The template's text.
        special: Special tokens by the names that templates know.

    Raises:
        ModelError: It can't be rendered with these messages: what it raised, in one line.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Any = render_jinja_template  # annotated as str, but it returns the texts and their masks
    try:
        texts, _ = render([list(messages)], chat_template=template, add_generation_prompt=True, **special)
    except Exception as error:  # a template is a program: it raises what it likes
        raise ModelError(said(error)) from error
    text: str = texts[0]
    return text
