"""What times LLaVA-7B-wide decoder layers: the engines, and the table they go into."""
