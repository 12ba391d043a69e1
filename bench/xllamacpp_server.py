"""llama.cpp's own HTTP server out of the package xllamacpp, until the process is told to end.

`python -m bench.xllamacpp_server PATH PORT CONTEXT SLOTS THREADS`. Owns the settings under which
the two sides are compared: the same context for each slot, one unified cache, the same threads.
Everything else (batch sizes, prompt cache, checkpoints) is that server's own default.
"""

from __future__ import annotations

import signal
import sys
import threading

import xllamacpp


def main() -> None:
    path, port, context, slots, threads = sys.argv[1], *map(int, sys.argv[2:6])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = context * slots
    parameters.n_parallel = slots
    parameters.kv_unified = True
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.n_gpu_layers = 0
    server = xllamacpp.Server(parameters)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    print(server.listening_address, flush=True)
    ended.wait()
    del server


if __name__ == "__main__":
    main()
