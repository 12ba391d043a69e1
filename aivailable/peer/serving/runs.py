"""One request in a replica: what its reader still has to get, what it costs, how it goes on.

Owns the arithmetic of a request that may leave its slot and come back; must not talk to the worker
nor decide who leaves (`core.serving.admission`). Made by `peer.serving.replicas`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from aivailable.core.serving.admission import ANSWER_EXPECTED_TOKENS
from aivailable.wire.generation import Finished, Generate, GenerationEvent, Started, Tokens

CHARS_PER_TOKEN = 4
"""A guess that is good enough to take turns by; the worker's own count corrects it."""


class Run:
    """`request` is what the worker gets next: after a displacement, where it left off."""

    def __init__(self, request: Generate, queued_s: float) -> None:
        self.request = request
        self.queued_s = queued_s
        """Since when it waits for a slot, or did before it got its last one."""
        self.events: asyncio.Queue[GenerationEvent] = asyncio.Queue()
        self.paused = False
        """The reader is behind, and the worker was told."""
        self.displaced = False
        """The worker was told to give up its slot, and has not said yet that it did."""
        self.parked = False
        """It has neither a slot nor a place in the line until its reader goes on."""
        self._prompt_ids = request.prompt_ids or ()
        self._generated = list(request.generated_ids)

    def heard(self, event: GenerationEvent) -> None:
        """Remember what a continuation needs."""
        if isinstance(event, Started):
            self._prompt_ids = self._prompt_ids or event.prompt_ids
        elif isinstance(event, Tokens):
            self._generated.extend(event.ids)

    @property
    def movable(self) -> bool:
        """Whether it can give up its slot and lose nothing but time."""
        resumable = bool(self._prompt_ids) or not self._generated
        return self.request.task == "generate" and not self.displaced and resumable

    def left_slot(self) -> None:
        """The worker has ended it for now: the next time it begins after its last token."""
        self.displaced = False
        if self._generated:
            self.request = replace(
                self.request,
                prompt=None,
                prompt_ids=self._prompt_ids,
                generated_ids=tuple(self._generated),
            )

    def cost_tokens(self) -> int:
        """What its next turn is expected to compute: its prompt and an answer of usual length."""
        request = self.request
        answer = 0
        if request.task == "generate":
            limit = ANSWER_EXPECTED_TOKENS if request.max_tokens is None else request.max_tokens
            answer = max(0, min(limit - len(request.generated_ids), ANSWER_EXPECTED_TOKENS))
        # What was generated already lies warm behind its prompt, as a rule.
        prompt = 0 if request.generated_ids else _prompt_tokens(request)
        return prompt + answer

    @property
    def replayed(self) -> int:
        """Tokens of the answer that came from an earlier turn."""
        return len(self.request.generated_ids)


def used_tokens(end: Finished, replayed: int) -> int:
    """What a turn did compute, by the worker's count."""
    prompt = max(0, end.prompt_tokens - end.cached_tokens)
    return prompt + max(0, end.completion_tokens - replayed)


def _prompt_tokens(request: Generate) -> int:
    if request.prompt_ids is not None:
        return len(request.prompt_ids)
    chars = len(request.prompt or "") + sum(len(text) for text in request.inputs)
    chars += sum(_text_chars(message) for message in request.messages or ())
    return chars // CHARS_PER_TOKEN + sum(len(ids) for ids in request.input_ids)


def _text_chars(message: Mapping[str, Any]) -> int:
    """Of the text parts: the bytes of an image say little of what it costs."""
    content = message.get("content")
    parts: Iterable[Any] = content if isinstance(content, list | tuple) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return sum(len(text) for text in texts if isinstance(text, str))
