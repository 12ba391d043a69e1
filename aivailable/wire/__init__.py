"""Leaf: frames, their limits, and every message between peers and between peer and worker."""
