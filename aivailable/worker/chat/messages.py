"""A conversation in one shape, whatever its client and whatever the template can express.

Owns: checking OpenAI's messages and tools, and rewriting what a template cannot show (tool calls,
tool results, system messages) into what it can. It must not render.

Not to be confused with `peer.api.openai.messages`, which reads them from a client's JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from aivailable.errors import RequestError

Message: TypeAlias = dict[str, Any]

MESSAGES_MAX: Final = 8192
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
"""Templates write a role between control tokens, some as a part of one."""


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages with text content, calls in one shape, and tool results that know their function.

    Raises RequestError(invalid_request).
    """
    if not messages:
        raise _wrong("messages must not be empty")
    if len(messages) > MESSAGES_MAX:
        raise _wrong(f"{len(messages)} messages; the limit is {MESSAGES_MAX}")
    names: dict[str, str] = {}
    waiting: list[str] = []
    checked = []
    for index, message in enumerate(messages):
        plain = _checked(message, index)
        for call in plain.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
            waiting.append(call["id"])
        if plain["role"] == "tool":
            # A client that leaves the id out means the calls in their order.
            known = plain.get("tool_call_id") or (waiting[0] if waiting else f"call{index}")
            if known in waiting:
                waiting.remove(known)
            plain["tool_call_id"] = known
            plain.setdefault("name", names.get(known, "function"))
        checked.append(plain)
    return checked


def _checked(message: Mapping[str, Any], index: int) -> Message:
    role = message.get("role")
    if not isinstance(role, str):
        raise _wrong("every message needs a role")
    if role not in ROLES:
        raise _wrong(f"the role must be one of {', '.join(ROLES)}")
    plain: Message = {key: value for key, value in message.items() if value is not None}
    plain["role"] = role
    plain["content"] = _text(message.get("content"))
    calls = message.get("tool_calls")
    plain.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, (list, tuple)):
            raise _wrong("tool_calls must be a list")
        plain["tool_calls"] = [
            _checked_call(call, f"call{index}n{number}") for number, call in enumerate(calls)
        ]
    for key in ("tool_call_id", "name", "reasoning_content"):
        if key in plain and not isinstance(plain[key], str):
            raise _wrong(f"a message's {key} must be text")
    return plain


def _checked_call(call: Any, default_id: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _wrong("every tool call needs a function with a name")
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not isinstance(arguments, str):
        raise _wrong("a tool call's arguments must be JSON text")
    call_id = call.get("id")
    return {
        "id": call_id if isinstance(call_id, str) and call_id else default_id,
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments or "{}"},
    }


def _text(content: Any) -> str:
    """Text parts joined, since most templates know only plain text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise _wrong("a message's content must be text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type") != "text":
            raise _wrong("this model takes text content only")
        texts.append(text)
    return "".join(texts)


def with_mapped_arguments(
    messages: Sequence[Message], quoted: Callable[[Any], Any] | None = None
) -> list[Message]:
    """For templates that go through a call's arguments: as a mapping instead of JSON text, whose
    texts are `quoted` again, since JSON's escapes spell what its text does not show.

    Raises RequestError when a past call's arguments are not a JSON object.
    """
    return [
        {**message, "tool_calls": [_mapped(call, quoted) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _mapped(call: Mapping[str, Any], quoted: Callable[[Any], Any] | None) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise _wrong(f"the arguments of the call of {function['name']} are not a JSON object")
    shown = quoted(arguments) if quoted else arguments
    return {**call, "function": {**function, "arguments": shown}}


def with_typed_content(messages: Sequence[Message]) -> list[Message]:
    """For templates that know only lists of content parts."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """The text added to the system message, which is made where there is none."""
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        content = f"{first['content']}\n\n{text}" if first["content"] else text
        return [{**first, "content": content}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """For templates without system messages: said at the beginning of what the user says next."""
    result: list[Message] = []
    told = ""
    for message in messages:
        if message["role"] == "system":
            told = f"{told}\n\n{message['content']}" if told else message["content"]
        elif told and message["role"] == "user":
            result.append({**message, "content": f"{told}\n\n{message['content']}"})
            told = ""
        elif told:
            result.extend(({"role": "user", "content": told}, message))
            told = ""
        else:
            result.append(message)
    if told:
        result.append({"role": "user", "content": told})
    return result


def with_written_calls(
    messages: Sequence[Message], write: Callable[[Sequence[Mapping[str, Any]]], str]
) -> list[Message]:
    """For templates that do not show calls: written into the content."""
    result = []
    for message in messages:
        if "tool_calls" in message:
            written = write(message["tool_calls"])
            content = f"{message['content']}\n{written}" if message["content"] else written
            message = {key: value for key, value in message.items() if key != "tool_calls"}
            message["content"] = content
        result.append(message)
    return result


def with_told_results(messages: Sequence[Message]) -> list[Message]:
    """For templates without tool messages: results are told by the user, neighbours in one
    message, since such templates often want the roles to alternate."""
    result: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            body = {"name": message["name"], "content": message["content"]}
            told = json.dumps({"tool_response": body}, ensure_ascii=False)
            message = {"role": "user", "content": told, "told": True}
        if (
            result
            and message["role"] == "user" == result[-1]["role"]
            and ("told" in message or "told" in result[-1])
        ):
            result[-1] = {**result[-1], "content": f"{result[-1]['content']}\n{message['content']}"}
        else:
            result.append(message)
    return [{key: value for key, value in each.items() if key != "told"} for each in result]


def with_single_calls(messages: Sequence[Message]) -> list[Message]:
    """For templates that refuse several calls in one message: each call in a message of its own,
    followed by its result."""
    result: list[Message] = []
    at = 0
    while at < len(messages):
        message, at = messages[at], at + 1
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            result.append(message)
            continue
        results = []
        while at < len(messages) and messages[at]["role"] == "tool":
            results.append(messages[at])
            at += 1
        for number, call in enumerate(calls):
            content = message["content"] if number == 0 else ""
            result.append({**message, "content": content, "tool_calls": [call]})
            result.extend(told for told in results if told["tool_call_id"] == call["id"])
        ids = [call["id"] for call in calls]
        result.extend(told for told in results if told["tool_call_id"] not in ids)
    return result


def _wrong(problem: str) -> RequestError:
    return RequestError(400, "invalid_request", problem)
