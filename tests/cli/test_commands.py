"""What the commands send, print and exit with."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aivailable import __version__
from aivailable.cli import app
from aivailable.client import ChatDelta, ClientError
from aivailable.client.answers import AnswerUsage

HEAVY = ("aiohttp", "textual", "zeroconf", "pysyncobj", "numpy", "cryptography", "aivailable.peer")


def run(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, aivailable.cli\n"
        "try:\n    aivailable.cli.app(['--help'])\n"
        "finally:\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    sys.stderr.write(repr(loaded))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stderr == "[]"
    for name in ("up", "demo", "status", "deploy", "chat", "top", "admit", "key", "events"):
        assert name in ended.stdout


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"aivailable {__version__}\n")


def test_status_shows_nodes_devices_and_deployments(client: Any) -> None:
    result = run("status")
    assert result.exit_code == 0
    for text in ("lab", "controller rig1", "voters 2/3", "GTX 1080 Ti cuda", "5.0 GiB"):
        assert text in result.stdout
    assert "✕ unplaceable" in result.stdout
    assert "needs 41.0 GiB, 11.8 free on rig2 P40" in result.stdout
    assert "◐ loading 50%" in result.stdout
    assert "laptop (eeeeeeee, 192.168.1.44) waits to be let in: `aivailable admit`" in result.stdout


def test_status_shows_options_and_with_long_what_the_engines_run_with(client: Any) -> None:
    lab = client.statuses[0]
    given = dataclasses.replace(lab.deployments[0], options={"threads": "7", "kv_type": "q8_0"})
    runs = dataclasses.replace(lab.replicas[0], notes=("threads=7 of 8", "flash_attention=on"))
    client.statuses[0] = dataclasses.replace(
        lab,
        deployments=(given, *lab.deployments[1:]),
        replicas=(runs, *lab.replicas[1:]),
    )
    short = run("status").stdout
    assert "kv_type=q8_0 threads=7" in short
    assert "NOW" not in short
    assert "flash_attention=on" not in short
    assert "threads=7 of 8, flash_attention=on" in run("status", "--long").stdout


def test_status_long_shows_what_the_devices_do_now(client: Any) -> None:
    lab = client.statuses[0]
    hot = dataclasses.replace(
        lab.nodes[0].devices[0], utilization=0.5, temperature_c=71.0, power_w=120.4
    )
    node = dataclasses.replace(lab.nodes[0], devices=(hot, *lab.nodes[0].devices[1:]))
    client.statuses[0] = dataclasses.replace(lab, nodes=(node, *lab.nodes[1:]))
    assert "50%, 71 °C, 120 W" in run("status", "--long").stdout


def test_status_as_json_is_the_whole_status(client: Any) -> None:
    document = json.loads(run("status", "--json").stdout)
    assert document == json.loads(json.dumps(dataclasses.asdict(client.statuses[0])))


def test_members_and_models(client: Any) -> None:
    members = run("members").stdout
    assert "192.168.1.11:8420" in members
    assert "◌ silent" in members
    models = run("models").stdout
    assert "qwen2 Q4_K_M" in models
    assert "rig1, rig2" in models


def test_where_and_with_which_key_a_command_asks(client: Any, tmp_path: Path) -> None:
    run("status")
    (tmp_path / "api.json").write_text('{"url": "http://127.0.0.1:9999"}')
    (tmp_path / "admin.key").write_text("aiv-own\n")
    run("status")
    run("status", "--url", "rig7:8420", "--api-key", "aiv-given")
    assert client.opened == [
        (["http://127.0.0.1:8420"], None),
        (["http://127.0.0.1:9999"], "aiv-own"),
        (["http://rig7:8420"], "aiv-given"),
    ]


def test_a_damaged_address_file_is_named(client: Any, tmp_path: Path) -> None:
    (tmp_path / "api.json").write_text("[]")
    result = run("status")
    assert result.exit_code == 1
    assert "api.json is damaged; restart the node, or give --url" in result.stderr


def test_recover_warns_asks_and_says_what_was_given_up(client: Any) -> None:
    refused = run("recover")
    assert refused.exit_code == 1
    assert "this gives up the cluster" in refused.stderr
    assert "--with NODE" in refused.stderr
    assert "rig2 (" in refused.stderr
    assert not any(call[0] == "recover" for call in client.calls)
    done = run("recover", "--yes")
    assert done.exit_code == 0
    assert client.calls[-1] == ("recover", None, ())
    out = run("recover", "--with", "rig2", "--keep-key", "11112222")
    assert client.calls[-1] == ("recover", ["rig2"], ("11112222",))
    assert "Out for good: host-b. `aivailable up --new-identity`" in out.stderr
    run("recover", "--alone")
    assert client.calls[-1] == ("recover", (), ())
    assert run("recover", "--alone", "--with", "rig2").exit_code == 2
    assert "newccccc" in done.stdout
    assert "host-b" in done.stderr
    assert "tiny" in done.stderr


def test_remove_lists_the_keys_that_end_and_those_that_stay(client: Any) -> None:
    done = run("remove", "rig2")
    assert "✕ ends   11112222" in done.stdout
    assert "aivailable up --new-identity" in done.stdout
    kept = run("remove", "rig2", "--keep-key", "11112222", "--revoke-key", "33334444")
    assert "● stays  11112222" in kept.stdout
    calls = [call for call in client.calls if call[0] == "remove"]
    assert calls == [
        ("remove", "rig2", (), ()),
        ("remove", "rig2", ("11112222",), ("33334444",)),
    ]
    refused = run("remove", "rig9")
    assert (refused.exit_code, "no admin key would be left" in refused.stderr) == (1, True)
    assert len([call for call in client.calls if call[0] == "remove"]) == 2


def test_nobody_listens(client: Any) -> None:
    client.error = ClientError("no member answers", 0, "unreachable")
    result = run("status")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "aivailable: no AIvailable runs here (http://127.0.0.1:8420): "
        "start it with `aivailable up`\n"
    )
    assert "nobody answers at http://rig7" in run("status", "--url", "http://rig7").stderr


def test_a_missing_key_is_explained(client: Any) -> None:
    client.error = ClientError("this needs an admin key", 403, "forbidden")
    result = run("lock")
    assert result.exit_code == 1
    assert "this needs an admin key; give a key with --api-key" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (("admit",), ("window", 900)),
        (("admit", "--for", "1h"), ("window", 3600)),
        (("lock",), ("window", 0)),
        (("leave", "--yes"), ("leave",)),
        (("merge", "z" * 26, "--yes"), ("merge", "z" * 26)),
        (("undeploy", "qwen"), ("undeploy", "qwen")),
        (("drain", "rig2"), ("drain", "rig2", True, False)),
        (("drain", "rig2", "--force"), ("drain", "rig2", True, True)),
        (("undrain", "rig2"), ("drain", "rig2", False, False)),
        (("key", "revoke", "11112222"), ("revoke_key", "11112222", False)),
        (("key", "revoke", "11112222", "--force"), ("revoke_key", "11112222", True)),
    ],
)
def test_changes(client: Any, arguments: tuple[str, ...], call: tuple[Any, ...]) -> None:
    assert run(*arguments).exit_code == 0
    assert client.calls == [call]


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("deploy",),
        ("deploy", "m", "--replicas", "3..1"),
        ("deploy", "m", "--replicas", "0"),
        ("deploy", "m", "--replicas", "many"),
        ("deploy", "m", "--ctx", "0"),
        ("admit", "--for", "soon"),
        ("admit", "--for", "0"),
        ("key", "create", "--scope", "root"),
        ("up", "--port", "99999"),
        ("up", "--devices", "cpu:4GB"),
    ],
)
def test_wrong_usage_exits_with_two_and_asks_nobody(
    client: Any, arguments: tuple[str, ...]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert client.calls == []


def test_up_reports_every_wrong_flag(client: Any) -> None:
    stderr = run("up", "--port", "99999", "--devices", "cpu:4GB", "--join-window", "x").stderr
    assert [line.split(":")[1].strip() for line in stderr.splitlines()] == [
        "--join-window",
        "--devices",
        "--port",
    ]


def test_a_new_key_alone_goes_to_stdout(client: Any) -> None:
    result = run("key", "create", "web ui", "--scope", "admin")
    assert result.stdout == "aiv-secret\n"
    assert client.calls == [("create_key", "admin", "web ui")]
    assert "shown only now" in result.stderr


def test_keys_are_listed_without_their_text(client: Any) -> None:
    stdout = run("key", "list").stdout
    assert "11112222" in stdout
    assert "✕ revoked" in stdout


def test_chat_streams_the_answer(client: Any) -> None:
    result = run("chat", "qwen", "Say hello", "--max-tokens", "5", "--system", "Be brief")
    assert (result.exit_code, result.stdout) == (0, "Hello\n")
    messages = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Say hello"},
    ]
    assert client.calls == [("chat", "qwen", messages, {"max_tokens": 5})]


def test_a_chats_reasoning_is_not_in_the_answer(client: Any) -> None:
    client.answer = (ChatDelta(reasoning="h"), ChatDelta(reasoning="m"), ChatDelta("Hi"))
    result = run("chat", "qwen", "Say hello")
    assert (result.stdout, result.stderr) == ("Hi\n", "hm\n")


def test_a_chat_that_was_cut_off_says_so(client: Any) -> None:
    ends = ChatDelta(finish_reason="length"), ChatDelta(usage=AnswerUsage(12, 5))
    client.answer = (ChatDelta("Hel"), *ends)
    result = run("chat", "qwen", "Say hello")
    assert result.stdout == "Hel\n"
    assert "the limit is 5 tokens" in result.stderr
    assert "--max-tokens" in result.stderr
    client.answer = (ChatDelta("Hi"), ChatDelta(finish_reason="stop"), ends[1])
    assert run("chat", "qwen", "Say hello").stderr == ""


def test_chat_reads_a_pipe(client: Any) -> None:
    run("chat", "qwen", stdin="from a pipe")
    assert client.calls[0][2] == [{"role": "user", "content": "from a pipe"}]


def test_events(client: Any) -> None:
    lines = run("events", "-n", "2").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1041", "1042"]
    assert "mistral-7b#1.1 is placed on rig2" in lines[-1]
    run("events", "--follow")
    assert client.calls[-1] == ("events", 1042, True)


def test_drain_says_what_moves_and_what_has_nowhere_to_go(client: Any) -> None:
    result = run("drain", "rig2")
    assert "rig2 drains; `aivailable undrain rig2` ends it" in result.stdout
    assert "moving away: qwen#1.1" in result.stdout
    assert "no other place for llama-70b" in result.stderr
    client.drained = dataclasses.replace(client.drained, changed=False)
    assert "rig2 drains already" in run("drain", "rig2").stdout
    assert run("undrain", "rig2").stdout == "rig2 was not draining\n"


def test_a_draining_node_is_shown(client: Any) -> None:
    status = client.statuses[0]
    nodes = tuple(dataclasses.replace(n, draining=n.name == "rig2") for n in status.nodes)
    client.statuses = [dataclasses.replace(status, nodes=nodes)]
    for command in ("status", "members"):
        (line,) = [x for x in run(command).stdout.splitlines() if x.startswith("rig2")]
        assert "voter, draining" in line


def test_top_needs_a_terminal(client: Any) -> None:
    result = run("top")
    assert result.exit_code == 1
    assert "top needs a terminal; `aivailable status` prints the same once" in result.stderr
    assert client.calls == []
