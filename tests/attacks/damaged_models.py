"""Damaged model files at a real worker: `PYTHONPATH=.:tests python -m attacks.damaged_models`.

Each round damages a copy of a real model by its seed, reads its header, and loads it if the header
is accepted, as on a first load. Whatever becomes ready must answer its first requests: with text,
with a refusal, but without the end of its process. Prints every seed whose worker ended so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fixtures.models import gemma_path, smollm2_path
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.errors import GgufError
from aivailable.gguf import read_header
from aivailable.peer.runtimes.starting import WORKER_ENVIRONMENT
from aivailable.wire.generation import Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load, Ready

HEADER_CPU_MAX_S = 1.0
"""Processor time of the thread that reads a header. No loop runs there."""
ANSWER_LIMIT_S = 60.0
READY, REFUSED_HEADER, REFUSED_LOAD = "ready", "refused by its header", "refused by the load"
DIED_LOADING, DIED_READY, SILENT = "died while loading", "DIED AFTER READY", "SILENT"


def header_end(path: Path) -> int:
    """Where the weights begin."""
    from aivailable.gguf.header import read_structure

    structure, size = read_structure(str(path))
    last = max(structure.tensors.values(), key=lambda tensor: tensor.offset)
    return min(size, structure.expected_bytes - last.offset - last.size_bytes)


def damage(dice: random.Random, path: Path, end: int) -> list[tuple[int, bytes]]:
    """Edits of the file, as places and bytes: most hit keys and tensor descriptions, some the token
    table, a few the weights."""
    size = path.stat().st_size
    data = path.read_bytes()[:end]
    edits: list[tuple[int, bytes]] = []
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        kind = dice.random()
        if kind < 0.45:
            # The value behind the name of a key.
            key = data.find(dice.choice(KEYS))
            at = (key if key >= 0 else dice.randrange(end)) + dice.randrange(4, 60)
        elif kind < 0.65:
            at = end - dice.randrange(1, min(end, 24_000))
        elif kind < 0.9:
            at = dice.randrange(24, end)
        else:
            at = dice.randrange(end, size - 64)
        edits.append((min(at, size - 8), dice.choice(PATCHES)(dice)))
    return edits


KEYS = (
    *(b"llama.block_count", b"llama.context_length", b"llama.embedding_length"),
    *(b"attention.head_count", b"attention.layer_norm_rms_epsilon", b"rope.freq_base"),
    *(b"rope.dimension_count", b"tokenizer.ggml.model", b"tokenizer.ggml.pre"),
    *(b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type", b"tokenizer.ggml.merges"),
    *(b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id", b"vocab_size"),
    *(b"tokenizer.ggml.unknown_token_id", b"tokenizer.ggml.padding_token_id"),
    *(b"tokenizer.chat_template", b"tokenizer.ggml.add_bos_token", b"attention.key_length"),
    *(b"tokenizer.ggml.scores", b"attention.sliding_window", b"feed_forward_length"),
)
PATCHES = (
    lambda dice: bytes([dice.randrange(256)]),
    lambda dice: dice.randbytes(4),
    lambda _dice: bytes(4),
    lambda _dice: b"\xff" * 4,
    lambda _dice: b"\xff" * 8,
    lambda dice: dice.randrange(1 << 16).to_bytes(4, "little"),
    lambda _dice: (1 << 31).to_bytes(4, "little"),
    lambda _dice: b"\x00\x00\xc0\x7f",
    lambda dice: dice.randbytes(64),
)


@contextlib.contextmanager
def damaged(path: Path, edits: Sequence[tuple[int, bytes]]) -> Iterator[None]:
    """The file with the edits, and whole again afterwards."""
    with path.open("r+b") as file:
        before = []
        for at, patch in edits:
            file.seek(at)
            before.append((at, file.read(len(patch))))
            file.seek(at)
            file.write(patch)
        file.flush()
        try:
            yield
        finally:
            for at, old in reversed(before):
                file.seek(at)
                file.write(old)


def header_of(path: Path) -> tuple[bool, float]:
    """Whether the header is accepted, and the processor time of reading it."""
    began_s = time.thread_time()
    try:
        read_header(path)
    except GgufError:
        return False, time.thread_time() - began_s
    return True, time.thread_time() - began_s


def first_requests(path: Path) -> tuple[str, str]:
    """What becomes of a load, and the last word about it."""
    claim = DeviceClaim("cpu0", "cpu", 0, 2048 * MIB)
    load = Load("r1", "llama", str(path), 256, 2, (claim,), {"threads": "2"}, check_tensors=True)
    environment = {**os.environ, **WORKER_ENVIRONMENT}
    with WorkerProcess(environment=environment, timeout_s=ANSWER_LIMIT_S) as worker:
        try:
            ready = worker.load(load)
        except EOFError:
            return DIED_LOADING, ""
        except TimeoutError:
            worker.process.kill()
            return DIED_LOADING, "no word in time"
        if not isinstance(ready, Ready):
            return REFUSED_LOAD, ready.message
        try:
            ask(worker)
        except EOFError:
            return DIED_READY, f"exit code {worker.process.wait(10)}"
        except TimeoutError:
            worker.process.kill()
            return SILENT, ""
        return READY, ""


def ask(worker: WorkerProcess) -> None:
    """A chat, a completion, a long prompt, and two at once. Raises EOFError."""
    some = Sampling(temperature=0.8, seed=3)
    messages = ({"role": "user", "content": "Name three colours. Ä 漢 🙂 <|im_end|>"},)
    worker.answers(Generate("a", "d", messages=messages, sampling=some, max_tokens=12))
    worker.answers(Generate("b", "d", prompt="The sea " * 60, sampling=some, max_tokens=8))
    worker.answers(
        Generate("c", "d", prompt="One", sampling=some, max_tokens=8, logprobs=3),
        Generate("d", "d", prompt="\x00\x7f two", sampling=some, max_tokens=8),
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000, help="of damaged files")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    found: Counter[str] = Counter()
    worst_s, bad = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for number, original in enumerate((smollm2_path(), gemma_path())):
            copy = Path(folder) / f"{number}.gguf"
            shutil.copy(original, copy)
            os.chmod(copy, 0o600)
            copies.append((copy, header_end(copy)))
        for seed in range(options.first, options.first + options.count):
            path, end = copies[seed % 2]
            edits = damage(random.Random(seed), path, end)
            with damaged(path, edits):
                accepted, took_s = header_of(path)
                worst_s = max(worst_s, took_s)
                what, why = first_requests(path) if accepted else (REFUSED_HEADER, "")
            found[what] += 1
            if what in (DIED_LOADING, DIED_READY, SILENT):
                bad.append((seed, what, why))
                print(f"seed {seed}: {what} {why}", flush=True)
    print(json.dumps({"outcomes": dict(found), "header_cpu_max_s": round(worst_s, 3), "bad": bad}))
    return int(any(what in (DIED_READY, SILENT) for _, what, _ in bad))


if __name__ == "__main__":
    sys.exit(main())
