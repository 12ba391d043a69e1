"""Verified model files of this node: ports.ModelStore.

* `store`: which files are held, by digest.
* `transfer`: files to and from peers.
"""

from aivailable.peer.model_store.store import FileModelStore

__all__ = ["FileModelStore"]
