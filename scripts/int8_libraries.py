"""INT8 by others, beside ours: onnxruntime.quantization, NVIDIA ModelOpt and neural-compressor on the same graphs.

python scripts/int8_libraries.py -o docs/int8_libraries --modelopt /tmp/modelopt/bin/python --inc /tmp/inc/bin/python

Each tool quantizes both float32 graphs of a bundle in a process of its own, on the same recorded calibration inputs.
Then, here: the error of the outputs on held-out samples (the metric of ``sensitivity.scan``), questions answered right,
latency in an interleaved run, and what our lint says. ModelOpt and neural-compressor want other versions of onnx and
onnxruntime than ours, so each has a virtual environment of its own (with click and numpy).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

PARTS = ("vision", "decoder")
_OURS = {"u8s8, SmoothQuant": ("u8s8", True), "u8s8": ("u8s8", False), "dynamic": ("u8s8-dynamic", False)}
# Name -> the scheme whose rules the lint applies.
TOOLS = {
    **{f"lmmprune {name}": scheme for name, (scheme, _) in _OURS.items()},
    "onnxruntime static": "u8s8",
    "onnxruntime static, weights' products only": "u8s8",
    "onnxruntime dynamic": "u8s8-dynamic",
    "onnxruntime dynamic, weights' products only": "u8s8-dynamic",
    "ModelOpt": "s8s8",
    "neural-compressor": "u8s8",
}


def feeds(work: Path, part: str) -> Iterator[dict[str, Any]]:
    """Yield the recorded inputs of a graph."""
    for file in sorted((work / "feeds").glob(f"{part}.*.npz")):
        with np.load(file) as stored:
            yield dict(stored)


def by_lmmprune(work: Path, folder: Path, name: str, done: Callable[[str, str], None]) -> None:
    """Quantize with ours."""
    import onnx_ir as ir

    from lmmprune.compiler.bundle import Bundle
    from lmmprune.compiler.calibration.data import load_calibration
    from lmmprune.compiler.canonical import Canonical
    from lmmprune.compiler.int8_plan import Int8Plan
    from lmmprune.compiler.quantize import quantize
    from lmmprune.models.source import resolve

    scheme, smooth = _OURS[name.removeprefix("lmmprune ")]
    setup = json.loads((work / "setup.json").read_text())
    source = resolve(setup["model"], weights=setup["weights"], layers=setup["layers"])
    data = None if "dynamic" in scheme else load_calibration(source, None, setup["samples"])
    bundle = Bundle.open(work / "float")
    graphs = Canonical(vision=ir.load(bundle.vision), decoder=ir.load(bundle.decoder))
    plan = Int8Plan(scheme=scheme, smooth=smooth)
    quantize(graphs, bundle.manifest, bundle.path, data, plan, lambda what, now, of: None, cache=folder / "cache")
    for part in PARTS:
        ir.save(getattr(graphs, part), folder / f"{part}.onnx", external_data=f"{part}.onnx.data")
        done(part, "")


def by_onnxruntime(work: Path, folder: Path, name: str, done: Callable[[str, str], None]) -> None:
    """Quantize with onnxruntime.quantization: QDQ, U8 x S8 per channel, min-max; or dynamic."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self, part: str) -> None:
            self._feeds = feeds(work, part)

        def get_next(self) -> Any:
            return next(self._feeds, None)

    setup = json.loads((work / "setup.json").read_text())
    for part in PARTS:
        path, note = work / "float" / f"{part}.onnx", ""
        common = {"per_channel": True, "weight_type": QuantType.QInt8, "use_external_data_format": setup["large"]}
        try:
            ready = folder / f"{part}.ready.onnx"
            quant_pre_process(path, ready, skip_optimization=True, save_as_external_data=setup["large"])
            path = ready
        except Exception as error:  # noqa: BLE001  # whatever the library raises is the result
            note = f"its pre-processing fails ({_line(error)}); "
        try:
            if "dynamic" in name:
                kinds = ["MatMul", "Gemm"] if "only" in name else None
                quantize_dynamic(path, folder / f"{part}.onnx", op_types_to_quantize=kinds, **common)
            else:
                only = "only" in name
                quantize_static(
                    path,
                    folder / f"{part}.onnx",
                    Reader(part),
                    quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QUInt8,
                    op_types_to_quantize=["MatMul", "Gemm", "Conv"] if only else None,
                    extra_options={"MatMulConstBOnly": True} if only else {},
                    **common,
                )
            done(part, note)
        except Exception as error:  # noqa: BLE001
            done(part, f"{note}fails: {_line(error)}")


