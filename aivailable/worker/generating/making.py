"""A request becomes a job: checked, rendered, tokenised, its grammar compiled.

Owns: what a request must be to get into the line for a slot. Runs beside the step loop
(preparing), so it must touch nothing that a step changes. Made by step_loop.
"""

from __future__ import annotations

from aivailable.errors import RequestError
from aivailable.wire.generation import Generate
from aivailable.wire.limits import STOP_STRING_MAX_CHARS, STOP_STRINGS_MAX
from aivailable.wire.prefixes import digests
from aivailable.worker.engine import Engine
from aivailable.worker.generating.job import Job
from aivailable.worker.generating.token_tables import TokenTables
from aivailable.worker.sampling.logprobs import ALTERNATIVES_MAX
from aivailable.worker.sampling.parameters import check_sampling


def not_embedding(task: str) -> RequestError:
    """A model that was deployed to generate is asked for vectors or scores."""
    if task == "rerank":
        what = "deploy a reranking model (its file says pooling rank)"
    else:
        what = "deploy it with option pooling=mean or pooling=last, or deploy an embedding model"
    return RequestError(400, "unsupported_task", f"this deployment generates text; {what}")


class JobMaker:
    """Jobs for one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tables = TokenTables(engine)

    def make(self, request: Generate, arrived_s: float) -> Job:
        """Raises RequestError."""
        self._check(request)
        self._check_length(len(request.prompt_ids or ()) + len(request.generated_ids))
        prepared = self._engine.prepare(request)
        prompt = prepared.prompt
        if not prepared.media:
            self._check_ids(prompt, "the prompt")
        self._check_ids(request.generated_ids, "generated_ids")
        if not prompt:
            raise RequestError(400, "invalid_request", "the prompt has no tokens")
        self._check_length(len(prompt))
        limit = self._engine.context - len(prompt)
        if request.max_tokens is not None:
            limit = min(limit, request.max_tokens)
        return Job(
            request,
            prepared,
            self._tables,
            limit=limit,
            arrived_s=arrived_s,
            prefixes=digests(request),
        )

    def _check_length(self, count: int) -> None:
        context = self._engine.context
        if count >= context:
            raise RequestError(
                400,
                "context_length_exceeded",
                f"the prompt has {count} tokens and this model's maximum context length is "
                f"{context} tokens; shorten the prompt or deploy with a larger --ctx",
            )

    def _check(self, request: Generate) -> None:
        if request.task not in self._engine.tasks:
            raise not_embedding(request.task)
        given = [request.messages, request.prompt, request.prompt_ids]
        if request.generated_ids and request.prompt_ids is not None:
            given.remove(request.messages)
        problem = ""
        if sum(value is not None for value in given) != 1:
            problem = "exactly one of messages, prompt and prompt_ids must be given"
        elif request.max_tokens is not None and request.max_tokens < 0:
            problem = "max_tokens must not be negative"
        elif len(request.stop) > STOP_STRINGS_MAX:
            problem = f"at most {STOP_STRINGS_MAX} stop strings"
        elif any(not 0 < len(stop) <= STOP_STRING_MAX_CHARS for stop in request.stop):
            problem = f"a stop string has 1 to {STOP_STRING_MAX_CHARS} characters"
        elif not 0 <= (request.logprobs or 0) <= ALTERNATIVES_MAX:
            problem = f"logprobs: 0 to {ALTERNATIVES_MAX} alternatives are possible"
        if problem:
            raise RequestError(400, "invalid_request", problem)
        check_sampling(request.sampling, self._engine.vocabulary)

    def _check_ids(self, ids: tuple[int, ...], what: str) -> None:
        # An id outside the vocabulary makes llama.cpp read outside its tables.
        if ids and not (min(ids) >= 0 and max(ids) < self._engine.vocabulary):
            raise RequestError(
                400, "invalid_request", f"{what}: ids are 0 to {self._engine.vocabulary - 1}"
            )
