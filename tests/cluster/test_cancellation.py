"""A client that goes away frees its slot, also through another peer and during prefill."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
from fixtures.peers import Peers

TRIALS = 5
SEED = 20261121


def _script() -> ModuleType:
    """The script beside this test (tests are no package)."""
    path = Path(__file__).with_name("cancellation.py")
    spec = importlib.util.spec_from_file_location("cancellation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_slots_are_free_soon_after_their_client_left(three: Peers) -> None:
    """SEED and TRIALS are fixed here; cancellation.py runs fifty with the strict bound."""
    script = _script()
    rng = random.Random(SEED)
    ingress, host = await script.prepare(three)
    took_s = [await script.trial(three, ingress, host, rng) for _ in range(TRIALS)]
    print(f"seed {SEED}: " + ", ".join(f"{one * 1000:.0f} ms" for one in took_s))
    assert max(took_s) < script.SEEN_LIMIT_S, (SEED, took_s)
