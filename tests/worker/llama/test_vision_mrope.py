"""Images that take fewer positions than rows (Qwen-VL): seen as through llama.cpp's own helper,
cut, shared, continued and cancelled in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.seeing import ask, helper_says, load, we_say
from fixtures.sessions import ListPort, ids_of, run
from fixtures.tiny_projectors import png
from fixtures.tiny_qwen import FAMILIES, QWEN2, qwen_projector, tiny_qwen
from fixtures.worker_process import WorkerProcess

from aivailable.errors import RequestError
from aivailable.wire.generation import Cancel, Failed, Finished, Generate
from aivailable.wire.worker import Ready
from aivailable.worker.dry_run import measure
from aivailable.worker.engine import CellsExhausted, DecodeFailed, LoadRefused, Part
from aivailable.worker.generating.step_loop import StepLoop
from aivailable.worker.llama.engine import LlamaEngine
from aivailable.worker.llama.library import import_library

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")

CONTEXT = 512
FLAT, TALL, LARGE = png(80, 48), png(32, 96, seed=2), png(256, 160, seed=3)
FLAT_GRID, LARGE_ROWS = (5, 3), 160


def made(folder: Path, family: str, slots: int = 4) -> LlamaEngine:
    given = load(
        tiny_qwen(folder, FAMILIES[family]),
        slots=slots,
        context=CONTEXT,
        projector=str(qwen_projector(folder, FAMILIES[family])),
        threads="1",
    )
    return LlamaEngine(given, lambda phase, fraction: None)


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: Any) -> LlamaEngine:
    return made(tmp_path_factory.mktemp("mrope"), request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: Any) -> LlamaEngine:
    return made(tmp_path_factory.mktemp("qwen"), "qwen2")


@pytest.fixture
def fresh(qwen: LlamaEngine) -> LlamaEngine:
    for slot in range(qwen.sequences):
        qwen.trim(slot, 0)
    return qwen


# An engine knows images as long as their requests: what `prepare` returned is kept.
def feed(engine: LlamaEngine, slot: int, tokens: Sequence[int], start: int, chunk: int) -> Any:
    """The last row of a prompt that is in the cache up to `start`."""
    rows: list[Any] = []
    for at in range(start, len(tokens), chunk):
        piece = tuple(tokens[at : at + chunk])
        rows = engine.decode((Part(slot, piece, at, at + len(piece) == len(tokens)),))
    return rows[0].copy()


def first_row(engine: LlamaEngine, tokens: Sequence[int]) -> int:
    return next(at for at, token in enumerate(tokens) if token >= engine.vocabulary)


@pytest.mark.parametrize("images", [(FLAT,), (TALL, FLAT)], ids=["one", "two"])
@pytest.mark.parametrize("chunk", [60, 7])
def test_logits_are_those_of_the_helper(
    engine: LlamaEngine, images: tuple[bytes, ...], chunk: int
) -> None:
    request = ask("i", *images)
    wanted, expected = helper_says(engine, request.messages)
    ids, rows = we_say(engine, request, chunk)
    _, others = we_say(engine, ask("j", *(png(80, 48, seed=9) for _ in images)), chunk)
    apart = np.abs(others[0] - expected[0]).max()
    for row, other in zip(rows, expected, strict=True):
        assert np.abs(row - other).max() < apart / 20
    assert ids == wanted


def test_an_image_takes_positions_of_its_longer_side(fresh: LlamaEngine) -> None:
    vision = fresh._vision
    assert vision is not None
    (grid,) = vision.picture(FLAT).grids
    assert (grid.columns, grid.lines) == FLAT_GRID
    prepared = fresh.prepare(ask("i", FLAT))
    prompt = prepared.prompt
    feed(fresh, 0, prompt, 0, 60)
    assert fresh.cache.length(0) == len(prompt) - grid.rows + grid.positions
    assert vision._cache.position(0, len(prompt)) == fresh.cache.length(0)


def test_every_cut_is_mended(fresh: LlamaEngine) -> None:
    """Before, inside and behind an image; inside one its rows are decoded again."""
    prepared = fresh.prepare(ask("i", FLAT, TALL))
    prompt = prepared.prompt
    whole = feed(fresh, 0, prompt, 0, 60)
    begin = first_row(fresh, prompt)
    for length in (begin - 1, begin, begin + 1, begin + 7, begin + 15, begin + 16, begin + 20):
        assert fresh.reach(0, length)
        assert fresh.trim(0, length) == length
        assert fresh.trim(0, length) == length
        assert not fresh.reach(0, length + 1)
        row = feed(fresh, 0, prompt, length, 60)
        assert np.abs(row - whole).max() < 1e-3, length


def test_a_beginning_with_an_image_is_shared(fresh: LlamaEngine) -> None:
    prepared = fresh.prepare(ask("i", FLAT, TALL))
    prompt = prepared.prompt
    begin = first_row(fresh, prompt)
    whole = feed(fresh, 0, prompt, 0, 60)
    for slot, length in enumerate((begin + 6, begin + 15, begin + 18, len(prompt) - 2), 1):
        assert fresh.fork(0, slot, length) == length
        # Again from what has been forked: also where rows are missing.
        assert fresh.fork(slot, 7, length) == length
        for number in (slot, 7):
            row = feed(fresh, number, prompt, length, 60)
            assert np.abs(row - whole).max() < 1e-3, length
    assert np.abs(feed(fresh, 0, (*prompt, 5), len(prompt), 60) - whole).max() > 1e-2


@pytest.mark.parametrize("error", [CellsExhausted, DecodeFailed])
def test_a_failure_inside_an_image_leaves_it_mendable(
    fresh: LlamaEngine, monkeypatch: pytest.MonkeyPatch, error: type[DecodeFailed]
) -> None:
    """The second part of the image, then the text behind it, fail once; the rest goes on."""
    prepared = fresh.prepare(ask("i", FLAT))
    prompt = prepared.prompt
    whole = feed(fresh, 0, prompt, 0, 60)
    begin = first_row(fresh, prompt)
    vision = fresh._vision
    assert vision is not None
    for name in ("_run", "_decode_tokens"):
        fresh.trim(0, 0)
        feed(fresh, 0, prompt[: begin + 4], 0, 60)
        part = Part(0, prompt[begin + 4 :], begin + 4, True)
        with monkeypatch.context() as patched:
            patched.setattr(vision, name, _failing(error))
            with pytest.raises(error):
                fresh.decode((part,))
        if error is DecodeFailed:
            # As llama.cpp does when it cannot compute.
            fresh.cache.cut(0, begin)
        assert fresh.trim(0, begin + 4) == begin + 4
        (row,) = fresh.decode((part,))
        assert np.abs(row - whole).max() < 1e-3


def _failing(error: type[DecodeFailed]) -> Any:
    def fail(*_: Any) -> Any:
        raise error("for the test")

    return fail


def test_a_failure_while_it_is_mended_changes_nothing(
    fresh: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image has more missing rows than one decode takes, and the second one finds no cell."""
    prepared = fresh.prepare(ask("i", LARGE))
    prompt = prepared.prompt
    whole = feed(fresh, 0, prompt, 0, 60)
    inside = first_row(fresh, prompt) + 100
    assert fresh.trim(0, inside) == inside
    vision = fresh._vision
    assert vision is not None
    run, calls = vision._run, []

    def full(native: Any, rows: int) -> Any:
        calls.append(native)
        if len(calls) == 2:
            raise CellsExhausted("for the test")
        return run(native, rows)

    part = Part(0, prompt[inside : inside + 50], inside, False)
    with monkeypatch.context() as patched:
        patched.setattr(vision, "_run", full)
        with pytest.raises(CellsExhausted):
            fresh.decode((part,))
    assert fresh.reach(0, inside)
    assert np.abs(feed(fresh, 0, prompt, inside, 50) - whole).max() < 1e-3


