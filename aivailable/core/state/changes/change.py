"""What a handler returns: an effect with its line of history, or a named refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aivailable.core.state.commands import Command
from aivailable.core.state.state import State


@dataclass(frozen=True, slots=True)
class Change:
    """An accepted command's effect and its line in the history ("" = no line)."""

    state: State
    kind: str = ""
    subject: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """A refusal: a stable code and a sentence that says what to do."""

    code: str
    message: str


Handler = Callable[[State, Command, Any], Change | Reject]
