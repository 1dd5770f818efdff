"""Back ends that build and run the graphs of a bundle."""
