"""What single tokens do to the ranges of activations: watching, tables, findings, a picture."""