def by_modelopt(work: Path, folder: Path, name: str, done: Callable[[str, str], None]) -> None:
    """Quantize with ModelOpt's ONNX PTQ: S8 x S8, max, the products only, floating point stays float32."""
    from modelopt.onnx.quantization import quantize
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self, part: str) -> None:
            self._part = part
            self.rewind()

        def get_next(self) -> Any:
            return next(self._feeds, None)

        def get_first(self) -> Any:
            return next(feeds(work, self._part))

        def rewind(self) -> None:
            self._feeds = feeds(work, self._part)

    setup = json.loads((work / "setup.json").read_text())
    for part in PARTS:
        copy = folder / "float"  # it writes beside its input
        shutil.copytree(work / "float", copy, dirs_exist_ok=True)
        try:
            quantize(
                str(copy / f"{part}.onnx"),
                quantize_mode="int8",
                calibration_data_reader=Reader(part),
                calibration_method="max",
                calibration_eps=["cpu"],
                op_types_to_quantize=["MatMul", "Gemm", "Conv"],
                high_precision_dtype="fp32",
                use_external_data_format=setup["large"],
                output_path=str(folder / f"{part}.onnx"),
                log_level="ERROR",
            )
            done(part, "" if (folder / f"{part}.onnx").exists() else "fails: wrote nothing")
        except (Exception, SystemExit) as error:  # noqa: BLE001
            done(part, f"fails: {_line(error)}")


def by_inc(work: Path, folder: Path, name: str, done: Callable[[str, str], None]) -> None:
    """Quantize with neural-compressor 2.x, the last one that reads ONNX."""
    from neural_compressor import PostTrainingQuantConfig, quantization

    class Loader:
        batch_size = 1

        def __init__(self, part: str) -> None:
            self._part = part

        def __iter__(self) -> Iterator[Any]:
            return ((row, 0) for row in feeds(work, self._part))

    for part in PARTS:
        try:
            config = PostTrainingQuantConfig(
                approach="static", quant_format="QDQ", calibration_sampling_size=[len(list(feeds(work, part)))]
            )
            fitted = quantization.fit(str(work / "float" / f"{part}.onnx"), config, calib_dataloader=Loader(part))
            if fitted is None:
                raise RuntimeError("fit() returned None, the reason is in its log")
            fitted.save(str(folder / f"{part}.onnx"))
            done(part, "")
        except (Exception, SystemExit) as error:  # noqa: BLE001
            done(part, f"fails: {_line(error)}")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    # ONNX Runtime puts the node with all its inputs before the reason.
    return f"{type(error).__name__}: {text.rpartition(', Error ')[2][:200]}"


