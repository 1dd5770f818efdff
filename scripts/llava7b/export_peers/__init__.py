"""The exporters that ``bench_export.py`` compares, each in a process of its own."""
