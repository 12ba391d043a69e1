"""What a member does for the cluster: lead, propose, apply, keep in touch, leave.

`core` decides; these files carry it out over Raft and links.

* `controller`: while this node leads, proposes what the planner says.
* `forwarding`: which commands the leader takes from whom.
* `proposals`: commands with an id, a deadline and an outcome.
* `replicated`: the state as Raft drives it here.
* `heartbeat`: once a second: who is there, what runs, what is free.
* `rpc`: small questions between members.
* `cluster_view`: the cluster as the parts of a session read it.
* `member_list`: who else belongs here, when no leader tells.
* `leaving`: out for good: vote first, then membership.
* `draining`: a node for maintenance.
* `pausing`: a node for its owner.
"""
