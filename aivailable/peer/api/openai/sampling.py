"""How a client says how tokens are drawn: every sampler under the names that people send.

Owns names, defaults and ranges; pure. What is not given takes OpenAI's documented default where
there is one (temperature 1, top_p 1) and `wire.generation.Sampling`'s otherwise. Two names of one
thing may both be sent only when they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from aivailable.peer.api.description.fields import (
    INT_MAX,
    AnyOf,
    Fields,
    Integer,
    Items,
    Number,
    Object,
    Only,
    String,
)
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.parameters import (
    RequestParameters,
    as_object,
    checked_number,
    checked_text,
    wrong_type,
)
from aivailable.wire.generation import Sampling
from aivailable.wire.limits import STOP_STRING_MAX_CHARS, STOP_STRINGS_MAX

TEMPERATURE_DEFAULT = 1.0
TOP_P_DEFAULT = 1.0
TOP_K_MAX = 1_000_000
WINDOW_MAX_TOKENS = 1 << 20
TOKEN_ID_MAX = 2**31 - 1
LOGIT_BIAS_MAX = 1024
"""Tokens with a bias of their own; OpenAI allows 300."""
LOGIT_BIAS_RANGE = 100.0
BANNED = -1e9
"""What llama-server's `false` means as a bias (wire.generation: -inf is written so)."""
DRY_BREAKERS_MAX = 16
DRY_BREAKER_MAX_CHARS = 40

T = TypeVar("T")

_DEFAULT = Sampling()
_BIAS = Number(-LOGIT_BIAS_RANGE, LOGIT_BIAS_RANGE)
_TYPICAL = Number(0.0, 1.0, default=_DEFAULT.typical_p)
_SIGMA = Number(-1.0, 100.0, default=_DEFAULT.top_n_sigma)
_REPEAT = Number(0.01, 10.0, default=_DEFAULT.repeat_penalty)
_MIROSTAT = Integer(0, 2, default=_DEFAULT.mirostat)
_LLAMA_LIMIT = Integer(-1, never=(0,), text="llama.cpp's name for max_tokens; -1: no limit")
SAMPLING: Fields = {
    "temperature": Number(0.0, 2.0, default=TEMPERATURE_DEFAULT),
    "top_k": Integer(-1, TOP_K_MAX, default=_DEFAULT.top_k, text="0 and -1: off"),
    "top_p": Number(0.0, 1.0, default=TOP_P_DEFAULT),
    "min_p": Number(0.0, 1.0, default=_DEFAULT.min_p),
    "typical_p": _TYPICAL,
    "typical": _TYPICAL,
    "top_n_sigma": _SIGMA,
    "nsigma": _SIGMA,
    "repeat_penalty": _REPEAT,
    "repetition_penalty": _REPEAT,
    "repeat_last_n": Integer(
        -1, WINDOW_MAX_TOKENS, default=_DEFAULT.repeat_last_n, text="-1: the whole context"
    ),
    "presence_penalty": Number(-2.0, 2.0, default=0.0),
    "frequency_penalty": Number(-2.0, 2.0, default=0.0),
    "seed": Integer(-INT_MAX),
    "dry_multiplier": Number(0.0, 100.0, default=_DEFAULT.dry_multiplier),
    "dry_base": Number(1.0, 100.0, default=_DEFAULT.dry_base),
    "dry_allowed_length": Integer(1, WINDOW_MAX_TOKENS, default=_DEFAULT.dry_allowed_length),
    "dry_penalty_last_n": Integer(-1, WINDOW_MAX_TOKENS, default=_DEFAULT.dry_penalty_last_n),
    "dry_sequence_breakers": Items(
        String(DRY_BREAKER_MAX_CHARS, required=True), items_max=DRY_BREAKERS_MAX
    ),
    "xtc_probability": Number(0.0, 1.0, default=_DEFAULT.xtc_probability),
    "xtc_threshold": Number(0.0, 1.0, default=_DEFAULT.xtc_threshold),
    "mirostat": _MIROSTAT,
    "mirostat_mode": _MIROSTAT,
    "mirostat_tau": Number(0.0, 100.0, default=_DEFAULT.mirostat_tau),
    "mirostat_eta": Number(0.0, 1.0, default=_DEFAULT.mirostat_eta),
    "logit_bias": AnyOf(
        (
            Object(values=AnyOf((_BIAS, Only((BANNED,)))), members_max=LOGIT_BIAS_MAX),
            Items(Items(items_min=2, items_max=2), items_max=LOGIT_BIAS_MAX),
        ),
        text="by token id; as pairs, false bans a token",
    ),
}
STOP: Fields = {
    "stop": AnyOf(
        (
            String(STOP_STRING_MAX_CHARS, required=True),
            Items(String(STOP_STRING_MAX_CHARS, required=True), items_max=STOP_STRINGS_MAX),
        )
    ),
}
LLAMA_LIMITS: Fields = {"n_predict": _LLAMA_LIMIT, "num_predict": _LLAMA_LIMIT}


