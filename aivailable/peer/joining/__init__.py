"""Before a node is a member: finding others on the LAN, asking to come in, being let in.

Not to be confused with `membership`: that is the course of a node's life in clusters. These are
its means.

* `cards`: which network cards are ours to use, and why not the others.
* `discovery`: hears and announces by mDNS.
* `announcement_limits`: what of the LAN's mDNS traffic the library gets to see.
* `sightings`: who is around, by mDNS and by seeds.
* `silent_nodes`: who is announced and does not answer.
* `channel`: the join channel over TLS, both sides.
* `visits`: how many strangers at a time, and how many let in from one place.
* `join_key`: the key's text and its proof.
* `entry`: what an admission is made of.
* `applicant`: what this node says when it asks to come in.
* `window`: how long the join window stays open.
* `refused_joiners`: who asked and was not let in.
* `cluster_file`: what home keeps of the cluster.
"""
