"""Images in messages: refused, with what to do.

Owns: the texts of these refusals. Pure. Used by the engine before a chat is rendered, and by
llama_parameters for the option `projector`, since no engine of this version computes images and
ignoring them would give an answer about something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aivailable.errors import RequestError
from aivailable.worker.engine import LoadRefused


def refuse_projector(options: Mapping[str, str]) -> None:
    """Raises LoadRefused for a deployment that asks for images."""
    if "projector" in options:
        raise LoadRefused(
            "unsupported",
            "engine option projector: this version serves text only; deploy without a projector",
        )


def refuse_images(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises RequestError naming the first message with an image."""
    for index, message in enumerate(messages):
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else ()
        if any(isinstance(part, Mapping) and part.get("type") == "image" for part in parts):
            raise RequestError(
                400,
                "unsupported_image",
                f"messages[{index}] has an image and this deployment reads text only; leave the "
                "image out, or describe it in words",
            )
