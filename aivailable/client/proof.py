"""Before a key is sent: is the node at an address one of the key's cluster?

Owns the challenge and the judgement of its answer. Any other program, of another user of this
machine, say, may listen where our node was, or should have been.
"""

from __future__ import annotations

import hmac
import json
import secrets
from urllib.parse import urlsplit

import aiohttp

from aivailable.client.answers import ClientError, named
from aivailable.core.ids import PROOF_NONCE_CHARS, key_hash, key_id, key_proof

PROOF_TIMEOUT_S = 5.0
ANSWER_MAX_BYTES = 4096
_PORTS = {"http": 80, "https": 443}


async def prove(
    session: aiohttp.ClientSession, url: str, api_key: str, *, mapped: bool, connect_s: float
) -> None:
    """Raises ClientError: `unreachable`, or `not_ours` when the node at `url` does not show that it
    knows the key. `mapped`: a port map or a proxy may stand before it."""
    hashed, nonce = key_hash(api_key), secrets.token_hex(PROOF_NONCE_CHARS // 2)
    try:
        async with session.get(
            f"{url}/cluster/v1/proof",
            params={"key": key_id(hashed), "nonce": nonce},
            timeout=aiohttp.ClientTimeout(total=PROOF_TIMEOUT_S, sock_connect=connect_s),
            allow_redirects=False,
        ) as response:
            answer = await response.content.read(ANSWER_MAX_BYTES)
    except aiohttp.ClientResponseError as error:
        raise _not_ours(url) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ClientError(f"{url}: {named(error)}") from error
    if not _shows(answer, hashed, nonce, None if mapped else _port_of(url)):
        raise _not_ours(url)


def _shows(answer: bytes, hashed: str, nonce: str, port: int | None) -> bool:
    try:
        document = json.loads(answer)
        told_port, proof = int(document["port"]), str(document["proof"])
    except (ValueError, KeyError, TypeError):
        return False
    if port is not None and told_port != port:
        return False
    return hmac.compare_digest(proof.encode(), key_proof(hashed, nonce, told_port).encode())


def _port_of(url: str) -> int | None:
    parts = urlsplit(url)
    return parts.port or _PORTS.get(parts.scheme)


def _not_ours(url: str) -> ClientError:
    return ClientError(
        f"{url} does not show that it knows the API key, so the key was not sent to it",
        code="not_ours",
    )
