"""Tools with a real model: what it is made to say can be parsed, and goes on after a cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")

from fixtures.chat_reading import Read, joined, tool, values
from fixtures.models import smollm2_path
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.wire.generation import Constraint, Finished, Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load, Ready
from aivailable.worker.answer import Delta

TOOLS = (
    tool(
        "get_weather",
        city={"type": "string", "maxLength": 24},
        unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
        days={"type": "integer", "minimum": 1, "maximum": 7},
    ),
    tool("get_time", zone={"type": "string", "maxLength": 12}),
)
QUESTION = {"role": "user", "content": "What is the weather in Paris, in celsius, for 3 days?"}


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    devices = (DeviceClaim("cpu0", "cpu", 0, 512 * MIB),)
    with WorkerProcess() as process:
        loaded = process.load(Load("r1", "llama", str(smollm2_path()), 1024, 2, devices))
        assert isinstance(loaded, Ready), loaded
        yield process


def ask(worker: WorkerProcess, name: str, **more: Any) -> tuple[Read, list[int], Any]:
    """The answer read (in pieces that are checked to fit), its ids, and all that came."""
    wanted = {
        "messages": (QUESTION,),
        "tools": TOOLS,
        "max_tokens": 120,
        "sampling": Sampling(temperature=0.0),
        **more,
    }
    first = len(worker.steps)
    answer = worker.answers(Generate(name, "d", **wanted))[name]
    deltas = [
        Delta(part.text, part.reasoning, part.calls)
        for step in worker.steps[first:]
        for part in (*step.tokens, *step.finished)
    ]
    continued = "generated_ids" in more
    return Read() if continued else joined(deltas), answer.ids, answer


def test_required_is_a_valid_call(worker: WorkerProcess) -> None:
    read, ids, answer = ask(worker, "whole", tool_choice="required", parallel_tool_calls=False)
    assert isinstance(answer.end, Finished)
    assert answer.end.reason == "tool_calls"
    assert not read.text
    ((name, arguments),) = values(read)
    if name == "get_weather":
        assert arguments["unit"] in ("celsius", "fahrenheit")
        assert 1 <= arguments["days"] <= 7
    assert set(arguments) == {
        "get_weather": {"city", "unit", "days"},
        "get_time": {"zone"},
    }.get(name)
    cut = len(ids) // 2
    more = {"prompt_ids": answer.prompt_ids, "generated_ids": tuple(ids[:cut])}
    _, rest, _ = ask(worker, "whole", tool_choice="required", parallel_tool_calls=False, **more)
    assert rest == ids[cut:]


def test_a_named_function(worker: WorkerProcess) -> None:
    read, _, answer = ask(worker, "named", tool_choice="function:get_time")
    assert answer.end.reason == "tool_calls"
    assert {name for name, _ in values(read)} == {"get_time"}


def test_auto_is_a_call_or_a_response(worker: WorkerProcess) -> None:
    read, _, answer = ask(worker, "auto", parallel_tool_calls=False)
    assert bool(read.text) != bool(read.calls) or answer.end.reason == "length"
    assert '"response"' not in read.text


def test_a_schema_without_tools(worker: WorkerProcess) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}}
    schema["required"] = ["city"]
    constraint = Constraint("json_schema", json.dumps(schema))
    read, _, answer = ask(worker, "schema", tools=None, constraint=constraint)
    assert answer.end.reason == "stop"
    assert isinstance(json.loads(read.text)["city"], str)
