"""Put load on ``lmmprune serve`` and measure what it adds to a run.

    python scripts/serve_load.py out --part load
    python scripts/serve_load.py out --part overhead

1. Load: many clients at once, every tenth request broken (bad base64, a picture that would unpack to gigabytes, a
   prompt without end, a client that leaves within a stream). Right answers are those of ``lmmprune.load`` here.
2. Memory: the server's resident memory over thousands of requests.
3. Overhead: time from a picture's bytes to the first text, here and through the server, by turns.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import queue
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from results import write

import lmmprune

ROOT = Path(__file__).resolve().parent.parent
PICTURES = sorted((ROOT / "models" / "tiny_llava" / "examples").glob("*.png"))
QUESTIONS = ("which digit is bottommost?", "what colour is the three?")
BROKEN = {"bad base64": 400, "bomb": 400, "huge prompt": 400, "left in mid-stream": 200}
_TIMEOUT = 120


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[str, int, psutil.Process]]:
    """Run a server: its host, its port, its process."""
    command = [sys.executable, "-m", "lmmprune", "serve", f"it={bundle}", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = re.search(r" at http://(.+):(\d+)", said := process.stderr.readline())
            assert found, said
            # Its log is read, or the pipe would be full one day.
            threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
            yield found[1], int(found[2]), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(_TIMEOUT)


def body(url: str, question: str, **fields: Any) -> bytes:
    """Return a chat request."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    asked = {"model": "it", "messages": [{"role": "user", "content": content}], "max_tokens": 16, "temperature": 0}
    return json.dumps({**asked, **fields}).encode()


def data_url(data: bytes) -> str:
    """Return a picture's bytes as a URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def bomb() -> bytes:
    """Return a PNG of a few bytes that claims 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def post(connection: http.client.HTTPConnection, sent: bytes) -> http.client.HTTPResponse:
    """Send a chat request."""
    connection.request("POST", "/v1/chat/completions", sent, {"Content-Type": "application/json"})
    return connection.getresponse()


def text_of(response: http.client.HTTPResponse, streamed: bool) -> str:
    """Return the text of an answer."""
    if not streamed:
        return str(json.loads(response.read())["choices"][0]["message"]["content"])
    *events, end, _ = response.read().decode().split("\n\n")
    assert end == "data: [DONE]", end
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def put_load(
    address: tuple[str, int], right: dict[tuple[bytes, str], str], *, requests: int, clients: int
) -> dict[str, int]:
    """Send requests from many clients, every tenth of them broken; count how they end.

    Args:
        address: Of the server.
        right: The answer by picture and question.
        requests: How many.
        clients: Threads, each with a connection of its own.
    """
    work: queue.Queue[int] = queue.Queue()
    for number in range(requests):
        work.put(number)
    counts: Counter[str] = Counter()
    cases, kinds = list(right.items()), list(BROKEN)

    def one(connection: http.client.HTTPConnection, number: int) -> str:
        (picture, question), expected = cases[number % len(cases)]
        if number % 10:
            response = post(connection, body(data_url(picture), question, stream=bool(number % 2)))
            if response.status != 200:
                response.read()
                return f"status {response.status}"
            return "right" if text_of(response, bool(number % 2)) == expected else "wrong"
        kind = kinds[number // 10 % len(kinds)]
        sent = {
            "bad base64": body("data:image/png;base64,****", question),
            "bomb": body(data_url(bomb()), question),
            "huge prompt": body(data_url(picture), "word " * 200_000),
            "left in mid-stream": body(data_url(picture), question, stream=True),
        }[kind]
        response = post(connection, sent)
        ended = f"{kind}: {'as expected' if response.status == BROKEN[kind] else response.status}"
        if kind == "left in mid-stream":
            response.read(1)
            response.close()
            connection.close()  # it opens anew by itself
        else:
            response.read()
        return ended

    def client() -> None:
        connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT)
        while True:
            try:
                number = work.get_nowait()
            except queue.Empty:
                connection.close()
                return
            try:
                ended = one(connection, number)
            except (OSError, http.client.HTTPException, ValueError, KeyError, AssertionError) as error:
                ended = f"lost ({type(error).__name__})"
                connection.close()
            counts[ended] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(sorted(counts.items()))


def right_answers(model: lmmprune.Model, pictures: Sequence[bytes], questions: Sequence[str]) -> Any:
    """Return the answers of a model by picture and question."""
    pairs = itertools.product(pictures, questions)
    return {(p, q): model.ask(p, q, max_new_tokens=16, temperature=0).text for p, q in pairs}