def test_a_sequence_without_images_is_not_shifted_by_who_had_it_before(fresh: LlamaEngine) -> None:
    prepared = fresh.prepare(ask("i", FLAT))
    plain = fresh.prepare(text("rivers")).prompt
    whole = feed(fresh, 0, plain, 0, 60)
    for clear in (lambda: fresh.fork(0, 1, 40), lambda: fresh.trim(1, 0)):
        feed(fresh, 1, prepared.prompt, 0, 60)
        start = clear()
        assert np.abs(feed(fresh, 1, plain, start, 60) - whole).max() < 1e-3
        assert fresh.cache.length(1) == len(plain)
        fresh.trim(1, 0)


def request(name: str, *images: bytes, **changed: Any) -> Generate:
    return replace(ask(name, *images), ignore_eos=True, **changed)


def text(name: str) -> Generate:
    words = ({"role": "user", "content": f"Say something about {name}."},)
    return replace(ask(name), messages=words, max_tokens=24, ignore_eos=True)


def alone(engine: LlamaEngine, *requests: Generate) -> dict[str, list[int]]:
    """The ids of each, one after the other, without anything in the cache."""
    found = {}
    for each in requests:
        for slot in range(engine.sequences):
            engine.trim(slot, 0)
        port = ListPort(each)
        run(StepLoop(engine, port), port, 1)
        found[each.request_id] = ids_of(port, each.request_id)
    return found


