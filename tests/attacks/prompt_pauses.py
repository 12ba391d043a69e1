"""The longest pause of a running stream while a client sends what is dear to make ready (S3).

By hand: `python tests/attacks/prompt_pauses.py`; the figures stand in results.txt beside this file.
A real worker with SmolLM2 on the CPU: the peer's own limits are not in the way.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fixtures.models import smollm2_path
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.wire.generation import Constraint, Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load

ROUNDS = 3
STREAM_TOKENS = 60
BOMBS = 1
BOMB_AFTER_TOKENS = 10
CONTEXT = 2048
GREEDY = Sampling(temperature=0.0)
SPACES = " " * 3_900_000


def schema_bomb(number: int) -> str:
    """As large as a schema may be, and another one each time."""
    properties = {
        f"p{number}_{n}": {"type": "string", "pattern": "[a-z]{1,40}"} for n in range(900)
    }
    return json.dumps({"type": "object", "properties": properties, "required": list(properties)})


def spaces(number: int) -> Generate:
    return Generate(f"bomb{number}", "d", prompt=f"{number}{SPACES}")


def message(number: int) -> Generate:
    content = f"{number}{SPACES}x"
    return Generate(f"bomb{number}", "d", messages=({"role": "user", "content": content},))


def schema(number: int) -> Generate:
    constraint = Constraint("json_schema", schema_bomb(number))
    return Generate(f"bomb{number}", "d", prompt="x", constraint=constraint, max_tokens=1)


def nothing(number: int) -> Generate:
    return Generate(f"bomb{number}", "d", prompt_ids=())


KINDS = {"nothing": nothing, "spaces": spaces, "message": message, "schema": schema}


def longest_pause_ms(worker: WorkerProcess, kind: str, turn: int) -> float:
    """Between two tokens of a stream, while the bombs arrive and until they have ended."""
    name = f"{kind}{turn}"
    stream = Generate(name, "d", prompt="Once", max_tokens=STREAM_TOKENS, ignore_eos=True)
    worker.send(stream)
    seen, waiting, sent = 0, 0, False
    last, longest = 0.0, 0.0
    while True:
        step = worker.step()
        now = time.monotonic()
        waiting -= sum(end.request_id != name for end in (*step.finished, *step.failed))
        for tokens in step.tokens:
            if tokens.request_id == name:
                if sent and waiting >= 0:
                    longest = max(longest, now - last)
                last, seen = now, seen + len(tokens.ids)
        if seen >= BOMB_AFTER_TOKENS and not sent:
            sent, waiting = True, BOMBS
            for number in range(BOMBS):
                worker.send(KINDS[kind](turn * BOMBS + number))
            last = time.monotonic()
        if any(end.request_id == name for end in step.finished):
            break
    while waiting > 0:
        step = worker.step()
        waiting -= len(step.finished) + len(step.failed)
    return longest * 1000


def main() -> None:
    devices = (DeviceClaim("cpu0", "cpu", 0, 512 * MIB),)
    with WorkerProcess(timeout_s=180.0) as worker:
        loaded = worker.load(Load("r", "llama", str(smollm2_path()), CONTEXT, 2, devices))
        print(type(loaded).__name__)
        turn = 0
        for kind in KINDS:
            found = []
            for _ in range(ROUNDS):
                turn += 1
                found.append(longest_pause_ms(worker, kind, turn))
            print(
                f"{kind:8} {statistics.median(found):7.0f} ms   {[round(each) for each in found]}"
            )


if __name__ == "__main__":
    main()
