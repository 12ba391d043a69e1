"""GGUF files: what their header says, and the memory a model will need.

A leaf: imports only aivailable.errors, no numpy, no inference library, so that every peer can
read headers. It must not load weights.
"""

from aivailable.gguf.header import Facts, Header, read_header
from aivailable.gguf.memory import Need, largest_context, need

__all__ = ["Facts", "Header", "Need", "largest_context", "need", "read_header"]
