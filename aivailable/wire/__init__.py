"""Leaf: frames, their limits, and every message between peers and between peer and worker.

* `frames`: messages on one connection.
* `envelope`: `[kind, map]`, from a closed registry.
* `schema`: typed values to bytes and back.
* `limits`: every limit on what crosses a socket.
* `prefixes`: digests of how a request begins.
* `generation`: a request and its answer.
* `peer`: between two linked peers.
* `join`: between a stranger and a member.
* `worker`: between a peer and its worker.
"""
