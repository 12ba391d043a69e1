"""Parameters that this service does not have, told apart by what ignoring them would do.

Owns the table of those that must be refused, because the answer would not be what was asked for,
and the list of those that are ignored and said to be: in the response header
`X-AIvailable-Ignored`, and once per name in the log.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from aivailable.peer.api.accounting import RequestRecord
from aivailable.peer.api.description.fields import Fields, Only
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.parameters import RequestParameters

NAMES_SHOWN_MAX = 16
NAMES_LOGGED_MAX = 256
_SHOWABLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_EMPTY: tuple[Any, ...] = ([], {}, "", False)
_OFF: tuple[Any, ...] = (0, 0.0, False)

_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    # OpenAI
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "verbosity": ("medium",),
    # vLLM
    "allowed_token_ids": _EMPTY,
    "bad_words": _EMPTY,
    "chat_template": (),
    "documents": _EMPTY,
    "guided_choice": _EMPTY,
    "guided_grammar": _EMPTY,
    "guided_regex": _EMPTY,
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "min_tokens": _OFF,
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "stop_token_ids": _EMPTY,
    "structured_outputs": _EMPTY,
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    # llama-server
    "dynatemp_range": _OFF,
    "lora": _EMPTY,
    "min_keep": _OFF,
    "samplers": (),
    "tfs_z": (1, 1.0),
    # Ollama and others
    "format": ("",),
    "guidance_scale": (1, 1.0),
    "negative_prompt": ("",),
    "options": _EMPTY,
    "raw": (False,),
}
_INSTEAD: Mapping[str, str] = {
    "format": "send 'response_format'",
    "guided_choice": "send 'grammar'",
    "guided_grammar": "send 'grammar' (GBNF)",
    "guided_regex": "send 'grammar'",
    "options": "send its members at the top level",
    "structured_outputs": "send 'response_format' or 'grammar'",
}
REFUSED: Fields = {
    key: Only(
        harmless, text=f"not supported; {_INSTEAD[key]}" if key in _INSTEAD else "not supported"
    )
    for key, harmless in _HARMLESS.items()
}


def refuse_unsupported(body: RequestParameters) -> None:
    """Raises ParameterError for the first parameter that must not be ignored."""
    for key in REFUSED:
        refuse(body, key)


def refuse(body: RequestParameters, key: str) -> None:
    """Only its declared values are accepted: with them the answer is as it would be without."""
    value, harmless = body.raw(key), body.field(key, Only).values
    if value is None or any(type(value) is type(one) and value == one for one in harmless):
        return
    advice = f"; {_INSTEAD[key]}" if key in _INSTEAD else ""
    raise ParameterError(
        key, f"'{key}' with this value is not supported{advice}", code="unsupported_value"
    )


class Ignored:
    """What clients sent in vain. One line of log per name, so that a loop does not fill it."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._logged: dict[str, None] = {}

    def note(self, record: RequestRecord, names: tuple[str, ...]) -> None:
        """Names are the client's: only harmless ones reach the header and the log."""
        shown = tuple(one for one in names if _SHOWABLE.fullmatch(one))
        record.ignored = shown[:NAMES_SHOWN_MAX]
        for name in record.ignored:
            if name not in self._logged and len(self._logged) < NAMES_LOGGED_MAX:
                self._logged[name] = None
                self._log.info("parameter %r of %s has no effect (said once)", name, record.route)
