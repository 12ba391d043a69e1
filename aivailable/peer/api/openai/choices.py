"""One choice of an answer as it grows: its delta for a stream, its whole for a single document.

Owns what becomes of text, reasoning, tool calls and log probabilities in OpenAI's two shapes; pure.
Two methods, used one or the other way: `delta` forgets what it gave out, `add` and `whole` keep it.
Log probabilities are kept as JSON text, made when they arrive: twenty alternatives of each of many
tokens would hold the event loop at the end, and take ten times the memory.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable
from typing import Any, Protocol, cast

import msgspec

from aivailable.peer.api.openai.answer_types import (
    CalledFunctionDelta,
    ChatLogprobs,
    ChatMessage,
    ChatPart,
    ChatToken,
    ChatTokenLogprob,
    ChatWhole,
    ChoiceDelta,
    MessageToolCall,
    TextLogprobs,
    TextPart,
    ToolCallDelta,
)
from aivailable.wire.generation import Alternative, CallDelta, Finished, TokenLogprob, Tokens
from aivailable.wire.schema import to_json

LOGPROB_MIN = -9999.0
"""What OpenAI shows for a token that cannot come: JSON has no minus infinity."""

Part = ChatWhole | ChatPart | TextPart
"""The members of a choice that are not its index or its end."""


class Choice(Protocol):
    """One of `chat_choice` and `text_choice`."""

    def opening(self) -> Part | None:
        """What a stream says before the first token."""

    def delta(self, event: Tokens | Finished) -> Part | None:
        """What a stream says of this event; None = nothing."""

    def closing(self) -> Part:
        """What a stream says beside the reason of the end."""

    def add(self, event: Tokens | Finished) -> int:
        """How many bytes of log probabilities were kept."""

    def whole(self) -> Part: ...


class ChatChoice:
    """`reasoning`: whether the client wants to see it. `logprobs`: whether it asked for them."""

    def __init__(self, *, reasoning: bool, logprobs: bool) -> None:
        self._show_reasoning = reasoning
        self._show_logprobs = logprobs
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, MessageToolCall] = {}
        self._logprobs: list[msgspec.Raw] = []

    def opening(self) -> ChatPart:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def delta(self, event: Tokens | Finished) -> ChatPart | None:
        delta: ChoiceDelta = {}
        if event.reasoning and self._show_reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.text:
            delta["content"] = event.text
        if event.calls:
            delta["tool_calls"] = [_call_delta(call) for call in event.calls]
        logprobs = self._content(event)
        if not delta and not logprobs:
            return None
        return {"delta": delta, "logprobs": _of_content(logprobs) if logprobs else None}

    def closing(self) -> ChatPart:
        return {"delta": {}, "logprobs": None}

    def add(self, event: Tokens | Finished) -> int:
        self._text.append(event.text)
        self._reasoning.append(event.reasoning)
        for call in event.calls:
            self._add_call(call)
        fresh = [to_json(entry) for entry in self._content(event)]
        self._logprobs.extend(map(msgspec.Raw, fresh))
        return sum(map(len, fresh))

    def whole(self) -> ChatWhole:
        text, reasoning = "".join(self._text), "".join(self._reasoning)
        message: ChatMessage = {
            "role": "assistant",
            "content": text if text or not self._calls else None,
            "refusal": None,
        }
        if reasoning and self._show_reasoning:
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        kept = cast(list[ChatTokenLogprob], self._logprobs)
        logprobs = _of_content(kept) if self._show_logprobs else None
        return {"message": message, "logprobs": logprobs}

    def _content(self, event: Tokens | Finished) -> list[ChatTokenLogprob]:
        if not self._show_logprobs or not isinstance(event, Tokens):
            return []
        return [
            {**_chat_entry(one.drawn), "top_logprobs": [_chat_entry(top) for top in one.top]}
            for one in event.logprobs
        ]

    def _add_call(self, call: CallDelta) -> None:
        whole = self._calls.setdefault(
            call.index,
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
        )
        whole["id"] = whole["id"] or call.id
        function = whole["function"]
        function["name"] = function["name"] or call.name
        function["arguments"] += call.arguments


class TextChoice:
    """`echo` is the text that comes before the answer's own."""

    def __init__(self, *, logprobs: bool, echo: str = "") -> None:
        self._echo = echo
        self._text: list[str] = [echo]
        self._offsets = _Offsets() if logprobs else None
        self._entries: list[dict[str, Any]] = []

    def opening(self) -> TextPart | None:
        return {"text": self._echo, "logprobs": None} if self._echo else None

    def delta(self, event: Tokens | Finished) -> TextPart | None:
        text, entries = _plain(event), self._new_entries(event)
        if not text and not entries:
            return None
        return {"text": text, "logprobs": _columns(entries) if entries else None}

    def closing(self) -> TextPart:
        return {"text": "", "logprobs": None}

    def add(self, event: Tokens | Finished) -> int:
        self._text.append(_plain(event))
        kept_bytes = 0
        for entry in self._new_entries(event):
            top = to_json(entry["top_logprobs"])
            kept_bytes += len(top)
            self._entries.append({**entry, "top_logprobs": msgspec.Raw(top)})
        return kept_bytes

    def whole(self) -> TextPart:
        logprobs = _columns(self._entries) if self._offsets is not None else None
        return {"text": "".join(self._text), "logprobs": logprobs}

    def _new_entries(self, event: Tokens | Finished) -> list[dict[str, Any]]:
        if self._offsets is None or not isinstance(event, Tokens):
            return []
        offsets = self._offsets
        return [_older_entry(one, offsets.next(one.drawn.piece)) for one in event.logprobs]


