"""A generation request and its answer, as it travels ingress → host → worker and back.

The host relays these messages unchanged between link and worker, so they are defined once.
Tokens carry ids beside their text: the ingress keeps them to continue elsewhere.

Not to be confused with `peer.api.generation`, which runs such requests for an HTTP client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aivailable.wire.schema import Int

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
Task = Literal["generate", "embed", "rerank"]
IMAGE_ROW_ID = -1
"""In prompt ids: a place in the context that a row of an image takes, not a token."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: llama.cpp's sampler chain, by its names and defaults.

    Each default of the second half switches its sampler off. temperature 0 is greedy; top_k 0,
    top_p 1, min_p 0 switch those off. `logit_bias` maps a token id, as decimal text, to what is
    added to its logit; -inf is written as -1e9 or less.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    repeat_last_n: int = 64
    """Tokens that `repeat_penalty` looks back at; 0 = none, -1 = the whole context."""
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    """0 off, 1 and 2 the versions of arXiv 2007.14966; replaces top-k, top-p, min-p, typical."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What every answer text must match. `text` is a JSON schema, a GBNF grammar whose first rule
    is `root`, or empty for json_object (any JSON object)."""

    kind: Literal["json_object", "json_schema", "gbnf"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Generate:
    """One request to a replica. For task "generate" exactly one of `messages`, `prompt` and
    `prompt_ids` is given, but a continuation brings `messages` beside `prompt_ids`: the ids are the
    prompt, the messages say how the answer is to be read. For "embed" and "rerank" `inputs` are
    given (and `prompt`, rerank's query); for "embed" they may be `input_ids` instead."""

    request_id: str
    deployment: str
    replica: str = ""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """OpenAI chat messages, rendered by the worker with the model's own template."""
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    task: Task = "generate"
    inputs: tuple[str, ...] = ()
    """Texts to embed, or documents to rank against `prompt`. Each is answered by one Embedded."""
    input_ids: tuple[tuple[int, ...], ...] = ()
    """Texts to embed as the model's own token ids, computed as they are: none is added."""
    tools: tuple[Mapping[str, Any], ...] | None = None
    """OpenAI tool definitions: [{"type": "function", "function": {name, parameters, …}}]."""
    tool_choice: str = "auto"
    """auto | none | required | the name of one function as "function:NAME"."""
    parallel_tool_calls: bool = True
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the chat template, such as {"enable_thinking": false}."""
    constraint: Constraint | None = None
    logprobs: int | None = None
    """Report each token's log probability and this many alternatives (0 to 20); None = neither."""
    generated_ids: tuple[int, ...] = ()
    """Tokens that another replica already produced: replayed, then continued."""
    account: str = ""
    """What fairness is counted by: the ingress writes it from the API key or the address, and the
    host trusts it. Empty = the ingress has older code."""
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
    prompt_tokens: Int
    cached_tokens: Int = 0
    prompt_ids: tuple[Int, ...] = ()
    """The tokenized prompt, for continuation on another replica of the same digest; with
    IMAGE_ROW_ID where the images of the messages are."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of one tool call. `id` and `name` come whole with its first piece, `arguments` is
    JSON text that grows; `index` counts the calls of one answer from 0."""

    index: Int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One token that could have come, with its log probability (natural, before temperature)."""

    token: Int
    logprob: float
    piece: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The drawn token, then the most probable ones, best first."""

    drawn: Alternative
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of one request in one step. `text`, `reasoning` and `calls` are the answer's
    parts as its chat format marks them; all may be empty inside a UTF-8 sequence or while a
    possible stop string or marker is held back. Ids are never held back."""

    request_id: str
    ids: tuple[Int, ...]
    text: str
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `ids`, when asked for."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to `inputs[index]`: float32 numbers, little-endian; for rerank a single one,
    the relevance score."""

    request_id: str
    index: Int
    vector: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """The orderly end. `text`, `reasoning` and `calls` are what was still held back."""

    request_id: str
    reason: FinishReason
    text: str = ""
    prompt_tokens: Int = 0
    completion_tokens: Int = 0
    cached_tokens: Int = 0
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without an answer.

    `code`: context_length_exceeded, invalid_request, template_error, queue_full, not_hosting,
    draining, worker_lost, decode_failed, deadline_exceeded, internal_error. `status`
    is the HTTP status to use.
    """

    request_id: str
    code: str
    message: str
    status: Int = 500


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client is gone: free the slot within one decode step."""

    request_id: str


GenerationEvent = Started | Tokens | Embedded | Finished | Failed
