"""An interpreter without llama-cpp-python: the fake engine works, a real load is refused."""

from __future__ import annotations

import sys

import pytest
from fixtures.worker_process import fake_load

from aivailable.wire.worker import DeviceClaim, Load
from aivailable.worker.__main__ import make_engine
from aivailable.worker.engine import LoadRefused
from aivailable.worker.llama.library import import_library

TEMPLATES_BEHIND = tuple(
    f"aivailable.worker.{name}" for name in ("chat", "llama.engine", "llama.embedding")
)
LOAD = Load("r", "llama", "/m.gguf", 512, 1, (DeviceClaim("cpu0", "cpu", 0, 1),))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(LoadRefused, match=r"install aivailable\[engine\] .*llama_cpp") as caught:
        import_library()
    assert caught.value.code == "unsupported"


def test_a_missing_template_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    # What another test has imported already would not look for it again.
    for name in list(sys.modules):
        if name.startswith(TEMPLATES_BEHIND):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(LoadRefused, match=r"install aivailable\[engine\] .*jinja2") as caught:
        make_engine(LOAD, lambda phase, fraction: None)
    assert caught.value.code == "unsupported"


def test_the_fake_engine_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert make_engine(fake_load(), lambda phase, fraction: None).name == "fake"


def test_an_unknown_engine_is_refused() -> None:
    load = Load("r", "magic", "", 512, 1, ())
    with pytest.raises(LoadRefused, match="no engine 'magic'"):
        make_engine(load, lambda phase, fraction: None)
