"""A graph of a bundle as a Python model of Triton, for servers without an onnxruntime backend, or with an old one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton

from lmmprune.compiler.backends.onnxruntime import OrtSession
from lmmprune.compiler.triton.errors import refusal
from lmmprune.errors import LmmpruneError


class TritonPythonModel:
    """One graph in the session that ``lmmprune run`` would use; the backend calls it by this name."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the only ONNX file beside the model."""
        (graph,) = (Path(args["model_repository"]) / args["model_version"]).glob("*.onnx")
        self._session = OrtSession(graph)
        self._inputs = [row["name"] for row in json.loads(args["model_config"])["input"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the graph on each request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        feeds = {
            name: self._session.upload(triton.get_input_tensor_by_name(request, name).as_numpy())
            for name in self._inputs
        }
        try:
            outputs = self._session.run(feeds)
        except LmmpruneError as error:
            return triton.InferenceResponse(error=refusal(error))
        return triton.InferenceResponse(
            [triton.Tensor(name, self._session.download(value)) for name, value in outputs.items()]
        )
