"""`fit` and `deploy --dry-run`: what is asked and what a person reads."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from fixtures.plans import some_plan
from typer.testing import CliRunner

from aivailable.cli import app
from aivailable.core.serving.status import FitStatus, PlanStatus


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_fit_shows_every_device_and_what_would_help(client: Any) -> None:
    result = run("fit", "mistral", "--ctx", "8192", "--slots", "4", "--option", "kv_type=f16")
    assert result.exit_code == 0, result.stderr
    asked = {"context": 8192, "slots": 4, "engine": "llama", "options": {"kv_type": "f16"}}
    assert client.calls == [("fit", "mistral", asked)]
    lines = result.stdout.splitlines()
    assert lines[0] == "mistral-7b  4 slots of 8192 tokens"
    assert "needs 5.5 GiB: weights 4.0 GiB, KV cache 1.0 GiB, compute 0.5 GiB" in lines[1]
    assert "estimated by the formula" in lines[1]
    assert lines[2] == "● fits; it would go to rig2, P40 d1"
    (rig1,) = [line for line in lines if line.startswith("rig1  ")]
    for text in ("11.0 GiB", "5.0 GiB", "1.0 GiB", "4.8 GiB", "≤ 2048", "✕ 0.8 GiB missing"):
        assert text in rig1
    advice = (
        "rig1 GTX 1080 Ti d0 would take it with --ctx 2048 or evicting qwen (5.0 GiB, idle now)"
    )
    assert advice in lines
    assert any(line.startswith("nas") and "✕ down" in line for line in lines)


def test_what_fits_nowhere_ends_with_one(client: Any) -> None:
    client.fitting = dataclasses.replace(client.fitting, node_name="", devices_chosen=())
    result = run("fit", "mistral")
    assert result.exit_code == 1
    assert "✕ fits nowhere now" in result.stdout
    assert "mistral-7b fits nowhere now" in result.stderr


def test_a_split_is_said(client: Any) -> None:
    client.fitting = dataclasses.replace(client.fitting, devices_chosen=("P40 d1", "P40 d2"))
    assert "rig2, split over P40 d1 and P40 d2" in run("fit", "mistral").stdout


def test_fit_as_json(client: Any) -> None:
    document = json.loads(run("fit", "mistral", "--json").stdout)
    assert document == json.loads(json.dumps(dataclasses.asdict(client.fitting)))
    assert set(document) == set(FitStatus.__dataclass_fields__)


def test_a_dry_run_shows_the_plan_and_deploys_nothing(client: Any) -> None:
    result = run("deploy", "mistral", "--dry-run", "--option", "kv_type=q8_0")
    assert result.exit_code == 0, result.stderr
    ((call, model, fields),) = client.calls
    assert (call, model, fields["options"]) == ("preview", "mistral", {"kv_type": "q8_0"})
    assert result.stdout.splitlines()[3:] == [
        "- old#1.1  rig2  P40 d1  1.0 GiB (makes room)",
        "  qwen#1.1  rig1  GTX 1080 Ti d0  5.0 GiB",
        "+ mistral-7b#4.1  rig2  P40 d1  6.0 GiB",
        "! llama-70b: needs 41.0 GiB, 11.8 GiB free",
        "Nothing was changed.",
    ]


def test_a_dry_run_of_what_would_be_refused_says_so(client: Any) -> None:
    client.planned = some_plan("mistral-7b fits on no device: needs 6.0 GiB")
    result = run("deploy", "mistral", "--dry-run")
    assert result.exit_code == 1
    assert "mistral-7b would be refused: mistral-7b fits on no device" in result.stderr


def test_a_plan_of_nothing_says_nothing_runs(client: Any) -> None:
    client.planned = PlanStatus("m", 1, 1, 1, "option")
    assert "nothing runs, and nothing would" in run("deploy", "m", "--dry-run").stdout


@pytest.mark.parametrize("given", ["kv_type", "=q8_0", ""])
def test_a_wrong_option_is_usage(client: Any, given: str) -> None:
    assert run("fit", "m", "--option", given).exit_code == 2
    twice = ("--option", "a=1", "--option", "a=2")
    assert run("deploy", "m", *twice).exit_code == 2
    assert client.calls == []
