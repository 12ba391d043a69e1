"""The HTTP API of a node: dialects in, `peer.service.Service` behind, nothing decided here.

* `server`: sockets, and what every request passes.
* `door`: connections: who gets one, and for how long without asking anything.
* `auth`: who asks, from where, and what they may do.
* `shares`: how many requests one account may have under way.
* `accounting`: one record for each request.
* `errors`: one shape for what goes wrong.
* `parameters`: a client's JSON, read strictly.
* `bodies`: what a body may cost, and where large ones are parsed.
* `generation`: running a generation for any dialect.
* `sse`: server-sent events.
* `documents`: a JSON document as an answer.
* `health`: liveness, readiness, and the page at `/`.
* `monitoring`: what is counted and told to Prometheus.
* `description`: `/openapi.json`, and the declared fields and routes it is made of.
* `cluster`: `/cluster/v1/*`.
* `openai`: OpenAI's dialect.

More than fifteen files and folders: what every dialect needs is one file each.
"""
