"""OpenAI's chat and completion requests as our `Generate`: parsing only, no I/O.

What is not given takes OpenAI's documented default where there is one (temperature 1, top_p 1;
max_tokens 16 for /v1/completions) and `wire.generation.Sampling`'s otherwise (top_k, min_p, repeat
penalty). Unknown parameters are ignored, as OpenAI's clients grow new ones; those whose being
ignored would give a wrong answer (tools, JSON schemas, logprobs, images, n > 1) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aivailable.core.ids import DEPLOYMENT_NAME
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.parameters import (
    INT_MAX,
    Parameters,
    as_object,
    checked_text,
    wrong_type,
)
from aivailable.wire.generation import Generate, Sampling
from aivailable.wire.limits import STOP_STRING_MAX_CHARS, STOP_STRINGS_MAX

TEMPERATURE_DEFAULT = 1.0
TOP_P_DEFAULT = 1.0
COMPLETION_TOKENS_DEFAULT = 16
MESSAGES_MAX = 4096
MODEL_NAME_MAX_CHARS = 128
TOP_K_MAX = 1_000_000
TOKEN_ID_MAX = 2**31 - 1
_ROLES: Mapping[str, str] = {
    "system": "system",
    # Older chat templates know no other name for it.
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed request. `generate.deployment` is still what the client called the model."""

    generate: Generate
    stream: bool
    include_usage: bool


def chat_request(body: Parameters, request_id: str) -> Asked:
    """POST /v1/chat/completions. Raises ParameterError."""
    _refuse_unsupported(body)
    limit = body.integer("max_completion_tokens", 1)
    older_limit = body.integer("max_tokens", 1)
    generate = Generate(
        request_id=request_id,
        deployment=_model(body),
        messages=_messages(body),
        max_tokens=limit if limit is not None else older_limit,
        stop=_stop(body),
        sampling=_sampling(body),
        ignore_eos=body.flag("ignore_eos"),
    )
    return Asked(generate, *_streaming(body))


def completion_request(body: Parameters, request_id: str) -> Asked:
    """POST /v1/completions. Raises ParameterError."""
    _refuse_unsupported(body)
    _refuse(body, "echo", allowed=(False,))
    _refuse(body, "suffix", allowed=("",))
    _refuse(body, "best_of", allowed=(1,))
    prompt, prompt_ids = _prompt(body)
    limit = body.integer("max_tokens", 1)
    generate = Generate(
        request_id=request_id,
        deployment=_model(body),
        prompt=prompt,
        prompt_ids=prompt_ids,
        max_tokens=limit if limit is not None else COMPLETION_TOKENS_DEFAULT,
        stop=_stop(body),
        sampling=_sampling(body),
        ignore_eos=body.flag("ignore_eos"),
    )
    return Asked(generate, *_streaming(body))


def _model(body: Parameters) -> str:
    name = body.required_text("model", chars_max=MODEL_NAME_MAX_CHARS)
    if DEPLOYMENT_NAME.fullmatch(name) is None:
        raise ParameterError("model", f"{name!r} cannot be the name of a model")
    return name


