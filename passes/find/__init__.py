"""Find things in a graph: attention, residual boundaries, token axes, sites."""
