"""llama.cpp through llama-cpp-python's low-level ctypes API: one model, one context, many slots.

Owns: the model and context handles, decode, the KV operations. It must not schedule or sample.
Made by __main__ for engine "llama".

llama.cpp aborts the process on an absurd header, a batch above n_batch, a token outside the
vocabulary and on reading logits that were not asked for: each is checked before, here, in gguf
and in the step loop.

Not to be confused with `worker.engine`, the interface.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from aivailable.errors import GgufError
from aivailable.gguf.companions import Projector
from aivailable.gguf.facts import ModelFacts
from aivailable.gguf.header import Header, read_header
from aivailable.wire.generation import Generate
from aivailable.wire.worker import Load
from aivailable.worker.answer import Prepared
from aivailable.worker.chat import Conversations, Piece, no_template
from aivailable.worker.engine import (
    CellsExhausted,
    DecodeFailed,
    Footprint,
    LoadRefused,
    Logits,
    Part,
    ReportProgress,
)
from aivailable.worker.llama.adapters import Adapter, adapters_of, apply_adapters, load_adapters
from aivailable.worker.llama.cache import LlamaCache
from aivailable.worker.llama.claims import Claimed, claim_devices
from aivailable.worker.llama.cores import Cores, read_cores
from aivailable.worker.llama.dry_run import add_late_compute, dry_run
from aivailable.worker.llama.images import refuse_images, with_marks
from aivailable.worker.llama.library import (
    Buffers,
    Log,
    import_library,
    parse_buffers,
    parse_flash_attention,
    parse_moved,
    parse_offloaded,
)
from aivailable.worker.llama.parameters import (
    NUMA,
    LlamaParameters,
    context_parameters,
    default_threads,
    model_parameters,
    parameters,
)
from aivailable.worker.llama.projector import (
    ProjectorHandle,
    load_projector,
    projector_of,
    with_projector,
    with_room,
)
from aivailable.worker.llama.tokens import LlamaTokens
from aivailable.worker.llama.vision import LlamaVision

PROGRESS_STEP: Final = 0.05
SMOKE_TOKENS: Final = 4
NO_CELLS: Final = 1
"""llama_decode's answer when no KV cell is free; the memory is as before."""


