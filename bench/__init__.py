"""Figures of README's table: one module per figure, each run as `python -m bench.NAME`."""