def sampling(body: RequestParameters) -> Sampling:
    """Raises ParameterError."""
    default = _DEFAULT
    number, integer = body.number, body.integer
    top_k = integer("top_k")
    typical = _either(body, ("typical_p", "typical"), number)
    sigma = _either(body, ("top_n_sigma", "nsigma"), number)
    repeat = _either(body, ("repeat_penalty", "repetition_penalty"), number)
    mirostat = _either(body, ("mirostat", "mirostat_mode"), integer)
    return Sampling(
        temperature=_or(number("temperature"), TEMPERATURE_DEFAULT),
        # -1 is what vLLM's clients send for "off".
        top_k=default.top_k if top_k is None else max(top_k, 0),
        top_p=_or(number("top_p"), TOP_P_DEFAULT),
        min_p=_or(number("min_p"), default.min_p),
        repeat_penalty=_or(repeat, default.repeat_penalty),
        presence_penalty=_or(number("presence_penalty"), 0.0),
        frequency_penalty=_or(number("frequency_penalty"), 0.0),
        seed=integer("seed"),
        repeat_last_n=_or(integer("repeat_last_n"), default.repeat_last_n),
        typical_p=_or(typical, default.typical_p),
        top_n_sigma=_or(sigma, default.top_n_sigma),
        dry_multiplier=_or(number("dry_multiplier"), default.dry_multiplier),
        dry_base=_or(number("dry_base"), default.dry_base),
        dry_allowed_length=_or(integer("dry_allowed_length"), default.dry_allowed_length),
        dry_penalty_last_n=_or(integer("dry_penalty_last_n"), default.dry_penalty_last_n),
        dry_sequence_breakers=_or(_dry_breakers(body), default.dry_sequence_breakers),
        xtc_probability=_or(number("xtc_probability"), default.xtc_probability),
        xtc_threshold=_or(number("xtc_threshold"), default.xtc_threshold),
        mirostat=_or(mirostat, default.mirostat),
        mirostat_tau=_or(number("mirostat_tau"), default.mirostat_tau),
        mirostat_eta=_or(number("mirostat_eta"), default.mirostat_eta),
        logit_bias=_logit_bias(body),
    )


def token_limit(body: RequestParameters, names: tuple[str, ...]) -> int | None:
    """Of several names the first given wins. Under llama.cpp's own names -1 means no limit."""
    limits = [body.integer(name) for name in names]
    for name in LLAMA_LIMITS:
        value = body.integer(name)
        if value == 0:
            raise ParameterError(name, f"'{name}' must be at least 1, or -1 for no limit")
        limits.append(None if value == -1 else value)
    return next((limit for limit in limits if limit is not None), None)


def stop_strings(body: RequestParameters) -> tuple[str, ...]:
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


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _either(
    body: RequestParameters, names: tuple[str, str], read: Callable[[str], T | None]
) -> T | None:
    first, second = (read(name) for name in names)
    if first is not None and second is not None and first != second:
        raise ParameterError(
            body.name(names[1]), f"'{names[0]}' and '{names[1]}' mean the same and differ"
        )
    return second if first is None else first


def _dry_breakers(body: RequestParameters) -> tuple[str, ...] | None:
    name = "dry_sequence_breakers"
    given = body.items(name)
    if given is None:
        return None
    if len(given) > DRY_BREAKERS_MAX:
        raise ParameterError(name, f"'{name}' has more than {DRY_BREAKERS_MAX} strings")
    texts = tuple(
        checked_text(item, f"{name}[{index}]", chars_max=DRY_BREAKER_MAX_CHARS)
        for index, item in enumerate(given)
    )
    if "" in texts:
        raise ParameterError(name, "a sequence breaker must not be empty")
    return texts


def _logit_bias(body: RequestParameters) -> Mapping[str, float]:
    """OpenAI's {"ID": bias}, or llama-server's [[ID, bias or false], …]."""
    value = body.raw("logit_bias")
    if value is None:
        return {}
    if isinstance(value, list):
        pairs = [_pair(item, index) for index, item in enumerate(value)]
    else:
        pairs = list(as_object(value, "logit_bias").plain().items())
    if len(pairs) > LOGIT_BIAS_MAX:
        raise ParameterError("logit_bias", f"'logit_bias' has more than {LOGIT_BIAS_MAX} tokens")
    return {_token(key): _bias(bias, key) for key, bias in pairs}


def _pair(item: Any, index: int) -> tuple[Any, Any]:
    if not isinstance(item, list) or len(item) != 2:
        raise wrong_type(f"logit_bias[{index}]", "a pair of token id and bias", item)
    if item[1] is False:
        return item[0], BANNED
    return item[0], item[1]


def _token(key: Any) -> str:
    digits = str(key) if type(key) is int else key
    if isinstance(digits, str) and digits.isascii() and digits.isdigit() and len(digits) <= 10:
        token = int(digits)
        if token <= TOKEN_ID_MAX:
            return str(token)
    raise ParameterError(
        "logit_bias", f"'logit_bias' is keyed by token ids, and {str(key)[:40]!r} is none"
    )


def _bias(value: Any, key: Any) -> float:
    if value == BANNED:
        return BANNED
    if value is None:
        raise wrong_type("logit_bias", "a map from token ids to numbers", value)
    return checked_number(value, f"logit_bias.{key}", _BIAS)
