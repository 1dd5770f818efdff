"""What must be true of a manifest beyond the types of its fields: ranges, and fields that agree with each other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from lmmprune.compiler.bundle.content import Content
from lmmprune.compiler.bundle.expect import expect, one_of
from lmmprune.compiler.bundle.interface import VALUE_BYTES, Graph, Tensor
from lmmprune.compiler.bundle.signature_rules import check_signatures
from lmmprune.compiler.bundle.tile_rules import check_tiles
from lmmprune.compiler.bundle.views import faults_of_views, seen_as
from lmmprune.limits import bounded, shortened

_COUNT = 2**31 - 1  # of tokens, positions, ids
_SIZE = 2**50  # bytes of a file
_RANK = 8
MOST_IMAGES = 64
"""Pictures of a prompt."""
MOST_ROWS = 256
"""Questions of a batch."""
_NAME = 200  # letters
_TEXT = 2**16
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SITE = re.compile(r"vision_output|projector_output|(?:vision_layer|llm_input|llm_layer)_[0-9]{1,4}")
_DTYPES = {*VALUE_BYTES, "float64", "int64", "int32", "int8", "uint8", "bool"}
_FLOPS = {"before", "after"}
_TEMPLATES = ("template", "image_token")  # the only texts with line breaks


def check_manifest(manifest: Content) -> None:
    """Check what a manifest says.

    Raises:
        ValueError: It can't be; one line that names the field.
    """
    _check_words(manifest)
    _check_numbers(manifest)
    _check_prompt(manifest)
    _check_schedule(manifest)
    for component, graph in manifest.graphs.items():
        _check_graph(component, graph)
    for field, found, expected in faults_of_views(manifest):
        expect(False, field, found, expected)
    for view in manifest.sizes:
        _check_schedule(seen_as(manifest, view))
        _check_pairs(("grid", view.grid), ("tiles", view.tiles))
    check_signatures(manifest)
    check_tiles(manifest)
    _check_files(manifest)
    from lmmprune.compiler.bundle.video_rules import check_video  # which uses the words below

    check_video(manifest)


def _check_words(manifest: Content) -> None:
    for field in ("model", "family", "target", "created"):
        _check_name(field, getattr(manifest, field))
    one_of("positions", manifest.positions, ("contiguous", "original"))
    one_of("llm_positions", manifest.llm_positions, ("contiguous", "original"))
    one_of("weights", manifest.weights, ("checkpoint", "dummy"))
    for field, source in (("source", manifest.source), ("adapter", manifest.adapter)):
        if source is not None:
            one_of(f"{field}.kind", source.kind, ("alias", "hub", "directory"))
            _check_name(f"{field}.name", source.name)
            for part in ("revision", "digest"):
                if getattr(source, part) is not None:
                    _check_name(f"{field}.{part}", getattr(source, part))
    one_of("precision.dtype", manifest.precision.dtype, tuple(VALUE_BYTES))
    one_of("precision.int8", manifest.precision.int8, (None, "u8s8", "s8s8", "u8s8-dynamic", "s8-weights"))
    if manifest.precision.int4 is not None:
        one_of("precision.int4.group", manifest.precision.int4.group, (32, 64, 128))
        one_of("precision.int4.method", manifest.precision.int4.method, ("rtn", "gptq", "checkpoint"))
    if (carried := manifest.precision.carried) is not None:
        one_of("precision.carried.method", carried.method, ("awq", "gptq", "compressed-tensors"))
        one_of("precision.carried.bits", carried.bits, (4, 8))
        kinds = (manifest.precision.int8, manifest.precision.int4 is not None)
        expect(kinds == ((None, True) if carried.bits == 4 else ("s8-weights", False)), "precision", kinds, "its bits")
    if manifest.method is not None:
        _check_name("method", manifest.method)
    for field in ("parameters", "generation", "tools", "flops"):
        for name in getattr(manifest, field):
            _check_name(f"a key of {field}", name)
    for name, value in manifest.tools.items():
        _check_name(f"tools.{name}", value)
    for field in ("parameters", "generation"):
        _check_texts(field, getattr(manifest, field))
    _check_texts("precision.calibration", manifest.precision.calibration)


def _check_numbers(manifest: Content) -> None:
    for field in ("max_positions", "image_tokens", "opset"):
        bounded(getattr(manifest, field), field, 1, _COUNT)
    if manifest.requested_tokens is not None:
        bounded(manifest.requested_tokens, "requested_tokens", 1, _COUNT)
    bounded(manifest.prefix, "prefix", 0, _COUNT)
    bounded(manifest.images, "images", 1, MOST_IMAGES)
    alone = manifest.images == 1 or not (manifest.buckets or manifest.decoder_sites)
    expect(alone, "images", manifest.images, "1 with buckets, and with cuts between the decoder's layers")
    together = manifest.images > 1 and not (manifest.tiles or manifest.selection) and manifest.kept is not None
    ends = manifest.video is not None and manifest.video.newline
    whole = (manifest.tokens_before - ends) % manifest.images == 0
    expect(not manifest.joint or (together and whole), "joint", manifest.joint, "several pictures that share N evenly")
    if manifest.batch is not None:
        bounded(manifest.batch.rows, "batch.rows", 2, MOST_ROWS)
        bounded(manifest.batch.padding, "batch.padding", 1, _COUNT)
        one = manifest.images == 1 and not (manifest.buckets or manifest.tiles or manifest.tile_grids)
        expect(one, "batch.rows", manifest.batch.rows, "no batch with several pictures, buckets or tiles")
        inside = not manifest.decoder_sites or manifest.llm_positions == "original"
        expect(inside, "llm_positions", manifest.llm_positions, "'original' with a batch and cuts in the decoder")
        text = sum(stage.text_removed for stage in manifest.schedule)
        expect(not text, "schedule", text, "no words removed in a batch")
    if (carried := manifest.precision.carried) is not None and carried.group is not None:
        bounded(carried.group, "precision.carried.group", 1, _COUNT)
    average = manifest.average_tokens
    expect(0 < average <= _COUNT, "average_tokens", average, "a positive number")
    _check_pairs(("grid", manifest.grid), ("tiles", manifest.tiles))
    for part, row in manifest.flops.items():
        expect(set(row) == _FLOPS, f"flops.{part}", sorted(row), "'before' and 'after'")
        for name, flops in row.items():
            expect(math.isfinite(flops) and flops >= 0, f"flops.{part}.{name}", flops, "a number from 0 on")
    if (loss := manifest.loss) is not None:
        bounded(loss.samples, "loss.samples", 1, _COUNT)
        bounded(loss.same_first, "loss.same_first", 0, loss.samples)
        expect(math.isfinite(loss.kl) and loss.kl >= 0, "loss.kl", loss.kl, "a number from 0 on")
        _check_name("loss.source", loss.source)
    bounded(len(manifest.cache.length_offsets), "the number of cache.length_offsets", 1, 2**12)
    for field in ("kv_heads", "head_dim"):
        bounded(getattr(manifest.cache, field), f"cache.{field}", 1, 2**20)
    if manifest.cache.capacity is not None:
        bounded(manifest.cache.capacity, "cache.capacity", 1, _COUNT)
    for place, offset in enumerate(manifest.cache.length_offsets):
        # A layer of a fixed cache has room for one token at least.
        bounded(offset, f"cache.length_offsets[{place}]", 1 - (manifest.cache.capacity or _COUNT), 0)


def _check_pairs(*fields: tuple[str, tuple[int, int] | None]) -> None:
    for field, pair in fields:
        for number in pair or ():
            bounded(number, field, 1, 2**16)


def _check_prompt(manifest: Content) -> None:
    prompt = manifest.prompt
    for part in (prompt.image_token, "{prompt}"):
        found = prompt.template.count(part) if part else 0
        expect(found == 1, "prompt.template", prompt.template, f"{part!r} in it once")
    bounded(prompt.image_token_id, "prompt.image_token_id", 0, _COUNT)
    for field in ("unit", "inline"):
        text = getattr(prompt, field)
        if (manifest.images > 1 and manifest.video is None) or text:
            expect(text.count(prompt.image_token) == 1, f"prompt.{field}", text, f"{prompt.image_token!r} in it once")
        bounded(len(text), f"the length of prompt.{field}", 0, _TEXT)
    expect(prompt.template.count(prompt.unit) == 1 or not prompt.unit, "prompt.unit", prompt.unit, "the template's")
    expect("{prompt}" not in prompt.unit + prompt.inline, "prompt.unit", prompt.unit, "no '{prompt}' in it or inline")
    held = prompt.image_token not in prompt.bare and prompt.bare.count("{prompt}") == 1
    expect(held or not (prompt.bare or prompt.unit), "prompt.bare", prompt.bare, "'{prompt}' in it once, no picture")
    bounded(len(prompt.bare), "the length of prompt.bare", 0, _TEXT)
    for place, token in enumerate(prompt.eos_token_ids):
        bounded(token, f"prompt.eos_token_ids[{place}]", 0, _COUNT)
    for field in ("strip", "answer_strip"):
        one_of(f"prompt.{field}", getattr(prompt, field), ("", "both", "left", "right"))
    bounded(len(prompt.turn), "the length of prompt.turn", 0, _TEXT)
    places = [prompt.turn.find(part) for part in ("{answer}", "{prompt}")]
    once = max(map(prompt.turn.count, ("{answer}", "{prompt}"))) == 1 and -1 < places[0] < places[1]
    expect(once or not prompt.turn, "prompt.turn", prompt.turn, "'{answer}' and, behind it, '{prompt}' in it once")
    if prompt.pictured:
        held = all(prompt.pictured.count(part) == 1 for part in ("{answer}", "{prompt}", prompt.unit or "{answer}"))
        held = held and prompt.pictured.index("{answer}") < prompt.pictured.index("{prompt}")
        expect(held, "prompt.pictured", prompt.pictured, "'{answer}', the unit and '{prompt}' in it once")
    bounded(len(prompt.pictured), "the length of prompt.pictured", 0, _TEXT)
    for field in _TEMPLATES:
        bounded(len(getattr(prompt, field)), f"the length of prompt.{field}", 1, _TEXT)
    _check_texts("prompt.origin", prompt.origin)


def _check_schedule(manifest: Content) -> None:
    tokens = manifest.tokens_before
    for place, stage in enumerate(manifest.schedule):
        field = f"schedule[{place}]"
        expect(bool(_SITE.fullmatch(stage.site)), f"{field}.site", stage.site, "vision_layer_L, vision_output, ...")
        bounded(stage.tokens_in, f"{field}.tokens_in", 1, _COUNT)
        expect(stage.tokens_in == tokens, f"{field}.tokens_in", stage.tokens_in, f"{tokens}, which come there")
        bounded(stage.tokens_out, f"{field}.tokens_out", 1, stage.tokens_in)
        bounded(stage.text_removed, f"{field}.text_removed", 0, _COUNT)
        tokens = stage.tokens_out
    bounded(manifest.image_tokens, "image_tokens", 1, manifest.tokens_before)
    selects = manifest.selection is not None
    ahead = [s.tokens_out for s in manifest.schedule if not s.in_decoder or (selects and s.before_layers)]
    expect(not selects or any(s.before_layers for s in manifest.schedule), "selection", "a graph", "a site for it")
    if ahead:
        expect(manifest.image_tokens == ahead[-1], "image_tokens", manifest.image_tokens, f"{ahead[-1]}, as scheduled")
    counts = [bucket.tokens for bucket in manifest.buckets]
    expect(counts == sorted(set(counts)), "buckets", counts, "token counts in ascending order")
    for place, count in enumerate(counts):
        bounded(count, f"buckets[{place}].tokens", 1, manifest.tokens_before)


def _check_graph(component: str, graph: Graph) -> None:
    _check_name(f"{component}.file", graph.file)
    for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        field = f"{component}.{side}"
        expect(bool(tensors), field, [], "at least one")
        names = [tensor.name for tensor in tensors]
        expect(len(set(names)) == len(names), field, names, "names of which none comes twice")
        for tensor in tensors:
            _check_tensor(f"{field} '{shortened(tensor.name)[1:-1]}'", tensor)


def _check_tensor(field: str, tensor: Tensor) -> None:
    _check_name(field, tensor.name)
    one_of(f"{field}.dtype", tensor.dtype, tuple(sorted(_DTYPES)))
    bounded(len(tensor.shape), f"the rank of {field}", 0, _RANK)
    for dim in tensor.shape:
        if isinstance(dim, str):
            _check_name(f"{field}.shape", dim)
        else:
            bounded(dim, f"{field}.shape", 1, _COUNT)


def _check_files(manifest: Content) -> None:
    for name, entry in manifest.files.items():
        _check_name("a name in files", name)
        bounded(entry.bytes, f"files '{name}'.bytes", 0, _SIZE)
        expect(bool(_SHA256.fullmatch(entry.sha256)), f"files '{name}'.sha256", entry.sha256, "64 hexadecimal digits")


def _check_name(field: str, name: str) -> None:
    held = 0 < len(name) <= _NAME and name.isprintable()
    expect(held, field, name, f"1 to {_NAME} letters without control characters")


def _check_texts(field: str, value: object) -> None:
    """Refuse control characters in all texts of plain data."""
    for text in _texts(value):
        expect(text.isprintable() and len(text) <= _TEXT, field, text, "texts without control characters")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from (name, *_texts(one))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
