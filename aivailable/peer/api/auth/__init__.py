"""Who asks, and may they: keys, where a request comes from, web pages, and keys that end.

* `asking`: the decision for one request, put together.
* `rules`: what the operator has set, and the table that decides.
* `source`: whose address a request comes from, and whether it is this machine.
* `web_pages`: what Host and Origin say of the page behind a request.
* `live_requests`: requests under way by their key, ended when it is revoked.
"""

from aivailable.peer.api.auth.asking import authenticate, require_admin
from aivailable.peer.api.auth.rules import AuthRules

__all__ = ["AuthRules", "authenticate", "require_admin"]
