"""One request inside the worker: its tokens, how far they are in the cache, its text.

Owns: the life of an answer between slot and wire: drawing under a grammar, text, stop strings, the
parts that the chat format reads out of it. Pure; made by step_loop, scheduled by batcher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from aivailable.wire.generation import (
    IMAGE_ROW_ID,
    CallDelta,
    FinishReason,
    Generate,
    TokenLogprob,
)
from aivailable.worker.answer import Delta, Grammar, Prepared
from aivailable.worker.engine import Logits
from aivailable.worker.generating.detokenizer import StopStrings, Utf8Stream
from aivailable.worker.generating.drafting import Drafter
from aivailable.worker.generating.token_tables import TokenTables
from aivailable.worker.sampling.candidates import largest
from aivailable.worker.sampling.dice import seed_of
from aivailable.worker.sampling.logprobs import logprob
from aivailable.worker.sampling.sampler import NoToken, Sampler

Reason = Literal["stop", "length"]
NEAR_TOKENS: Final = 64
"""After a refusal this many of the best tokens are tried before a mask over all is made."""
TRIGGER_TRIES_MAX: Final = 64
"""Tokens that may be refused in a row because a trigger inside of them is followed wrongly."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one token brought: its id (none at the model's end token) and what became certain."""

    ids: tuple[int, ...] = ()
    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Job:
    """`tokens` is prompt, then replayed ids, then new ones; the first `fed` are in the cache.

    Raises RequestError for a grammar or a parameter that cannot be used.
    """

    def __init__(
        self,
        request: Generate,
        prepared: Prepared,
        tables: TokenTables,
        *,
        limit: int,
        arrived_s: float,
        prefixes: tuple[int, ...] = (),
    ) -> None:
        prompt = prepared.prompt
        self.request = request
        self.request_id = request.request_id
        self.prefixes = prefixes
        """How it begins, by digests (wire.prefixes)."""
        self.prompt_tokens = len(prompt)
        self.replay_end = len(prompt) + len(request.generated_ids)
        self.tokens: list[int] = [*prompt, *request.generated_ids]
        self.fed = 0
        self.cached = 0
        self.slot = -1
        self.deadline_s = arrived_s + request.deadline_s
        self.finished: Reason | None = None
        self.drafter = Drafter()
        self._limit = limit
        self._tables = tables
        self._visible = prepared.visible
        self._media = prepared.media
        self._sampler = Sampler(
            request.sampling,
            seed_of(request.sampling, request.request_id),
            tables.piece,
            tables.scratch,
            forbidden=tables.ends if request.ignore_eos else (),
            changed=tables.changed,
        )
        grammar = prepared.grammar
        if grammar is None and request.constraint is not None:
            grammar = Grammar(request.constraint)
        self._binding = None if grammar is None else tables.bind(grammar, prepared.visible)
        self._text = Utf8Stream()
        self._parser = prepared.parser()
        self._stops = StopStrings(request.stop)
        self._observed = len(prompt)
        """Tokens before it have been taken by a sampler that needs every row."""
        self._replay()

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer, the replayed ones included."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def left(self) -> int:
        """Tokens that the answer may still get."""
        return self._limit - self.completion_tokens

    @property
    def decoding(self) -> bool:
        """Whether only the last token is missing in the cache."""
        return self.fed >= self.replay_end and self.fed == len(self.tokens) - 1

    @property
    def replays_singly(self) -> bool:
        """Whether replayed ids go one by one, each with its logits given to `observe`."""
        return self._sampler.needs_every_row

    def observe(self, logits: Logits) -> None:
        """The logits after `fed` tokens, the next of which is known already (a replayed one).

        Raises NoToken.
        """
        if self.fed != self._observed:
            # The cache was lost and is filled again: this row has been seen.
            return
        position = self.fed - self.prompt_tokens
        self._choose(logits, self.tokens[: self.fed], position)
        self._take(self.tokens[self.fed])
        self._observed += 1

    def draw_run(self, rows: Sequence[Logits], guesses: Sequence[int]) -> Iterator[Drawn]:
        """Draw one token after the other, as long as each is what was guessed: then the next row
        was computed from it. Each is drawn as it would be alone. Raises like `draw`."""
        for at, row in enumerate(rows):
            drawn = self.draw(row)
            yield drawn
            if self.finished is not None or drawn.ids != tuple(guesses[at : at + 1]):
                return
            self.fed += 1

    def draw(self, logits: Logits) -> Drawn:
        """Take the next token. Raises NoToken, or GrammarError when the grammar fails by then."""
        token = self._choose(logits, self.tokens, self.completion_tokens)
        self.drafter.learn(token)
        if self._tables.is_end(token) and not self.request.ignore_eos:
            self.finished = "stop"
            return Drawn()
        told: tuple[TokenLogprob, ...] = ()
        if self.request.logprobs is not None:
            told = (self._logprob(logits, token),)
        self.tokens.append(token)
        self._observed = len(self.tokens)
        self._take(token)
        part = self._read(token)
        self._settle()
        return Drawn((token,), part.text, part.reasoning, part.calls, told)

    def held(self) -> Delta:
        """What is still held back, at the end of the answer."""
        if self._stops.stopped:
            return Delta()
        part = self._stopped(self._parser.feed(self._text.finish()))
        rest = self._stopped(self._parser.finish())
        return Delta(
            part.text + rest.text + self._stops.finish(),
            part.reasoning + rest.reasoning,
            part.calls + rest.calls,
        )

    @property
    def reason(self) -> FinishReason:
        """Why it ended; to be asked after `held`, whose text may complete a call."""
        if self.finished == "stop" and not self._stops.stopped and self._parser.called:
            return "tool_calls"
        return self.finished or "cancelled"

    def _replay(self) -> None:
        """Ids and text travel together: what was certain after these ids has been sent, and what
        was held back then is held back here too."""
        if self._sampler.remembers:
            for token in self._said(self.tokens[: self.prompt_tokens]):
                self._sampler.take(token, answer=False)
        for token in self.request.generated_ids:
            if not self.replays_singly:
                self._take(token)
            self._read(token)
        self._settle()

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's ids as another worker can take them."""
        ids = self.tokens[: self.prompt_tokens]
        if not self._media:
            return tuple(ids)
        size = self._tables.size
        return tuple(token if token < size else IMAGE_ROW_ID for token in ids)

    def _said(self, tokens: list[int]) -> list[int]:
        """Without the rows of images, which are no words that could be repeated."""
        if not self._media:
            return tokens
        return [token for token in tokens if token < self._tables.size]

    def _choose(self, logits: Logits, tokens: list[int], position: int) -> int:
        sampler, binding = self._sampler, self._binding
        obvious = sampler.obvious(logits)
        if obvious is not None and (binding is None or binding.allows(obvious)):
            return obvious
        row = sampler.changed(logits, self._said(tokens))
        token = sampler.draw(row, position)
        if binding is None or binding.allows(token):
            return token
        if not binding.bound:
            return self._choose_before_trigger(row, token, position)
        greedy = self.request.sampling.temperature <= 0.0
        if greedy and not binding.mask_is_ready:
            near = largest(row, min(NEAR_TOKENS, row.shape[0])).ids.tolist()
            first = next(filter(binding.allows, near), None)
            if first is not None:
                return int(first)
        return sampler.draw(
            np.where(binding.mask(), row, np.float32(-math.inf)), position, again=True
        )

    def _choose_before_trigger(self, row: Logits, token: int, position: int) -> int:
        assert self._binding is not None
        row = row.copy()
        for _ in range(TRIGGER_TRIES_MAX):
            row[token] = -math.inf
            token = self._sampler.draw(row, position, again=True)
            if self._binding.allows(token):
                return token
        raise NoToken("no token goes on after the trigger as the grammar asks for")

    def _take(self, token: int) -> None:
        self._sampler.take(token, answer=True)
        if self._binding is not None:
            self._binding.take(token)

    def _read(self, token: int) -> Delta:
        text = self._text.feed(self._tables.text_of(token, self._visible))
        return self._stopped(self._parser.feed(text)) if text else Delta()

    def _stopped(self, part: Delta) -> Delta:
        """Stop strings are looked for in the content alone."""
        if self._stops.stopped:
            return Delta()
        return Delta(self._stops.feed(part.text), part.reasoning, part.calls)

    def _settle(self) -> None:
        over = self._binding is not None and self._binding.over
        if self._stops.stopped or over:
            self.finished = "stop"
        elif self.completion_tokens >= self._limit:
            self.finished = "length"

    def _logprob(self, logits: Logits, token: int) -> TokenLogprob:
        tables = self._tables
        return logprob(
            logits,
            token,
            self.request.logprobs or 0,
            lambda which: tables.piece(which) or tables.marker(which),
            tables.scratch,
        )
