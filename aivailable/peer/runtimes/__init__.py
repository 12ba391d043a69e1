"""Interpreters with llama-cpp-python built for one backend each, under home beside our own.

Public: `Interpreters` (which one serves a backend) and `Starter` (how a child is started for the
devices that it may see). Making and removing runtimes is `peer.runtimes.builder`'s.

* `interpreters`: which interpreter serves a backend.
* `starting`: how a child is started, and what it sees.
* `adding`: `runtime add` as a whole.
* `recipes`: how to build for a backend, and what is missing.
* `builder`: builds a runtime, step by step.
* `children`: a build's child processes.
* `tools`: what this machine has to build with.
"""

from aivailable.peer.runtimes.interpreters import Interpreters, Runtime
from aivailable.peer.runtimes.starting import Start, Starter

__all__ = ["Interpreters", "Runtime", "Start", "Starter"]
