"""Bound answers of a real model are valid, and answers drawn together are those drawn alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fixtures.models import smollm2_path
from fixtures.schema_validity import check, start
from fixtures.worker_process import WorkerProcess

from aivailable.wire.generation import Constraint, Failed, Finished, Generate, Sampling

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        start(process, smollm2_path(), 1024)
        yield process


def test_answers_under_schemas_are_valid(worker: WorkerProcess) -> None:
    report = check(worker, range(4), chat=True)
    assert report.problems == []
    assert report.valid == 4
    assert report.cut_in_string == 1


def ask(name: str, **more: object) -> Generate:
    values: dict[str, object] = {
        "messages": ({"role": "user", "content": "Name an animal."},),
        "max_tokens": 24,
        **more,
    }
    return Generate(name, "d", **values)  # type: ignore[arg-type]


SAMPLINGS = [
    Sampling(seed=1),
    Sampling(0.0),
    Sampling(1.0, 0, 0.95, 0.0, seed=2),
    Sampling(1.0, 0, 1.0, 0.0, seed=3, mirostat=2),
    Sampling(1.2, 50, seed=4, repeat_penalty=1.3, presence_penalty=0.5),
    Sampling(0.7, seed=5, dry_multiplier=0.8, xtc_probability=0.5),
    Sampling(1.0, 0, 1.0, 0.1, seed=6, typical_p=0.9),
    Sampling(1.0, 40, seed=7, top_n_sigma=1.5, mirostat=0),
]


def test_answers_drawn_together_equal_those_drawn_alone() -> None:
    """In workers of their own: sums over a cache follow the order of its cells, and after other
    requests have come and gone in between, two nearly equal logits may change places."""
    with WorkerProcess() as process:
        start(process, smollm2_path(), 1024)
        alone = [
            process.answers(ask(f"s{number}", sampling=sampling))[f"s{number}"].ids
            for number, sampling in enumerate(SAMPLINGS)
        ]
    with WorkerProcess() as process:
        start(process, smollm2_path(), 1024)
        found = process.answers(
            *(ask(f"b{number}", sampling=sampling) for number, sampling in enumerate(SAMPLINGS))
        )
    assert [found[f"b{number}"].ids for number in range(len(SAMPLINGS))] == alone


@pytest.mark.parametrize("version", [1, 2])
def test_a_cut_mirostat_answer_goes_on_identically(worker: WorkerProcess, version: int) -> None:
    """Its state depends on the logits of every token: the replay must see them all."""
    sampling = Sampling(1.0, 0, 1.0, 0.0, seed=9, mirostat=version, mirostat_eta=0.3)
    name = f"m{version}"
    whole = worker.answers(ask(name, sampling=sampling, max_tokens=40, ignore_eos=True))[name]
    assert len(whole.ids) == 40
    for cut in (1, 17, 39):
        again = f"{name}.{cut}"
        rest = worker.answers(
            ask(
                again,
                sampling=sampling,
                max_tokens=40,
                ignore_eos=True,
                prompt_ids=whole.prompt_ids,
                generated_ids=tuple(whole.ids[:cut]),
            )
        )[again]
        assert whole.ids[:cut] + rest.ids == whole.ids


def test_bad_constraints_disturb_nobody(worker: WorkerProcess) -> None:
    bad = {
        "x0": Constraint("json_schema", '{"type": "object", "minProperties": 1}'),
        "x1": Constraint("gbnf", 'root ::= root "a"'),
        "x2": Constraint("gbnf", "(" * 100_000),
        "x3": Constraint("json_schema", "[" * 100_000),
    }
    good = ask("good", sampling=Sampling(0.0))
    expected = worker.answers(ask("alone", sampling=Sampling(0.0)))["alone"]
    found = worker.answers(
        good,
        *(ask(name, constraint=constraint) for name, constraint in bad.items()),
        ask("bias", sampling=Sampling(logit_bias={"1000000": 1.0})),
        ask("many", logprobs=21),
    )
    assert found["good"].ids == expected.ids
    for name in (*bad, "bias", "many"):
        end = found[name].end
        assert isinstance(end, Failed), (name, end)
        assert end.status == 400, (name, end)


def test_an_ambiguous_grammar_fails_its_own_request_alone(worker: WorkerProcess) -> None:
    doubling = Constraint("gbnf", 'root ::= [a-z ] root "b" | [a-z ] root "c" | "."')
    found = worker.answers(
        ask("good", sampling=Sampling(0.0)), ask("double", constraint=doubling, max_tokens=64)
    )
    assert isinstance(found["good"].end, Finished)
    assert isinstance(found["double"].end, Failed)
    assert "ambiguous" in found["double"].end.message


def test_json_object_and_log_probabilities(worker: WorkerProcess) -> None:
    found = worker.answers(
        ask("j", constraint=Constraint("json_object"), sampling=Sampling(0.0), max_tokens=200)
    )["j"]
    assert isinstance(found.end, Finished)
    if found.end.reason == "stop":
        assert isinstance(json.loads(found.text), dict)
    worker.answers(ask("l", logprobs=3, max_tokens=5, sampling=Sampling(0.0)))
    told = [
        one
        for step in worker.steps
        for tokens in step.tokens
        if tokens.request_id == "l"
        for one in tokens.logprobs
    ]
    assert len(told) == 5
    for one in told:
        assert one.drawn == one.top[0]
        assert 0 >= one.top[0].logprob >= one.top[1].logprob >= one.top[2].logprob
