"""The methods a second time, in PyTorch and NumPy, from docs/reference/formulas.md: what ``verify`` holds them against.

Nothing here is shared with the graph passes. Every file is written from the formulas, over single tokens where that is
clearer. Batch B, patches N, tokens that stay K, tokens of a sequence T, heads H of width D, channels C (C' behind the
projector), vocabulary V.
"""

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.cut import SITES, Cut, CutRefused, Said, Seen
from lmmprune.compiler.verify.reference.decoder import say
from lmmprune.compiler.verify.reference.load_model import load_model
from lmmprune.compiler.verify.reference.options import rule_options
from lmmprune.compiler.verify.reference.several import Picture, say_of_several
from lmmprune.compiler.verify.reference.vision import knee, see

__all__ = [
    "SITES",
    "Chooser",
    "Cut",
    "CutRefused",
    "Picture",
    "Said",
    "Seen",
    "knee",
    "load_model",
    "rule_options",
    "say",
    "say_of_several",
    "see",
]
