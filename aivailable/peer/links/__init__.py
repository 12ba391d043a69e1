"""Links between members: ports.Links over one TLS socket per node.

One persistent, multiplexed connection with MessagePack frames: a token costs 3 µs of CPU there,
over a pooled HTTP client 6 µs and more (measured on loopback, both with mutual TLS).

mesh: which connections exist · dialler: when to dial · listening: the port · connection: frames
and their order · streams: credit.
"""

from aivailable.peer.links.mesh import ANY_HOST, TlsLinks

__all__ = ["ANY_HOST", "TlsLinks"]
