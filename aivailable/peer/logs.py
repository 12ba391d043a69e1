"""The node's log: a file in home, capped in size and in bytes a minute; equal lines are counted.

Whatever others can make this node say, they cannot fill its disk or hide what else it says. What
other libraries say (asyncio, aiohttp) goes the same way, and to stderr with the same limits.
"""

from __future__ import annotations

import logging
import logging.handlers
import time
from collections.abc import Callable
from pathlib import Path

LOG_FILE_MAX_BYTES = 4 * 1024 * 1024
LOG_FILES_KEPT = 3
LINES_PER_KIND_MAX = 20
"""Warnings and errors of one kind (the same place in the code) that are written a minute; more are
counted. What is only information differs from line to line: there is one for each request."""
KINDS_MAX = 256
"""Kinds that are counted at once; the oldest is told early."""
BYTES_PER_MINUTE_MAX = 896 * 1024
"""Of all lines together. Lines above the limit are only counted."""
INFO_BYTES_PER_MINUTE_MAX = 640 * 1024
"""Of these for information: the rest is kept for warnings and errors."""
LINE_MAX_CHARS = 16 * 1024
MINUTE_S = 60.0
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OURS = "aivailable"


class _Kind:
    """What one place in the code said within this minute."""

    def __init__(self) -> None:
        self.lines = 0
        self.last = ""
        self.repeated = 0
        """How often in a row the last line was said again."""
        self.left_out = 0


class Counting:
    """Decides what of a log is written; made for one minute after the other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._kinds: dict[tuple[str, int, str], _Kind] = {}
        self._bytes = 0
        self._full = 0

    def lines(self, record: logging.LogRecord, text: str) -> list[str]:
        """What is to be written now that `record`, as `text`, was said: it, nothing, or first
        what was held back."""
        out: list[str] = []
        if self._clock() - self._began_s >= MINUTE_S:
            out = self.held_back()
        # Equal lines have all but their time in common.
        said = record.getMessage() + (record.exc_text or "")
        name = (record.name, record.levelno, str(record.msg)[:200])
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= KINDS_MAX:
                oldest = next(iter(self._kinds))
                out += _told(self._kinds.pop(oldest), oldest)
            kind = self._kinds[name] = _Kind()
        if kind.lines and said == kind.last:
            kind.repeated += 1
            return out
        if kind.lines >= LINES_PER_KIND_MAX and record.levelno >= logging.WARNING:
            kind.left_out += 1
            return out
        if kind.repeated:
            out.append(_repeated(kind))
            kind.repeated = 0
        size = len(text.encode(errors="replace"))
        warns = record.levelno >= logging.WARNING
        if self._bytes + size > (BYTES_PER_MINUTE_MAX if warns else INFO_BYTES_PER_MINUTE_MAX):
            self._full += 1
            return out
        kind.lines, kind.last = kind.lines + 1, said
        self._bytes += size
        return [*out, text]

    def held_back(self) -> list[str]:
        """Ends the minute: what was only counted."""
        out = [line for name, kind in self._kinds.items() for line in _told(kind, name)]
        if self._full:
            out.append(f"… ({self._full} further lines left out: the log was full for its minute)")
        self._kinds, self._bytes, self._full = {}, 0, 0
        self._began_s = self._clock()
        return out


def _repeated(kind: _Kind) -> str:
    return f"… (repeated {kind.repeated} times) {kind.last[:200]}"


def _told(kind: _Kind, name: tuple[str, int, str]) -> list[str]:
    out = []
    if kind.repeated:
        out.append(_repeated(kind))
    if kind.left_out:
        out.append(f"… ({kind.left_out} further lines of {name[0]} left out) {name[2]}")
    return out


class LimitedHandler(logging.Handler):
    """Writes through `inner` what `Counting` lets through."""

    def __init__(self, inner: logging.Handler) -> None:
        super().__init__()
        self._inner = inner
        self._counting = Counting()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)[:LINE_MAX_CHARS]
        except (TypeError, ValueError, KeyError):
            self.handleError(record)
            return
        self._write(self._counting.lines(record, text))

    def close(self) -> None:
        self._write(self._counting.held_back())
        self._inner.close()
        super().close()

    def _write(self, lines: list[str]) -> None:
        for line in lines:
            self._inner.emit(logging.LogRecord(OURS, logging.INFO, "", 0, "%s", (line,), None))


def log_to(folder: Path, level: str) -> None:
    """Everything into a file in `folder`; warnings of libraries also to stderr."""
    folder.mkdir(parents=True, exist_ok=True)
    file = LimitedHandler(
        logging.handlers.RotatingFileHandler(
            folder / "aivailable.log", maxBytes=LOG_FILE_MAX_BYTES, backupCount=LOG_FILES_KEPT
        )
    )
    stderr = LimitedHandler(logging.StreamHandler())
    stderr.setLevel(logging.WARNING)
    stderr.addFilter(lambda record: not record.name.startswith(OURS))
    for handler in (file, stderr):
        handler.setFormatter(logging.Formatter(FORMAT))
        logging.getLogger().addHandler(handler)
    logging.getLogger(OURS).setLevel(level.upper())
