"""An engine without a model: deterministic tokens at a chosen pace, for tests of the cluster.

Owns: nothing but arithmetic and sleeping. Chosen by Load.engine == "fake"; it never stands in for
a real engine by itself.

The next token is a checksum of everything before it, so the text is a function of the prompt, a
continuation equals the undisturbed answer, and two prompts give two answers. Options: `step_ms`
and `prefill_tokens_per_s` set the pace, `load_ms` the loading time, `fail_load` a LoadFailed code,
`crash_after` the number of steps after which the process dies, `used_bytes` what it pretends to
occupy on each device (default: the claim), `draft` the most guesses beside a row. `need_bytes` is
for the peer that plans it.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from aivailable.errors import RequestError
from aivailable.gguf.memory import DRAFT_MAX_TOKENS
from aivailable.wire.generation import Generate
from aivailable.wire.worker import Load
from aivailable.worker.answer import Prepared
from aivailable.worker.engine import (
    DecodeFailed,
    Footprint,
    LoadRefused,
    Logits,
    Part,
    ReportProgress,
)
from aivailable.worker.options import Options

VOCABULARY_TOKENS: Final = 1000
PEAK_LOGIT: Final = 50.0
"""So far above the others that every temperature draws it."""
CHUNK_TOKENS: Final = 64
LOAD_REPORTS: Final = 4
CRASH_EXIT_CODE: Final = 70


class FakeEngine:
    """See the module's docstring. Raises LoadRefused from its constructor."""

    name = "fake"
    version = ""
    tasks: tuple[str, ...] = ("generate",)
    vision = False
    vocabulary = VOCABULARY_TOKENS
    chunk_tokens = least_tokens = CHUNK_TOKENS
    replay_tokens = CHUNK_TOKENS
    notes: tuple[str, ...] = ()

    def __init__(self, load: Load, progress: ReportProgress) -> None:
        options = Options(load.options)
        options.only(
            "step_ms",
            "prefill_tokens_per_s",
            "load_ms",
            "fail_load",
            "crash_after",
            "used_bytes",
            "need_bytes",
            "draft",
        )
        self.draft_tokens = options.integer("draft", 0, 0, DRAFT_MAX_TOKENS)
        self.context, self.slots = load.context, load.slots
        self._step_s = options.integer("step_ms", 0, 0, 60_000) / 1000
        self._prefill_rate = options.integer("prefill_tokens_per_s", 0, 0, 10**9)
        self._crash_after = options.integer("crash_after", 0, 0, 10**9)
        self._steps = 0
        self.sequences = load.slots * 2
        self.warm_tokens = load.slots * load.context
        self.step_tokens = CHUNK_TOKENS + load.slots
        self._cache: list[list[int]] = [[] for _ in range(self.sequences)]
        load_s = options.integer("load_ms", 0, 0, 600_000) / 1000
        for report in range(LOAD_REPORTS):
            progress("loading", report / LOAD_REPORTS)
            time.sleep(load_s / LOAD_REPORTS)
        failure = load.options.get("fail_load")
        if failure is not None:
            raise LoadRefused(failure, "the fake engine was told to fail its load")
        self.footprint = Footprint("fake", _used(load, options), 0, 0, 0)

    def prepare(self, request: Generate) -> Prepared:
        """Every word is one token. Raises RequestError when there is no prompt."""
        if request.prompt_ids is not None:
            return Prepared(request.prompt_ids)
        if request.prompt is not None:
            text = request.prompt
        elif request.messages is not None:
            text = " ".join(
                f"{message.get('role')}: {message.get('content')}" for message in request.messages
            )
        else:
            raise RequestError(400, "invalid_request", "neither messages nor a prompt were given")
        return Prepared(
            tuple(zlib.crc32(word.encode()) % VOCABULARY_TOKENS for word in text.split())
        )

    def decode(self, parts: Sequence[Part]) -> list[Logits]:
        """One step at the chosen pace; checks that positions continue the caches."""
        self._steps += 1
        if 0 < self._crash_after < self._steps:
            os._exit(CRASH_EXIT_CODE)
        prefill = sum(len(part.tokens) for part in parts if len(part.plain().tokens) > 1)
        pause = self._step_s + (prefill / self._prefill_rate if self._prefill_rate else 0.0)
        if pause > 0:
            time.sleep(pause)
        rows: list[Logits] = []
        for part in parts:
            cache = self._cache[part.slot]
            if part.position != len(cache):
                raise DecodeFailed(f"slot {part.slot}: {len(cache)} tokens, not {part.position}")
            if len(cache) + len(part.tokens) > self.context:
                raise DecodeFailed(f"slot {part.slot} is full: {self.context} tokens")
            first = len(cache) + len(part.tokens) - part.drafted
            cache.extend(part.tokens)
            if part.wants_logits:
                ends = range(first, len(cache) + 1)
                rows.extend(self.row(cache[:end]) for end in ends)
        return rows

    def row(self, tokens: Sequence[int]) -> Logits:
        """What the model says after these tokens."""
        return _peaked(_next_token(tokens))

    def trim(self, slot: int, length: int) -> int:
        """Keep the first `length` tokens."""
        del self._cache[slot][length:]
        return len(self._cache[slot])

    def fork(self, source: int, target: int, length: int) -> int:
        """Copy the first `length` tokens."""
        self._cache[target] = self._cache[source][:length]
        return length

    def reach(self, slot: int, length: int) -> bool:
        """Whether this many tokens are held."""
        return len(self._cache[slot]) >= length

    def piece(self, token: int) -> bytes:
        """`tok17 `"""
        return f"tok{token} ".encode()

    def marker(self, token: int) -> bytes:
        """There are no control tokens."""
        return self.piece(token)

    def is_end(self, _token: int) -> bool:
        """Never: the answer ends by max_tokens, a stop string or the context."""
        return False


def _next_token(tokens: Sequence[int]) -> int:
    return zlib.crc32(np.asarray(tokens, dtype="<i4").tobytes()) % VOCABULARY_TOKENS


def _peaked(token: int) -> Logits:
    row = np.zeros(VOCABULARY_TOKENS, dtype=np.float32)
    row[token] = PEAK_LOGIT
    return row


def _used(load: Load, options: Options) -> Mapping[str, int]:
    used: dict[str, int] = {}
    for device in load.devices:
        bytes_here = options.integer("used_bytes", device.claim_bytes, 0, 2**50)
        if bytes_here > device.claim_bytes:
            raise LoadRefused(
                "over_claim",
                f"{device.device_id}: uses {bytes_here} bytes, {device.claim_bytes} are claimed",
            )
        used[device.device_id] = bytes_here
    return used
