"""What all passes share: a node that a pass writes says so in its metadata, for whoever meets it in a file."""

from __future__ import annotations

import re

import onnx_ir as ir

from lmmprune.names import PASS


class GraphPass(ir.passes.InPlacePass):
    """A pass whose new nodes carry its name: ``CastFloat`` writes ``cast_float``."""

    def __call__(self, model_or_result: ir.Model | ir.passes.PassResult, /) -> ir.passes.PassResult:
        """Run the pass, and mark what it has written."""
        model = model_or_result if isinstance(model_or_result, ir.Model) else model_or_result.model
        before = set(model.graph)
        result = super().__call__(model)
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        for node in result.model.graph:
            if node not in before:
                node.metadata_props.setdefault(PASS, name)
        return result
