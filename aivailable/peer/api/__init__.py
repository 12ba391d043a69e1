"""The HTTP API of a node: dialects in, `peer.service.Service` behind, nothing decided here."""
