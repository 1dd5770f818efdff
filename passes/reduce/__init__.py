"""Take visual tokens out: at the vision output, between encoder layers, inside the decoder."""
