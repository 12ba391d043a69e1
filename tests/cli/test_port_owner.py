"""Whose program has a port, as a refusal to send a key names it."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import pytest

from aivailable.cli import port_owner as module
from aivailable.cli.port_owner import TABLES, port_owner

pytestmark = pytest.mark.skipif(not TABLES[0].exists(), reason="no table of sockets here")


def test_the_user_of_a_listening_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port_owner(port) == "another program of yours"
        monkeypatch.setattr(os, "getuid", lambda: 2**31)
        me = pwd.getpwuid(os.geteuid()).pw_name
        assert port_owner(port) == f"user {me}"
    assert port_owner(port) == "another program"


def test_where_there_is_no_table_nobody_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "TABLES", (tmp_path / "none",))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert port_owner(taken.getsockname()[1]) == "another program"
