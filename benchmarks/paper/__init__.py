"""Figures 1 and 2 of the paper, measured through the engine: ``python -m benchmarks.paper``."""
