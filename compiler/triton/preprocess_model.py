"""The Triton model ``preprocess``: the bytes of a picture's file become ``pixel_values``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from lmmprune.compiler.bundle.bundle import PREPROCESSOR
from lmmprune.compiler.runtime.open_picture import decode_image
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.triton.errors import refusal
from lmmprune.compiler.triton.models import GRID
from lmmprune.errors import LmmpruneError


class TritonPythonModel:
    """Decode, resize, crop and normalise; the backend calls it by this name."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the steps; Triton tells where they lie."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self._steps = Preprocessor.load(folder / PREPROCESSOR)
        output, *_ = json.loads(args["model_config"])["output"]
        self._name, self._dtype = output["name"], triton.triton_string_to_numpy(output["data_type"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with its pixel values, or with what is wrong with its picture."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        data = triton.get_input_tensor_by_name(request, "image").as_numpy()
        try:
            picture = decode_image(bytes(data.reshape(-1)[0]), "image")
            picked, pixels = self._steps.pick(picture), self._steps(picture)
        except LmmpruneError as error:
            return triton.InferenceResponse(error=refusal(error))
        outputs = [triton.Tensor(self._name, pixels.astype(self._dtype, copy=False))]
        if picked is not None:
            outputs.append(triton.Tensor(GRID, np.array([*picked.grid, *picked.own], np.int64)))
        return triton.InferenceResponse(outputs)
