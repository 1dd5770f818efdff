"""Damaged manifests, records of engines and preprocessing steps: as they are, and sealed again as if they were ours."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from faults.bundles import copied, reading, whole
from faults.command_line import call, fault_of
from faults.damage import TEXTS, damaged, entry, write_manifest
from faults.tally import Row, Rows, while_time_lasts

Try = Callable[[random.Random, Path], tuple[str, str, bool]]
"""Damages a bundle; returns the kind, what was done, and whether reading it must be refused."""


def run(seconds: float, seed: int) -> list[Row]:
    """Damage one place at a time, and let the commands read the bundle."""
    import runtime_fixtures

    rng, rows = random.Random(seed), Rows("manifests")
    with tempfile.TemporaryDirectory() as folder:
        settings = {"repetition_penalty": 1.2, "suppress_tokens": [5], "sequence_bias": [[[7], 0.5]]}
        generation = {"applied": settings, "ignored": {"top_k": 3}}
        bundles = whole(Path(folder), generation=generation)
        picture = runtime_fixtures.save_picture(Path(folder) / "picture.png", 3)
        _add_engines(bundles[0])
        bundle = Path(folder) / "bundle"
        for number in while_time_lasts(seconds, at_least=40):
            attempt = _TRIES[number % len(_TRIES)]
            which = copied(bundles[:1] if attempt is _engines else bundles, rng, bundle)
            kind, done, must_refuse = attempt(rng, bundle)
            words = reading(rng, bundle, picture, which)
            if kind.startswith("engine.json"):
                words = ["inspect", bundle]
            fault = fault_of(called := call(*words), must_refuse=must_refuse)
            rows[kind].count(fault, f"{bundles[which].name}: {done}: {words[0]}: {called.code} {called.err[-200:]}")
    return rows.list()


def _edited(rng: random.Random, bundle: Path) -> tuple[str, str, bool]:
    raw = json.loads((bundle / "manifest.json").read_text())
    other, done = damaged(raw, rng)
    (bundle / "manifest.json").write_text(json.dumps(other))
    return "manifest edited", done, other != raw


def _sealed(rng: random.Random, bundle: Path) -> tuple[str, str, bool]:
    raw = json.loads((bundle / "manifest.json").read_text())
    raw.pop("seal")
    other, done = damaged(raw, rng)
    write_manifest(bundle, other, seal=True)
    return "manifest edited and sealed again", done, False


def _text(rng: random.Random, bundle: Path) -> tuple[str, str, bool]:
    text = rng.choice(TEXTS)
    file = rng.choice(("manifest.json", "preprocessor.json"))
    (bundle / file).write_text(text)
    if file != "manifest.json":
        _list_again(bundle, file)
    return f"{file} is no record", text[:20], file == "manifest.json"


def _steps(rng: random.Random, bundle: Path) -> tuple[str, str, bool]:
    file = bundle / "preprocessor.json"
    other, done = damaged({"steps": json.loads(file.read_text())}, rng)
    file.write_text(json.dumps(other.get("steps")))
    _list_again(bundle, "preprocessor.json")
    return "preprocessor.json edited, manifest sealed again", done, False


def _engines(rng: random.Random, bundle: Path) -> tuple[str, str, bool]:
    from lmmprune.compiler.bundle.seal import sealed

    (file,) = bundle.glob("engines/*/engine.json")
    raw = json.loads(file.read_text())
    again = rng.random() < 0.7
    seal = raw.pop("seal")
    other, done = damaged(raw, rng)
    file.write_text(json.dumps(sealed(other) if again else {**other, "seal": seal}))
    return f"engine.json edited{' and sealed again' * again}", done, not again and other != raw


def _list_again(bundle: Path, name: str) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    raw["files"][name] = entry((bundle / name).read_bytes())
    write_manifest(bundle, raw, seal=True)


def _add_engines(bundle: Path) -> None:
    from lmmprune.compiler.bundle.engines import EngineRecord, write_engine

    record = EngineRecord(
        component="vision",
        target="tensorrt-rtx",
        arch="sm89",
        file="vision.engine",
        bytes=0,
        sha256="",
        source={},
        builder="tensorrt_rtx",
        version="1.7.1",
        seconds=1.0,
        dtype="float32",
        int8=None,
        profiles={"all": {"pixel_values": [[1, 3, 8, 8]] * 3}},
        decomposed_attention=0,
    )
    write_engine(bundle / "engines" / "tensorrt-rtx-sm89", b"plan", record)


_TRIES: tuple[Try, ...] = (_edited, _sealed, _sealed, _sealed, _text, _steps, _engines)
