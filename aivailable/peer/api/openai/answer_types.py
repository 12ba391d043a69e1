"""What OpenAI's endpoints answer, as types: platform.openai.com/docs/api-reference.

Owns the shapes only. `choices` and `replies` build them, the type checker compares, and
`/openapi.json` is made from them. Rerank's answer is Jina's and Cohere's.

Not to be confused with `peer.api.description.answer_types`, the shapes of `/cluster/v1`.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


class CachedDetails(TypedDict):
    """Of the prompt's tokens, those that were not computed anew."""

    cached_tokens: int


class Usage(TypedDict):
    """Each prompt counts once, however many choices were made of it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedDetails


class InputUsage(TypedDict):
    """For answers without tokens of their own."""

    prompt_tokens: int
    total_tokens: int


class CalledFunction(TypedDict):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class MessageToolCall(TypedDict):
    """A function that the model wants to be called."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class CalledFunctionDelta(TypedDict):
    """The name comes with the first piece of a call."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """A piece of one tool call; `id` and `type` come with its first piece."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledFunctionDelta


class ChatToken(TypedDict):
    """A token with its log probability; `bytes` also when it is part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatToken):
    """The drawn token, and the most probable ones."""

    top_logprobs: list[ChatToken]


class ChatLogprobs(TypedDict):
    """Log probabilities of a chat answer."""

    content: list[ChatTokenLogprob]
    refusal: None


class TextLogprobs(TypedDict):
    """Log probabilities of a completion, in columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatMessage(TypedDict):
    """The whole answer. `content` is null when there are only tool calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[MessageToolCall]]


class ChoiceDelta(TypedDict):
    """What a chunk adds to the answer."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallDelta]]


class ChatWhole(TypedDict):
    """A choice of a chat answer, without its index and end."""

    message: ChatMessage
    logprobs: ChatLogprobs | None


class ChatPart(TypedDict):
    """A piece of a choice of a chat answer, without its index and end."""

    delta: ChoiceDelta
    logprobs: ChatLogprobs | None


class TextPart(TypedDict):
    """A choice of a completion, or a piece of it, without its index and end."""

    text: str
    logprobs: TextLogprobs | None


class ChatCompletionChoice(ChatWhole):
    """One of the `n` answers."""

    index: int
    finish_reason: FinishReason


class ChatCompletionChunkChoice(ChatPart):
    """`finish_reason` is null until the end."""

    index: int
    finish_reason: FinishReason | None


class CompletionChoice(TextPart):
    """`finish_reason` is null in a stream until the end."""

    index: int
    finish_reason: FinishReason | None


class ChatCompletion(TypedDict):
    """A chat answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: Usage


class ChatCompletionChunk(TypedDict):
    """The data of one event of a streamed chat answer. `usage` is there when it was asked for, and
    filled in the last one."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatCompletionChunkChoice]
    usage: NotRequired[Usage | None]


class Completion(TypedDict):
    """A completion, or the data of one event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


class ModelEntry(TypedDict):
    """A deployment as OpenAI's model, with what only we know beside it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    state: str
    context_length: int
    aliases: list[str]


class ModelList(TypedDict):
    """All deployments."""

    object: Literal["list"]
    data: list[ModelEntry]


class EmbeddingEntry(TypedDict):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(TypedDict):
    """The vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: InputUsage


class RankedText(TypedDict):
    """A document that was asked back."""

    text: str


class Ranked(TypedDict):
    """`index` is the document's place in the request."""

    index: int
    relevance_score: float
    document: NotRequired[RankedText]


class Ranking(TypedDict):
    """The best documents, best first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[Ranked]
    usage: InputUsage
