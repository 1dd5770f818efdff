"""A server under load loses nothing, answers right throughout, and its memory doesn't grow."""

from __future__ import annotations

import sys
from pathlib import Path

import runtime_fixtures as fx
import serve_fixtures as sf

import lmmprune


def test_load_with_broken_requests(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    try:
        import serve_load
    finally:
        sys.path.pop(0)
    made = sf.make_bundles(tmp_path)
    files = [fx.save_picture(tmp_path / f"{n}.png", n, n + 3).read_bytes() for n in range(3)]
    with lmmprune.load(made / "pruned") as model:
        right = serve_load.right_answers(model, files, ["hi?", "ho?"])
    assert len(set(right.values())) == 6
    broken = {f"{kind}: as expected": 5 for kind in serve_load.BROKEN}
    with serve_load.serving(made / "pruned", "--threads", "1") as (host, port, process):
        memory = []
        for _ in range(3):
            ends = serve_load.put_load((host, port), right, requests=200, clients=16)
            assert ends == {**broken, "right": 180}
            memory.append(process.memory_info().rss)
    # A leaked picture, answer or connection per request would be megabytes.
    assert memory[-1] - memory[0] < 16 * 2**20, memory
