"""ONNX Runtime's attention with a cache says what the formula says, in place and in memory of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from decoders import IMAGE, Cache, SmallDecoder, cache_names, feeds, grown
from exports import exported_again
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmmprune.compiler.backends.onnxruntime import OrtSession
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.runtime import kv_cache
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.passes.graph.count_flops import count_flops
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.specialize import specialize
from lmmprune.passes.lower.group_query import GroupQuery

# The kernel wants heads whose width is a multiple of 8.
DECODERS = {
    heads: SmallDecoder(layers=2, heads=heads[0], kv_heads=heads[1], width=8) for heads in ((4, 4), (4, 2), (6, 1))
}
TEXT = [4, 5, *[IMAGE] * 6, 7, 8, 9]


def joined(decoder: SmallDecoder, capacity: int | None = None) -> ir.Model:
    model = decoder.graph()
    past, _ = cache_names(decoder.layers)
    GroupQuery(past=tuple(past), removed=(0,) * decoder.layers, capacity=capacity)(model)
    return model


def load(model: ir.Model) -> ort.InferenceSession:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize("heads", DECODERS)
@given(begin=st.integers(1, len(TEXT)), chunk=st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_a_prompt_in_pieces_and_steps_are_the_formulas(
    heads: tuple[int, int], begin: int, chunk: int, seed: int
) -> None:
    decoder = DECODERS[heads]
    session = SESSIONS.setdefault(heads, load(joined(decoder)))
    ids = TEXT + np.random.default_rng(seed).integers(4, 20, 3).tolist()
    features, cache = decoder.features(6), decoder.no_cache()
    expected: Cache = decoder.no_cache()
    ends = [begin, *range(begin + chunk, len(ids), chunk), len(ids)]
    start = 0
    for end in ends:
        if end == start:
            continue
        # Placeholders count from the first feature in each run: those of later pieces are words here.
        piece = ids[start:end] if start == 0 else [4 if token == IMAGE else token for token in ids[start:end]]
        positions = np.arange(start, end)
        found = run(session, {**feeds(decoder, piece, positions, features, cache), "cache_length": np.array([start])})
        logits, expected = decoder.forward(piece, positions, features, expected)
        np.testing.assert_allclose(found["logits"][0, 0], logits, rtol=1e-4, atol=1e-5)
        cache, start = grown(decoder, found), end
        for pair, wanted in zip(cache, expected, strict=True):
            for array, other in zip(pair, wanted, strict=True):
                np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5)


SESSIONS: dict[tuple[int, int], ort.InferenceSession] = {}


@pytest.mark.parametrize("capacity", [None, 16])
def test_past_and_present_may_be_the_same_memory(capacity: int | None) -> None:
    decoder = DECODERS[4, 2]
    session, room = load(joined(decoder, capacity)), capacity or 21
    pasts, presents = ([name for pair in names for name in pair] for names in cache_names(decoder.layers))
    shape = (1, decoder.kv_heads, room, decoder.width)
    memory = {name: np.full(shape, 7, np.float32) for name in pasts}  # what lies behind the tokens is never looked at
    features, past = decoder.features(6), decoder.no_cache()
    begin = 0
    for piece in (TEXT, [10, 11], [12], [13]):
        positions = np.arange(begin, begin + len(piece))
        given = feeds(decoder, piece, positions, features, decoder.no_cache()) | {"cache_length": np.array([begin])}
        binding = session.io_binding()
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in memory.items()}
        for name, array in given.items():
            binding.bind_ortvalue_input(name, values.get(name) or ort.OrtValue.ortvalue_from_numpy(array))
        binding.bind_output("logits")
        for into, out in zip(pasts, presents, strict=True):
            binding.bind_ortvalue_output(out, values[into])
        session.run_with_iobinding(binding)
        logits, past = decoder.forward(piece, positions, features, past)
        np.testing.assert_allclose(binding.get_outputs()[0].numpy()[0, 0], logits, rtol=1e-4, atol=1e-5)
        begin += len(piece)
    for pair, names in zip(past, cache_names(decoder.layers)[0], strict=True):
        for array, name in zip(pair, names, strict=True):
            np.testing.assert_allclose(memory[name][0, :, :begin], array, rtol=1e-4, atol=1e-5)
            assert (memory[name][0, :, begin:] == 7).all()


def less(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "LessOrEqual").op_type = "Less"


def turned(model: ir.Model) -> None:
    compared = next(node for node in model.graph if node.op_type == "LessOrEqual")
    rows, columns = compared.inputs
    compared.replace_input_with(0, columns)
    compared.replace_input_with(1, rows)


def from_one(model: ir.Model) -> None:
    columns = next(node for node in model.graph if node.outputs[0].name == "columns")
    columns.replace_input_with(0, columns.inputs[2])


def elsewhere(model: ir.Model) -> None:
    rows = next(node for node in model.graph if node.outputs[0].name == "row_places")
    rows.replace_input_with(1, next(node for node in model.graph if node.outputs[0].name == "len").outputs[0])


def read_twice(model: ir.Model) -> None:
    join = next(node for node in model.graph if node.op_type == "Concat")
    model.graph.append(ir.node("Neg", [join.outputs[0]]))


def of_a_cache_itself(model: ir.Model) -> None:
    attention = next(node for node in model.graph if node.op_type == "Attention")
    attention.resize_inputs(6)
    attention.replace_input_with(4, model.graph.inputs[3])


def half(model: ir.Model) -> None:
    for value in model.graph.inputs[3:]:
        value.dtype = ir.DataType.FLOAT16


def soft(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "Attention").attributes["softcap"] = ir.AttrFloat32(
        "softcap", 5
    )


def of_more_than_its_length(model: ir.Model) -> None:
    next(node for node in model.graph if node.outputs[0].name == "past1").attributes["start"] = ir.AttrInt64("start", 1)


FAULTS = {
    less: "the mask of 'node_mixed0' is another",
    turned: "the mask of 'node_mixed0' is another",
    from_one: "the mask of 'node_mixed0' is another",
    elsewhere: "the mask of 'node_mixed0' is another",
    read_twice: "'present.0.key' is read by Attention, Neg, expected one attention alone",
    of_a_cache_itself: "'node_mixed0' joins a cache itself",
    soft: "'node_mixed0' has a softcap",
    of_more_than_its_length: r"'node_past1' reads more of the shape of 'past_key_values.0.key' than its length",
    half: "'node_mixed0' isn't in float32",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_another_attention_stays_as_it_is(fault: object) -> None:
    decoder = DECODERS[4, 2]
    model = decoder.graph()
    fault(model)  # type: ignore[operator]  # a function of a model
    before = [str(node) for node in model.graph]
    done = GroupQuery(past=tuple(cache_names(2)[0]), removed=(0, 0))
    assert not done.suits(model)
    with pytest.raises(Refused, match=FAULTS[fault]):
        done(model)
    assert [str(node) for node in model.graph] == before


def test_narrow_heads_stay_as_they_are() -> None:
    decoder = SmallDecoder(layers=2, heads=4, kv_heads=2, width=4)
    with pytest.raises(Refused, match=r"4 heads on 2, of widths \[4\]: expected one width, a multiple of 8"):
        joined(decoder)


def test_a_cache_that_is_read_by_others_is_broken() -> None:
    decoder = DECODERS[4, 2]
    model = joined(decoder)
    model.graph.append(ir.node("Shape", [model.graph.inputs[3]], name="late"))
    with pytest.raises(Broken, match=r"'past_key_values\.0\.key' is read by GroupQueryAttention, Shape"):
        GroupQuery(past=tuple(cache_names(2)[0]), removed=(0, 0)).ensures(model)


def test_operations_are_counted_as_before() -> None:
    decoder = DECODERS[4, 2]
    sizes = {"seq": 11, "past": 5, "image_tokens": 6}
    counted = [count_flops(specialize(model, **sizes)) for model in (decoder.graph(), joined(decoder))]
    assert counted[0] == counted[1] > 0


def test_a_run_time_makes_room_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "SPARE", 2)
    picture = Image.effect_noise((96, 96), 90).convert("RGB")
    options = {"ratio": 0.5, "method": "fastv"}
    bundle = Bundle.open(exported_again(**options)[0])
    assert (bundle.manifest.cache.capacity, bundle.manifest.cache.length) == (None, "cache_length")
    fixed = Runtime(Bundle.open(exported_again(**options, static_cache=250)[0]))

    def tokens(runtime: Runtime) -> list[int]:
        answer = runtime.answer(picture, "what is this?", 60, stop_at_eos=False)
        _ = answer.text
        return answer.tokens

    expected, rooms, taken = tokens(fixed), list[int](), kv_cache.KvCache.take

    def watch(self: kv_cache.KvCache[object], outputs: dict[str, object], count: int) -> None:
        rooms.append(self._room)
        taken(self, outputs, count)

    monkeypatch.setattr(kv_cache.KvCache, "take", lambda self, outputs, tokens: watch(self, outputs, tokens))
    assert tokens(Runtime(bundle)) == expected
    assert len({*rooms}) >= 3, "it never had to grow"
    # Where every output has memory of its own, the cache may have room or not.
    apart = {name: OrtSession(bundle.file(graph.file)) for name, graph in bundle.manifest.graphs.items()}
    assert tokens(Runtime(bundle, sessions=apart)) == expected
    rooms.clear()
    assert tokens(Runtime(bundle, sessions=apart, in_place=False)) == expected
    assert {*rooms} == {0}
