"""Names that other versions, clients and disks know keep their spelling for ever."""

from __future__ import annotations

from pathlib import Path

from fixtures.lasting_names import lasting_names

KEPT = Path(__file__).parent / "fixtures" / "lasting_names_v1.txt"


def test_no_name_that_leaves_the_process_changes() -> None:
    """A name that is gone breaks whoever knows it. A new one is added to the file, once:
    `PYTHONPATH=.:tests python -m test_lasting_names`."""
    kept = KEPT.read_text(encoding="utf-8").splitlines()
    now = lasting_names()
    assert sorted(set(kept) - set(now)) == []
    assert sorted(set(now) - set(kept)) == []


def test_names_are_read_at_every_depth() -> None:
    names = lasting_names()
    for name in (
        "state.members.*.certificate",
        "log.adopt_replica.replica",
        "from_worker.step.tokens.*.ids.*",
        "status.nodes.*.devices.*.free_bytes",
        "peer.call.method",
        "raft.append_entries.2=prevLogIdx",
    ):
        assert name in names


if __name__ == "__main__":
    KEPT.write_text("\n".join(lasting_names()) + "\n", encoding="utf-8")
