"""Digests of how a request begins, without a tokenizer: what routing knows of warm prompts.

Owns: the chain of digests. Pure, the same on every node. The worker tells which digests are warm
(Step.prefixes), the heartbeat carries them, and the router prefers a replica that has computed the
beginning of a request already.

Each digest covers everything before it: tools, template arguments and the messages so far, or the
blocks so far of a plain prompt. So two requests share as many first digests as they share first
messages, and a digest that is found warm means all that it covers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from aivailable.wire.generation import Generate

PREFIX_DIGESTS_MAX: Final = 64
"""Of one request, and of one replica in a heartbeat."""
BLOCK_CHARS: Final = 256
"""Characters of a plain prompt for one digest; a last, shorter block has none."""
BLOCK_IDS: Final = 64
DIGEST_MASK: Final = (1 << 63) - 1


def digests(request: Generate) -> tuple[int, ...]:
    """63-bit numbers, the shortest beginning first, at most PREFIX_DIGESTS_MAX."""
    chain = hashlib.blake2b(digest_size=8)
    found: list[int] = []
    for piece in _pieces(request):
        chain.update(len(piece).to_bytes(8, "big"))
        chain.update(piece)
        found.append(int.from_bytes(chain.copy().digest(), "big") & DIGEST_MASK)
        if len(found) == PREFIX_DIGESTS_MAX:
            break
    return tuple(found)


def shared(wanted: Iterable[int], warm: Iterable[int]) -> int:
    """How many first digests of a request are warm."""
    have = frozenset(warm)
    count = 0
    for digest in wanted:
        if digest not in have:
            break
        count += 1
    return count


def _pieces(request: Generate) -> Iterator[bytes]:
    if request.messages is not None:
        # What comes before the first message in every template stands with it.
        before = _canonical([request.tools, request.template_arguments])
        for message in request.messages:
            yield before + _canonical(message)
            before = b""
    elif request.prompt is not None:
        text = request.prompt
        for end in range(BLOCK_CHARS, len(text) + 1, BLOCK_CHARS):
            yield text[end - BLOCK_CHARS : end].encode("utf-8", "replace")
    elif request.prompt_ids is not None:
        ids = request.prompt_ids
        for end in range(BLOCK_IDS, len(ids) + 1, BLOCK_IDS):
            yield _canonical(ids[end - BLOCK_IDS : end])


def _canonical(value: Any) -> bytes:
    """JSON with sorted keys; images by digest, what else it cannot say as Python says it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_written).encode()


def _written(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    return repr(value)
