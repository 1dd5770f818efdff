"""The Triton model ``lmmprune``: a picture, or several, and a question become text, streamed as it is generated.

It holds no weights. The other models of the repository run the graphs; tokenizer, positions, the greedy loop and the
text's pieces are those of ``lmmprune run``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.prompt import check_pictures
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.tile_rule import Picked
from lmmprune.compiler.triton.answer_together import Wanted, answer_together
from lmmprune.compiler.triton.bls_session import BlsSession
from lmmprune.compiler.triton.errors import refusal
from lmmprune.compiler.triton.models import GRID, PREPROCESS
from lmmprune.errors import InputError, LmmpruneError


class TritonPythonModel:
    """Answer one request after the other; the server runs several instances. The backend calls it by this name."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read manifest and tokenizer; Triton tells where they lie."""
        bundle = Bundle.open_assets(Path(args["model_repository"]) / args["model_version"])
        parameters = json.loads(args["model_config"])["parameters"]
        options = {name: row["string_value"] for name, row in parameters.items()}
        self._limit = int(options["max_new_tokens"])
        on_gpu = options["tensors"] == "gpu"
        graphs = bundle.manifest.graphs
        self._runtime = Runtime(
            bundle,
            sessions={
                name: BlsSession(name, [tensor.name for tensor in graph.outputs], on_gpu=on_gpu)
                for name, graph in graphs.items()
            },
            in_place=False,  # Triton gives every output memory of its own
        )
        self._pixels = graphs["vision"].inputs[0].name
        self._tiled = bundle.manifest.tile_grids is not None
        # Tiles are taken apart, and rows put together, in host memory, wherever the graphs run.
        outputs = [self._pixels, GRID] if self._tiled else [self._pixels]
        apart = self._tiled or bundle.manifest.batch is not None
        self._preprocess = BlsSession(PREPROCESS, outputs, on_gpu=on_gpu and not apart)

    def execute(self, requests: Sequence[Any]) -> None:
        """Stream the answer to each request: pieces of text, then an empty final response, or an error."""
        rows = self._runtime.bundle.manifest.rows
        if rows > 1:
            for begin in range(0, len(requests), rows):
                answer_together(self._runtime, requests[begin : begin + rows], self._wanted)
            return
        for request in requests:
            self._respond(request)

    def _respond(self, request: Any) -> None:
        sender = request.get_response_sender()
        # What isn't ours goes on to Triton's log; the client must not take the text so far for a whole answer.
        failed = triton.TritonError("lmmprune failed; the server's log says more", triton.TritonError.INTERNAL)
        try:
            for text, finished in self._answer(request):
                if sender.is_cancelled():
                    break
                outputs = [_string("text", text), _string("finish_reason", finished)]
                sender.send(triton.InferenceResponse(outputs))
            failed = None
        except LmmpruneError as error:
            failed = refusal(error)
        finally:
            if failed is not None:
                sender.send(triton.InferenceResponse(error=failed))
            sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answer(self, request: Any) -> Iterator[tuple[str, str]]:
        """Yield text with why it ended, which is empty for all pieces but the last."""
        images, question, tokens = self._read(request)
        pictures = []
        for place in range(len(images)):
            pictures.append(self._encode(self._preprocess.run({"image": images[place : place + 1]})))
        answer = self._runtime.answer(pictures, question, tokens)
        for piece in answer:
            yield piece, ""
        yield "", answer.finish_reason

    def _wanted(self, request: Any) -> Wanted:
        images, question, tokens = self._read(request)
        pixels = self._preprocess.download(self._preprocess.run({"image": images})[self._pixels])
        return Wanted(pixels=pixels, question=question, max_new_tokens=tokens)

    def _read(self, request: Any) -> tuple[NDArray[np.object_], str, int]:
        """Return the pictures' files, the question and the number of tokens of a request."""
        limit = triton.get_input_tensor_by_name(request, "max_new_tokens")
        tokens = self._limit if limit is None else int(limit.as_numpy().reshape(-1)[0])
        if tokens < 1:
            raise InputError(f"max_new_tokens is {tokens}: expected 1 or more")
        prompt = bytes(triton.get_input_tensor_by_name(request, "prompt").as_numpy().reshape(-1)[0])
        try:
            question = prompt.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"the prompt isn't UTF-8 ({error.reason} at byte {error.start})") from error
        images = triton.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        check_pictures(self._runtime.bundle.manifest, len(images))
        return images, question, tokens

    def _encode(self, preprocessed: Mapping[str, Value]) -> ImageFeatures:
        pixels = preprocessed[self._pixels]
        if not self._tiled:
            return self._runtime.encode_pixels(pixels, preprocess_ms=0.0)
        rows, columns, own_rows, own_columns = self._preprocess.download(preprocessed[GRID]).tolist()
        picked = Picked(grid=(rows, columns), own=(own_rows, own_columns))
        return self._runtime.encode_tiles(self._preprocess.download(pixels), picked, preprocess_ms=0.0)


def _string(name: str, text: str) -> Any:
    return triton.Tensor(name, np.array([text.encode()], np.object_))
