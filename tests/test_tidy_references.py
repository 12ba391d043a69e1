"""Every cite leads somewhere: files, headings, sections, defect numbers, modules, and no callers.

Each rule is also shown a text that breaks it, and texts that pass.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from fixtures import tidy_references as rules
from fixtures.tidy_references import House, Prose, prose

ROOT = Path(__file__).resolve().parent.parent
Rule = Callable[[House, Prose], list[str]]

READ = (".py", ".md", ".txt", ".toml", ".service", ".c")
LEFT_OUT = (
    *("tests/fixtures/tidy_references.py", "tests/test_tidy_references.py"),
    "tests/fixtures/tidy_circles.py",
)
"""They say what a wrong cite looks like."""
RULES: tuple[Rule, ...] = (
    rules.lost_files,
    rules.lost_sections,
    rules.lost_headings,
    rules.lost_defects,
    rules.lost_modules,
    rules.callers_named,
)


def listed() -> list[str]:
    """What the repository has or is about to have, by path from the root."""
    told = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = told.stdout.split("\n") if not told.returncode else walked()
    return sorted(path for path in found if (ROOT / path).is_file())


def walked() -> list[str]:
    """For a copy without git."""
    folders = ("aivailable", "tui", "tests", "bench", "deploy")
    found = [*ROOT.glob("*"), *(one for name in folders for one in (ROOT / name).rglob("*"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def house_of(files: tuple[str, ...], texts: dict[str, str]) -> House:
    return House(files, {path: text for path, text in texts.items() if path.endswith(".md")})


@lru_cache(maxsize=1)
def ours() -> tuple[House, tuple[Prose, ...]]:
    """This repository, and all that is said in it."""
    files = tuple(listed())
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in files if _is_read(path)}
    said = (piece for path, text in texts.items() for piece in prose(path, text))
    return house_of(files, texts), tuple(said)


def _is_read(path: str) -> bool:
    return path.endswith(READ) and path not in LEFT_OUT


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_cite_leads_somewhere(rule: Rule) -> None:
    house, pieces = ours()
    assert [fault for piece in pieces for fault in rule(house, piece)] == []


HERE = {
    "README.md": "# Pack\n",
    "aivailable/DESIGN.md": "# Map\n\n## Versions in\none cluster\n",
    "aivailable/raft/DESIGN.md": "| | defect |\n| --- | --- |\n| D1 | a |\n| D5–D7, D9 | b |\n",
    "aivailable/raft/guards.py": "",
    "aivailable/core/planning/planner.py": "",
    "aivailable/core/planning/__init__.py": "",
}
BROKEN = [
    (rules.lost_files, '"""See core/planer.py."""'),
    (rules.lost_files, '"""See RAFT.md."""'),
    (rules.lost_files, "x = 1  # as in `raft/{guards,gates}.py`"),
    (rules.lost_files, "def f():\n    '''In worker/DESIGN.md.'''"),
    (rules.lost_sections, '"""The rules of DESIGN §5."""'),
    (rules.lost_sections, '"""Measured (ENGINE.md)."""'),
    (rules.lost_sections, "x = 1  # ENGINE notes say why"),
    (rules.lost_sections, '"""House rules of STYLE, over all."""'),
    (rules.lost_headings, '"""See aivailable/DESIGN.md, "Versions of one cluster"."""'),
    (rules.lost_headings, '"""The table "What works" of aivailable/DESIGN.md."""'),
    (rules.lost_defects, '"""Closed (D2)."""'),
    (rules.lost_defects, "x = 1  # D5–D8"),
    (rules.lost_modules, '"""Decided in core.planer."""'),
    (rules.lost_modules, '"""Decided in `raft.guard.keep`."""'),
    (rules.callers_named, '"""One formula. Called by the agent."""'),
    (rules.callers_named, '"""Pure; used by job."""'),
    (rules.callers_named, '"""One formula.\n\nUsed by\njob.\n"""'),
]
SOUND = [
    (
        rules.lost_files,
        '"""See core/planning/planner.py, and aivailable/core/planning/planner.py."""',
    ),
    (rules.lost_files, '"""See raft/DESIGN.md and `DESIGN.md`."""'),
    (rules.lost_files, '"""https://example.org/docs/gguf.md says so."""'),
    (rules.lost_files, 'x = "no/such.py"'),
    (rules.lost_sections, '"""A name (RFC 1035 §4.1), a vote (Ongaro, dissertation §4.1)."""'),
    (rules.lost_sections, "STYLE = 1\nprint(STYLE)"),
    (rules.lost_headings, '"""See aivailable/DESIGN.md, "Versions in one\ncluster"."""'),
    (rules.lost_headings, '"""As "Versions in one cluster" of DESIGN.md says."""'),
    (rules.lost_defects, '"""Closed: D1, D5–D7 and D9."""'),
    (
        rules.lost_modules,
        '"""In core.planning, by `core.planning.planner.plan`."""',
    ),
    (rules.lost_modules, '"""`self.core`, os.path and e.g. this."""'),
    (rules.callers_named, '"""One formula.\n\nIt is asked by whoever waits.\n"""'),
    (rules.callers_named, "def f():\n    '''Called by the library.'''"),
]


@pytest.mark.parametrize(("rule", "source"), BROKEN)
def test_each_rule_can_fail(rule: Rule, source: str) -> None:
    house = house_of(tuple(HERE), HERE)
    assert [fault for piece in prose("aivailable/x.py", source) for fault in rule(house, piece)]


@pytest.mark.parametrize(("rule", "source"), SOUND)
def test_each_rule_lets_good_cites_pass(rule: Rule, source: str) -> None:
    house = house_of(tuple(HERE), HERE)
    pieces = list(prose("aivailable/x.py", source))
    assert [fault for piece in pieces for fault in rule(house, piece)] == []


def test_pages_are_read_by_paragraphs_and_name_the_line() -> None:
    pieces = list(prose("a.md", "# One\n\nSee [x](no/such.md).\n"))
    (fault,) = rules.lost_files(house_of(tuple(HERE), HERE), pieces[1])
    assert (len(pieces), fault) == (2, "a.md:3: there is no no/such.md")


def test_the_defects_of_the_library_are_defined() -> None:
    """1 to 19, but for 18, which was not given."""
    assert ours()[0].defects == frozenset(range(1, 20)) - {18}
