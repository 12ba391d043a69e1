"""GGUF files: what their header says, and the memory a model will need.

A leaf: imports only aivailable.errors, no numpy, no inference library, so that every peer can
read headers. It must not load weights.

* `opening`: opening a file, and no pipe.
* `reader`: a header's raw structure.
* `header`: what it says of a model.
* `facts`: the same, as data.
* `tensors`: sizes of number formats.
* `memory`: the memory formula.
* `companions`: adapters and projectors.
* `companion_options`: how options name them.
"""

from aivailable.gguf.facts import ModelFacts
from aivailable.gguf.header import Header, read_header
from aivailable.gguf.memory import Need, largest_context, need

__all__ = ["Header", "ModelFacts", "Need", "largest_context", "need", "read_header"]
