"""One request inside the worker: its tokens, how far they are in the cache, its text.

Owns: the life of an answer between slot and wire. Pure; made by session, scheduled by batcher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from aivailable.wire.generation import Generate
from aivailable.worker.detokenizer import TextStream
from aivailable.worker.engine import Logits
from aivailable.worker.sampling import REPEAT_WINDOW_TOKENS, draw, seed_of

Reason = Literal["stop", "length"]


class Job:
    """`tokens` is prompt, then replayed ids, then new ones; the first `fed` are in the cache."""

    def __init__(
        self,
        request: Generate,
        prompt: Sequence[int],
        *,
        limit: int,
        arrived_s: float,
        piece: Callable[[int], bytes],
        is_end: Callable[[int], bool],
    ) -> None:
        self.request = request
        self.request_id = request.request_id
        self.prompt_tokens = len(prompt)
        self.replay_end = len(prompt) + len(request.generated_ids)
        self.tokens: list[int] = [*prompt, *request.generated_ids]
        self.fed = 0
        self.cached = 0
        self.slot = -1
        self.deadline_s = arrived_s + request.deadline_s
        self.finished: Reason | None = None
        self._limit = limit
        self._piece = piece
        self._is_end = is_end
        self._seed = seed_of(request.sampling, request.request_id)
        self._text = TextStream(request.stop)
        self._counts: Counter[int] = Counter(request.generated_ids)
        for token in request.generated_ids:
            # Ids and text travel together: what was certain after these ids has been sent, and
            # what was held back then is held back here too.
            self._text.feed(piece(token))
        self._settle()

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer, the replayed ones included."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def decoding(self) -> bool:
        """Whether only the last token is missing in the cache."""
        return self.fed >= self.replay_end and self.fed == len(self.tokens) - 1

    def draw(self, logits: Logits) -> tuple[tuple[int, ...], str]:
        """Take the next token. The ids (none at the model's end token) and the certain text."""
        token = draw(
            logits,
            self.request.sampling,
            seed=self._seed,
            position=self.completion_tokens,
            recent=self.tokens[-REPEAT_WINDOW_TOKENS:],
            counts=self._counts,
        )
        if self._is_end(token) and not self.request.ignore_eos:
            self.finished = "stop"
            return (), ""
        self.tokens.append(token)
        self._counts[token] += 1
        text = self._text.feed(self._piece(token))
        self._settle()
        return (token,), text

    def held_text(self) -> str:
        """What is still held back, at the end of the answer."""
        return self._text.finish()

    def _settle(self) -> None:
        if self._text.stopped:
            self.finished = "stop"
        elif self.completion_tokens >= self._limit:
            self.finished = "length"
