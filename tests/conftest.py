"""Puts tests/ on the path, so that every layer can import `fixtures.*`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# Nodes that tests start would measure their devices as soon as they are idle.
os.environ.setdefault("AIVAILABLE_BENCHMARK", "0")
