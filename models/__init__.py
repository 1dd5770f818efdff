"""What is known of models: ``families`` say where things are, one file each; the rest reads and traces checkpoints."""
