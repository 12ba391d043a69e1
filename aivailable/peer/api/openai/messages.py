"""Chat messages as clients send them, in the one shape that workers render.

Owns roles, content parts, images and earlier tool calls; pure. Content of text parts only is joined
to one text; with an image it stays a list of parts. Nothing is ever fetched: an image comes in the
request itself.

Not to be confused with `worker.chat.messages`, which fits messages to a model's template.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from aivailable.peer.api.description.fields import AnyOf, Fields, Items, Object, String
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.parameters import RequestParameters, as_object, checked_text, wrong_type
from aivailable.wire.limits import IMAGE_MAX_BYTES, IMAGES_MAX

MESSAGES_MAX = 4096
"""Of one request; the further parts of their contents and the calls in them are counted, too."""
_IMAGE_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
"""PNG and JPEG, the formats that every build of the engine can read."""
_ROLES: Mapping[str, str] = {
    "system": "system",
    # Older chat templates know no other name for it.
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_PART: Fields = {
    "type": String(words=("text", "refusal", "image_url"), required=True),
    "text": String(),
    "refusal": String(),
    "image_url": AnyOf(
        (String(), Object({"url": String(required=True)})),
        text="the image itself, as data:image/png;base64,… or data:image/jpeg;base64,…",
    ),
}
_CALL: Fields = {
    "id": String(),
    "function": Object({"name": String(required=True), "arguments": String()}, required=True),
}
_MESSAGE: Fields = {
    "role": String(words=tuple(_ROLES), required=True),
    "content": AnyOf((String(), Items(Object(_PART))), text="only an assistant may leave it out"),
    "name": String(),
    "tool_call_id": String(),
    "reasoning_content": String(),
    "tool_calls": Items(Object(_CALL)),
}
MESSAGES: Fields = {
    "messages": Items(Object(_MESSAGE), items_min=1, items_max=MESSAGES_MAX, required=True)
}


def messages(body: RequestParameters) -> tuple[Mapping[str, Any], ...]:
    """Raises ParameterError."""
    given = body.items("messages")
    if not given:
        raise ParameterError(
            "messages", "'messages' needs at least one message", code="missing_parameter"
        )
    if sum(map(_items, given)) > MESSAGES_MAX:
        raise ParameterError(
            "messages", f"more than {MESSAGES_MAX} messages, parts of contents and tool calls"
        )
    read = tuple(
        _message(as_object(item, f"messages[{index}]", _MESSAGE))
        for index, item in enumerate(given)
    )
    images = sum(
        part["type"] == "image"
        for message in read
        if isinstance(message["content"], list)
        for part in message["content"]
    )
    if images > IMAGES_MAX:
        raise ParameterError("messages", f"more than {IMAGES_MAX} images")
    return read


def _items(message: Any) -> int:
    """A message by itself, and what it has in lists beyond one of each."""
    lists = (message.get("content"), message.get("tool_calls")) if type(message) is dict else ()
    return 1 + sum(max(len(one) - 1, 0) for one in lists if isinstance(one, list))


def _message(message: RequestParameters) -> Mapping[str, Any]:
    asked_role = message.required_text("role")
    role = _ROLES.get(asked_role)
    if role is None:
        raise ParameterError(message.name("role"), f"the role must be one of {', '.join(_ROLES)}")
    read: dict[str, Any] = {"role": role, "content": _content(message)}
    for key in ("name", "tool_call_id", "reasoning_content"):
        text = message.text(key)
        if text is not None:
            read[key] = text
    calls = message.items("tool_calls")
    if calls:
        read["tool_calls"] = [
            _tool_call(as_object(call, f"{message.name('tool_calls')}[{index}]", _CALL))
            for index, call in enumerate(calls)
        ]
    elif not message.given("content") and role != "assistant":
        raise ParameterError(
            message.name("content"),
            f"'{message.name('content')}' is required",
            code="missing_parameter",
        )
    return read


def _content(message: RequestParameters) -> str | list[dict[str, Any]]:
    value = message.raw("content")
    name = message.name("content")
    if value is None:
        return ""
    if isinstance(value, str):
        return checked_text(value, name)
    if not isinstance(value, list):
        raise wrong_type(name, "text or a list of parts", value)
    parts = [_part(as_object(part, f"{name}[{index}]", _PART)) for index, part in enumerate(value)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: RequestParameters) -> dict[str, Any]:
    kind = part.required_text("type")
    if kind == "text":
        return {"type": "text", "text": part.text("text") or ""}
    if kind == "refusal":
        # What an assistant said instead of an answer, sent back as history.
        return {"type": "text", "text": part.text("refusal") or ""}
    if kind == "image_url":
        return {"type": "image", "data": _image(part)}
    raise ParameterError(
        part.name("type"),
        f"content of type {kind[:40]!r} is not supported; 'text' and 'image_url' are",
        code="unsupported_value",
    )


def _image(part: RequestParameters) -> bytes:
    value = part.raw("image_url")
    name = part.name("image_url")
    if not isinstance(value, str):
        inner = part.object("image_url")
        if inner is None:
            raise ParameterError(name, f"'{name}' is required", code="missing_parameter")
        name = inner.name("url")
        value = inner.required_text("url")
    head, comma, encoded = value.partition(",")
    if not head.startswith("data:"):
        raise ParameterError(
            name,
            "images are not fetched from addresses; send the image itself as "
            "'data:image/png;base64,…' or 'data:image/jpeg;base64,…'",
            code="unsupported_value",
        )
    if not comma or not head.endswith(";base64"):
        raise ParameterError(name, f"'{name}' must be 'data:image/png;base64,…' or the like")
    if len(encoded) > IMAGE_MAX_BYTES * 4 // 3 + 4:
        raise ParameterError(name, f"the image is larger than {IMAGE_MAX_BYTES} bytes")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ParameterError(name, f"the image is not base64: {error}") from None
    if not data.startswith(_IMAGE_BEGINNINGS):
        raise ParameterError(name, "the image is neither PNG nor JPEG")
    return data


def _tool_call(call: RequestParameters) -> Mapping[str, Any]:
    function = call.object("function")
    if function is None:
        raise ParameterError(call.name("function"), f"'{call.name('function')}' is required")
    return {
        "id": call.text("id") or "",
        "type": "function",
        "function": {
            "name": function.required_text("name"),
            "arguments": function.text("arguments") or "",
        },
    }