def _streaming(body: Parameters) -> tuple[bool, bool]:
    stream = body.flag("stream")
    options = body.object("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise ParameterError("stream_options", "'stream_options' needs 'stream': true")
    return stream, options.flag("include_usage")


def _sampling(body: Parameters) -> Sampling:
    default = Sampling()
    top_k = body.integer("top_k", -1, TOP_K_MAX)
    repeat = body.number("repeat_penalty", 0.01, 10.0)
    if repeat is None:
        repeat = body.number("repetition_penalty", 0.01, 10.0)
    return Sampling(
        temperature=_or(body.number("temperature", 0.0, 2.0), TEMPERATURE_DEFAULT),
        # -1 is what vLLM's clients send for "off".
        top_k=default.top_k if top_k is None else max(top_k, 0),
        top_p=_or(body.number("top_p", 0.0, 1.0), TOP_P_DEFAULT),
        min_p=_or(body.number("min_p", 0.0, 1.0), default.min_p),
        repeat_penalty=_or(repeat, default.repeat_penalty),
        presence_penalty=_or(body.number("presence_penalty", -2.0, 2.0), 0.0),
        frequency_penalty=_or(body.number("frequency_penalty", -2.0, 2.0), 0.0),
        seed=body.integer("seed", -INT_MAX),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _stop(body: Parameters) -> tuple[str, ...]:
    value = body.raw("stop")
    given = (value,) if isinstance(value, str) else body.items("stop")
    if given is None:
        return ()
    if len(given) > STOP_STRINGS_MAX:
        raise ParameterError("stop", f"'stop' has more than {STOP_STRINGS_MAX} strings")
    texts = tuple(
        checked_text(item, f"stop[{index}]", chars_max=STOP_STRING_MAX_CHARS)
        for index, item in enumerate(given)
    )
    if "" in texts:
        raise ParameterError("stop", "a stop string must not be empty")
    return texts


def _prompt(body: Parameters) -> tuple[str | None, tuple[int, ...] | None]:
    value = body.raw("prompt")
    if value is None:
        raise ParameterError("prompt", "'prompt' is required", code="missing_parameter")
    if isinstance(value, str):
        return checked_text(value, "prompt"), None
    given = body.items("prompt") or ()
    if not given:
        raise ParameterError("prompt", "'prompt' must not be an empty list")
    if not isinstance(given[0], (str, list)):
        return None, _token_ids(list(given), "prompt")
    if len(given) > 1:
        raise ParameterError(
            "prompt",
            "several prompts in one request are not supported in this version; send one each",
            code="unsupported_value",
        )
    if isinstance(given[0], str):
        return checked_text(given[0], "prompt[0]"), None
    return None, _token_ids(given[0], "prompt[0]")


def _token_ids(given: list[Any], name: str) -> tuple[int, ...]:
    if not given:
        raise ParameterError(name, f"'{name}' must not be an empty list")
    for index, item in enumerate(given):
        if type(item) is not int:
            raise wrong_type(f"{name}[{index}]", "a token id", item)
        if not 0 <= item <= TOKEN_ID_MAX:
            raise ParameterError(f"{name}[{index}]", f"'{name}[{index}]' is no token id")
    return tuple(given)


def _messages(body: Parameters) -> tuple[Mapping[str, Any], ...]:
    given = body.items("messages")
    if not given:
        raise ParameterError(
            "messages", "'messages' needs at least one message", code="missing_parameter"
        )
    if len(given) > MESSAGES_MAX:
        raise ParameterError("messages", f"more than {MESSAGES_MAX} messages")
    return tuple(
        _message(as_object(item, f"messages[{index}]")) for index, item in enumerate(given)
    )


def _message(message: Parameters) -> Mapping[str, Any]:
    asked_role = message.required_text("role")
    role = _ROLES.get(asked_role)
    if role is None:
        raise ParameterError(message.name("role"), f"the role must be one of {', '.join(_ROLES)}")
    read: dict[str, Any] = {"role": role, "content": _content(message)}
    for key in ("name", "tool_call_id"):
        text = message.text(key)
        if text is not None:
            read[key] = text
    calls = message.items("tool_calls")
    if calls:
        read["tool_calls"] = [
            _tool_call(as_object(call, f"{message.name('tool_calls')}[{index}]"))
            for index, call in enumerate(calls)
        ]
    elif not message.given("content") and role != "assistant":
        raise ParameterError(
            message.name("content"),
            f"'{message.name('content')}' is required",
            code="missing_parameter",
        )
    return read


def _content(message: Parameters) -> str:
    value = message.raw("content")
    name = message.name("content")
    if value is None:
        return ""
    if isinstance(value, str):
        return checked_text(value, name)
    if not isinstance(value, list):
        raise wrong_type(name, "text or a list of parts", value)
    return "".join(
        _part_text(as_object(part, f"{name}[{index}]")) for index, part in enumerate(value)
    )


def _part_text(part: Parameters) -> str:
    kind = part.required_text("type")
    if kind != "text":
        raise _unsupported(part.name("type"), f"content of type {kind[:40]!r}")
    return part.text("text") or ""


def _tool_call(call: Parameters) -> Mapping[str, Any]:
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


def _refuse_unsupported(body: Parameters) -> None:
    """Refuse what would silently change the meaning of the answer if it were ignored."""
    count = body.integer("n", 1)
    if count is not None and count > 1:
        raise _unsupported("n", "more than one choice per request ('n' > 1)")
    if body.raw("tool_choice") != "none":
        _refuse(body, "tools", allowed=([],))
        _refuse(body, "functions", allowed=([],))
    _refuse(body, "tool_choice", allowed=("none", "auto"))
    _refuse(body, "logprobs", allowed=(False,))
    _refuse(body, "top_logprobs", allowed=(0,))
    _refuse(body, "logit_bias", allowed=({},))
    _refuse(body, "audio")
    _refuse(body, "modalities", allowed=(["text"],))
    form = body.object("response_format")
    if form is not None and form.raw("type") != "text":
        raise _unsupported("response_format", "a response format other than text")


def _refuse(body: Parameters, key: str, *, allowed: tuple[Any, ...] = ()) -> None:
    value = body.raw(key)
    if value is None:
        return
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise _unsupported(key, f"'{key}' with this value")


def _unsupported(param: str, what: str) -> ParameterError:
    return ParameterError(
        param, f"{what} is not supported in this version", code="unsupported_value"
    )
