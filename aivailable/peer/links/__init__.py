"""Links between members: ports.Links over one TLS socket per node (NETWORK.md, DESIGN §5).

mesh: which connections exist · dialler: when to dial · listening: the port · connection: frames
and their order · streams: credit.
"""

from aivailable.peer.links.mesh import ANY_HOST, TlsLinks

__all__ = ["ANY_HOST", "TlsLinks"]
