"""llama.cpp in embedding mode: texts to tokens, one decode to pooled vectors.

Owns: what is different from generating with the same library: pooled outputs, the form of a
rerank pair, the choice between the two by the model's header. Made by __main__; served by
worker.embedding.step_loop.EmbeddingStepLoop.

Not to be confused with `worker.embedding`, the loop that asks for these vectors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

import numpy as np

from aivailable.errors import RequestError
from aivailable.wire.generation import Generate
from aivailable.wire.worker import Load
from aivailable.worker.chat.quoting import Quoting
from aivailable.worker.embedding.pooling import pooling_of, task_of
from aivailable.worker.engine import DecodeFailed, LoadRefused, Logits, Part, ReportProgress
from aivailable.worker.llama.engine import SMOKE_TOKENS, LlamaEngine, checked_header
from aivailable.worker.llama.parameters import parameters
from aivailable.worker.options import Options

RERANK_TEMPLATE: Final = b"rerank"
"""The chat template of this name holds a reranker's own form of a pair."""


def load_llama(load: Load, progress: ReportProgress) -> LlamaEngine | LlamaEmbedder:
    """Load a model for what its header and the option `pooling` say. Raises LoadRefused."""
    header = checked_header(load)
    if pooling_of(header.facts, Options(load.options)):
        return LlamaEmbedder(load, progress)
    return LlamaEngine(load, progress)


class LlamaEmbedder(LlamaEngine):
    """Implements worker.embedding.step_loop.Embedder. Raises LoadRefused from its constructor."""

    def __init__(self, load: Load, progress: ReportProgress) -> None:
        facts = checked_header(load).facts
        self.pooling = pooling_of(facts, Options(load.options))
        self.whole = not facts.causal
        self.tasks = (task_of(self.pooling),)
        sizes = parameters(facts, load.context, load.slots, load.options, on_gpu=False)
        self.cells = sizes.cells
        super().__init__(load, progress)
        self.context = min(load.context, facts.context_train)
        self.notes = (*self.notes, f"pooling={self.pooling}")

    def texts(self, request: Generate) -> list[tuple[int, ...]]:
        """The tokens of every input. Raises RequestError."""
        for index, ids in enumerate(request.input_ids):
            # An id outside the vocabulary makes llama.cpp read outside its tables.
            if ids and not (min(ids) >= 0 and max(ids) < self.vocabulary):
                raise RequestError(
                    400,
                    "invalid_request",
                    f"input {index}: this model's token ids are 0 to {self.vocabulary - 1}; "
                    "send text, or count tokens with this model's own vocabulary",
                )
        if request.input_ids:
            return list(request.input_ids)
        if request.task == "rerank":
            return [self._pair(request.prompt or "", document) for document in request.inputs]
        return [self._tokens.tokenize(text, add_special=True) for text in request.inputs]

    def pool(self, parts: Sequence[Part]) -> list[Logits]:
        """One llama_decode; a vector for every part's sequence. Raises DecodeFailed."""
        library = self._library
        self._batch.fill(parts, every=True)
        code = library.llama_decode(self._context, self._batch.native)
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code} | {self._log.tail(2)}")
        rows: list[Logits] = []
        for part in parts:
            pointer = library.llama_get_embeddings_seq(self._context, part.slot)
            address = ctypes.cast(pointer, ctypes.c_void_p).value
            if address is None:
                raise DecodeFailed("llama.cpp computed no embedding")
            numbers = (ctypes.c_float * self._width()).from_address(address)
            rows.append(np.frombuffer(memoryview(numbers), np.float32).copy())
        return rows

    def forget(self, slot: int, length: int = 0) -> bool:
        """Keep the first `length` tokens; an encoder has no cache and keeps none."""
        return self.trim(slot, length) == length

    def _width(self) -> int:
        if self.pooling == "rank":
            return int(self._library.llama_model_n_cls_out(self._model))
        return int(self._library.llama_model_n_embd_out(self._model))

    def _smoke(self) -> None:
        """Compute one vector before anything is promised."""
        tokens = tuple(range(min(SMOKE_TOKENS, self.vocabulary)))
        try:
            (vector,) = self.pool((Part(0, tokens, 0, wants_logits=True),))
        except DecodeFailed as error:
            raise LoadRefused("crashed", f"the first text failed: {error}") from error
        if not bool(np.isfinite(vector).all()):
            raise LoadRefused(
                "bad_file", "the model computes no finite numbers: verify or copy the file again"
            )
        self.trim(0, 0)

    def _pair(self, query: str, document: str) -> tuple[int, ...]:
        """Query and document as the model was trained on them, in the form of llama.cpp's server
        (tools/server/server-common.cpp, `format_prompt_rerank`, compared at commit 006639c3): the
        file's `tokenizer.chat_template.rerank` with `{query}` and `{document}` replaced, markers in
        it read as tokens and none added; else [begin] query [end] [separator] document [end], each
        where the vocabulary asks for it, the separator for an end that does not exist, and both
        texts read as plain text. Unlike there they are plain in a template, too, and a query that
        holds "{document}" keeps it."""
        library, vocab = self._library, self._vocab
        template = library.llama_model_chat_template(self._model, RERANK_TEMPLATE)
        if template:
            text = template.decode("utf-8", "replace")
            quoting = Quoting(self._tokens.controls)
            given = {"{query}": quoting.text(query), "{document}": quoting.text(document)}
            text = "".join(given.get(piece, piece) for piece in _pieces_of(text))
            return self._tokens.prompt(quoting.pieces(text), add_special=False)
        end = library.llama_vocab_eos(vocab)
        separator = library.llama_vocab_sep(vocab)
        if end < 0:
            end = separator
        begin_ids = (
            (library.llama_vocab_bos(vocab),) if library.llama_vocab_get_add_bos(vocab) else ()
        )
        end_ids = (end,) if library.llama_vocab_get_add_eos(vocab) else ()
        separator_ids = (separator,) if library.llama_vocab_get_add_sep(vocab) else ()
        ids = (
            *begin_ids,
            *self._tokens.tokenize(query, add_special=False, special=False),
            *end_ids,
            *separator_ids,
            *self._tokens.tokenize(document, add_special=False, special=False),
            *end_ids,
        )
        if min(ids, default=0) < 0:
            raise RequestError(500, "decode_failed", "this model names no end or separator token")
        return ids


def _pieces_of(template: str) -> list[str]:
    """The template cut at its two places, which stay pieces of their own."""
    pieces: list[str] = []
    for part in template.split("{query}"):
        if pieces:
            pieces.append("{query}")
        inner = part.split("{document}")
        pieces.append(inner[0])
        for rest in inner[1:]:
            pieces += ["{document}", rest]
    return pieces
