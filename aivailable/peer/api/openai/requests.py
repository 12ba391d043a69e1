"""OpenAI's chat and completion requests as `Generate`s, one for each choice: parsing, no I/O.

Nothing is silently replaced: a value out of range, and every parameter whose being ignored would
give a wrong answer, is refused by name; what else is unknown is ignored and said to be
(`unsupported`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aivailable.core.ids import DEPLOYMENT_NAME
from aivailable.peer.api.description.fields import (
    INT_MAX,
    AnyOf,
    Fields,
    Flag,
    Integer,
    Items,
    Object,
    Only,
    String,
)
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.openai.constraints import CONSTRAINTS, constraint
from aivailable.peer.api.openai.messages import MESSAGES, messages
from aivailable.peer.api.openai.sampling import (
    LLAMA_LIMITS,
    SAMPLING,
    STOP,
    TOKEN_ID_MAX,
    sampling,
    stop_strings,
    token_limit,
)
from aivailable.peer.api.openai.tools import TOOLS, tools
from aivailable.peer.api.openai.unsupported import REFUSED, refuse, refuse_unsupported
from aivailable.peer.api.parameters import (
    RequestParameters,
    as_object,
    checked_json,
    checked_text,
    values_of,
    wrong_type,
)
from aivailable.wire.generation import Generate

COMPLETION_TOKENS_DEFAULT = 16
"""OpenAI's default for /v1/completions."""
MODEL_NAME_MAX_CHARS = 128
N_MAX = 16
CHOICES_MAX = 64
"""Prompts times `n` of one request: each is a generation of its own."""
COPIED_VALUES_MAX = 16_384
"""Values of one request, times `n`."""
BESIDE_VALUE = 64
"""Copying 64 characters or token ids of a prompt costs as much as copying one value."""
LOGPROBS_MAX = 20
TEMPLATE_ARGUMENTS_MAX_BYTES = 16 * 1024
TEMPLATE_ARGUMENTS_DEPTH_MAX = 16
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_TEMPLATE_OWN = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")
"""What the worker itself gives to a template."""

Prompt = str | tuple[int, ...]

