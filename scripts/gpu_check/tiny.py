"""Stages ``*-tiny``: the four variants of tiny-llava: built, compared with ONNX Runtime on the CPU, timed, examined."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from gpu_check.backends import built, bundle_of, usable, versions
from gpu_check.settings import Save, Settings, variant_name
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import TINY_LLAVA, load_questions
from lmmprune.compiler.export.values import Int8, Ratio
from lmmprune.compiler.measure.bench import bench
from lmmprune.compiler.measure.evaluate import evaluate
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import LmmpruneError, TargetError
from lmmprune.models import tiny_llava

RATIO = 0.5
VARIANTS = ((0.0, False), (RATIO, False), (0.0, True), (RATIO, True))
_NEW_TOKENS = 4


def check(settings: Settings, save: Save, backend: str) -> dict[str, Any]:
    """Return, for every variant, its engines, its parity and its accuracy or why there are none; and one benchmark.

    Raises:
        LmmpruneError: This machine can't run the back end, or none of the variants ran.
    """
    target = usable(backend)
    data: dict[str, Any] = {"target": target.name, "versions": versions(target), "variants": {}}
    bundles = []
    for ratio, int8 in VARIANTS:
        name = variant_name(ratio, int8=int8)
        entry: dict[str, Any] = {}
        data["variants"][name] = entry
        try:
            bundle = bundle_of(
                settings.work / f"tiny-{target.name}-{name.replace(' + ', '-').replace(' ', '-')}",
                model=TINY_LLAVA,
                tokens=Ratio(ratio),
                int8=Int8() if int8 else None,
                target=target.name,
            )
            entry["engines"] = built(bundle, target)
            save(data)
            # A broken engine shows itself here.
            _ = Runtime(bundle).answer(load_image(_examples()[0][0]), "?", 1).text
            bundles.append(bundle)
            entry["parity"] = parity(bundle, 4 if settings.quick else 16)
            questions = load_questions(TINY_LLAVA)[: 40 if settings.quick else 400]
            entry["accuracy"] = evaluate(Runtime(bundle), questions, max_new_tokens=_NEW_TOKENS).overall.as_dict()
        except LmmpruneError as error:
            entry["reason"] = str(error)
        save(data)
    if not bundles:
        reasons = "; ".join(f"{name}: {entry['reason']}" for name, entry in data["variants"].items())
        raise TargetError(f"no variant ran: {reasons}")
    row = _examples()[0]
    paths = [bundle.path for bundle in bundles]
    report = bench(paths, row[0], row[1], rounds=settings.rounds, new_tokens=16, memory=False)
    data["bench"] = {
        "rows": {
            line.name: {metric: dataclasses.asdict(spread) for metric, spread in line.times.items()}
            for line in report.rows
        },
        "products": [dataclasses.asdict(product) for product in report.products],
    }
    return data


def parity(bundle: Bundle, count: int) -> dict[str, Any]:
    """Compare answers and kept patches with those of ONNX Runtime on the CPU, from the same graphs."""
    manifest = dataclasses.replace(bundle.manifest, target="ort-cpu")
    runtimes = (Runtime(bundle), Runtime(dataclasses.replace(bundle, manifest=manifest)))
    same_text = same_kept = 0
    examples = _examples()[:count]
    for picture, prompt in examples:
        image = load_image(picture)
        found, expected = (runtime.answer(image, prompt, _NEW_TOKENS) for runtime in runtimes)
        same_text += found.text == expected.text
        same_kept += np.array_equal(found.kept, expected.kept) if found.kept is not None else expected.kept is None
    return {"questions": len(examples), "same_answers": same_text, "same_kept_patches": same_kept}


def _examples() -> list[tuple[Any, str]]:
    from importlib.resources import files

    folder = files(tiny_llava) / "examples"
    rows = map(json.loads, (folder / "examples.jsonl").read_text(encoding="utf-8").splitlines())
    return [(folder / row["image"], row["prompt"]) for row in rows]
