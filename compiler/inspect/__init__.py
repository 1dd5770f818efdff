"""What is in a graph, a bundle and a machine."""
