"""One script per figure in README's table: `python -m bench.NAME [--quick] [--json]`."""