def _peak_mb() -> float:
    """Return this process's own peak; ``ru_maxrss`` would count what its parent held before exec."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def work_on(name: str, work: Path, folder: Path) -> None:
    """Run one tool here and write what came of it."""
    run = next(f for key, f in _RUNS.items() if name.startswith(key))
    if run is by_inc:
        import neural_compressor  # noqa: F401
    if run is by_modelopt:
        import modelopt.onnx.quantization  # noqa: F401
    before, start = _peak_mb(), time.perf_counter()
    rows: dict[str, Any] = {}

    def done(part: str, note: str) -> None:
        rows[part] = {"note": note, "made": (folder / f"{part}.onnx").exists()}

    run(work, folder, name, done)
    result = {
        "parts": rows,
        "seconds": time.perf_counter() - start,
        "peak_mb": _peak_mb(),
        "peak_mb_before": before,
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


_RUNS: dict[str, Callable[..., None]] = {
    "lmmprune": by_lmmprune,
    "onnxruntime": by_onnxruntime,
    "ModelOpt": by_modelopt,
    "neural-compressor": by_inc,
}


def prepare(work: Path, setup: dict[str, Any], traced: Any) -> None:
    """Export the float bundle and record the inputs of both graphs."""
    from lmmprune.compiler.bundle import Bundle
    from lmmprune.compiler.calibration.data import load_calibration
    from lmmprune.compiler.calibration.feeds import SampleFeeds
    from lmmprune.compiler.calibration.observe import drive
    from lmmprune.compiler.export import Request, export
    from lmmprune.models.source import resolve

    (work / "feeds").mkdir(parents=True)
    (work / "setup.json").write_text(json.dumps(setup), encoding="utf-8")
    common = {"weights": setup["weights"], "layers": setup["layers"]}
    export(Request(model=setup["model"], output=work / "float", ratio=setup["ratio"], **common), traced=traced)
    bundle = Bundle.open(work / "float")
    data = load_calibration(resolve(setup["model"], **common), None, setup["samples"])
    recorded = SampleFeeds(bundle.manifest, bundle.path, data, bundle.vision)
    for part, samples in (("vision", recorded.vision()), ("decoder", recorded.decoder())):
        session = _session(getattr(bundle, part), None)
        names = [output.name for output in session.get_outputs()]
        count = 0

        def run(row: Any, part: str = part, session: Any = session, names: list[str] = names) -> dict[str, Any]:
            nonlocal count
            np.savez(work / "feeds" / f"{part}.{count:04d}.npz", **row)
            count += 1
            return dict(zip(names, session.run(names, dict(row)), strict=True))

        for sample in samples:
            drive(sample(), run)


def held_out(work: Path, setup: dict[str, Any]) -> Any:
    """Return samples that no tool was calibrated on: questions of the test set, or other photographs."""
    from lmmprune.compiler.bundle import Bundle
    from lmmprune.compiler.calibration.data import CalibrationSet, Sample, load_calibration
    from lmmprune.compiler.calibration.feeds import SampleFeeds
    from lmmprune.compiler.questions import load_questions
    from lmmprune.models.source import resolve

    if setup["model"] == "tiny-llava":
        asked = {question.picture: question for question in load_questions("tiny-llava")}
        rows = [Sample(image=q.load(), prompt=q.prompt, answer=q.answers[0]) for q in list(asked.values())[:32]]
    else:
        source = resolve(setup["model"], weights=setup["weights"], layers=setup["layers"])
        rows = list(load_calibration(source, None, 2 * setup["samples"]).samples)[setup["samples"] :]
        # The same tokens for all, whatever the synthetic weights would say.
        rows = [dataclasses.replace(sample, answer="a cat and a dog") for sample in rows]
    bundle = Bundle.open(work / "float")
    data = CalibrationSet(samples=rows, source="held-out", generic=False)
    return SampleFeeds(bundle.manifest, bundle.path, data, bundle.vision)


def _session(graph: Path, threads: int | None, *, optimized: bool = True) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def judge(graph: Path, samples: Any, exact: Any, scheme: str) -> dict[str, Any]:
    """Return error, findings of the lint, and products that stayed in floating point."""
    import onnx_ir as ir

    from lmmprune.compiler.sensitivity import _answers, _distance
    from lmmprune.passes.lint_qdq import lint_qdq

    model = ir.load(graph)
    products = [n for n in model.graph if n.op_type in {"MatMul", "Gemm", "Conv"} and n.inputs[1] is not None]
    left = [n for n in products if n.inputs[1].is_initializer() and len(n.inputs[1].shape or ()) >= 2]
    row: dict[str, Any] = {
        "bytes": sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*")),
        "float_weights": len(left),
        "findings": dict(collections.Counter(finding.rule for finding in lint_qdq(model, scheme))),
    }
    for optimized in (True, False):
        try:
            row["error"] = _distance(_answers(_session(graph, None, optimized=optimized), samples), exact)
            row["runs"] = optimized
            break
        except Exception as error:  # noqa: BLE001  # the runtime refuses another tool's graph: that is the result
            row["note"] = row.get("note", f"onnxruntime refuses it: {_line(error)}")
    return row


def time_all(graphs: dict[str, Path], feed: dict[str, Any], rounds: int, threads: int) -> dict[str, Any]:
    """Return median ms, quartiles, and the median of each round's ratio to float."""
    sessions = {name: _session(path, threads) for name, path in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 2):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feed)
            if turn >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    rows = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        ratio = statistics.median(a / b for a, b in zip(values, times["float32"], strict=True))
        rows[name] = {"ms": middle, "quartiles": [low, high], "ratio": ratio}
    return rows


