"""Every limit on what crosses a socket, by name and unit. Full means refuse, not grow."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

PROTO_MIN: Final = 1
PROTO_MAX: Final = 1

FRAME_PAYLOAD_MAX_BYTES: Final = 16 * KIB
"""One link frame: a longer message is cut into fragments that interleave with other classes."""
MESSAGE_MAX_BYTES: Final = 4 * MIB
"""One reassembled message of the request class."""
CONTROL_MESSAGE_MAX_BYTES: Final = 3 * MIB
"""One reassembled control message: the largest snapshot (2 MiB) and its envelope."""
CONTROL_QUEUE_MAX_BYTES: Final = 8 * MIB
"""Control bytes that wait for one link; beyond it the link is dropped as stuck."""
STREAM_CREDIT_BYTES: Final = 256 * KIB
"""What a stream may have under way before its reader grants more."""
STREAMS_PER_LINK_MAX: Final = 1024
JOIN_FRAME_MAX_BYTES: Final = 4 * KIB
"""Join channel: what an unauthenticated stranger may make us buffer in one frame."""
JOIN_CONNECTIONS_MAX: Final = 64
"""Of all sources; peer.joining.visits says how many of one."""
JOIN_DEADLINE_S: Final = 10.0
JOIN_FIRST_WORD_S: Final = 3.0
"""Until the server's offer at the one end, the joiner's request at the other."""
HANDSHAKE_DEADLINE_S: Final = 5.0
LINK_PING_S: Final = 0.5
LINK_DEAD_S: Final = 2.0
"""A link that carried nothing for this long is cut."""

DEMANDS_MAX: Final = 64
"""Deployments in one heartbeat that requests wait for."""

COMMAND_MAX_BYTES: Final = 32 * KIB
STATE_MAX_BYTES: Final = 2 * MIB
HTTP_BODY_MAX_BYTES: Final = 4 * MIB - 64 * KIB
"""A client's request body: it must fit one link message with its envelope."""
WORKER_FRAME_MAX_BYTES: Final = 8 * MIB
IMAGES_MAX: Final = 16
"""Of one request."""
IMAGE_MAX_BYTES: Final = 3 * MIB - 64 * KIB
"""One image's file; as base64 it still fits HTTP_BODY_MAX_BYTES."""
IMAGE_MAX_PIXELS: Final = 1 << 24
"""One image: 16.8 million, 48 MiB when it is decoded."""
STOP_STRINGS_MAX: Final = 16
STOP_STRING_MAX_CHARS: Final = 256
WEIGHTS_CHUNK_BYTES: Final = 1 * MIB
"""One piece of a model file on its own connection."""
