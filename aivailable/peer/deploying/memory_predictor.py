"""How many bytes a configuration needs: by the engine's dry run, else by the formula.

Owns the child process that runs `aivailable.worker.dry_run`, its time limit and the fallback. Must
not import an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from aivailable.errors import GgufError
from aivailable.gguf import need, read_header
from aivailable.gguf.companions import companions_bytes
from aivailable.gguf.memory import UBATCH_DEFAULT_TOKENS
from aivailable.peer.ports import Prediction, PredictRequest
from aivailable.peer.runtimes import Interpreters, Start, Starter
from aivailable.wire.worker import DeviceClaim

PREDICTION_LIMIT_S = 30.0
ANSWER_MAX_BYTES = 64 * 1024
CHILDREN_MAX = 2
"""Dry runs at the same time on one node."""

log = logging.getLogger(__name__)


class PredictionFailed(Exception):
    """The dry run gave no sizes; the formula answers instead."""


class MemoryPredictor:
    """`predict` for `ports.Ports`, with at most CHILDREN_MAX dry runs at a time."""

    def __init__(
        self,
        executable: str = "",
        limit_s: float = PREDICTION_LIMIT_S,
        *,
        starter: Starter | None = None,
        device: Callable[[], DeviceClaim | None] = lambda: None,
    ) -> None:
        """`device`: the GPU of this node that stands for all in a dry run, whose backend's runtime
        is then asked; None = the CPU's. `executable`: of every dry run, when there is no
        `starter`; "" = our own."""
        own = Interpreters(None, executable) if executable else Interpreters(None)
        self._starter = starter or Starter(own)
        self._device = device
        self._limit_s = limit_s
        self._free = asyncio.Semaphore(CHILDREN_MAX)

    async def predict(self, request: PredictRequest) -> Prediction:
        """Bytes for one replica.

        Raises GgufError when the file is unusable, ValueError when the options are (the formula
        reads the header and the KV type, too).
        """
        try:
            async with self._free:
                answer = await _dry_run(request, self._start(), self._limit_s)
            return Prediction(
                weights_bytes=_size(answer, "weights_bytes"),
                kv_bytes=_size(answer, "kv_bytes"),
                compute_bytes=_size(answer, "compute_bytes"),
                by="oracle",
            )
        except PredictionFailed as error:
            log.info("no dry run for %s (%s); using the formula", request.path.name, error)
        return await asyncio.to_thread(by_formula, request)

    def _start(self) -> Start:
        device = self._device()
        return self._starter.start(() if device is None else (device,))


async def _dry_run(request: PredictRequest, start: Start, limit_s: float) -> Mapping[str, Any]:
    arguments = [
        *("-m", "aivailable.worker.dry_run", "--path", str(request.path)),
        *("--context", str(request.context), "--slots", str(request.slots)),
        *(f"--option={name}={request.options[name]}" for name in sorted(request.options)),
    ]
    for device in start.devices:
        arguments += ["--backend", device.backend, "--device", str(device.index)]
    try:
        child = await asyncio.create_subprocess_exec(
            start.interpreter,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=start.environment,
        )
    except (OSError, ValueError) as error:
        raise PredictionFailed(f"it cannot be started: {error}") from error
    try:
        output, _ = await asyncio.wait_for(child.communicate(), limit_s)
    except TimeoutError as error:
        raise PredictionFailed(f"no answer within {limit_s:.0f} s") from error
    finally:
        # Also when the client is gone: no child outlives its question.
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return _answer(output[-ANSWER_MAX_BYTES:])


def by_formula(request: PredictRequest) -> Prediction:
    """The formula of gguf.memory. Raises GgufError, ValueError for a bad KV type, ubatch
    or draft."""
    options = request.options
    try:
        facts = read_header(request.path).facts
        beside = companions_bytes(request.path, facts.architecture, options)
    except OSError as error:
        raise GgufError(f"{request.path}: {error}") from error
    sizes = need(
        facts,
        request.context,
        request.slots,
        kv_type=options.get("kv_type", "f16"),
        ubatch=max(int(options.get("ubatch", UBATCH_DEFAULT_TOKENS)), beside.ubatch_min),
        flash_attention=options.get("flash_attention") != "off",
        draft=options.get("draft"),
        pooling=options.get("pooling"),
        adapters_bytes=beside.adapters_bytes,
    )
    return Prediction(
        sizes.weights_bytes + beside.projector_bytes,
        sizes.kv_bytes,
        sizes.compute_bytes + beside.encoding_bytes,
        by="formula",
    )


def _answer(output: bytes) -> Mapping[str, Any]:
    """The last line is the answer; an engine may have talked before. Raises OracleError, and
    ValueError for options that no load can have, GgufError for a file that llama.cpp refuses."""
    lines = output.decode(errors="replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError as error:
        raise PredictionFailed("its answer is not JSON") from error
    if not isinstance(answer, dict):
        raise PredictionFailed("it died without an answer")
    refusal = answer.get("error")
    if isinstance(refusal, dict):
        message = str(refusal.get("message", "it refused"))
        if refusal.get("code") == "invalid_options":
            # The formula does not know most options: it would let them through to a failing load.
            raise ValueError(message)
        if refusal.get("code") == "bad_file":
            raise GgufError(message)
        raise PredictionFailed(message)
    return answer


def _size(answer: Mapping[str, Any], name: str) -> int:
    value = answer.get(name)
    if type(value) is not int or value < 0:
        raise PredictionFailed(f"{name} is missing from its answer")
    return value
