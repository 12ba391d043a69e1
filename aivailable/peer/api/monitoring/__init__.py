"""What this node counts of itself, and tells Prometheus.

* `metrics`: what this node's API has counted.
* `exposition`: `/metrics`, as Prometheus reads it.
* `stalls`: how long the event loop stood still.
"""
