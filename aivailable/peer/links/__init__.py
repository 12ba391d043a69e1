"""Links between members: `ports.Links` over one TLS socket per node.

* `mesh`: which connections exist.
* `dialler`: when to dial.
* `listening`: the port.
* `port_choice`: what to say when a port is taken, and which one is free.
* `connection`: frames and their order.
* `streams`: one request, with credit.
* `identity`: this node's key and certificate.
* `trust`: who may speak to us.
* `accepting`: the sockets that listen, out of descriptors too; the API's as well.
* `arrivals`: from an accepted socket to TLS.
* `handshakes`: how many of whom may be under way; pure.
* `sources`: whom a limit per source counts.
"""

from aivailable.peer.links.mesh import ANY_HOST, TlsLinks

__all__ = ["ANY_HOST", "TlsLinks"]
