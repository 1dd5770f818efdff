"""The choice: which method, ratio, positions and precision to take, within a loss or a time, measured."""