MODEL: Fields = {
    "model": String(
        MODEL_NAME_MAX_CHARS,
        required=True,
        pattern="^" + DEPLOYMENT_NAME.pattern.replace(r"\Z", "$"),
        text="a deployment's name or alias",
    )
}
TOKEN_IDS = Items(Integer(0, TOKEN_ID_MAX), items_min=1)
_PROBABILITIES = Integer(0, LOGPROBS_MAX, text="llama-server's name for logprobs; 0: none")
_COMMON: Fields = {
    **MODEL,
    "stream": Flag(default=False),
    "stream_options": Object(
        {"include_usage": Flag(default=False)}, text="only together with stream: true"
    ),
    "n": Integer(1, N_MAX, default=1),
    "ignore_eos": Flag(default=False),
    "n_probs": _PROBABILITIES,
    **STOP,
    **SAMPLING,
    **LLAMA_LIMITS,
    **CONSTRAINTS,
}
CHAT: Fields = {
    **_COMMON,
    **MESSAGES,
    **TOOLS,
    "max_completion_tokens": Integer(1),
    "max_tokens": Integer(1, text="the older name of max_completion_tokens"),
    "logprobs": Flag(default=False),
    "top_logprobs": Integer(0, LOGPROBS_MAX, text="only together with logprobs: true"),
    "continue_final_message": Flag(
        default=False, text="vLLM's word; a last message of the assistant is continued anyway"
    ),
    "add_generation_prompt": Flag(default=True),
    "reasoning_effort": String(words=EFFORTS),
    "reasoning_format": String(words=("auto", "deepseek", "none"), default="auto"),
    "include_reasoning": Flag(default=True),
    "enable_thinking": Flag(),
    "think": Flag(text="the same as enable_thinking"),
    "chat_template_kwargs": Object(text="further variables of the model's chat template"),
    **REFUSED,
}
_PROMPT = AnyOf((String(), TOKEN_IDS))
COMPLETION: Fields = {
    **_COMMON,
    "prompt": AnyOf(
        (String(), TOKEN_IDS, Items(_PROMPT, items_min=1, items_max=CHOICES_MAX)), required=True
    ),
    "max_tokens": Integer(1, default=COMPLETION_TOKENS_DEFAULT),
    "logprobs": AnyOf((Integer(0, LOGPROBS_MAX), Only((False,)))),
    "echo": Flag(default=False),
    "best_of": Integer(1, text="only the same as n"),
    "suffix": Only(("",), text="not supported"),
    "tools": Only(([],), text="not supported"),
    "functions": Only(([],), text="not supported"),
    **REFUSED,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed request. `generates` has one entry for each choice, those of one prompt side by
    side; `deployment` in them is still what the client called the model."""

    generates: tuple[Generate, ...]
    stream: bool
    include_usage: bool
    per_prompt: int = 1
    """How many choices share a prompt: `n`."""
    reasoning: bool = True
    """Whether the client wants to see it."""
    echo: tuple[str, ...] = ()
    """For each choice the text to begin with."""
    ignored: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        return self.generates[0].deployment

    @property
    def logprobs(self) -> bool:
        return self.generates[0].logprobs is not None


def chat_request(body: RequestParameters, request_id: str) -> Asked:
    """POST /v1/chat/completions. Raises ParameterError."""
    body = body.declared(CHAT)
    refuse_unsupported(body)
    called = tools(body)
    given = messages(body)
    _check_continued(body, given)
    generate = replace(
        _common(body, request_id),
        messages=given,
        max_tokens=token_limit(body, ("max_completion_tokens", "max_tokens")),
        tools=called.definitions,
        tool_choice=called.choice,
        parallel_tool_calls=called.parallel,
        template_arguments=_template_arguments(body),
        logprobs=_chat_logprobs(body),
    )
    n = _n(body)
    _check_copies(n, values_of(given) + values_of(called.definitions))
    reasoning = body.flag("include_reasoning")
    stream, usage = _streaming(body)
    return Asked(
        _choices((generate,), n),
        stream,
        usage,
        per_prompt=n,
        reasoning=reasoning,
        ignored=body.unread(),
    )


def completion_request(body: RequestParameters, request_id: str) -> Asked:
    """POST /v1/completions. Raises ParameterError."""
    body = body.declared(COMPLETION)
    refuse_unsupported(body)
    for key in ("suffix", "tools", "functions"):
        refuse(body, key)
    n = _n(body)
    best_of = body.integer("best_of")
    if best_of is not None and best_of != n:
        raise ParameterError(
            "best_of",
            "'best_of' other than 'n' is not supported: every answer made is sent",
            code="unsupported_value",
        )
    prompts = _prompts(body)
    if len(prompts) * n > CHOICES_MAX:
        raise ParameterError("prompt", f"more than {CHOICES_MAX} prompts times 'n' in one request")
    limit = token_limit(body, ("max_tokens",))
    # llama.cpp's own names say -1 for no limit; only who names none gets OpenAI's default.
    unlimited = body.given("n_predict") or body.given("num_predict")
    common = replace(
        _common(body, request_id),
        max_tokens=limit if limit is not None or unlimited else COMPLETION_TOKENS_DEFAULT,
        logprobs=_completion_logprobs(body),
    )
    _check_copies(n, sum(len(prompt) for prompt in prompts) // BESIDE_VALUE)
    echo = _echo(body, prompts, n, logprobs=common.logprobs is not None)
    generates = tuple(
        replace(common, prompt=prompt)
        if isinstance(prompt, str)
        else replace(common, prompt_ids=prompt)
        for prompt in prompts
    )
    stream, usage = _streaming(body)
    return Asked(
        _choices(generates, n), stream, usage, per_prompt=n, echo=echo, ignored=body.unread()
    )


def model_name(body: RequestParameters) -> str:
    name = body.required_text("model")
    if DEPLOYMENT_NAME.fullmatch(name) is None:
        raise ParameterError("model", f"{name!r} cannot be the name of a model")
    return name


def _common(body: RequestParameters, request_id: str) -> Generate:
    return Generate(
        request_id=request_id,
        deployment=model_name(body),
        constraint=constraint(body),
        stop=stop_strings(body),
        sampling=sampling(body),
        ignore_eos=body.flag("ignore_eos"),
    )


def _choices(prompts: tuple[Generate, ...], n: int) -> tuple[Generate, ...]:
    """Every prompt `n` times, each with a request id and a seed of its own."""
    total = len(prompts) * n
    return tuple(
        replace(
            one,
            request_id=one.request_id if total == 1 else f"{one.request_id}.{place * n + choice}",
            sampling=replace(one.sampling, seed=_shifted(one.sampling.seed, choice)),
        )
        for place, one in enumerate(prompts)
        for choice in range(n)
    )


def _shifted(seed: int | None, by: int) -> int | None:
    if seed is None or seed + by <= INT_MAX:
        return None if seed is None else seed + by
    return seed + by - 2 * INT_MAX - 1


def _check_copies(n: int, values: int) -> None:
    """Each of `n` choices is routed, copied and sent by itself."""
    if n > 1 and n * values > COPIED_VALUES_MAX:
        raise ParameterError("n", f"'n' of {n} is too many for a request as large as this one")


def _n(body: RequestParameters) -> int:
    return body.integer("n") or 1


def _streaming(body: RequestParameters) -> tuple[bool, bool]:
    stream = body.flag("stream")
    options = body.object("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise ParameterError("stream_options", "'stream_options' needs 'stream': true")
    return stream, options.flag("include_usage")


def _chat_logprobs(body: RequestParameters) -> int | None:
    wanted = body.flag("logprobs")
    top = body.integer("top_logprobs")
    probabilities = body.integer("n_probs")
    if top and not wanted:
        raise ParameterError("top_logprobs", "'top_logprobs' needs 'logprobs': true")
    if wanted:
        return top or 0
    # llama-server's name for both; 0 means off there.
    return probabilities or None


def _completion_logprobs(body: RequestParameters) -> int | None:
    if body.raw("logprobs") is False:
        return None
    wanted = body.integer("logprobs")
    probabilities = body.integer("n_probs")
    return wanted if wanted is not None else probabilities or None


def _check_continued(body: RequestParameters, given: tuple[Mapping[str, Any], ...]) -> None:
    """Whoever ends with an assistant's message has it continued, with vLLM's words or without."""
    continued = len(given) > 1 and given[-1]["role"] == "assistant"
    continued = continued and "tool_calls" not in given[-1]
    for key, asks in (("continue_final_message", True), ("add_generation_prompt", False)):
        if body.flag(key) is asks and not continued:
            raise ParameterError(
                key, f"'{key}' needs a last message of the assistant", code="unsupported_value"
            )


def _template_arguments(body: RequestParameters) -> Mapping[str, Any]:
    """`chat_template_kwargs`, before them what has a name of its own."""
    arguments: dict[str, Any] = {}
    if body.choice("reasoning_format") == "none":
        # The worker's own: thoughts stay in the content, as the model wrote them.
        arguments["reasoning_format"] = "none"
    effort = body.choice("reasoning_effort")
    if effort is not None:
        arguments["reasoning_effort"] = effort
        if effort == "none":
            arguments["enable_thinking"] = False
    for key in ("enable_thinking", "think"):
        if body.given(key):
            arguments["enable_thinking"] = body.flag(key)
    value = body.raw("chat_template_kwargs")
    if value is None:
        return arguments
    name = "chat_template_kwargs"
    checked_json(
        value,
        name,
        bytes_max=TEMPLATE_ARGUMENTS_MAX_BYTES,
        depth_max=TEMPLATE_ARGUMENTS_DEPTH_MAX,
    )
    for key, argument in as_object(value, name).plain().items():
        if key in _TEMPLATE_OWN or not key.isidentifier():
            raise ParameterError(f"{name}.{key}"[:80], f"{key[:40]!r} cannot be set")
        arguments[key] = argument
    return arguments


def _echo(
    body: RequestParameters, prompts: tuple[Prompt, ...], n: int, *, logprobs: bool
) -> tuple[str, ...]:
    if not body.flag("echo"):
        return ()
    texts = [one for one in prompts if isinstance(one, str)]
    if logprobs or len(texts) != len(prompts):
        raise ParameterError(
            "echo",
            "'echo' is supported for prompts of text and without 'logprobs'",
            code="unsupported_value",
        )
    return tuple(text for text in texts for _ in range(n))


def _prompts(body: RequestParameters) -> tuple[Prompt, ...]:
    """One or several: text, a list of texts, of token ids, or of lists of token ids."""
    value = body.raw("prompt")
    if value is None:
        raise ParameterError("prompt", "'prompt' is required", code="missing_parameter")
    if isinstance(value, str):
        return (checked_text(value, "prompt"),)
    given = body.items("prompt") or ()
    if not given:
        raise ParameterError("prompt", "'prompt' must not be an empty list")
    if not isinstance(given[0], (str, list)):
        return (token_ids(list(given), "prompt"),)
    if len(given) > CHOICES_MAX:
        raise ParameterError("prompt", f"more than {CHOICES_MAX} prompts in one request")
    return tuple(_prompt(item, f"prompt[{index}]") for index, item in enumerate(given))


def _prompt(value: Any, name: str) -> Prompt:
    if isinstance(value, list):
        return token_ids(value, name)
    return checked_text(value, name)


def token_ids(given: list[Any], name: str) -> tuple[int, ...]:
    if not given:
        raise ParameterError(name, f"'{name}' must not be an empty list")
    # At the speed of C for what is right; one by one only to name what is wrong.
    if set(map(type, given)) == {int} and min(given) >= 0 and max(given) <= TOKEN_ID_MAX:
        return tuple(given)
    for index, item in enumerate(given):
        if type(item) is not int:
            raise wrong_type(f"{name}[{index}]", "a token id", item)
        if not 0 <= item <= TOKEN_ID_MAX:
            raise ParameterError(f"{name}[{index}]", f"'{name}[{index}]' is no token id")
    return tuple(given)