class LlamaEngine:
    """See the module's docstring. Raises LoadRefused from its constructor."""

    name = "llama"
    tasks: tuple[str, ...] = ("generate",)
    vision = False

    def __init__(self, load: Load, progress: ReportProgress) -> None:
        header = checked_header(load)
        on_gpu = any(device.backend not in ("cpu", "sim") for device in load.devices)
        chosen = parameters(header.facts, load.context, load.slots, load.options, on_gpu=on_gpu)
        adapters = adapters_of(load.path, header.facts, load.options)
        projector = projector_of(load.path, load.options)
        chosen = with_room(chosen, projector)
        self._library, self.version = import_library()
        self.context, self.slots = load.context, load.slots
        self.sequences, self.warm_tokens = chosen.sequences, chosen.warm
        self.chunk_tokens, self.least_tokens = chosen.chunk, chosen.least
        self.step_tokens, self.replay_tokens = chosen.step, chosen.replay
        self._log = Log(self._library)
        self._library.llama_backend_init()
        self._library.llama_numa_init(NUMA[chosen.numa])
        cores = read_cores()
        if not chosen.threads:
            threads = default_threads(cores, on_gpu=on_gpu)
            chosen = dataclasses.replace(chosen, threads=threads)
        claimed = claim_devices(self._library, load.devices)
        # Nothing is allocated before it is known to fit: a KV cache over the claim would push out
        # the desktop's, or on the CPU somebody's, memory before the load fails.
        predicted = dry_run(self._library, self._log, header, chosen, claimed, adapters)
        predicted = with_projector(predicted, projector)
        claimed.refuse_larger(predicted.total_bytes, "weights, KV cache and compute buffers")
        self._model = self._load_model(load, chosen, claimed, progress)
        handles = load_adapters(self._library, self._model, adapters, self._log)
        self._context = self._make_context(chosen)
        apply_adapters(self._library, self._context, adapters, handles)
        buffers = parse_buffers(self._log.lines)
        add_late_compute(buffers, header.facts, chosen, claimed, adapters)
        if on_gpu:
            offloaded = parse_offloaded(self._log.lines)
            claimed.refuse_cpu(
                buffers,
                offloaded,
                header.embedding_bytes,
                cached=predicted.kv_bytes > 0,
                stranded=parse_moved(self._log.lines) - header.input_tensors,
            )
        self.notes = _notes(chosen, cores, self._log, adapters)
        handle = self._load_handle(projector, chosen, claimed, buffers)
        used = claimed.used(buffers)
        self.footprint = Footprint(
            header.facts.name,
            used,
            buffers.weights_bytes,
            buffers.kv_bytes,
            buffers.compute_bytes,
        )
        identity = f"{self.version}|{chosen.kv_type}|{os.path.getsize(load.path)}|{header.facts}"
        self.cache = LlamaCache(
            self._library, self._context, self._model, header.facts.sliding_window, identity
        )
        self.draft_tokens = 0 if self.cache.recurrent else chosen.draft
        self.notes = (*self.notes, _draft_note(self.draft_tokens, header.facts, load.options))
        self.trim, self.fork, self.reach = self.cache.trim, self.cache.fork, self.cache.reach
        self._vocab = self._library.llama_model_get_vocab(self._model)
        self._tokens = LlamaTokens(self._library, self._vocab, load.context)
        self.vocabulary = self._tokens.size
        self.piece, self.marker = self._tokens.piece, self._tokens.marker
        self.is_end = self._tokens.is_end
        self._batch = _Batch(self._library, chosen.batch)
        self._templates = (header.chat_template, header.tool_template)
        self._chats: Conversations | None = None
        self._vision = self._make_vision(handle, chosen)
        progress("warming", 0.0)
        self._smoke()

    def prepare(self, request: Generate) -> Prepared:
        """Render and tokenize. Raises RequestError."""
        if request.messages is not None:
            if self._vision is not None:
                return self._prepare_vision(request, self._vision)
            refuse_images(request.messages)
            return self._conversations().prepare(
                request, tokenize=self._tokens.prompt, control_token=self._tokens.marker_token
            )
        if request.prompt_ids is not None:
            return Prepared(request.prompt_ids)
        return Prepared(self._tokens.tokenize(request.prompt or "", add_special=True))

    def decode(self, parts: Sequence[Part]) -> list[Logits]:
        """One llama_decode, or several where images are among the tokens. Raises DecodeFailed with
        llama.cpp's return code."""
        if self._vision is not None and self._vision.concerns(parts):
            return self._vision.decode(parts)
        return self._decode_tokens(parts)

    def _decode_tokens(self, parts: Sequence[Part]) -> list[Logits]:
        return self._run(self._batch.native, self._batch.fill(parts))

    def _run(self, native: Any, rows: int) -> list[Logits]:
        """Decode a filled batch with this many outputs."""
        code = self._library.llama_decode(self._context, native)
        if code == NO_CELLS:
            raise CellsExhausted(f"no KV cell is free for {native.n_tokens} tokens")
        if code != 0:
            why = {2: "aborted", -1: "invalid batch"}.get(code, "failed")
            raise DecodeFailed(f"llama_decode returned {code}: {why} | {self._log.tail(2)}")
        if not rows:
            return []
        # The rows that were asked for lie one after another, in the batch's order.
        pointer = self._library.llama_get_logits(self._context)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if address is None:
            raise DecodeFailed("llama.cpp computed no logits")
        numbers = (ctypes.c_float * (rows * self.vocabulary)).from_address(address)
        return list(np.frombuffer(memoryview(numbers), np.float32).reshape(rows, self.vocabulary))

    def _load_model(
        self, load: Load, chosen: LlamaParameters, claimed: Claimed, progress: ReportProgress
    ) -> Any:
        library = self._library
        phase = "checking" if load.check_tensors else "loading"
        told = 0.0

        def report(fraction: float, _: Any) -> bool:
            nonlocal told
            if fraction >= told + PROGRESS_STEP:
                told = fraction
                progress(phase, fraction)
            return True

        progress(phase, 0.0)
        self._log.lines.clear()
        native = model_parameters(library, chosen)
        native.check_tensors = load.check_tensors
        callback = library.llama_progress_callback(report)
        native.progress_callback = callback
        claimed.apply(native)
        model = library.llama_model_load_from_file(load.path.encode(), native)
        if not model:
            code = "out_of_memory" if self._log.says_no_memory() else "bad_file"
            raise LoadRefused(code, f"llama.cpp cannot load {load.path}: {self._log.tail()}")
        return model

    def _make_context(self, chosen: LlamaParameters) -> Any:
        context = self._library.llama_init_from_model(
            self._model, context_parameters(self._library, chosen)
        )
        if not context:
            code = "out_of_memory" if self._log.says_no_memory() else "unsupported"
            raise LoadRefused(
                code, f"llama.cpp makes no context of {chosen.cells} tokens: {self._log.tail()}"
            )
        return context

    def _load_handle(
        self,
        projector: Projector | None,
        chosen: LlamaParameters,
        claimed: Claimed,
        buffers: Buffers,
    ) -> ProjectorHandle | None:
        """Load the projector, if there is one, and count it among the buffers."""
        if projector is None:
            return None
        mark = f"<__{secrets.token_hex(16)}__>"
        handle, more = load_projector(
            self._model, projector, chosen, self.context, claimed, self._log, mark
        )
        buffers.add(more)
        # The log of other loads says nothing of it.
        self.notes = (*self.notes, f"projector={os.path.basename(projector.path)}")
        self.vision = True
        return handle

    def _make_vision(
        self, handle: ProjectorHandle | None, chosen: LlamaParameters
    ) -> LlamaVision | None:
        if handle is None:
            return None
        made = LlamaVision(
            self._library,
            self._context,
            handle,
            self.cache,
            vocabulary=self.vocabulary,
            width=int(self._library.llama_model_n_embd_inp(self._model)),
            batch=chosen.batch,
            ubatch=chosen.ubatch,
            chunk=chosen.chunk,
            run=self._run,
            decode_tokens=self._decode_tokens,
        )
        self.trim, self.fork, self.reach = made.trim, made.fork, made.reach
        return made

    def _prepare_vision(self, request: Generate, vision: LlamaVision) -> Prepared:
        """A request whose messages may have images: each is a mark in the template's text."""
        tokens = self._tokens
        messages, images = with_marks(request.messages or (), vision.mark)
        pictures = tuple(vision.picture(data) for data in images)

        def tokenize(pieces: tuple[Piece, ...]) -> tuple[int, ...]:
            if not pictures:
                return tokens.prompt(pieces)
            return vision.tokenize(pieces, pictures, tokens)

        prepared = self._conversations().prepare(
            dataclasses.replace(request, messages=messages),
            tokenize=tokenize,
            control_token=tokens.marker_token,
        )
        if pictures and request.prompt_ids is not None:
            filled = vision.filled(request.prompt_ids, pictures)
            prepared = dataclasses.replace(prepared, prompt=filled)
        return dataclasses.replace(prepared, media=pictures)

    def _smoke(self) -> None:
        """Decode once before anything is promised."""
        tokens = tuple(range(min(SMOKE_TOKENS, self.vocabulary)))
        try:
            (row,) = self.decode((Part(0, tokens, 0, wants_logits=True),))
        except DecodeFailed as error:
            raise LoadRefused("crashed", f"the first decode failed: {error}") from error
        if not bool(np.isfinite(row).all()):
            raise LoadRefused(
                "bad_file", "the model computes no finite numbers: verify or copy the file again"
            )
        self.trim(0, 0)

    def _conversations(self) -> Conversations:
        if self._chats is None:
            plain, with_tools = self._templates
            source = plain or with_tools
            if source is None:
                raise no_template()
            self._chats = Conversations(
                source,
                self._tokens.begin,
                self._tokens.end,
                tool_source=with_tools,
                controls=self._tokens.controls,
            )
        return self._chats


