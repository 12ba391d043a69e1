"""llama.cpp's vocabulary: text to tokens and back, and which tokens are no text.

Owns: every call that takes the vocabulary. It is read only and has no state of its own but what is
worked out once, so that requests are tokenised beside the step loop; llama.cpp lets go of the
interpreter meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from aivailable.errors import RequestError
from aivailable.worker.chat import Controls, Piece

PIECE_BUFFER_BYTES: Final = 256
PROMPT_MAX_BYTES: Final = 8 << 20
PROMPT_SLACK_BYTES: Final = 4096
"""Spaces and marks that a vocabulary may swallow, over what its longest tokens could say."""
COUNTED_OVER_TOKENS: Final = 1 << 16
"""Ids over the context that are still handed on, to those who know what is too long."""
TRIED_BYTES_PER_TOKEN: Final = 4
"""A prompt up to this is tokenised to be sure; only beyond it the longest token is looked up."""


class LlamaTokens:
    """The vocabulary of one model, whose prompts have less than `context` tokens."""

    def __init__(self, library: Any, vocab: Any, context: int) -> None:
        self._library, self._vocab, self._context = library, vocab, context
        self.size: int = library.llama_vocab_n_tokens(vocab)
        self._pieces: dict[int, bytes] = {}
        self.begin = self._special(library.llama_vocab_bos(vocab))
        """The text of the begin token; empty where there is none."""
        self.end = self._special(library.llama_vocab_eos(vocab))

    def piece(self, token: int) -> bytes:
        """The token's bytes, cached; empty for control tokens."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token, special=False)
        return piece

    def marker(self, token: int) -> bytes:
        """The token's text, also that of a control token."""
        return self._read_piece(token, special=True)

    def is_end(self, token: int) -> bool:
        """End of text, of turn, of message: what llama.cpp counts as end of generation."""
        return bool(self._library.llama_vocab_is_eog(self._vocab, token))

    def marker_token(self, marker: str) -> int | None:
        """The only token of this text, if it is one."""
        ids = self.tokenize(marker, add_special=False)
        return ids[0] if len(ids) == 1 else None

    @cached_property
    def controls(self) -> Controls:
        """How the control tokens are spelled."""
        return Controls(self._control_texts.values())

    @cached_property
    def _control_texts(self) -> Mapping[int, str]:
        """The tokens that llama.cpp makes of a text only when it is told to, with their texts."""
        library, vocab = self._library, self._vocab
        attributes = library.LLAMA_TOKEN_ATTR_CONTROL | library.LLAMA_TOKEN_ATTR_UNKNOWN
        return {
            token: (library.llama_vocab_get_text(vocab, token) or b"").decode("utf-8", "replace")
            for token in range(self.size)
            if library.llama_vocab_get_attr(vocab, token) & attributes
        }

    def prompt(self, pieces: Sequence[Piece], *, add_special: bool = True) -> tuple[int, ...]:
        """A rendered prompt's ids. `add_special`: with what the vocabulary wants around a text.
        Raises RequestError."""
        add_special = add_special and not self._begun(pieces)
        if len(pieces) == 1 and not pieces[0].plain:
            return self.tokenize(pieces[0].text, add_special=add_special)
        self._refuse_longer(sum(len(piece.text.encode("utf-8", "replace")) for piece in pieces))
        ids = [*self.begin_ids(pieces)] if add_special else []
        for piece in pieces:
            ids += self.following(piece, ids[-1] if ids else None)
        return tuple(ids)

    def begin_ids(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        """The begin token, where the vocabulary wants one and the template wrote none."""
        if self._begun(pieces) or not self._library.llama_vocab_get_add_bos(self._vocab):
            return ()
        return (self._library.llama_vocab_bos(self._vocab),)

    def following(self, piece: Piece, before: int | None) -> tuple[int, ...]:
        """A piece behind others, the last of whose ids is `before`. Raises RequestError."""
        special = not piece.plain
        ids = self.tokenize(piece.text, add_special=False, special=special)
        if before is None or before in self._control_texts or not self._spaced:
            return ids
        # This kind of vocabulary puts a space before every text; there is none inside of one.
        line = self.tokenize("\n", add_special=False)
        behind = self.tokenize(f"\n{piece.text}", add_special=False, special=special)
        return behind[len(line) :] if behind[: len(line)] == line else ids

    def tokenize(self, text: str, *, add_special: bool, special: bool = True) -> tuple[int, ...]:
        """`special`: text that looks like a control token becomes one. Raises RequestError."""
        data = text.encode("utf-8", "replace")
        self._refuse_longer(len(data))
        size = len(data) + 16
        ids = (self._library.llama_token * size)()
        count = self._library.llama_tokenize(
            self._vocab, data, len(data), ids, size, add_special, special
        )
        if count < 0:
            raise RequestError(400, "invalid_request", "the prompt cannot be tokenized")
        if count > self._context + COUNTED_OVER_TOKENS:
            raise self._too_long(f"{count} tokens")
        return tuple(ids[:count])

    def _refuse_longer(self, count_bytes: int) -> None:
        """What cannot fit however it is cut is refused before anybody works on it."""
        limit = self._context * TRIED_BYTES_PER_TOKEN + PROMPT_SLACK_BYTES
        if count_bytes > limit:
            limit = max(limit, self._context * self._longest_bytes + PROMPT_SLACK_BYTES)
        if count_bytes > min(limit, PROMPT_MAX_BYTES):
            raise self._too_long(f"{count_bytes} bytes")

    def _too_long(self, what: str) -> RequestError:
        return RequestError(
            400,
            "context_length_exceeded",
            f"the prompt has {what} and this model's maximum context length is "
            f"{self._context} tokens; shorten the prompt or deploy with a larger --ctx",
        )

    @cached_property
    def _longest_bytes(self) -> int:
        """Of what one token says. A vocabulary of words has one token for any unknown word."""
        library = self._library
        counted = (library.LLAMA_VOCAB_TYPE_SPM, library.LLAMA_VOCAB_TYPE_BPE)
        if library.llama_vocab_type(self._vocab) not in counted:
            return PROMPT_MAX_BYTES
        return max(len(self.piece(token)) for token in range(self.size))

    def _begun(self, pieces: Sequence[Piece]) -> bool:
        """A template that writes the begin token itself must not get a second one."""
        first = pieces[0]
        return bool(self.begin) and not first.plain and first.text.startswith(self.begin)

    @cached_property
    def _spaced(self) -> bool:
        library = self._library
        return bool(library.llama_vocab_type(self._vocab) == library.LLAMA_VOCAB_TYPE_SPM)

    def _special(self, token: int) -> str:
        return self.marker(token).decode("utf-8", "replace") if token >= 0 else ""

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        size = PIECE_BUFFER_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._library.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count
