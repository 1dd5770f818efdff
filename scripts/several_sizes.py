"""What further sizes of pictures behind one decoder cost: bytes of a bundle of four sizes against those of one.

python scripts/several_sizes.py -o docs/results/several_sizes

The tower is Qwen2.5-VL-3B's at its own widths, with made-up values. One decoder layer of 36: with all of them the ratio
would be nearer to 1.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import results

from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Int8, Ratio
from lmmprune.units import human_bytes

MODEL = "qwen2.5-vl-3b"
# Height and width: the largest first, which is the bundle of one size.
SIZES = ((672, 896), (896, 672), (448, 448), (560, 560))
PRECISIONS: dict[str, dict[str, Any]] = {
    "float16": {"target": "tensorrt-rtx", "dtype": "float16"},
    "INT8 weights, float32": {"int8": Int8(weights_only=True)},
}


def measure(sizes: tuple[tuple[int, int], ...], folder: Path, **precision: Any) -> dict[str, Any]:
    """Export with some sizes; return bytes of all files, and of those that only further sizes need."""
    report = export(
        Request(
            model=MODEL,
            weights="dummy",
            layers=1,
            output=folder / "out",
            tokens=Ratio(0.5),
            image_size=sizes,
            force=True,
            **precision,
        )
    )
    files = {name: entry.bytes for name, entry in report.manifest.files.items()}
    further = {name: size for name, size in files.items() if name.startswith("vision_")}
    return {"bytes": sum(files.values()), "further": further, "seconds": round(report.seconds, 1)}


def main() -> None:
    """Export, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    lines = ["| weights | one size | four sizes | ratio | graphs and constants |", "|---|--:|--:|--:|--:|"]
    for name, precision in PRECISIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            one, four = (measure(sizes, Path(folder), **precision) for sizes in (SIZES[:1], SIZES))
        ratio = four["bytes"] / one["bytes"]
        rows.append({"weights": name, "one": one, "four": four, "ratio": ratio})
        cells = [name, human_bytes(one["bytes"]), human_bytes(four["bytes"]), f"{ratio:.4f}"]
        lines.append(f"| {' | '.join([*cells, human_bytes(sum(four['further'].values()))])} |")
    named = ", ".join(f"{height} x {width}" for height, width in SIZES)
    text = "\n".join([*lines, "", f"Sizes: {named}; `{MODEL}`, 1 decoder layer, `--ratio 0.5`."])
    results.write(arguments.output, {"model": MODEL, "sizes": SIZES, "rows": rows}, text)


if __name__ == "__main__":
    main()
