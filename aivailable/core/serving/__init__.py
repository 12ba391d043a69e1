"""How a request finds its replica, and what people see of the cluster.

* `router`: which replica answers a request, and why no other.
* `admission`: the bounded, fair queue before a replica's slots.
* `view`: replicated state joined with what was heard.
* `histogram`: waits, counted by size.
* `status`: the one document behind CLI, monitor and API.
"""
