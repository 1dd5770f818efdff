"""What a pass raises when a graph doesn't fit it, or when it didn't keep its promise."""

from __future__ import annotations

import onnx_ir as ir

from lmmprune.errors import GraphRefusal


class Refused(GraphRefusal, ir.passes.PreconditionError):
    """A graph that lacks what a pass ``requires``: the anchor looked for, what was found, what to do."""


class Broken(GraphRefusal, ir.passes.PostconditionError):
    """A pass whose ``ensures`` found that the graph doesn't show what was promised."""
