"""Interpreters with llama-cpp-python built for one backend each, under home beside our own.

Public: `Interpreters` (which one serves a backend) and `Starter` (how a child is started for the
devices that it may see). Making and removing runtimes is `peer.runtimes.making`'s.
"""

from aivailable.peer.runtimes.interpreters import Interpreters, Runtime
from aivailable.peer.runtimes.starting import Start, Starter

__all__ = ["Interpreters", "Runtime", "Start", "Starter"]
