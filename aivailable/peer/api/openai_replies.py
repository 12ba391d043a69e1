"""The documents that OpenAI's endpoints answer with: pure construction, no I/O.

Shapes: platform.openai.com/docs/api-reference (chat, completions, models).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aivailable.core.status import ClusterStatus, DeploymentStatus
from aivailable.peer.api.accounting import Call


@dataclass(frozen=True, slots=True)
class Reply:
    """Builds the parts of one answer. `created_s` is Unix time."""

    request_id: str
    model: str
    created_s: int
    chat: bool

    def opening(self, *, usage: bool) -> dict[str, Any] | None:
        """A chat's first chunk names the role; a completion has none."""
        if not self.chat:
            return None
        choice = self._choice({"delta": {"role": "assistant", "content": ""}}, None)
        return self._chunk([choice], usage=usage)

    def delta(self, text: str, *, usage: bool) -> dict[str, Any]:
        part = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._chunk([self._choice(part, None)], usage=usage)

    def closing(self, reason: str, *, usage: bool) -> dict[str, Any]:
        part: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._chunk([self._choice(part, reason)], usage=usage)

    def usage(self, call: Call, cached_tokens: int) -> dict[str, Any]:
        """The extra chunk of `stream_options.include_usage`."""
        return {**self._chunk([], usage=False), "usage": usage_of(call, cached_tokens)}

    def whole(self, text: str, reason: str, call: Call, cached_tokens: int) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        message = {"message": {"role": "assistant", "content": text, "refusal": None}}
        part: Mapping[str, Any] = message if self.chat else {"text": text}
        return {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": [self._choice(part, reason)],
            "usage": usage_of(call, cached_tokens),
        }

    def _choice(self, part: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **part, "logprobs": None, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]], *, usage: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        chunk = {**self._head(kind), "choices": choices}
        if usage:
            # OpenAI sends the field in every chunk once usage was asked for.
            chunk["usage"] = None
        return chunk

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.request_id.removeprefix('req_')}",
            "object": kind,
            "created": self.created_s,
            "model": self.model,
        }


def usage_of(call: Call, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "total_tokens": call.prompt_tokens + call.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def model_list(status: ClusterStatus) -> dict[str, Any]:
    data = [model_entry(status, one, one.name) for one in status.deployments]
    return {"object": "list", "data": data}


def model_entry(
    status: ClusterStatus, deployment: DeploymentStatus, shown_as: str
) -> dict[str, Any]:
    """One deployment as OpenAI's "model", with what only we know beside it."""
    return {
        "id": shown_as,
        "object": "model",
        "created": 0,
        "owned_by": status.cluster_name or "aivailable",
        "state": deployment.state,
        "context_length": deployment.context,
        "aliases": list(deployment.aliases),
    }
