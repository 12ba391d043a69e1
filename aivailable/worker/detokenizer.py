"""Tokens' bytes to text, one token at a time, stopping at stop strings.

Owns: incremental UTF-8 and the hold-back of what may become a stop string. Pure; used by job.
What has been emitted is a function of the pieces alone, so a continuation on another worker that
replays the same pieces holds back exactly the same characters.
"""

from __future__ import annotations

import codecs


class TextStream:
    """Text of one answer. After `stopped` is true nothing more comes out."""

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The text that is certain after this piece."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back; a broken character at the very end becomes U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = min((at for at in map(text.find, self._stops) if at >= 0), default=-1)
        if found >= 0:
            self.stopped, self._held = True, ""
            return text[:found]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is shorter than it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
