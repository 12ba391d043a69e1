"""Images on real small models with random projectors: seen as through llama.cpp's own helper,
counted, cached, continued; refused where only text is served."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.chat_templates import GEMMA
from fixtures.models import gemma_path, smollm2_path
from fixtures.seeing import CONTEXT, PLAIN, ask, helper_says, load, we_say
from fixtures.tiny_models import tiny_bert
from fixtures.tiny_projectors import (
    ROWS,
    TINY_JPEG,
    png,
    random_gemma_projector,
    random_projector,
)
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.gguf.companions import read_projector
from aivailable.wire.generation import IMAGE_ROW_ID, Failed, Finished, Generate, Sampling
from aivailable.wire.worker import LoadFailed, Ready
from aivailable.worker.dry_run import measure
from aivailable.worker.engine import CellsExhausted, LoadRefused, Part
from aivailable.worker.llama.engine import LlamaEngine
from aivailable.worker.llama.library import import_media_library

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")

WIDE = png()[:16] + struct.pack(">II", 5000, 4000) + png()[24:]


@pytest.fixture(scope="module", params=["llava", "gemma3"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: Any) -> LlamaEngine:
    folder = tmp_path_factory.mktemp("vision")
    if request.param == "llava":
        given = load(smollm2_path(), projector=str(random_projector(folder)), threads="1")
    else:
        given = load(gemma_path(), projector=str(random_gemma_projector(folder)), threads="1")
    made = LlamaEngine(given, lambda phase, fraction: None)
    if request.param == "gemma3":
        made._templates = (GEMMA, None)  # This file has none.
    return made


@pytest.mark.parametrize("chunk", [60, 20])
def test_logits_are_those_of_the_helper(engine: LlamaEngine, chunk: int) -> None:
    """In few chunks, and cut inside the image: other batch sizes round otherwise."""
    request = ask("i", png())
    wanted, expected = helper_says(engine, request.messages)
    ids, rows = we_say(engine, request, chunk)
    _, others = we_say(engine, ask("j", png(seed=2)), chunk)
    apart = np.abs(others[0] - expected[0]).max()
    assert np.abs(rows[0] - expected[0]).max() < apart / 20
    assert ids == wanted


def test_a_cut_inside_an_image_is_mended(engine: LlamaEngine) -> None:
    request = ask("i", png())
    wanted, _ = we_say(engine, request, 60)
    prepared = engine.prepare(request)
    inside = next(at for at, token in enumerate(prepared.prompt) if token >= engine.vocabulary) + 5
    engine.decode((Part(0, prepared.prompt, 0, False),))
    assert engine.trim(0, inside) == inside
    (row,) = engine.decode((Part(0, prepared.prompt[inside:], inside, True),))
    assert int(row.argmax()) == wanted[0]
    engine.trim(0, 0)


def test_a_failure_half_way_leaves_the_cache_as_it_was(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask("i", png())
    wanted, _ = we_say(engine, request, 60)
    prepared = engine.prepare(request)
    vision = engine._vision
    assert vision is not None
    decode, calls = vision._decode_tokens, []

    def full_at_the_end(parts: Sequence[Part]) -> list[Any]:
        calls.append(parts)
        if len(calls) == 2:
            raise CellsExhausted("no cell")
        return decode(parts)

    monkeypatch.setattr(vision, "_decode_tokens", full_at_the_end)
    whole = (Part(0, prepared.prompt, 0, True),)
    with pytest.raises(CellsExhausted):
        engine.decode(whole)
    assert engine.cache.length(0) == 0
    (row,) = engine.decode(whole)
    assert int(row.argmax()) == wanted[0]
    engine.trim(0, 0)


def test_one_image_is_encoded_once(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = engine._vision
    assert vision is not None
    encode, encoded = vision._encode, []
    monkeypatch.setattr(
        vision, "_encode", lambda *given: (encoded.append(given[0].digest), encode(*given))[1]
    )
    fresh, other = png(seed=7), png(seed=8)
    we_say(engine, ask("i", fresh), 7)
    first = engine.prepare(ask("i", fresh)).prompt
    we_say(engine, ask("j", fresh, fresh, other), 60)
    assert len(encoded) == 2
    assert engine.prepare(ask("k", fresh)).prompt == first
    assert sum(token >= engine.vocabulary for token in first) == ROWS


def test_mixed_steps_serve_text_and_images(tmp_path: Path) -> None:
    """Beside each other, with penalties, and twice: the second time from the cache."""
    path = random_projector(tmp_path)
    repeats = Sampling(temperature=0.0, repeat_penalty=1.2, repeat_last_n=-1, dry_multiplier=0.8)
    requests = (
        PLAIN,
        ask("a", png()),
        ask("b", TINY_JPEG, png()),
        ask("c", png(), sampling=repeats),
    )
    with WorkerProcess() as process:
        ready = process.load(load(slots=4, projector=str(path)))
        assert isinstance(ready, Ready), ready
        assert ready.vision
        assert "projector=mmproj.gguf" in ready.notes
        together = process.answers(*requests)
        assert all(isinstance(answer.end, Finished) for answer in together.values())
        assert together["b"].prompt_ids.count(IMAGE_ROW_ID) == 2 * ROWS
        again = process.answers(replace(requests[1], request_id="again"))["again"]
        assert isinstance(again.end, Finished)
        assert again.end.cached_tokens >= ROWS
        assert again.ids == together["a"].ids
    for request in requests[2:]:
        with WorkerProcess() as process:
            assert isinstance(process.load(load(projector=str(path))), Ready)
            alone = process.answers(request)[request.request_id]
        assert alone.ids == together[request.request_id].ids


def test_a_continuation_goes_on(tmp_path: Path) -> None:
    path = random_projector(tmp_path)
    request = ask("a", png())
    with WorkerProcess() as process:
        process.load(load(projector=str(path)))
        whole = process.answers(request)["a"]
    resumed = replace(request, prompt_ids=whole.prompt_ids, generated_ids=tuple(whole.ids[:3]))
    wrong = replace(resumed, request_id="w", prompt_ids=whole.prompt_ids[-5:])
    bare = Generate("p", "d", prompt_ids=whole.prompt_ids, max_tokens=1)
    with WorkerProcess() as process:
        process.load(load(projector=str(path)))
        ends = process.answers(resumed, wrong, bare)
    assert ends["a"].ids == whole.ids[3:]
    for name in ("w", "p"):
        end = ends[name].end
        assert isinstance(end, Failed)
        assert end.code == "invalid_request"


def test_a_damaged_image_is_refused_and_nobody_else_disturbed(tmp_path: Path) -> None:
    with WorkerProcess() as process:
        process.load(load(slots=2, projector=str(random_projector(tmp_path))))
        ends = process.answers(ask("cut", png()[:-200]), PLAIN, ask("wide", WIDE), ask("ok", png()))
    for name, said in (("cut", "damaged"), ("wide", "5000 x 4000 pixels")):
        end = ends[name].end
        assert isinstance(end, Failed)
        assert (end.status, end.code) == (400, "invalid_image")
        assert said in end.message
    assert isinstance(ends["t"].end, Finished)
    assert isinstance(ends["ok"].end, Finished)


def test_an_image_is_refused_where_only_text_is_served() -> None:
    with WorkerProcess() as process:
        ready = process.load(load(slots=1))
        assert isinstance(ready, Ready)
        assert not ready.vision
        ends = process.answers(ask("i", png()), PLAIN)
        end = ends["i"].end
        assert isinstance(end, Failed)
        assert (end.status, end.code) == (400, "unsupported_image")
        assert "messages[0] has an image" in end.message
        assert isinstance(ends["t"].end, Finished)


def test_the_dry_run_counts_the_projector(tmp_path: Path) -> None:
    path = random_projector(tmp_path)
    plain = measure(str(smollm2_path()), CONTEXT, 1, {}, "cpu", (0,))
    seeing = measure(str(smollm2_path()), CONTEXT, 1, {"projector": str(path)}, "cpu", (0,))
    more = seeing.weights_bytes - plain.weights_bytes
    assert more == read_projector(path).weights_bytes
    with WorkerProcess() as process:
        ready = process.load(load(claim=seeing.total_bytes, projector=str(path)))
    assert isinstance(ready, Ready), ready
    assert ready.weights_bytes == pytest.approx(seeing.weights_bytes, abs=MIB // 32)
    assert ready.used_bytes["cpu0"] <= seeing.total_bytes + MIB // 8
    with WorkerProcess() as process:
        refused = process.load(load(claim=plain.total_bytes - MIB // 2, projector=str(path)))
    assert isinstance(refused, LoadFailed)
    assert refused.code == "over_claim"


def test_a_wrong_projector_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(code: str, path: Path | str) -> str:
        with pytest.raises(LoadRefused) as refused:
            LlamaEngine(load(projector=str(path)), lambda phase, fraction: None)
        assert refused.value.code == code
        return str(refused.value)

    assert "cannot be read" in said("bad_file", "nowhere.gguf")
    assert "no projector" in said("bad_file", tiny_bert(tmp_path))
    blind = random_projector(tmp_path, "blind.gguf", clip__has_vision_encoder=False)
    assert "reads no images" in said("bad_file", blind)
    assert "mismatch" in said("bad_file", random_gemma_projector(tmp_path, "other.gguf"))
    media = import_media_library()
    monkeypatch.setattr(media, "mtmd_decode_use_mrope", lambda native: True)
    assert "unknown order" in said("unsupported", random_projector(tmp_path))
    monkeypatch.setattr(media, "mtmd_decode_use_non_causal", lambda native, chunk: True)
    assert "in one piece" in said("unsupported", random_projector(tmp_path))
