"""The documents that OpenAI's endpoints answer with: pure construction, no I/O.

Shapes: platform.openai.com/docs/api-reference (chat, completions, models).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aivailable.core.serving.status import ClusterStatus, DeploymentStatus
from aivailable.peer.api.accounting import RequestRecord
from aivailable.peer.api.openai.answer_types import InputUsage, ModelEntry, ModelList, Usage
from aivailable.peer.api.openai.choices import Part


@dataclass(frozen=True, slots=True)
class Reply:
    """Builds the documents of one answer. `created_s` is Unix time, `usage` whether its chunks
    name it: OpenAI sends the field in every chunk once it was asked for."""

    request_id: str
    model: str
    created_s: int
    chat: bool
    usage: bool = False

    def chunk(self, index: int, part: Part, reason: str | None = None) -> dict[str, Any]:
        """One piece of one choice, on its way to a client that streams."""
        return self._chunk([_choice(index, part, reason)])

    def last(self, record: RequestRecord) -> dict[str, Any]:
        """The extra chunk of `stream_options.include_usage`."""
        return {**self._chunk([]), "usage": usage_of(record)}

    def whole(self, choices: Sequence[tuple[Part, str]], record: RequestRecord) -> dict[str, Any]:
        """The answer to a request that does not stream: parts with the reasons of their ends."""
        return {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": [
                _choice(index, part, reason) for index, (part, reason) in enumerate(choices)
            ],
            "usage": usage_of(record),
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        chunk = {**self._head(kind), "choices": choices}
        if self.usage:
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


def _choice(index: int, part: Part, reason: str | None) -> dict[str, Any]:
    return {"index": index, **part, "finish_reason": reason}


def usage_of(record: RequestRecord) -> Usage:
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "total_tokens": record.prompt_tokens + record.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": record.cached_tokens},
    }


def input_usage_of(record: RequestRecord) -> InputUsage:
    """For answers without tokens: embeddings and rankings."""
    return {"prompt_tokens": record.prompt_tokens, "total_tokens": record.prompt_tokens}


def model_list(status: ClusterStatus) -> ModelList:
    data = [model_entry(status, one, one.name) for one in status.deployments]
    return {"object": "list", "data": data}


def model_entry(status: ClusterStatus, deployment: DeploymentStatus, shown_as: str) -> ModelEntry:
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
