"""How many idle tokens are worth their cells.

Owns: that number, learned from what prompts would have reused. Pure; sequences tells it which texts
become idle and which prompts come, and evicts what is over.

Idle tokens are not for nothing: attention walks over their cells at every token, masked or not
(SmolLM2 on a CPU: 4,000 idle cells make a step 12 % longer). So each pays rent, in tokens of
prefill, which is what reuse saves. A text's stack distance (Mattson et al., 1970: the tokens of
all that was used since, and its own) says how much would have to be kept for it to be there still;
texts that were evicted are remembered as ids, so that keeping less does not hide what keeping more
would have saved. The limit is the distance at which savings less rent are largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aivailable.worker.generating.radix import RadixTree

RENT_PER_TOKEN: Final = 1e-4
"""Of one idle cell for each computed token, in tokens of prefill: 0.4 µs to 4.5 ms (SmolLM2, one
core). A larger model pays less, so this rather evicts too much, and only what nobody asks for."""
WINDOW_REQUESTS: Final = 32
"""Over this many the past fades by 1/e."""
TEXTS_MAX: Final = 64
"""Idle texts that are remembered, whether their cells are kept or not."""
FREE_TOKENS: Final = 256
"""Attention covers cells in blocks of 256: this many cost nothing."""


class WarmCacheLimit:
    """`most`: idle tokens that may be kept at all; all of them, until experience says otherwise."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tree = RadixTree()
        self._texts: dict[int, None] = {}
        """Least recently used first."""
        self._next = 0
        self._saved: dict[int, float] = {most: float(most)}
        """Tokens that reuse saved, or would have, by the power of two above its distance."""
        self._worked = 0.0
        """Tokens computed."""

    def became_idle(self, tokens: Sequence[int]) -> None:
        """A request is over; its text could be reused from now on."""
        for match in self._tree.find(tokens):
            for text in match.holders:
                if self._tree.length(text) == match.length:
                    self._forget(text)  # It is the beginning of this one.
        self._tree.put(self._next, tokens)
        self._texts[self._next] = None
        self._next += 1
        if len(self._texts) > TEXTS_MAX:
            self._forget(next(iter(self._texts)))

    def asked(self, tokens: Sequence[int], least: int, kept: int) -> None:
        """A prompt came. Beginnings shorter than `least` tokens are not reused; the first `kept`
        are there in any case."""
        fade = 1.0 - 1.0 / WINDOW_REQUESTS
        self._worked *= fade
        self._saved = {distance: saved * fade for distance, saved in self._saved.items()}
        match = next(iter(self._tree.find(tokens)), None)
        if match is None or match.length < max(least, kept + 1):
            return
        text = next(text for text in reversed(self._texts) if text in match.holders)
        distance = self._distance(text)
        if distance <= self._most:
            bucket = min(self._most, 1 << (distance - 1).bit_length())
            self._saved[bucket] = self._saved.get(bucket, 0.0) + match.length - kept
        del self._texts[text]
        self._texts[text] = None

    def worked(self, tokens: int) -> None:
        """This many tokens were computed in a step."""
        self._worked += tokens

    @property
    def limit(self) -> int:
        """Idle tokens to keep."""
        best, most_gain, saved = 0, 0.0, 0.0
        for distance in sorted(self._saved):
            saved += self._saved[distance]
            gain = saved - RENT_PER_TOKEN * distance * self._worked
            if gain >= most_gain:
                best, most_gain = distance, gain
        return min(self._most, max(FREE_TOKENS, best))

    def _distance(self, text: int) -> int:
        """Tokens of this text and of all that were used after it."""
        total = 0
        for other in reversed(self._texts):
            total += self._tree.length(other)
            if other == text:
                break
        return total

    def _forget(self, text: int) -> None:
        del self._texts[text]
        self._tree.remove(text)