def accuracy(work: Path, folder: Path, limit: int) -> float:
    """Put a tool's graphs into a copy of the bundle and ask it."""
    from lmmprune.compiler.bundle import Bundle
    from lmmprune.compiler.evaluate import evaluate
    from lmmprune.compiler.questions import load_questions
    from lmmprune.compiler.runtime import Runtime
    from lmmprune.compiler.write_bundle import write_bundle

    bundle = Bundle.open(work / "float")
    with write_bundle(folder / "bundle") as writer:
        for name in bundle.manifest.files:
            if not name.startswith(PARTS):
                shutil.copy(bundle.file(name), writer.path / name)
        for part in PARTS:
            for file in folder.glob(f"{part}.onnx*"):
                shutil.copy(file, writer.path / file.name)
        writer.finish(bundle.manifest)
    return evaluate(Runtime(Bundle.open(folder / "bundle")), load_questions("tiny-llava")[:limit]).overall.value


def measure(
    work: Path, setup: dict[str, Any], pythons: dict[str, str], *, limit: int, rounds: int, threads: int
) -> dict[str, Any]:
    """Run all tools on one model and judge their graphs."""
    from lmmprune.compiler.sensitivity import _answers

    test = held_out(work, setup)
    samples = {"vision": test.vision(), "decoder": test.decoder()}
    exact = {part: _answers(_session(work / "float" / f"{part}.onnx", None), samples[part]) for part in PARTS}
    tools: dict[str, Any] = {}
    graphs: dict[str, dict[str, Path]] = {part: {"float32": work / "float" / f"{part}.onnx"} for part in PARTS}
    for name, scheme in TOOLS.items():
        folder = work / "".join(c if c.isalnum() else "_" for c in name)
        folder.mkdir()
        python = next((path for key, path in pythons.items() if name.startswith(key)), sys.executable)
        if not python:
            tools[name] = {"note": "not installed in this run", "parts": {}}
            continue
        command = [
            python,
            str(Path(__file__).resolve()),
            "--worker",
            name,
            "--work",
            str(work),
            "--folder",
            str(folder),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # ourselves
        (folder / "log.txt").write_text(ran.stdout + ran.stderr, encoding="utf-8")
        if not (folder / "result.json").exists():
            last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
            tools[name] = {"note": f"stopped with code {ran.returncode}: {last[:200]}", "parts": {}}
            continue
        row = tools[name] = json.loads((folder / "result.json").read_text())
        for part, found in row["parts"].items():
            if not found["made"]:
                continue
            found |= judge(folder / f"{part}.onnx", samples[part], exact[part], scheme)
            if found.get("runs"):
                graphs[part][name] = folder / f"{part}.onnx"
        if setup["model"] == "tiny-llava" and all(found.get("runs") for found in row["parts"].values()):
            row["accuracy"] = accuracy(work, folder, limit)
        click.echo(f"{work.name}: {name}: {json.dumps(row)[:400]}")
    result: dict[str, Any] = {"setup": setup, "tools": tools, "latency": {}}
    recorded = {part: list(feeds(work, part)) for part in PARTS}
    for key, part, feed in (
        ("vision", "vision", recorded["vision"][0]),
        ("prefill", "decoder", recorded["decoder"][0]),
        ("decode step", "decoder", recorded["decoder"][-1]),
    ):
        # At full width not all sessions fit into memory at once: each tool beside float32 alone.
        plain = {"float32": graphs[part]["float32"]}
        groups = [graphs[part]] if not setup["large"] else [plain | {n: p} for n, p in graphs[part].items()]
        rows: dict[str, Any] = {}
        for group in groups:
            rows = time_all(group, feed, rounds, threads) | rows
        result["latency"][key] = rows
    if setup["model"] == "tiny-llava":
        folder = work / "plain"
        folder.mkdir()
        for part in PARTS:
            for file in (work / "float").glob(f"{part}.onnx*"):
                shutil.copy(file, folder)
        result["accuracy_float32"] = accuracy(work, folder, limit)
    return result


# Written after reading the committed numbers.
READING = (
    "## What this says",
    "",
    "* onnxruntime's and neural-compressor's static QDQ also put a pair behind every product (QLinearMatMul): "
    "about twice the error of ours without SmoothQuant in the decoder, and a slower decode step; their residual "
    "sums read quantized values, which our lint names.",
    "* onnxruntime's `quantize_dynamic`, told to take MatMul only, is as good as our dynamic scheme: the same "
    "error, the same latency, and sooner done. Left alone it takes the ONNX operator Attention for the one of "
    "com.microsoft and writes a graph that onnxruntime itself refuses; its shape inference before the "
    "quantization stops at Attention too. We keep ours for blocks that stay in float and for weights that are "
    "written one at a time.",
    "* ModelOpt's graphs are made for TensorRT: S8 pairs, and float weights left in the file for the builder to "
    "fold (hence 'stored', and the size). Its errors are close to ours without SmoothQuant; on a CPU its decoder "
    "is slower than float32, and onnxruntime 1.31 loads its vision graph only with the optimizer off. It also "
    "quantizes the products of scores where tokens are pruned. TensorRT itself was not run here.",
    "* neural-compressor 3.10 has no ONNX part any more; 2.6 wants NumPy 1, onnx 1.18 and setuptools below 80. It "
    "makes working graphs with the least memory, and also quantizes gathers, reshapes and transposes.",
    "* Ours is not best at everything. SmoothQuant takes longer and wins next to nothing in this model: the error "
    "in the encoder is a little smaller, in the decoder no smaller. Dynamic beats static in error and is not "
    "slower, but then onnxruntime's own is as good. neural-compressor needs less memory, and ModelOpt and "
    "onnxruntime less time.",
    "* Of 500 questions a share of 97 % has a 95 % interval of about 1.5 points to each side: no row is outside "
    "for sure; the lowest is onnxruntime's default, which quantizes nearly every operator.",
    "* Models above 2 GB: at LLaVA-7B's widths (two decoder layers, 3.9 GB, two samples; one run apart from "
    "these, on a busy machine) ours took 22 s and 5.1 GB at its peak (dynamic), 58 s and 5.4 GB (static, without "
    "SmoothQuant), pages of mapped files counted. The others have no row: ModelOpt and `quantize_dynamic` were "
    "stopped after 150 s at low priority, which says nothing of them; use --wide for a fair run. onnx, and so "
    "they, refuse external data with hard links.",
    "",
)


def markdown(title: str, cell: dict[str, Any]) -> list[str]:
    """Return the tables of one model."""
    lines = [f"## {title}", ""]
    lines += ["| tool | quantize, s | peak memory, MB (imports alone) | file, MB | right, % |", "|---|---|---|---|---|"]
    if "accuracy_float32" in cell:
        lines.append(f"| float32 | | | | {100 * cell['accuracy_float32']:.1f} |")
    for name, row in cell["tools"].items():
        if "seconds" not in row:
            lines.append(f"| {name} | {row['note']} | | | |")
            continue
        size = sum(part.get("bytes", 0) for part in row["parts"].values()) / 1e6
        right = f"{100 * row['accuracy']:.1f}" if "accuracy" in row else "-"
        lines.append(
            f"| {name} | {row['seconds']:.1f} | {row['peak_mb']:.0f} ({row['peak_mb_before']:.0f}) |"
            f" {size:.1f} | {right} |"
        )
    for part, keys in (("vision", ("vision",)), ("decoder", ("prefill", "decode step"))):
        heads = "".join(f" {key}: ms | {key}: of float32 |" for key in keys)
        lines += ["", f"{part.capitalize()} graph:", ""]
        lines += [f"| tool | output error | products in float |{heads} lint |", "|---" * (4 + 2 * len(keys)) + "|"]
        for name in ("float32", *cell["tools"]):
            row = {} if name == "float32" else cell["tools"][name]["parts"].get(part, {})
            times = [cell["latency"][key].get(name) for key in keys]
            if name != "float32" and "error" not in row:  # not made, or refused
                note = row.get("note") or cell["tools"][name].get("note", "")
                lines.append(f"| {name} | {note} |" + " |" * (2 + 2 * len(keys)))
                continue
            cells = "".join(
                f" {t['ms']:.2f} ({t['quartiles'][0]:.2f}-{t['quartiles'][1]:.2f}) | {t['ratio']:.2f} |"
                if t
                else " only with its optimizer off | - |"
                for t in times
            )
            said = ", ".join(f"{count} {rule}" for rule, count in row.get("findings", {}).items()) or "0"
            error = f"{row['error']:.4f}" if row else "0"
            lines.append(f"| {name} | {error} | {row.get('float_weights', 'all')} |{cells} {said} |")
    notes = [
        f"* {name}, {part}: {text.removesuffix('; ')}"
        for name, row in cell["tools"].items()
        for part, found in row["parts"].items()
        if (text := found["note"])
    ]
    return [*lines, "", "What went wrong on the way:", "", *notes, ""]


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/int8_libraries"), show_default=True)
@click.option("--modelopt", "modelopt_python", default="", help="Python of the environment with nvidia-modelopt.")
@click.option("--inc", "inc_python", default="", help="Python of the environment with neural-compressor 2.x.")
@click.option("--questions", type=int, default=500, show_default=True)
@click.option("--rounds", type=int, default=200, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="For latency.")
@click.option("--wide", is_flag=True, help="Also LLaVA-7B's widths, two decoder layers (an hour, 20 GB).")
@click.option("--worker", hidden=True)
@click.option("--work", type=click.Path(path_type=Path), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(
    output: Path,
    modelopt_python: str,
    inc_python: str,
    questions: int,
    rounds: int,
    threads: int,
    wide: bool,
    worker: str | None,
    work: Path,
    folder: Path,
) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    if worker:
        work_on(worker, work, folder)
        return
    from lmmprune.compiler.canonical import shared_trace

    pythons = {"ModelOpt": modelopt_python, "neural-compressor": inc_python}
    tiny = {"model": "tiny-llava", "weights": "auto", "layers": None, "samples": 32, "large": False}
    cells: dict[str, dict[str, Any]] = {
        "tiny-llava, unpruned": {**tiny, "ratio": None},
        "tiny-llava, freepruner, half of the tokens": {**tiny, "ratio": 0.5},
    }
    if wide:
        cells["LLaVA-7B's widths, two decoder layers, half of the tokens"] = {
            **{"model": "llava-1.5-7b", "weights": "dummy", "layers": 2, "samples": 2, "large": True},
            "ratio": 0.5,
        }
    traced, results = shared_trace(), {}
    for title, setup in cells.items():
        with tempfile.TemporaryDirectory(prefix="int8_libraries.") as name:
            place = Path(name) / "model"
            prepare(place, setup, traced)
            few = rounds if not setup["large"] else 5
            results[title] = measure(place, setup, pythons, limit=questions, rounds=few, threads=threads)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        lines = [line for title, cell in results.items() for line in markdown(title, cell)]
        lines += READING
        output.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
        click.echo("\n".join(markdown(title, results[title])))


if __name__ == "__main__":
    main()
