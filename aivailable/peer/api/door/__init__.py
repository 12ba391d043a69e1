"""Who may hold a connection to the API's port, and for how long without asking anything.

* `places`: which connection gets in, and which gives way; pure.
* `connection`: the deadlines of one connection: its first byte, header, body, and silence.
* `unread`: answers that their account does not read.
* `accepting`: a place or an answer for each connection that comes.
* `descriptors`: how many the process may open, and how many of them are for connections.
"""
