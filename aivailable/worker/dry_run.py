"""Exact memory without loading: llama.cpp's dry run, in a throw-away process.

`python -m aivailable.worker.dry_run --path FILE --context N --slots N [--backend cuda]
[--device INDEX …] [--option kv_type=q8_0 …]` prints one line of JSON: {"weights_bytes", "kv_bytes",
"compute_bytes"}, or {"error": {"code", "message"}} and exit status 1.

Owns: the dry run (no_alloc) and nothing else; the caller falls back to gguf.memory. It takes
0.1–2 s and under 100 MiB. For a GPU backend the devices must be there; what lies in main memory
by design is not counted, and sums are over all devices.

Not to be confused with `worker.llama.dry_run`, the calculation that this process makes once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

from aivailable.errors import GgufError
from aivailable.gguf.header import read_header
from aivailable.gguf.memory import Need
from aivailable.wire.worker import DeviceClaim
from aivailable.worker.engine import LoadRefused, OptionRefused
from aivailable.worker.llama.adapters import adapters_of
from aivailable.worker.llama.claims import claim_devices
from aivailable.worker.llama.dry_run import dry_run
from aivailable.worker.llama.library import Log, import_library
from aivailable.worker.llama.parameters import CPU_BACKENDS, parameters
from aivailable.worker.llama.projector import projector_of, with_projector, with_room
from aivailable.worker.loading import check_sizes

UNLIMITED_BYTES = 1 << 50


def measure(
    path: str,
    context: int,
    slots: int,
    options: Mapping[str, str],
    backend: str,
    indices: tuple[int, ...],
) -> Need:
    """The dry run. Raises GgufError or LoadRefused."""
    check_sizes(context, slots)
    header = read_header(path)
    on_gpu = backend not in CPU_BACKENDS
    chosen = parameters(header.facts, context, slots, options, on_gpu=on_gpu)
    adapters = adapters_of(path, header.facts, options)
    projector = projector_of(path, options)
    chosen = with_room(chosen, projector)
    library, _ = import_library()
    log = Log(library)
    library.llama_backend_init()
    claims = [DeviceClaim(str(index), backend, index, UNLIMITED_BYTES) for index in indices]
    needed = dry_run(library, log, header, chosen, claim_devices(library, claims), adapters)
    return with_projector(needed, projector)


def main(arguments: list[str]) -> int:
    """Print one line of JSON; 0 when it holds sizes."""
    parser = argparse.ArgumentParser(prog="aivailable.worker.dry_run")
    parser.add_argument("--path", required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--device", type=int, action="append", default=[], help="backend's index")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE")
    given = parser.parse_args(arguments)
    options = dict(item.partition("=")[::2] for item in given.option)
    indices = tuple(given.device) or (0,)
    try:
        needed = measure(given.path, given.context, given.slots, options, given.backend, indices)
        answer: dict[str, Any] = dataclasses.asdict(needed)
    except GgufError as error:
        answer = {"error": {"code": "bad_file", "message": str(error)}}
    except OptionRefused as error:
        answer = {"error": {"code": "invalid_options", "message": str(error)}}
    except LoadRefused as error:
        answer = {"error": {"code": error.code, "message": str(error)}}
    sys.stdout.write(json.dumps(answer, sort_keys=True) + "\n")
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
