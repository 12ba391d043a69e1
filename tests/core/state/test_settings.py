"""The table of settings: complete, its defaults valid, and every fault named."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.state.records import ClusterSettings
from aivailable.core.state.settings import SETTINGS, changed, problem


def test_every_field_is_in_the_table_and_every_default_in_its_range() -> None:
    fields = [one.name for one in dataclasses.fields(ClusterSettings)]
    assert [one.key for one in SETTINGS] == fields
    assert problem(ClusterSettings()) == ""
    for one in SETTINGS:
        assert one.meaning
        assert isinstance(getattr(ClusterSettings(), one.key), bool) == (not one.unit)


@given(st.sampled_from(SETTINGS), st.integers(-10, 10**18))
def test_a_value_is_taken_exactly_when_it_is_in_range(setting: object, value: int) -> None:
    key, unit = setting.key, setting.unit  # type: ignore[attr-defined]
    inside = setting.least <= value <= setting.most  # type: ignore[attr-defined]
    wish = bool(value) if not unit else value
    if inside or not unit:
        assert getattr(changed(ClusterSettings(), {key: wish}), key) == wish
    else:
        with pytest.raises(ValueError, match=key):
            changed(ClusterSettings(), {key: wish})


@pytest.mark.parametrize(
    ("wishes", "text"),
    [
        ({}, "nothing to set"),
        ({"margin": 1}, "margin_bytes"),
        ({"idle_ttl_s": "9"}, "whole number"),
        ({"idle_ttl_s": True}, "whole number"),
        ({"idle_ttl_s": 1.5}, "whole number"),
        ({"spare_fill": 1}, "true or false"),
        ({"idle_ttl_s": 5, "down_after_ms": 1}, "500 to"),
    ],
)
def test_what_is_wrong_is_said(wishes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        changed(ClusterSettings(), wishes)
