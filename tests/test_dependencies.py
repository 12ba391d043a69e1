"""What the code imports is declared, and what is declared can be installed reproducibly."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OWN = frozenset({"aivailable", "aivailable_tui"})
EXTRAS = ("engine",)
"""Beside the base; `amdsmi` is loaded by its name where the system has it."""
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def declared() -> dict[str, Requirement]:
    told = project()
    lines = list(told["dependencies"])
    for extra in EXTRAS:
        lines += told["optional-dependencies"][extra]
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_every_library_that_is_imported_is_declared() -> None:
    names = {
        name
        for folder in ("aivailable", "tui")
        for path in (ROOT / folder).rglob("*.py")
        for name in imported(path.read_text())
    }
    owners = packages_distributions()
    wanted = declared()
    for name in sorted(names - OWN - sys.stdlib_module_names):
        distributions = {canonicalize_name(one) for one in owners.get(name, ())}
        assert distributions & wanted.keys(), f"{name} is imported and not declared"


def test_the_reproducible_install_has_what_is_declared() -> None:
    text = (ROOT / "deploy" / "requirements.txt").read_text()
    pinned = {canonicalize_name(name): version for name, version in PINNED.findall(text)}
    for one in map(Requirement, project()["dependencies"]):
        version = pinned.get(canonicalize_name(one.name))
        assert version is not None, f"{one.name} is missing: make the file anew"
        assert one.specifier.contains(version), f"{one} but {version}: make the file anew"
    for entry in re.split(r"\n(?=\S)", text):
        if PINNED.match(entry):
            assert "--hash=sha256:" in entry, entry.splitlines()[0]


@pytest.mark.parametrize("name", ["jinja2", "cryptography", "zeroconf"])
def test_lower_bounds_leave_out_what_has_known_faults(name: str) -> None:
    """Jinja2's sandbox before 3.1.6 (CVE-2025-27516), the OpenSSL in cryptography's wheels before
    44.0.1 (CVE-2024-12797), zeroconf's cache without a limit."""
    faulty = {"jinja2": "3.1.5", "cryptography": "44.0.0", "zeroconf": "0.139.0"}
    assert not declared()[canonicalize_name(name)].specifier.contains(faulty[name])
