"""`python -m aivailable`: the same as the `aivailable` command."""

from __future__ import annotations

from aivailable.cli import main

if __name__ == "__main__":
    main()
