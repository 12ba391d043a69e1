"""`/cluster/v1/proof`: this node shows that it is one of a key's cluster, before it gets the key.

Owns the answer to a challenge. Whoever holds a key asks with its id and a fresh nonce; only members
know the key's hash, and `core.ids.key_proof` tells nothing of it. Open to everyone: who asks has
not sent a key yet.
"""

from __future__ import annotations

from aiohttp import web

from aivailable.core.ids import PROOF_NONCE_CHARS, key_proof
from aivailable.errors import RequestError
from aivailable.peer.api.description.answer_types import KeyProof
from aivailable.peer.api.description.fields import Fields, String
from aivailable.peer.api.description.routes import Access, Answer, Route
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.parameters import RequestParameters
from aivailable.peer.service import ApiKeys

KEY_ID_CHARS = 8
QUERY: Fields = {
    "key": String(KEY_ID_CHARS, required=True, text="id of a key"),
    "nonce": String(PROOF_NONCE_CHARS, required=True, text="fresh random hex digits"),
}


class ProofApi:
    """The handler."""

    def __init__(self, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/cluster/v1/proof",
                self.prove,
                "Prove that this node knows a key, without being told it",
                (Answer(KeyProof, "an HMAC by the hash of the key"),),
                access=Access.OPEN,
                query=QUERY,
                errors=(400, 404),
            )
        ]

    async def prove(self, request: web.Request) -> web.Response:
        query = RequestParameters(dict(request.query), fields=QUERY)
        name, nonce = query.required_text("key"), query.required_text("nonce")
        if len(nonce) != PROOF_NONCE_CHARS:
            raise ParameterError("nonce", f"'nonce' must have {PROOF_NONCE_CHARS} characters")
        key = self._api_keys.with_id(name)
        if key is None:
            raise RequestError(
                404, "unknown_key", "no valid key of this cluster has this id; it may be revoked"
            )
        # Which port was asked is part of it: another program cannot pass the challenge on to us.
        port = _own_port(request)
        proof: KeyProof = {"proof": key_proof(key.hashed, nonce, port), "port": port}
        return json_answer(proof, headers={"Cache-Control": "no-store"})


def _own_port(request: web.Request) -> int:
    own = None if request.transport is None else request.transport.get_extra_info("sockname")
    return int(own[1]) if isinstance(own, tuple) else 0
