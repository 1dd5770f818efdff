"""A stand-in for NVIDIA's ``trtexec``: takes the same flags, prints in the same form, builds and runs nothing.

The flags of each generation are those of the program's own help text (samples/common/sampleOptions.cpp in
NVIDIA/TensorRT); any other flag ends it, as it ends the real one. Behaviour is chosen by environment variables:

* ``FAKE_VERSION``: banner, such as ``100300``; five digits are TensorRT-RTX.
* ``FAKE_FAIL``: a command line that holds this text fails with an error line.
* ``FAKE_UNFUSED``: a build whose line holds this text fails unless attention is decomposable.
* ``FAKE_SLEEP``: a command line that holds this text makes the file ``sleeping`` and waits.
* ``FAKE_SILENT``: times nothing, but ends well.
"""

import os
import sys
import time
from pathlib import Path

COMMON = {
    "onnx", "saveEngine", "loadEngine", "skipInference", "profile", "minShapes", "optShapes", "maxShapes", "shapes",
    "useProfile", "loadInputs", "timingCacheFile", "memPoolSize", "profilingVerbosity", "refit", "stripWeights",
    "versionCompatible", "verbose", "warmUp", "duration", "iterations", "exportTimes", "help",
}  # fmt: skip
TYPED_WEAKLY = {"stronglyTyped", "useCudaGraph", "useSpinWait", "noDataTransfers"}
MS = {"vision": 20.0, "bucket": 1.0, "prefill": 100.0, "decode": 10.0}


def main() -> int:
    version = os.environ.get("FAKE_VERSION", "100300")
    number = int(version)
    line = " ".join(sys.argv[1:])
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] [b1] # {line}")
    if "--help" in sys.argv:
        return 0
    given = {}
    for word in sys.argv[1:]:
        name, _, value = word.removeprefix("--").partition("=")
        given[name] = value
    rtx = number < 100000
    ten = number < 110000 and not rtx
    allowed = (COMMON | (TYPED_WEAKLY if ten else set())) - ({"timingCacheFile"} if rtx else set())
    allowed |= {"decomposableAttentions"} if rtx or number >= 101400 else set()
    for name in given:
        if name not in allowed:
            print(f"[E] Unknown option: --{name}")
            return 1
    # Weakly typed builds of a strongly typed graph are what nobody wants.
    if ten and "onnx" in given and "stronglyTyped" not in given:
        print("[E] the graph would be typed weakly")
        return 1
    if (text := os.environ.get("FAKE_FAIL")) and text in line:
        print('[11/21/2026-08:00:00] [E] Error[2]: no "kernel"\tfor node a\\b')
        print(f"&&&& FAILED TensorRT.trtexec [TensorRT v{version}] [b1]")
        return 1
    unfused = (text := os.environ.get("FAKE_UNFUSED")) and text in line and "onnx" in given
    if unfused and "decomposableAttentions" not in given:
        print("[E] Attention operation was not supported by a dedicated kernel")
        return 1
    print("[11/21/2026-08:00:00] [I] Selected Device: Orin")
    if (text := os.environ.get("FAKE_SLEEP")) and text in line:
        Path("sleeping").touch()
        time.sleep(900)  # it is interrupted
    if "onnx" in given:
        build(given)
    else:
        run(given)
    print(f"&&&& PASSED TensorRT.trtexec [TensorRT v{version}] [b1]")
    return 0


def build(given: dict[str, str]) -> None:
    assert "skipInference" in given
    graph = Path(given["onnx"]).read_bytes()
    Path(given["saveEngine"]).write_bytes(b"engine of " + graph[:16])
    if cache := given.get("timingCacheFile"):
        Path(cache).write_text("cache")


def run(given: dict[str, str]) -> None:
    assert Path(given["loadEngine"]).read_bytes().startswith(b"engine of ")
    for entry in filter(None, given.get("loadInputs", "").split(",")):
        name, path = entry.split(":")
        shape = dict(part.split(":") for part in given["shapes"].split(","))[name] if "shapes" in given else None
        count = 1
        for size in (shape or "").split("x") if shape else []:
            count *= int(size)
        # The real one refuses a file of another size, too.
        assert shape is None or Path(path).stat().st_size == 8 * count, (name, shape)
    component = Path(given["loadEngine"]).stem
    stage = ("prefill", "decode")[int(given["useProfile"])] if component == "decoder" else component.split("_")[0]
    if os.environ.get("FAKE_SILENT"):
        return
    ms = MS[stage] / (2 if "pruned" in given["loadEngine"] else 1)
    values = f"min = {ms - 0.5:g} ms, max = {ms + 2:g} ms, mean = {ms + 0.25:g} ms, median = {ms:g} ms"
    values += f", percentile(99%) = {ms + 1:g} ms"
    print("[11/21/2026-08:00:00] [I] === Performance summary ===")
    print(f"[11/21/2026-08:00:00] [I] Throughput: {1000 / ms:g} qps")
    print(f"[11/21/2026-08:00:00] [I] Latency: {values.replace(f'median = {ms:g}', f'median = {ms + 7:g}')}")
    print("[11/21/2026-08:00:00] [I] Enqueue Time: min = 0.1 ms, max = 0.2 ms, mean = 0.1 ms, median = 0.1 ms")
    print(f"[11/21/2026-08:00:00] [I] GPU Compute Time: {values}")
    print("[11/21/2026-08:00:00] [I] Total Host Walltime: 3.0 s")
    if times := given.get("exportTimes"):
        Path(times).write_text(f'[\n  {{ "computeMs" : {ms:g} }}\n]\n')


if __name__ == "__main__":
    sys.exit(main())
