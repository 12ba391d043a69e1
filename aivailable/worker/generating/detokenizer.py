"""Tokens' bytes to text, one token at a time, and stopping at stop strings.

Owns: incremental UTF-8 and the hold-back of what may become a stop string. Pure. What has been
emitted is a function of the pieces alone, so a continuation on another worker that replays the same
pieces holds back exactly the same characters.
"""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Bytes in pieces to text; a character comes out when it is whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes) -> str:
        """The characters that are whole after this piece."""
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """A broken character at the very end becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Text up to the first stop string. After `stopped` is true nothing more comes out."""

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._stops = tuple(stop for stop in dict.fromkeys(stops) if stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that is certain by now: what may be the beginning of a stop string is kept."""
        if self.stopped:
            return ""
        if not self._stops or not text:
            return text
        text = self._held + text
        starts = ((text.find(stop), stop) for stop in self._stops)
        # The first to be complete, whatever the pieces were; of two, the one that began earlier.
        found = min(((at + len(stop), at) for at, stop in starts if at >= 0), default=None)
        if found is not None:
            self.stopped, self._held = True, ""
            return text[: found[1]]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, which became no stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is shorter than it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
