"""`/cluster/v1/*`: the cluster as it is, and the ways to change it over HTTP.

* `endpoints`: state, events, members, keys and the routes of the rest.
* `deployments`: what shall run, and what would come of it.
* `nodes`: drain, undrain, pause.
* `proof`: that this node is one of the cluster of a key.
* `removal`: a member out for good, recovery, and the keys that end.
* `settings`: what holds for the whole cluster.
"""
