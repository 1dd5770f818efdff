"""The rows, and the table of their times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

Times = dict[str, dict[str, list[float]]]
"""Row -> step -> milliseconds, one per round."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A runtime with what it is given.

    Attributes:
        group: Precision of the weights; rows of one group are compared.
        name: For people.
        kind: Of ``workers.KINDS``.
        given: Precision of our bundle, bits of NNCF's, or llama.cpp's name of a type.
    """

    group: str
    name: str
    kind: str
    given: str


ROWS = (
    Row(group="float", name="lmmprune, ort-cpu", kind="onnxruntime", given="float32"),
    Row(group="float", name="lmmprune, openvino-cpu", kind="openvino", given="float32"),
    Row(group="float", name="lmmprune --dtype bfloat16, openvino-cpu", kind="openvino", given="bfloat16"),
    Row(group="float", name="OpenVINO, stateful, bfloat16", kind="openvino-stateful", given="16"),
    Row(group="float", name="transformers, float32", kind="transformers", given=""),
    Row(group="float", name="transformers, bfloat16", kind="transformers-bf16", given=""),
    Row(group="8 bits", name="lmmprune --int8, ort-cpu", kind="onnxruntime", given="int8"),
    Row(group="8 bits", name="lmmprune --int8, openvino-cpu", kind="openvino", given="int8"),
    Row(group="8 bits", name="OpenVINO, stateful, NNCF INT8", kind="openvino-stateful", given="8"),
    Row(group="8 bits", name="llama.cpp, Q8_0", kind="llama.cpp", given="Q8_0"),
    Row(group="4 bits", name="lmmprune --int4, ort-cpu", kind="onnxruntime", given="int4"),
    Row(group="4 bits", name="lmmprune --int4, openvino-cpu", kind="openvino", given="int4"),
    Row(group="4 bits", name="OpenVINO, stateful, NNCF INT4", kind="openvino-stateful", given="4"),
    Row(group="4 bits", name="llama.cpp, Q4_K_M", kind="llama.cpp", given="Q4_K_M"),
)
REFERENCE = "lmmprune --int8, ort-cpu"


def report(times: Times, loaded: Mapping[str, float]) -> str:
    """Return Markdown: medians with their spread, and how each stands to the reference within the rounds."""
    steps = list(next(iter(times.values())))
    names = [text for step in steps for text in (f"{step}, ms", f"to {REFERENCE}")]
    lines = [f"| weights | runtime | {' | '.join(names)} | loads in s |", f"|{'---|' * (len(names) + 3)}"]
    for row in ROWS:
        if row.name not in times:
            continue
        cells = []
        for step in steps:
            own, base = times[row.name][step], times[REFERENCE][step]
            ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
            cells += [f"{statistics.median(own):.1f} ({min(own):.1f}-{max(own):.1f})", f"{ratio:.2f}"]
        lines.append(f"| {row.group} | {row.name} | {' | '.join(cells)} | {loaded[row.name]:.1f} |")
    return "\n".join(lines)