class _Batch:
    """A llama_batch whose arrays are numpy's, filled by slices."""

    def __init__(self, library: Any, size: int) -> None:
        self._size = size
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        self._slots = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        # seq_id is an array of pointers, each to its row's single slot number.
        width = self._slots.itemsize
        self._pointers = np.arange(size, dtype=np.uint64) * width + self._slots.ctypes.data
        numbers = ctypes.POINTER(ctypes.c_int32)
        self.native = library.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(numbers),
            embd=None,
            pos=self._positions.ctypes.data_as(numbers),
            n_seq_id=self._counts.ctypes.data_as(numbers),
            seq_id=ctypes.cast(self._pointers.ctypes.data, ctypes.POINTER(numbers)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, parts: Sequence[Part], *, every: bool = False) -> int:
        """Write the parts; how many want logits. `every`: mark all tokens as outputs, which
        llama.cpp asks for when it pools. Raises DecodeFailed when they are more than the batch
        holds."""
        total = sum(len(part.tokens) for part in parts)
        if total > self._size:
            raise DecodeFailed(f"{total} tokens in one step; the batch holds {self._size}")
        rows = at = 0
        for part in parts:
            end = at + len(part.tokens)
            self._tokens[at:end] = part.tokens
            self._positions[at:end] = np.arange(part.position, part.position + end - at)
            self._slots[at:end] = part.slot
            self._wanted[at:end] = every
            if part.wants_logits:
                self._wanted[end - part.rows : end] = 1
                rows += part.rows
            at = end
        self.native.n_tokens = total
        return rows


def checked_header(load: Load) -> Header:
    try:
        return read_header(load.path)
    except GgufError as error:
        raise LoadRefused("bad_file", str(error)) from error


def _draft_note(draft: int, facts: ModelFacts, options: Mapping[str, str]) -> str:
    if draft or options.get("draft") == "0":
        return f"draft={draft}"
    cut = all(facts.heads_kv)
    why = "it would not pay on a CPU" if cut else "this model's state cannot be cut back"
    return f"draft=0: {why}"


def _notes(
    chosen: LlamaParameters, cores: Cores, log: Log, adapters: tuple[Adapter, ...]
) -> tuple[str, ...]:
    """What this load runs with, for the operator."""
    numa = f"numa={chosen.numa}" + (f" of {cores.nodes} nodes" if cores.nodes > 1 else "")
    return (
        f"threads={chosen.threads} of {cores.logical}",
        f"flash_attention={parse_flash_attention(log.lines) or chosen.flash_attention}",
        f"kv_type={chosen.kv_type}",
        f"ubatch={chosen.ubatch}",
        f"chunk={chosen.chunk}",
        f"warm_tokens={chosen.warm} in {chosen.sequences - chosen.slots} more sequences",
        numa,
        *(f"lora={os.path.basename(item.path)}:{item.scale:g}" for item in adapters),
    )
