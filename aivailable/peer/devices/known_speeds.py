"""How fast a card is that exists only by name: `sim` devices, from the makers' figures.

Owns a table of memory bandwidth and 4-bit throughput, and the rule that makes tokens/s of the
generated model of them. A real card is measured instead. Pure.

Sources: the makers' data sheets (GB/s, and TFLOP/s in half precision or, where a card is slow in
it, four times single precision by dp4a).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aivailable.peer.devices.trial_cache import Speed

_MODEL_GB: Final = 0.152
"""worker.llama.generated_model.BENCHMARK, read once for each token of a decode."""
_MODEL_TFLOP: Final = 0.00054
"""Two operations for each of its weights, for each token of a prompt."""
_BANDWIDTH_SHARE: Final = 0.6
_COMPUTE_SHARE: Final = 0.25
"""What llama.cpp reaches of the figures on a data sheet, roughly and for every card alike."""
_STEP_S: Final = 0.0008
"""Launching the kernels of six layers, whatever the card."""
CHUNK_TOKENS: Final = 480

_CARDS: Final[Mapping[str, tuple[float, float]]] = {
    "k80": (240, 4.1),
    "gtx970": (224, 3.9),
    "gtx980ti": (336, 6.1),
    "gtx1060": (192, 17.5),
    "gtx1070": (256, 26),
    "gtx1080": (320, 35),
    "gtx1080ti": (484, 45),
    "p40": (347, 47),
    "p100": (732, 21),
    "v100": (900, 112),
    "t4": (320, 65),
    "rtx2060": (336, 52),
    "rtx2080ti": (616, 108),
    "rtx3060": (360, 51),
    "rtx3090": (936, 142),
    "rtx4090": (1008, 330),
    "a100": (1555, 312),
    "h100": (3350, 990),
    "h200": (4800, 990),
    "rx470": (211, 4.9),
    "rx480": (256, 5.8),
    "rx570": (224, 5.1),
    "rx580": (256, 6.2),
    "vega56": (410, 21),
    "vega64": (484, 25),
    "mi25": (484, 25),
    "mi50": (1024, 26),
    "radeonvii": (1024, 27),
    "rx6800": (512, 32),
    "rx6900": (512, 46),
    "rx7900": (960, 123),
    "a770": (560, 138),
}
"""Card → (GB/s, TFLOP/s)."""


def known_speed(name: str) -> Speed | None:
    """For the card with the longest name that `name` contains; None for one nobody knows."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    found = max((card for card in _CARDS if card in plain), key=len, default="")
    if not found:
        return None
    gigabytes_s, teraflops = _CARDS[found]
    decode_s = _STEP_S + _MODEL_GB / (gigabytes_s * _BANDWIDTH_SHARE)
    chunk_s = _STEP_S + CHUNK_TOKENS * _MODEL_TFLOP / (teraflops * _COMPUTE_SHARE)
    return Speed(round(1 / decode_s, 1), round(CHUNK_TOKENS / chunk_s, 1))
