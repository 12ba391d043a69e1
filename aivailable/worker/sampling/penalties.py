"""What has been said already weighs on the logits: repeat, presence, frequency, DRY; logit bias.

Owns: these changes, as (ids, new values) on a copy of the row. State is a function of the tokens
taken so far, so that a continuation has the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from aivailable.wire.generation import Sampling
from aivailable.worker.engine import Logits

FLOAT_MAX_LOG: Final = 88.7228391
"""Natural logarithm of the largest float32: DRY's power is clamped by it, as in llama.cpp."""
BREAKER_MAX_BYTES: Final = 40


class Penalties:
    """llama.cpp's `penalties` sampler. The repeat penalty looks at the last `repeat_last_n` tokens
    of prompt and answer; presence and frequency count the answer alone (OpenAI's definition)."""

    def __init__(self, sampling: Sampling) -> None:
        self._repeat = sampling.repeat_penalty
        self._window = sampling.repeat_last_n
        self._present = sampling.presence_penalty
        self._frequent = sampling.frequency_penalty
        self._all: set[int] = set()
        self._counts: Counter[int] = Counter()
        self.repeats = self._repeat != 1.0 and self._window != 0
        self.counts = self._present != 0.0 or self._frequent != 0.0

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        return self.repeats or self.counts

    def take(self, token: int, *, answer: bool) -> None:
        """A token of the prompt or of the answer."""
        if self.repeats and self._window < 0:
            self._all.add(token)
        if self.counts and answer:
            self._counts[token] += 1

    def apply(self, row: Logits, tokens: Sequence[int]) -> None:
        """Change the row; `tokens` are prompt and answer."""
        if self.repeats:
            near = self._all if self._window < 0 else set(tokens[-self._window :])
            seen = np.fromiter(near, dtype=np.int64, count=len(near))
            values = row[seen]
            row[seen] = np.where(values > 0, values / self._repeat, values * self._repeat)
        if self._counts:
            seen = np.fromiter(self._counts.keys(), dtype=np.int64, count=len(self._counts))
            often = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
            row[seen] -= self._present + self._frequent * often


class Dry:
    """DRY ("don't repeat yourself"): a token that would lengthen a repetition is pushed down by
    multiplier · base^(length - allowed length). llama.cpp `llama_sampler_dry`.

    A sequence breaker ends every repetition. It is looked for in the text and not, as upstream,
    in its own tokenization: the same where the model spells it as its tokenizer would.
    """

    def __init__(self, sampling: Sampling, piece: Callable[[int], bytes]) -> None:
        self._multiplier = sampling.dry_multiplier
        self._base = sampling.dry_base
        self._allowed = sampling.dry_allowed_length
        self._window = sampling.dry_penalty_last_n
        breakers = (text.encode()[:BREAKER_MAX_BYTES] for text in sampling.dry_sequence_breakers)
        self._breakers = tuple(text for text in breakers if text)
        self._piece = piece
        self._tokens: npt.NDArray[np.int32] = np.zeros(256, np.int32)
        self._length = 0
        self._since_break = 0
        self._tail = b""
        self._max_exponent = (
            int(FLOAT_MAX_LOG / math.log(self._base)) if self._base > 1.000001 else 0
        )
        self.active = self._multiplier != 0.0 and self._base >= 1.0 and self._window != 0

    def take(self, token: int) -> None:
        """A token of the prompt or of the answer."""
        if self._length == len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.zeros_like(self._tokens)))
        self._tokens[self._length] = token
        self._length += 1
        piece = self._piece(token)
        text = self._tail + piece
        broken = any(
            text.find(breaker, max(0, len(self._tail) - len(breaker) + 1)) >= 0
            for breaker in self._breakers
        )
        self._since_break = 0 if broken else self._since_break + 1
        self._tail = text[-BREAKER_MAX_BYTES:]

    def apply(self, row: Logits) -> None:
        """Change the row."""
        last = self._length if self._window < 0 else min(self._length, self._window)
        reach = min(last, self._since_break)
        if last <= self._allowed or reach < self._allowed:
            return
        for token, length in self._repetitions(last, reach).items():
            if any(breaker in self._piece(token) for breaker in self._breakers):
                continue
            exponent = length - self._allowed
            if self._max_exponent > 0:
                exponent = min(exponent, self._max_exponent)
            row[token] -= np.float32(self._multiplier * self._base**exponent)

    def _repetitions(self, last: int, reach: int) -> dict[int, int]:
        """For every token that would go on with an earlier passage: how long the passage is that
        the text ends with (at most `reach`)."""
        text = self._tokens[self._length - last : self._length]
        # Longer than the clamp makes no difference, and bounds the work.
        most = min(reach, self._allowed + self._max_exponent) if self._max_exponent else reach
        ends = np.arange(last - 1)
        lengths: dict[int, int] = {}
        length = 0
        while len(ends):
            if length >= self._allowed:
                for token in set(text[ends + 1].tolist()):
                    lengths[token] = length
            if length == most:
                break
            length += 1
            ends = ends[ends >= length - 1]
            ends = ends[text[ends - length + 1] == text[last - length]]
        return lengths


class Bias:
    """What is added to single logits, before everything else (llama.cpp `logit-bias`)."""

    def __init__(self, bias: dict[int, float]) -> None:
        self._ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self._values = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        self.active = bool(bias)
        self.lowers = all(value <= 0.0 for value in bias.values())
        """Whether no logit grows."""
        self._tokens = frozenset(bias)

    def __contains__(self, token: int) -> bool:
        return token in self._tokens

    def apply(self, row: Logits) -> None:
        """Change the row."""
        row[self._ids] += self._values