def first_text(
    address: tuple[str, int], process: psutil.Process, model: lmmprune.Model, picture: bytes, rounds: int
) -> dict[str, list[float]]:
    """Return what it takes from a picture's bytes to the first token's text, here and through the server, by turns.

    Returns:
        Milliseconds by the clock (``run``, ``server``) and of processors (``run_cpu``, ``server_cpu``; the client's own
        aren't counted), which say the same on a machine that has other work to do.
    """
    connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT)
    connection.connect()
    assert connection.sock is not None
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent = body(data_url(picture), QUESTIONS[0], stream=True, max_tokens=1)
    times: dict[str, list[float]] = {"run": [], "server": [], "run_cpu": [], "server_cpu": []}
    for _ in range(rounds + 5):
        start, cpu = time.perf_counter(), time.process_time()
        _ = model.ask(picture, QUESTIONS[0], temperature=0, max_new_tokens=1).text
        times["run"].append((time.perf_counter() - start) * 1e3)
        times["run_cpu"].append((time.process_time() - cpu) * 1e3)
        before = sum(process.cpu_times()[:2])
        start = time.perf_counter()
        response = post(connection, sent)
        response.readline()
        times["server"].append((time.perf_counter() - start) * 1e3)
        response.read()
        times["server_cpu"].append((sum(process.cpu_times()[:2]) - before) * 1e3)
    connection.close()
    return {name: values[5:] for name, values in times.items()}  # the first ones warm up


def load_text(ends: dict[str, int], seconds: float, memory: list[float], counted: list[int], clients: int) -> str:
    """Return the tables of load and memory."""
    text = [
        f"{sum(ends.values())} requests from {clients} clients in {seconds:.1f} s:",
        "",
        "| how they ended | requests |",
        "|---|--:|",
        *(f"| {name} | {count} |" for name, count in ends.items()),
        "",
        "Resident memory of the server in MiB after so many requests, every tenth of them broken:",
        "",
        f"| {' | '.join(map(str, counted))} |",
        "|" + "--:|" * len(counted),
        f"| {' | '.join(f'{value:.0f}' for value in memory)} |",
    ]
    return "\n".join(text)


def overhead_text(times: dict[str, list[float]], rounds: int) -> str:
    """Return the table of what HTTP adds."""

    def row(name: str, here: float, server: float) -> str:
        return f"| {name} | {here:.2f} | {server:.2f} | {server - here:.2f} |"

    tenth, middle = ({n: float(np.quantile(values, q)) for n, values in times.items()} for q in (0.1, 0.5))
    text = [
        f"From a picture's bytes to the first token's text, {rounds} times by turns:",
        "",
        "| ms | here | through the server | more |",
        "|---|--:|--:|--:|",
        row("10th percentile", tenth["run"], tenth["server"]),
        row("median", middle["run"], middle["server"]),
        # The system counts processor time in hundredths of a second: a mean over many is exact, one isn't.
        row("processor time, mean", statistics.fmean(times["run_cpu"]), statistics.fmean(times["server_cpu"])),
    ]
    return "\n".join(text)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--part", type=click.Choice(["load", "overhead"]), required=True)
@click.option("--requests", default=200, show_default=True)
@click.option("--clients", default=16, show_default=True)
@click.option("--soak", default=2000, show_default=True, help="Requests while memory is looked at.")
@click.option("--rounds", default=300, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/serve"), show_default=True)
def main(bundle: Path, part: str, requests: int, clients: int, soak: int, rounds: int, output: Path) -> None:
    """Measure a bundle's server."""
    pictures = [path.read_bytes() for path in PICTURES]
    page = output.with_suffix(".md")
    with (
        lmmprune.load(bundle, threads=1) as model,
        serving(bundle, "--threads", "1") as (host, port, process),
    ):
        if part == "overhead":
            times = first_text((host, port), process, model, pictures[0], rounds)
            write(output.with_name(f"{output.name}_overhead"), times, overhead_text(times, rounds), page=page)
            return
        right = right_answers(model, pictures, QUESTIONS)
        begun = time.perf_counter()
        ends = put_load((host, port), right, requests=requests, clients=clients)
        seconds = time.perf_counter() - begun
        memory, counted = [process.memory_info().rss / 2**20], [requests]
        for _ in range(10):
            put_load((host, port), right, requests=soak // 10, clients=clients)
            memory.append(process.memory_info().rss / 2**20)
            counted.append(counted[-1] + soak // 10)
    result = {"load": ends, "seconds": seconds, "memory_mib": memory, "requests": counted}
    write(output, result, load_text(ends, seconds, memory, counted, clients), page=page)


if __name__ == "__main__":
    main()
