"""Time, memory and accuracy of bundles, and the tables and charts of them."""
