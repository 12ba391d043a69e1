"""Requests and the replicas that answer them: where they run, and how they are reached.

* `router`: a request's way: choose, run, try again, continue.
* `demand`: what was asked for and has no replica.
* `agent`: matches workers to placements.
* `replicas`: one replica here: its worker and its requests.
* `runs`: one request in a replica: its events on their way.
* `worker_process`: starts workers, talks over a socket pair.
* `transfers`: model files between members.
"""
