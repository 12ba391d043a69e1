"""Sends requests that cost more than they weigh, over several connections, until it is ended.

A process of its own, so that the test that runs it sees the peers' time and not this one's. Prints
a line when it begins, and at its end how many answers of each status there were.
"""

from __future__ import annotations

import collections
import http.client
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping

SIZE_BYTES = 3_800_000
TIMEOUT_S = 30.0


def bombs() -> Mapping[str, bytes]:
    """By name. Each is below the limit of bytes."""

    def prompt(item: str) -> bytes:
        items = ",".join([item] * (SIZE_BYTES // (len(item) + 1)))
        return f'{{"model":"fake","prompt":[{items}]}}'.encode()

    messages = {"model": "fake", "messages": [{"role": "user", "content": "x"}] * 80_000}
    parts = [{"type": "text", "text": "x"}] * 100_000
    schema = {"model": "fake", "prompt": "x", "json_schema": {"enum": [[1]] * 700_000}}
    embedded = {"model": "fake", "input": [[1]] * 900_000}
    return {
        "lists": prompt("[1]"),
        "objects": prompt("{}"),
        "numbers": prompt("1"),
        "fractions": prompt("1e300"),
        "strings": prompt('""'),
        "digits": prompt("1" * 4000),
        "messages": json.dumps(messages).encode(),
        "parts": json.dumps(
            {"model": "fake", "messages": [{"role": "user", "content": parts}]}
        ).encode(),
        "schema": json.dumps(schema, separators=(",", ":")).encode(),
        "embedded": json.dumps(embedded, separators=(",", ":")).encode(),
        "copies": json.dumps({"model": "fake", "prompt": "x" * 3_000_000, "n": 16}).encode(),
    }


PATHS = {
    "messages": "/v1/chat/completions",
    "parts": "/v1/chat/completions",
    "embedded": "/v1/embeddings",
}


def attack(
    port: int,
    key: str,
    names: list[str],
    sent: Mapping[str, bytes],
    statuses: collections.Counter[int],
) -> None:
    """One connection, for ever. What is not answered counts as 0."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    while True:
        for name in names:
            try:
                path = PATHS.get(name, "/v1/completions")
                connection.request("POST", path, sent[name], headers)
                response = connection.getresponse()
                response.read()
                statuses[response.status] += 1
            except (OSError, http.client.HTTPException):
                statuses[0] += 1
                connection.close()


def main() -> None:
    """`KEY CONNECTIONS ONLY PORT…`; ONLY is a bomb's name, or "all"."""
    key, count, only, *ports = sys.argv[1:]
    statuses: collections.Counter[int] = collections.Counter()
    sent = bombs()
    names = list(sent) if only == "all" else [only]

    def end(*_: object) -> None:
        sys.stdout.write(json.dumps(statuses) + "\n")
        sys.stdout.flush()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    for number in range(int(count)):
        turned = names[number % len(names) :] + names[: number % len(names)]
        port = int(ports[number % len(ports)])
        given = (port, key, turned, sent, statuses)
        threading.Thread(target=attack, args=given, daemon=True).start()
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
