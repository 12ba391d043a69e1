"""Start of a worker process: `python -m aivailable.worker --fd N`.

Owns: the process's ties to its peer (parent-death signal, socket) and the choice of the engine.
Started by peer/serving/worker_process.py with one end of a socket pair inherited as descriptor N.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import os
import resource
import signal
import socket
import sys
from typing import Final

from aivailable.wire.worker import Load
from aivailable.worker.embedding.step_loop import Embedder, EmbeddingStepLoop
from aivailable.worker.engine import Engine, LoadRefused, ReportProgress
from aivailable.worker.engine_fake import FakeEngine
from aivailable.worker.generating.step_loop import StepLoop
from aivailable.worker.llama.library import NO_ENGINE
from aivailable.worker.loading import announce_and_load
from aivailable.worker.protocol import Channel

PR_SET_PDEATHSIG: Final = 1
"""linux/prctl.h"""
EXIT_LOAD_FAILED: Final = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent's thread that started it ends."""
    if not sys.platform.startswith("linux"):
        return  # Elsewhere the end of the socket has to do.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() == 1:
        # The parent died before the call; from a subreaper the closed socket tells the same.
        os._exit(EXIT_LOAD_FAILED)


def end_process(why: str) -> None:
    """Called in a thread of the channel's. Ends at once, whatever the main thread computes: the
    weights are the kernel's to free, and nothing here is worth saving."""
    sys.stderr.write(f"worker ends: {why}\n")
    sys.stderr.flush()
    os._exit(0)


def installed_engine() -> tuple[str, str]:
    """Name and version of the inference library of this interpreter; ("", "") without one."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "", ""
    return "llama", importlib.metadata.version("llama-cpp-python")


def make_engine(load: Load, progress: ReportProgress) -> Engine | Embedder:
    """Load with the engine that was asked for. Raises LoadRefused."""
    if load.engine == "fake":
        return FakeEngine(load, progress)
    if load.engine != "llama":
        raise LoadRefused("unsupported", f"there is no engine {load.engine!r}; llama, fake are")
    try:
        from aivailable.worker.llama.embedding import load_llama
    except ModuleNotFoundError as error:
        raise LoadRefused("unsupported", f"{NO_ENGINE} ({error})") from error
    return load_llama(load, progress)


def main(arguments: list[str]) -> int:
    """Serve on the descriptor of `--fd` until it ends."""
    parser = argparse.ArgumentParser(prog="aivailable.worker")
    parser.add_argument("--fd", type=int, required=True, help="socket to the peer")
    descriptor: int = parser.parse_args(arguments).fd
    die_with_parent()
    # A core dump would be as large as the model, and hold the prompts.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # A keyboard's interrupt goes to the whole process group; only the peer ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor), on_end=end_process)
    channel.start()
    engine = announce_and_load(channel, *installed_engine(), make_engine)
    if engine is None:
        channel.flush()
        return EXIT_LOAD_FAILED
    if isinstance(engine, Embedder):
        EmbeddingStepLoop(engine, channel).run()
    else:
        StepLoop(engine, channel).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
