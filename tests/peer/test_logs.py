"""What the log leaves out when too much is said, and that it says so."""

from __future__ import annotations

import logging
from pathlib import Path

from aivailable.peer.logs import (
    BYTES_PER_MINUTE_MAX,
    INFO_BYTES_PER_MINUTE_MAX,
    KINDS_MAX,
    LINES_PER_KIND_MAX,
    MINUTE_S,
    Counting,
    log_to,
)


class Log:
    """`Counting` with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.counting = Counting(lambda: self.now_s)

    def say(self, message: str, *args: object, level: int = logging.WARNING) -> list[str]:
        record = logging.LogRecord("aivailable.x", level, "", 0, message, args, None)
        return self.counting.lines(record, record.getMessage())


def test_equal_lines_are_counted_until_another_comes_or_the_minute_ends() -> None:
    log = Log()
    assert log.say("no %s", "room") == ["no room"]
    assert [log.say("no %s", "room") for _ in range(3)] == [[]] * 3
    assert log.say("no %s", "place") == ["… (repeated 3 times) no room", "no place"]
    assert log.say("no %s", "place") == []
    log.now_s += MINUTE_S
    assert log.say("other") == ["… (repeated 1 times) no place", "other"]
    assert log.say("no %s", "place") == ["no place"]


def test_one_kind_of_warning_cannot_crowd_out_others() -> None:
    log = Log()
    written = sum(len(log.say("request %d broke", number)) for number in range(1000))
    assert written == LINES_PER_KIND_MAX
    assert log.say("something else") == ["something else"]
    log.now_s += MINUTE_S
    (told, _) = log.say("later")
    assert told == "… (980 further lines of aivailable.x left out) request %d broke"


def test_information_is_written_line_by_line_and_leaves_room_for_warnings() -> None:
    log = Log()
    text = "x" * 1000
    written = [
        line for n in range(2000) for line in log.say(f"{n} {text}%s", "", level=logging.INFO)
    ]
    size = sum(map(len, written))
    assert INFO_BYTES_PER_MINUTE_MAX - 2000 < size <= INFO_BYTES_PER_MINUTE_MAX
    assert log.say("careful") == ["careful"]
    size += sum(len(line) for n in range(2000) for line in log.say(f"{n} {text}%s", "!"))
    assert size <= BYTES_PER_MINUTE_MAX
    log.now_s += MINUTE_S
    assert log.say("later")[0].endswith("left out: the log was full for its minute)")


def test_the_kinds_that_are_counted_are_bounded() -> None:
    log = Log()
    log.say("first")
    log.say("first")
    lines = [line for n in range(KINDS_MAX) for line in log.say(f"kind {n}")]
    assert lines[-2] == "… (repeated 1 times) first"


def test_the_file_holds_our_lines_and_those_of_libraries(
    tmp_path: Path,
) -> None:
    root, ours = logging.getLogger(), logging.getLogger("aivailable")
    before = list(root.handlers)
    level = ours.level
    log_to(tmp_path / "logs", "info")
    added = [one for one in root.handlers if one not in before]
    try:
        for _ in range(500):
            ours.info("the same")
            logging.getLogger("asyncio").error("socket.accept() out of system resource")
    finally:
        for one in added:
            root.removeHandler(one)
            one.close()
        ours.setLevel(level)
    lines = (tmp_path / "logs" / "aivailable.log").read_text().splitlines()
    assert [line.partition(" aivailable: ")[2] for line in lines[:1]] == ["the same"]
    assert len(lines) == 4
    assert "(repeated 499 times) the same" in lines[2]
