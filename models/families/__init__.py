"""One file per model family: what to trace, where things are in it, how positions are numbered."""
