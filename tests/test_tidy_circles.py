"""Imports make no circle, between files or between folders; and the rule is seen to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.tidy_circles import circles

ROOT = Path(__file__).resolve().parent.parent


def test_the_house_has_no_circle() -> None:
    files = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in ("aivailable", "tui")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    assert len(files) > 100
    assert circles(files) == []


BROKEN = {
    "two files": (
        {"a/x.py": "import a.y", "a/y.py": "from a.x import f"},
        ["a/: circle of x.py → y.py → x.py: a/x.py:1 imports a/y.py; a/y.py:1 imports a/x.py"],
    ),
    "in a function": (
        {"a/x.py": "import a.y", "a/y.py": "def f():\n    from a import x"},
        ["a/: circle of x.py → y.py → x.py: a/x.py:1 imports a/y.py; a/y.py:2 imports a/x.py"],
    ),
    "for types only": (
        {"a/x.py": "import a.y", "a/y.py": "if TYPE_CHECKING:\n    from a.x import C"},
        ["a/: circle of x.py → y.py → x.py: a/x.py:1 imports a/y.py; a/y.py:2 imports a/x.py"],
    ),
    "two folders, none of whose files import each other": (
        {
            "a/b/one.py": "from a.c.one import f",
            "a/b/two.py": "",
            "a/c/one.py": "",
            "a/c/two.py": "from a.b import two",
        },
        [
            "a/: circle of b/ → c/ → b/: a/b/one.py:1 imports a/c/one.py;"
            " a/c/two.py:1 imports a/b/two.py"
        ],
    ),
    "a folder and a file of its parent": (
        {"a/x.py": "from a.b.one import f", "a/b/one.py": "", "a/b/two.py": "import a.x"},
        ["a/: circle of b/ → x.py → b/: a/b/two.py:1 imports a/x.py; a/x.py:1 imports a/b/one.py"],
    ),
    "the face of a folder": (
        {"a/b/__init__.py": "from a.b.one import f", "a/b/one.py": "from a.b import g"},
        [
            "a/b/: circle of __init__.py → one.py → __init__.py:"
            " a/b/__init__.py:1 imports a/b/one.py; a/b/one.py:1 imports a/b/__init__.py"
        ],
    ),
    "deep inside": (
        {"a/b/c/one.py": "import a.b.d.one", "a/b/d/one.py": "import a.b.c.one"},
        [
            "a/b/: circle of c/ → d/ → c/: a/b/c/one.py:1 imports a/b/d/one.py;"
            " a/b/d/one.py:1 imports a/b/c/one.py"
        ],
    ),
    "a shortest circle stands for its knot": (
        {
            "a/x.py": "import a.y\nimport a.z",
            "a/y.py": "import a.z",
            "a/z.py": "import a.x",
        },
        [
            "a/: circle of x.py → z.py → x.py (3 rooms in the knot: x.py, y.py, z.py):"
            " a/x.py:2 imports a/z.py; a/z.py:1 imports a/x.py"
        ],
    ),
    "two knots are two faults": (
        {
            "a/v.py": "import a.w",
            "a/w.py": "import a.v",
            "a/x.py": "import a.v\nimport a.y",
            "a/y.py": "import a.x",
        },
        [
            "a/: circle of v.py → w.py → v.py: a/v.py:1 imports a/w.py; a/w.py:1 imports a/v.py",
            "a/: circle of x.py → y.py → x.py: a/x.py:2 imports a/y.py; a/y.py:1 imports a/x.py",
        ],
    ),
}
SOUND = {
    "a folder between files of its parent": {
        "a/app.py": "from a.b.one import f",
        "a/b/one.py": "import a.ports",
        "a/ports.py": "",
    },
    "the face of a folder": {
        "a/b/__init__.py": "from a.b.one import f",
        "a/b/one.py": "from a.b.two import g",
        "a/b/two.py": "import a.c",
        "a/c.py": "",
    },
    "two packages": {"a/x.py": "import b.y", "a/z.py": "", "b/y.py": "import a.z"},
    "other libraries": {"a/x.py": "import os\nfrom ssl import x"},
}


@pytest.mark.parametrize(("files", "faults"), BROKEN.values(), ids=BROKEN)
def test_a_circle_is_named(files: dict[str, str], faults: list[str]) -> None:
    assert circles(files) == faults


@pytest.mark.parametrize("files", SOUND.values(), ids=SOUND)
def test_no_circle_is_no_fault(files: dict[str, str]) -> None:
    assert circles(files) == []