class _Offsets:
    """Where each token begins in the text: characters, also when a character is many tokens."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chars = 0

    def next(self, piece: bytes) -> int:
        offset = self._chars
        self._chars += len(self._decoder.decode(piece))
        return offset


def _plain(event: Tokens | Finished) -> str:
    """A completion has no format; should a worker tell parts apart, none is lost."""
    return event.reasoning + event.text


def _call_delta(call: CallDelta) -> ToolCallDelta:
    function: CalledFunctionDelta = {"arguments": call.arguments}
    if not call.name:
        return {"index": call.index, "function": function}
    function = {"name": call.name, **function}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _of_content(entries: list[ChatTokenLogprob]) -> ChatLogprobs:
    return {"content": entries, "refusal": None}


def _chat_entry(one: Alternative) -> ChatToken:
    return {
        "token": one.piece.decode("utf-8", "replace"),
        "logprob": _shown(one.logprob),
        "bytes": list(one.piece),
    }


def _older_entry(one: TokenLogprob, offset: int) -> dict[str, Any]:
    drawn = _older_name(one.drawn.piece)
    top: dict[str, float] = {}
    for alternative in (*one.top, one.drawn):
        # Best first: of two tokens with one text the better stays.
        top.setdefault(_older_name(alternative.piece), _shown(alternative.logprob))
    return {
        "tokens": drawn,
        "token_logprobs": _shown(one.drawn.logprob),
        "top_logprobs": top,
        "text_offset": offset,
    }


def _columns(entries: Iterable[dict[str, Any]]) -> TextLogprobs:
    rows = list(entries)
    return {
        "tokens": [row["tokens"] for row in rows],
        "token_logprobs": [row["token_logprobs"] for row in rows],
        "top_logprobs": [row["top_logprobs"] for row in rows],
        "text_offset": [row["text_offset"] for row in rows],
    }


def _older_name(piece: bytes) -> str:
    """Part of a character has no text; OpenAI's completions spell it so."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _shown(logprob: float) -> float:
    return max(logprob, LOGPROB_MIN) if math.isfinite(logprob) else LOGPROB_MIN
