"""What child processes print and log."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane.bridge import _child_output
from backplane.bridge._child import ChildProcess
from backplane.bridge._child_exit import Exited, Returned
from backplane.bridge._child_output import RECORD_SOCKET, LineSink, RecordHandler, RecordSink

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    import child_functions as fns
    from child_world import Until, lives
else:
    from . import child_functions as fns
    from .child_world import Until, lives

two_loops = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True),
    pytest.mark.usefixtures("world"),
]


def of(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == name]


class TestLoops:
    pytestmark = two_loops

    async def test_lines_that_it_prints_become_records(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "backplane.bridge.child")
        async with ChildProcess(fns.print_and_log, output="log", name="printer") as child:
            await child.wait()

        lines = of(caplog, "backplane.bridge.child")
        told = [(line.child_stream, line.levelname, line.getMessage()) for line in lines]  # type: ignore[attr-defined]
        assert [each for each in told if each[0] == "stdout"] == [
            ("stdout", "INFO", "a line"),
            ("stdout", "INFO", "not \\xff text"),
            ("stdout", "INFO", "no end of line"),
        ]
        assert ("stderr", "WARNING", "another") in told
        assert {(line.child_name, line.child_pid) for line in lines} == {("printer", child.pid)}  # type: ignore[attr-defined]

    async def test_records_that_it_logs_go_to_the_loggers_of_the_same_names(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with ChildProcess(fns.print_and_log, output="log", name="printer") as child:
            await child.wait()

        (part,) = of(caplog, "app.part")
        assert (part.levelname, part.getMessage()) == ("WARNING", "careful: 3")
        assert (part.process, part.processName) == (child.pid, "printer")
        assert part.child_name == "printer"  # type: ignore[attr-defined]
        (app,) = of(caplog, "app")
        assert app.getMessage() == "with a traceback"
        assert "CustomError: ('it', 3)" in str(app.exc_text)

    async def test_the_levels_of_the_parent_hold_in_the_child(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "app.part")
        async with ChildProcess(fns.print_and_log, output="log") as child:
            await child.wait()

        assert [record.levelname for record in of(caplog, "app.part")] == ["WARNING", "DEBUG"]

    async def test_what_was_logged_before_a_sudden_end_is_there(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with ChildProcess(fns.log_and_die) as child:
            assert await child.wait() == Exited(1)

        assert [record.getMessage() for record in of(caplog, "app")] == list(map(str, range(100)))

    async def test_a_parent_that_is_slow_to_take_records_does_not_block_it(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        held, come = threading.Event(), 0

        class Slow(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                nonlocal come
                held.wait(20)
                come += 1

        logger, handler = logging.getLogger("app"), Slow()
        logger.addHandler(handler)
        logger.propagate = False
        try:
            async with ChildProcess(fns.log_much, 5000, 1000, grace=20) as child:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(child.wait)
                    # It has returned, which it could not if it waited for us.
                    await Until(lambda: child._outcome)
                    held.set()
                end = await child.wait()
        finally:
            held.set()
            logger.propagate = True
            logger.removeHandler(handler)

        assert end == Returned(1)  # one record has waited for a moment, and no other
        lost = 0
        for record in of(caplog, "backplane.bridge.child"):
            assert isinstance(record.args, tuple)
            assert isinstance(record.args[0], int)
            lost += record.args[0]
        assert 0 < come < 5000
        assert come + lost == 5000

    async def test_all_that_it_has_logged_at_its_end_is_taken(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_child_output, "_MAX_READS", 1)

        class Late(logging.Handler):
            """Takes the first record when the process that sent it has died."""

            def emit(self, record: logging.LogRecord) -> None:
                while lives(record.child_pid):  # type: ignore[attr-defined]
                    time.sleep(0.001)

        logger, handler = logging.getLogger("app"), Late()
        logger.addHandler(handler)
        try:
            async with ChildProcess(fns.log_and_die) as child:
                assert await child.wait() == Exited(1)
        finally:
            logger.removeHandler(handler)

        told = [record.getMessage() for record in of(caplog, "app")]
        assert told == [str(number) for number in range(100)]

    async def test_what_it_prints_is_inherited_by_default(
        self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        async with ChildProcess(fns.print_and_log) as child:
            await child.wait()

        captured = capfd.readouterr()
        assert captured.out.startswith("a line\n")
        assert "another\n" in captured.err
        assert not of(caplog, "backplane.bridge.child")


class Ends:
    """Both ends of the way of the records, in one process."""

    def __init__(self) -> None:
        own, theirs = socket.socketpair(type=RECORD_SOCKET)
        self.sink = RecordSink(own, {"child_name": "c"})
        self.socket = theirs
        self.handler = RecordHandler(theirs, "c")
        self.logger = logging.Logger("app.ends")
        self.logger.addHandler(self.handler)

    def close(self) -> None:
        self.handler.close()
        self.sink.close()


@pytest.fixture
def ends() -> Any:
    ends = Ends()
    yield ends
    ends.close()


def test_a_record_that_is_too_long_comes_shortened(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    ends.logger.warning("x" * 10_000_000, extra={"field": "y" * 10_000_000})

    assert ends.sink.drain()

    (record,) = of(caplog, "app.ends")
    assert record.getMessage() == "x" * 20_000
    assert not hasattr(record, "field")


def test_fields_that_can_be_sent_come_along(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    ends.logger.warning("a", extra={"field": [1]})

    assert ends.sink.drain()

    (record,) = of(caplog, "app.ends")
    assert record.field == [1]  # type: ignore[attr-defined]


def test_lost_records_are_counted_and_told_of(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3000):
        ends.logger.warning("%d %s", number, "x" * 10_000)
    assert ends.handler.lost > 0
    lost = ends.handler.lost
    while ends.sink.drain() and not of(caplog, "app.ends")[2999 - lost :]:
        pass
    come = len(of(caplog, "app.ends"))

    ends.logger.warning("after")
    assert ends.sink.drain()

    assert come + lost == 3000
    (told,) = of(caplog, "backplane.bridge.child")
    assert told.getMessage() == f"{lost} log records of the process were lost"
    assert ends.handler.lost == 0


def test_a_fault_in_a_filter_of_the_parent_is_reported_and_ends_nothing(
    ends: Ends, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    logger = logging.getLogger("app.ends")
    logger.addFilter(fail)
    try:
        ends.logger.warning("a")
        assert ends.sink.drain()
    finally:
        logger.removeFilter(fail)
    assert "ZeroDivisionError" in capsys.readouterr().err
    ends.logger.warning("b")
    assert ends.sink.drain()
    assert [record.getMessage() for record in of(caplog, "app.ends")] == ["b"]


def test_a_message_that_cannot_be_made_is_reported_in_the_child(
    ends: Ends, capsys: pytest.CaptureFixture[str]
) -> None:
    ends.logger.warning("%d", "no number")

    assert "no number" in capsys.readouterr().err
    assert ends.handler.lost == 0


def test_the_end_of_the_child_is_the_end_of_the_records() -> None:
    ends = Ends()
    ends.handler.close()

    assert not ends.sink.drain()
    ends.close()


def test_records_below_the_level_of_their_logger_here_are_dropped(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "app.ends")
    ends.logger.warning("a")
    ends.logger.error("b")
    assert ends.sink.drain()

    assert [record.getMessage() for record in of(caplog, "app.ends")] == ["b"]


def test_a_record_of_a_process_within_keeps_its_name(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("own", "MainProcess"):
        fields = {"name": "app.ends", "levelno": logging.WARNING, "processName": name}
        ends.logger.handle(logging.makeLogRecord(fields))
    assert ends.sink.drain()

    assert [record.processName for record in of(caplog, "app.ends")] == ["own", "c"]


def test_a_socket_that_fails_is_the_end_of_the_records() -> None:
    ends = Ends()
    ends.sink.close()

    assert not ends.sink.drain()
    ends.close()


def test_lines_that_are_too_long_are_parted_and_no_sink_keeps_the_others_waiting(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "backplane.bridge.child")
    monkeypatch.setattr(_child_output, "_MAX_LINE", 10)
    monkeypatch.setattr(_child_output, "_MAX_READS", 2)
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    sink = LineSink(os.fdopen(ours.detach(), "rb", buffering=0), logging.INFO, {})
    with theirs:
        for data in (b"x" * 25, b"y\n", b"z"):
            theirs.send(data)
        assert sink.drain()  # not yet all
        told = [record.getMessage() for record in of(caplog, "backplane.bridge.child")]
        assert told == [10 * "x", 10 * "x", "xxxxxy"]
        assert sink.drain()
        sink.close()
    assert of(caplog, "backplane.bridge.child")[-1].getMessage() == "z"
