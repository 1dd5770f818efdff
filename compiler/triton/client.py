"""Ask a Triton server that serves an lmmprune model repository; needs ``pip install 'tritonclient[grpc]'``.

python client.py --image cat.jpg --prompt "What is this?" [--url localhost:8001] [--max-new-tokens 64]

--image may be repeated, where the repository's bundle takes several pictures per prompt.
"""

from __future__ import annotations

import argparse
import queue
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def ask(
    url: str, image: bytes | Sequence[bytes], prompt: str, max_new_tokens: int | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the pieces of an answer as the server sends them, the last one with why it ended.

    Args:
        url: Host and gRPC port, such as ``localhost:8001``.
        image: The picture's file (PNG, JPEG, WebP, ...), or several.
        prompt: The bare question.
        max_new_tokens: Stop after so many tokens; None: the server's default.

    Raises:
        tritonclient.utils.InferenceServerException: The server refuses the request; its message says why.
    """
    import tritonclient.grpc as grpc

    images = [image] if isinstance(image, bytes) else list(image)
    values: list[tuple[str, str, np.ndarray[Any, Any]]] = [
        ("image", "BYTES", np.array(images, np.object_)),
        ("prompt", "BYTES", np.array([prompt.encode()], np.object_)),
    ]
    if max_new_tokens is not None:
        values.append(("max_new_tokens", "INT32", np.array([max_new_tokens], np.int32)))
    responses: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with grpc.InferenceServerClient(url) as client:
        # Where the server puts requests into batches, each is a batch of one.
        batches = client.get_model_config("lmmprune").config.max_batch_size > 0
        inputs = [_input(grpc, name, kind, value[None] if batches else value) for name, kind, value in values]
        client.start_stream(lambda result, error: responses.put((result, error)))
        client.async_stream_infer("lmmprune", inputs, enable_empty_final_response=True)
        while True:
            result, error = responses.get()
            if error is not None:
                raise error
            if result.get_response().parameters["triton_final_response"].bool_param:
                return
            text, finished = (result.as_numpy(name).reshape(-1)[0].decode() for name in ("text", "finish_reason"))
            yield text, finished


def _input(grpc: Any, name: str, kind: str, values: np.ndarray[Any, Any]) -> Any:
    tensor = grpc.InferInput(name, list(values.shape), kind)
    tensor.set_data_from_numpy(values)
    return tensor


def main() -> None:
    """Ask once and print the answer as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="localhost:8001")
    parser.add_argument("--image", type=Path, required=True, action="append")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=int)
    options = parser.parse_args()
    from tritonclient.utils import InferenceServerException

    try:
        images = [image.read_bytes() for image in options.image]
        for piece, finished in ask(options.url, images, options.prompt, options.max_new_tokens):
            print(piece, end="", flush=True)
            if finished not in ("", "stop"):
                print(f"... (finished: {finished})", end="", file=sys.stderr)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"error: {error}")
    print()


if __name__ == "__main__":
    main()
