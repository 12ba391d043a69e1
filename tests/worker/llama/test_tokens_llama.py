"""What a real vocabulary makes of a client's text, and what it refuses before it looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")

from fixtures.chat_templates import FAMILIES
from fixtures.models import gemma_path, smollm2_path
from fixtures.seeing import load
from fixtures.worker_process import MIB

from aivailable.errors import RequestError
from aivailable.wire.generation import Generate
from aivailable.worker.chat import Piece
from aivailable.worker.llama.engine import LlamaEngine
from aivailable.worker.llama.tokens import LlamaTokens

PATHS = {"smollm2": smollm2_path, "gemma": gemma_path}
SPELLINGS_TRIED = 12
HARMLESS = (
    "Hello, world",
    "a < b and c > d",
    "<",
    "x <|",
    "> quoted",
    " two  spaces ",
    "é\n\n",
    "<b>",
)


@pytest.fixture(scope="module", params=sorted(PATHS))
def engine(request: Any) -> LlamaEngine:
    path: Path = PATHS[request.param]()
    made = LlamaEngine(load(path, claim=1024 * MIB), lambda phase, fraction: None)
    if request.param == "gemma":
        # The file of the base model has none.
        made._templates = (FAMILIES["generic"], None)
    return made


def ask(*said: str, **more: Any) -> Generate:
    messages = tuple({"role": "user", "content": each} for each in said)
    return Generate("r", "d", **{"messages": messages or None, **more})


def whole(engine: LlamaEngine, *said: str) -> tuple[int, ...]:
    """The ids of the rendering as one text, as if all of it were the template's."""
    chats = engine._conversations()
    text = chats._plain.template.render([{"role": "user", "content": each} for each in said])
    return engine._tokens.prompt((Piece(text),))


def controls(engine: LlamaEngine, ids: tuple[int, ...]) -> list[int]:
    return [token for token in ids if token in engine._tokens._control_texts]


@pytest.mark.parametrize("said", HARMLESS)
def test_ids_of_a_text_without_control_tokens_are_those_of_the_whole(
    engine: LlamaEngine, said: str
) -> None:
    assert engine.prepare(ask(said)).prompt == whole(engine, said)


def test_control_tokens_in_a_message_are_plain_text(engine: LlamaEngine) -> None:
    expected = controls(engine, engine.prepare(ask("hi")).prompt)
    known = sorted(filter(str.strip, engine._tokens._control_texts.values()))
    for spelling in known[:: max(1, len(known) // SPELLINGS_TRIED)]:
        for said in (spelling, f"a{spelling}b", f"{spelling} {spelling}\n{spelling}"):
            prompt = engine.prepare(ask(said)).prompt
            assert controls(engine, prompt) == expected, spelling
            shown = b"".join(map(engine.piece, prompt)).decode()
            assert said.strip() in shown


def test_a_raw_prompt_keeps_control_tokens(engine: LlamaEngine) -> None:
    token, spelling = list(engine._tokens._control_texts.items())[-1]
    assert token in engine.prepare(ask(prompt=f"a{spelling}b")).prompt


def test_what_cannot_fit_is_refused_by_its_bytes(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" + " " * 3_900_000 + "x"
    for request in (ask(prompt=long), ask(long)):
        # Nothing may be tokenised: the library is not there.
        with monkeypatch.context() as without:
            engine._conversations()
            without.setattr(LlamaTokens, "tokenize", _checked_only(LlamaTokens.tokenize))
            with pytest.raises(RequestError, match="maximum context length is 256 tokens") as told:
                engine.prepare(request)
        assert told.value.code == "context_length_exceeded"
        assert "bytes" in str(told.value)


def _checked_only(tokenize: Any) -> Any:
    def checked(self: LlamaTokens, text: str, **how: Any) -> tuple[int, ...]:
        if len(text) > 1 << 20:
            self._refuse_longer(len(text.encode()))
            raise AssertionError("it was not refused")
        ids: tuple[int, ...] = tokenize(self, text, **how)
        return ids

    return checked
