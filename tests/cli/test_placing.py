"""The words of `--ctx` and of the options that say where a model may run."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from aivailable.cli import placing


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (None, {}),
        ("8192", {"context": 8192}),
        ("auto", {"context_max": 0}),
        ("8192..auto", {"context": 8192, "context_max": 0}),
        ("8192..32768", {"context": 8192, "context_max": 32768}),
    ],
)
def test_contexts(text: str | None, fields: dict[str, Any]) -> None:
    assert placing.context(text) == fields
    other = {key.replace("context", "slots"): value for key, value in fields.items()}
    assert placing.slots(text) == other


@pytest.mark.parametrize("text", ["", "0", "-1", "many", "..auto", "8192..", "9..8", "1..x"])
def test_contexts_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        placing.context(text)


def test_where_is_left_out_when_nothing_is_asked() -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("on", "not_on", "gpu", "vendor", "backend", "min_arch")
    )
    assert placing.where(**nothing) == {}
    asked = nothing | {"on": ["pc1"], "min_arch": "7.5"}
    assert placing.where(**asked, apart_from=["b"]) == {
        "where": {"nodes": ["pc1"], "apart_from": ["b"], "architecture_min": "7.5"}
    }
