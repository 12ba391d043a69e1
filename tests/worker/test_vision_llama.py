"""Images where only text is served: refused with what to do, never ignored."""

from __future__ import annotations

import pytest
from fixtures.models import smollm2_path
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.wire.generation import Failed, Finished, Generate
from aivailable.wire.worker import DeviceClaim, Load, LoadFailed, Ready

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")


def load(**options: str) -> Load:
    device = DeviceClaim("cpu0", "cpu", 0, 512 * MIB)
    return Load("r1", "llama", str(smollm2_path()), 256, 1, (device,), options)


def test_an_image_is_refused_and_nobody_else_disturbed() -> None:
    text = {"type": "text", "text": "What is this?"}
    seen = ({"role": "user", "content": [text, {"type": "image", "data": b"\x89PNG"}]},)
    plain = ({"role": "user", "content": "Hello"},)
    with WorkerProcess() as process:
        ready = process.load(load())
        assert isinstance(ready, Ready)
        assert not ready.vision
        ends = process.answers(
            Generate("i", "d", messages=seen, max_tokens=2),
            Generate("t", "d", messages=plain, max_tokens=2),
        )
        end = ends["i"].end
        assert isinstance(end, Failed)
        assert (end.status, end.code) == (400, "unsupported_image")
        assert "messages[0] has an image" in end.message
        assert isinstance(ends["t"].end, Finished)


def test_a_projector_is_refused() -> None:
    with WorkerProcess() as process:
        answer = process.load(load(projector="mmproj.gguf"))
        assert isinstance(answer, LoadFailed)
        assert "projector: this version serves text only" in answer.message
