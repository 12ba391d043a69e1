"""Before a key is sent: is the node at an address one of the key's cluster?

Owns the challenge, the judgement of its answer, and the rule that a request with a key takes no
connection on which nothing was proved. Any other program, of another user of this machine, say, may
listen where our node was a moment ago, or should have been.
"""

from __future__ import annotations

import hmac
import json
import secrets
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from weakref import WeakSet

import aiohttp

from aivailable.client.answers import ClientError, named
from aivailable.core.ids import PROOF_NONCE_CHARS, key_hash, key_id, key_proof
from aivailable.errors import AivailableError

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

PROOF_TIMEOUT_S = 5.0
ANSWER_MAX_BYTES = 4096
_PORTS = {"http": 80, "https": 443}


class NotProved(AivailableError):
    """A request with a key was given a connection on which nothing is proved yet."""


class ProvingConnector(aiohttp.TCPConnector):
    """Lets a request with a key take only a connection whose other end has shown that it knows the
    key. Such a connection stays what it is; another to the same address may lead elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: dict[str, ResponseHandler | None] = {}
        self._proved: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Raises NotProved for a request with a key; the connection is kept, to be proved."""
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        if "Authorization" in req.headers and (protocol is None or protocol not in self._proved):
            connection.release()
            raise NotProved("a connection must be proved before a key is sent")
        nonce = req.url.query.get("nonce", "")
        if nonce in self._asked:
            self._asked[nonce] = protocol
        return connection

    def ask(self, nonce: str) -> None:
        """Notes the connection that will carry this challenge, until `judge`."""
        self._asked[nonce] = None

    def judge(self, nonce: str, *, proved: bool) -> None:
        protocol = self._asked.pop(nonce)
        if proved and protocol is not None:
            self._proved.add(protocol)


async def prove(
    session: aiohttp.ClientSession, url: str, api_key: str, *, mapped: bool, connect_s: float
) -> None:
    """Proves one connection to `url`, and leaves it to the session, which has a ProvingConnector.

    Raises ClientError: `unreachable`, or `not_ours` when the node at `url` does not show that it
    knows the key. `mapped`: a port map or a proxy may stand before it."""
    connector = session.connector
    if not isinstance(connector, ProvingConnector):
        raise TypeError("keys are sent through a ProvingConnector only")
    hashed, nonce = key_hash(api_key), secrets.token_hex(PROOF_NONCE_CHARS // 2)
    proved = False
    connector.ask(nonce)
    try:
        async with session.get(
            f"{url}/cluster/v1/proof",
            params={"key": key_id(hashed), "nonce": nonce},
            timeout=aiohttp.ClientTimeout(total=PROOF_TIMEOUT_S, sock_connect=connect_s),
            allow_redirects=False,
        ) as response:
            answer = b""
            # To its end: only then is the connection kept.
            while len(answer) < ANSWER_MAX_BYTES and not response.content.at_eof():
                answer += await response.content.read(ANSWER_MAX_BYTES)
        proved = _shows(answer, hashed, nonce, None if mapped else _port_of(url))
    except aiohttp.ClientResponseError as error:
        raise _not_ours(url) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ClientError(f"{url}: {named(error)}") from error
    finally:
        connector.judge(nonce, proved=proved)
    if not proved:
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
