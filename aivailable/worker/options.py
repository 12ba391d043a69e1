"""A deployment's engine options, text to checked values.

Owns: which options exist and what they may be. Pure. A wrong or unknown option is refused before
anything is loaded, naming what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aivailable.worker.engine import OptionRefused


@dataclass(frozen=True, slots=True)
class Options:
    """Reads options by name and remembers which were read."""

    values: Mapping[str, str]

    def only(self, *known: str) -> None:
        """Refuse what is not among `known`. Raises OptionRefused."""
        unknown = sorted(set(self.values) - set(known))
        if unknown:
            raise OptionRefused(
                f"unknown engine option {', '.join(unknown)}; known: {', '.join(sorted(known))}",
            )

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number in [least, most]. Raises OptionRefused."""
        text = self.values.get(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or not least <= int(text[:12]) <= most:
            raise OptionRefused(
                f"engine option {name}={text[:40]!r} must be a whole number, {least} to {most}",
            )
        return int(text)

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        """One of `choices`. Raises OptionRefused."""
        text = self.values.get(name, default)
        if text not in choices:
            raise OptionRefused(
                f"engine option {name}={text[:40]!r} must be one of {', '.join(choices)}",
            )
        return text