def test_images_beside_running_text(fresh: LlamaEngine) -> None:
    """Two texts stream while images come, one of them in many steps; then all again, reused."""
    requests = (
        text("rivers"),
        text("stones"),
        request("flat", FLAT),
        request("both", TALL, FLAT),
        request("large", LARGE),
    )
    expected = alone(fresh, *requests)
    for slot in range(fresh.sequences):
        fresh.trim(slot, 0)
    port = ListPort(*requests[:2])
    session = StepLoop(fresh, port)
    for _ in range(6):
        session.serve_once()
    port.inbox.extend(requests[2:])
    ends = run(session, port, len(requests))
    again = replace(requests[3], request_id="again")
    port.inbox.append(again)
    ends |= run(session, port, 1)
    assert all(isinstance(end, Finished) for end in ends.values()), ends
    for each in requests:
        assert ids_of(port, each.request_id) == expected[each.request_id], each.request_id
    assert ids_of(port, "again") == expected["both"]
    last = ends["again"]
    assert isinstance(last, Finished)
    assert last.cached_tokens == last.prompt_tokens - 2


def test_a_continuation_behind_an_image(fresh: LlamaEngine) -> None:
    port = ListPort(request("a", TALL, FLAT))
    run(StepLoop(fresh, port), port, 1)
    ids = ids_of(port, "a")
    (started,) = [each for step in port.sent for each in step.started]
    for slot in range(fresh.sequences):
        fresh.trim(slot, 0)
    port = ListPort(
        request("a", TALL, FLAT, prompt_ids=started.prompt_ids, generated_ids=tuple(ids[:3]))
    )
    run(StepLoop(fresh, port), port, 1)
    assert ids_of(port, "a") == ids[3:]


def test_a_cancellation_inside_an_image_leaves_what_can_be_used(fresh: LlamaEngine) -> None:
    expected = alone(fresh, request("next", LARGE), text("rivers"))
    for slot in range(fresh.sequences):
        fresh.trim(slot, 0)
    port = ListPort(request("gone", LARGE), text("rivers"))
    session = StepLoop(fresh, port)
    for _ in range(200):
        session.serve_once()
        job = session._batcher.find("gone")
        assert job is not None
        begin = first_row(fresh, job.tokens)
        if job.fed > begin + 20:
            break
    assert begin + 20 < job.fed < begin + LARGE_ROWS
    fed = job.fed
    port.inbox += [Cancel("gone"), request("next", LARGE)]
    ends = run(session, port, 3)
    assert ids_of(port, "rivers") == expected["rivers"]
    assert ids_of(port, "next") == expected["next"]
    found = ends["next"]
    assert isinstance(found, Finished)
    assert found.cached_tokens == fed


def test_a_damaged_image_disturbs_nobody(fresh: LlamaEngine) -> None:
    port = ListPort(request("cut", FLAT[:-200]), request("ok", FLAT))
    ends = run(StepLoop(fresh, port), port, 2)
    assert isinstance(ends["cut"], Failed)
    assert isinstance(ends["ok"], Finished)


def test_an_image_that_cannot_be_scaled_down_enough_is_refused(fresh: LlamaEngine) -> None:
    with pytest.raises(RequestError, match="too long and narrow"):
        fresh.prepare(ask("i", png(9000, 8)))
    prepared = fresh.prepare(ask("i", png(600, 800)))
    rows = sum(token >= fresh.vocabulary for token in prepared.prompt)
    assert CONTEXT // 4 < rows <= CONTEXT // 2


def test_a_recurrent_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, _ = import_library()
    monkeypatch.setattr(library, "llama_model_is_hybrid", lambda model: True)
    with pytest.raises(LoadRefused, match="M-RoPE and keeps a state") as refused:
        made(tmp_path, "qwen2")
    assert refused.value.code == "unsupported"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_process_loads_within_what_was_predicted(tmp_path: Path, family: str) -> None:
    path = tiny_qwen(tmp_path, FAMILIES[family])
    options = {"projector": str(qwen_projector(tmp_path, FAMILIES[family]))}
    needed = measure(str(path), CONTEXT, 2, options, "cpu", (0,)).total_bytes
    given = load(path, slots=2, context=CONTEXT, claim=needed, **options)
    with WorkerProcess() as process:
        ready = process.load(given)
        assert isinstance(ready, Ready), ready
        assert ready.vision
        answer = process.answers(request("a", FLAT))["a"]
    assert isinstance(answer.end, Finished)


def test_text_alone_is_what_it_is_without_a_projector(fresh: LlamaEngine, tmp_path: Path) -> None:
    plain = LlamaEngine(
        load(tiny_qwen(tmp_path, QWEN2), slots=4, context=CONTEXT, threads="1"),
        lambda phase, fraction: None,
    )
    assert alone(plain, text("rivers")) == alone(fresh, text("rivers"))
