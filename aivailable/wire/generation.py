"""A generation request and its answer, as it travels ingress → host → worker and back.

The host relays these messages unchanged between link and worker, so they are defined once.
Tokens carry ids beside their text: the ingress keeps them to continue elsewhere (DESIGN §7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_k 0 and top_p 1 switch them off."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """One request to generate. Exactly one of `messages`, `prompt`, `prompt_ids` is given."""

    request_id: str
    deployment: str
    replica: str = ""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """OpenAI chat messages, rendered by the worker with the model's own template."""
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    generated_ids: tuple[int, ...] = ()
    """Tokens that another replica already produced: replayed, then continued."""
    account: str = ""
    """Id of the API key: what fairness is counted by. Empty = loopback without a key."""
    max_tokens: int | None = None
    """New tokens, counted from the beginning of the answer; None = up to the context."""
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    ignore_eos: bool = False
    deadline_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Started:
    """The request has a slot; prefill begins."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int = 0
    prompt_ids: tuple[int, ...] = ()
    """The tokenized prompt, for continuation on another replica of the same digest."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of one request in one step. `text` may be empty inside a UTF-8 sequence or
    while a possible stop string is held back; ids are never held back."""

    request_id: str
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The orderly end. `text` is what was still held back."""

    request_id: str
    reason: FinishReason
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without an answer.

    `code`: context_length_exceeded, invalid_request, template_error, queue_full, not_hosting,
    draining, worker_lost, decode_failed, deadline_exceeded. `status` is the HTTP status to use.
    """

    request_id: str
    code: str
    message: str
    status: int = 500


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client is gone: free the slot within one decode step."""

    request_id: str


GenerationEvent = Started | Tokens | Finished | Failed
