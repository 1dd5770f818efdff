"""What the prefill costs: by formula, by graph, and reported."""
