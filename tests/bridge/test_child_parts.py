"""The parts of child processes that need none: frames, payloads, memory, a stream."""

from __future__ import annotations

import functools
import io
import logging
import math
import pickle
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import PowerOffCrash
from backplane.bridge import _child_control
from backplane.bridge._child_control import Conversation, FrameReader, Kind, frame
from backplane.bridge._child_exit import NotSendableError, Raised, Stopped, value_of
from backplane.bridge._child_main import read_boot
from backplane.bridge._child_memory import oom_kills
from backplane.bridge._child_outbox import Outbox
from backplane.bridge._child_payload import (
    check_findable,
    is_async,
    make_boot,
    name_of,
    pack_exception,
    pack_value,
    unpack_exception,
    unpack_value,
)
from backplane.bridge._child_stream import PrivateStream
from backplane.bridge._child_work import PlainWork, _adopt_logging
from backplane.bridge._errors import FrameError, RemoteError

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    import child_functions as fns
    from child_world import Until
else:
    from . import child_functions as fns
    from .child_world import Until


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=300))), st.data())
def test_any_split_of_the_bytes_gives_the_same_frames(
    frames: list[tuple[Kind, bytes]], data: st.DataObject
) -> None:
    whole = b"".join(frame(*each) for each in frames)
    reader = FrameReader()
    found = []
    while whole:
        size = data.draw(st.integers(1, len(whole)))
        reader.feed(whole[:size])
        whole = whole[size:]
        while (each := reader.take()) is not None:
            found.append(each)
    assert found == frames


@pytest.mark.parametrize("data", [b"\0\0\0\1\xff", b"\0\0\0\0\1", b"\xff" * 9])
def test_bytes_that_are_no_frame_are_an_error(data: bytes) -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(data)


def test_a_body_that_is_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_child_control, "MAX_BODY", 3)
    with pytest.raises(FrameError, match="4 bytes"):
        frame(Kind.STOP, b"1234")


def test_the_first_frame_is_read_and_not_a_byte_more() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(frame(Kind.BOOT, pickle.dumps("x" * 1000)) + b"rest")

        assert read_boot(ours) == "x" * 1000
        assert ours.recv(10) == b"rest"
        theirs.sendall(struct.pack(">I", 9) + b"\1")
        theirs.close()
        assert read_boot(ours) is None
        assert read_boot(ours) is None


@pytest.mark.anyio
async def test_a_conversation_ends_with_its_socket() -> None:
    ours, theirs = map(PrivateStream, socket.socketpair())
    talk = Conversation(ours)
    assert await Conversation(theirs).send(frame(Kind.READY))
    await theirs.send_eof()
    assert await talk.receive() == (Kind.READY, b"")
    assert await talk.receive() is None
    await theirs.aclose()
    assert not await talk.send(frame(Kind.STOP))
    assert not ours.send_nowait(b"x")
    await ours.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await ours.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await ours.send(b"x")


@pytest.mark.anyio
async def test_a_stream_waits_for_its_reader() -> None:
    ours, theirs = map(PrivateStream, socket.socketpair())
    data = bytes(range(256)) * 10_000
    got = bytearray()
    async with anyio.create_task_group() as tg:
        tg.start_soon(ours.send, data)
        while len(got) < len(data):
            got += await theirs.receive()
    assert got == data
    ours.close()
    with pytest.raises(anyio.EndOfStream):
        await theirs.receive()
    theirs.close()


def test_frames_that_find_no_room_wait_for_it_and_stay_whole() -> None:
    ours, theirs = socket.socketpair()
    outbox, reader = Outbox(ours), FrameReader()
    with ours, theirs:
        ours.setblocking(False)
        large = frame(Kind.STARTED, 1_000_000 * b"x")
        outbox.put(large)
        for _ in range(3):
            outbox.put_once(frame(Kind.ALIVE))
        assert not outbox.push()
        outbox.put_once(frame(Kind.ALIVE))
        assert outbox
        while outbox:
            reader.feed(theirs.recv(65536))
            outbox.push()
        ours.shutdown(socket.SHUT_WR)
        while data := theirs.recv(65536):
            reader.feed(data)

    assert reader.take() == (Kind.STARTED, 1_000_000 * b"x")
    assert reader.take() == (Kind.ALIVE, b"")
    assert reader.take() is None


def test_frames_for_nobody_are_dropped() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    outbox = Outbox(ours)
    with ours:
        outbox.put(frame(Kind.JOIN))
        outbox.put(frame(Kind.ALIVE))
        assert outbox.push()
        assert not outbox


def test_frames_of_many_threads_stay_whole() -> None:
    ours, theirs = socket.socketpair()
    outbox, reader = Outbox(ours), FrameReader()
    bodies = [bytes([number]) * 20_000 for number in range(4)]
    before = sys.getswitchinterval()

    def say_much(body: bytes) -> None:
        for _ in range(50):
            outbox.put(frame(Kind.STARTED, body))
            outbox.push()

    threads = [threading.Thread(target=say_much, args=(body,)) for body in bodies]
    with ours, theirs:
        ours.setblocking(False)
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            found: list[tuple[Kind, bytes]] = []
            theirs.settimeout(0.01)
            deadline = time.monotonic() + 20
            while len(found) < 200 and time.monotonic() < deadline:
                outbox.push()  # as the loop does when it is woken, or when there is room
                with suppress(TimeoutError):
                    reader.feed(theirs.recv(65536))
                while (each := reader.take()) is not None:
                    found.append(each)
        finally:
            sys.setswitchinterval(before)
            for thread in threads:
                thread.join()

    assert sorted(found) == sorted((Kind.STARTED, body) for body in bodies for _ in range(50))
    assert not outbox


class PushesWithin:
    """A socket in the middle of whose sending somebody sends: a finalizer, a signal handler."""

    def __init__(self) -> None:
        self.outbox = Outbox(self)  # type: ignore[arg-type]
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> int:
        if not self.sent:
            self.outbox.put(b"within")
            assert self.outbox.push()
        self.sent.append(data)
        return len(data)


def test_who_pushes_in_the_middle_of_a_push_does_not_wait_for_it() -> None:
    sock = PushesWithin()
    sock.outbox.put(b"first")

    assert sock.outbox.push()

    assert sock.sent == [b"first", b"within"]


class Awaited:
    async def __call__(self) -> None: ...

    def method(self) -> None: ...


@pytest.mark.parametrize(
    ("fn", "answer"),
    [
        (fns.add, False),
        (fns.add_later, True),
        (functools.partial(fns.add_later, 1), True),
        (functools.partial(fns.add, 1), False),
        (Awaited(), True),
        (math.sqrt, False),
    ],
)
def test_async_functions_are_known_from_plain_ones(fn: Any, answer: bool) -> None:
    assert is_async(fn) is answer


def test_functions_are_found_by_name() -> None:
    for fn in (fns.add, functools.partial(fns.add, 1), math.sqrt, dict.get, Awaited().method):
        check_findable(fn)


def test_a_decorated_function_is_not_what_its_name_says() -> None:
    with pytest.raises(NotSendableError, match="it must be importable"):
        check_findable(functools.wraps(fns.add)(lambda: None))


class Holder:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def method(self) -> None: ...


def test_it_is_told_why_a_function_cannot_be_found() -> None:
    with pytest.raises(NotSendableError, match="a method of an object that cannot be sent"):
        check_findable(Holder().method)
    with pytest.raises(NotSendableError, match="it is a lambda"):
        check_findable(functools.partial(lambda: None))


def test_names_are_told() -> None:
    assert name_of(functools.partial(math.sqrt, 1)) == "math.sqrt"
    assert name_of(3) == "3"


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


class Liar(Exception):
    """Turns into something else on its way."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (3,)


class Untold(Exception):
    """Has no traceback that could be told."""

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise ValueError


@pytest.mark.parametrize(
    "error",
    [Mute(), Untold(), Liar("a"), SystemExit(3), BaseExceptionGroup("g", [KeyboardInterrupt()])],
)
def test_every_exception_can_be_told_of(error: BaseException) -> None:
    end = unpack_exception(pack_exception(error))

    assert isinstance(end.exception, RemoteError | Mute | Untold)
    assert type(error).__name__ in repr(end.exception) + str(end.exception.args)


def test_values_that_cannot_go_say_so() -> None:
    with pytest.raises(NotSendableError, match="this one cannot be taken"):
        pack_value(lambda: None, "this one")
    with pytest.raises(NotSendableError, match="this one cannot be put together"):
        unpack_value(b"nonsense", "this one")
    assert unpack_value(pack_value([1], "a"), "a") == [1]


def test_a_stop_is_a_power_off() -> None:
    with pytest.raises(PowerOffCrash):
        value_of(Stopped())
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        value_of(Raised(error))
    assert caught.value is error
    assert pickle.loads(pickle.dumps(Stopped())) == Stopped()


@pytest.mark.anyio
async def test_an_interrupt_that_comes_before_a_plain_function_is_kept_for_it() -> None:
    called: list[int] = []
    plain = PlainWork(lambda: called.append(1))
    before = signal.signal(signal.SIGINT, plain.note_interrupt)

    async def work() -> None:
        context = plain.contexts.get_nowait()
        assert context is not None
        context.run(plain.work)

    try:
        signal.raise_signal(signal.SIGINT)
        async with anyio.create_task_group() as tg:
            tg.start_soon(attend_in_vain, plain)
            await Until(lambda: not plain.contexts.empty())
            await work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(plain.error, KeyboardInterrupt)
    assert not called


async def attend_in_vain(plain: PlainWork) -> None:
    with pytest.raises(Exception) as caught:
        await plain.attend()
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


def test_a_program_may_have_replaced_what_it_prints_to(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    before = list(logging.root.handlers)
    with ours, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", io.StringIO())
        _adopt_logging(theirs, make_boot(b"", "child"))
        (handler,) = (each for each in logging.root.handlers if each not in before)
        logging.root.removeHandler(handler)
        handler.close()


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, None),
        ({"proc/vmstat": "a 1\noom_kill 4\n"}, 4),
        ({"proc/vmstat": "oom_kill many\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "proc/vmstat": "oom_kill 4\n"}, 4),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.events": "oom 9\noom_kill 2\n",
                "proc/vmstat": "oom_kill 4\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "9:cpu:/\n8:blkio,memory:/x\nodd\n",
                "sys/fs/cgroup/memory/x/memory.oom_control": "under_oom 0\noom_kill 3\n",
            },
            3,
        ),
    ],
)
def test_the_kernels_count_of_memory_kills_is_read(
    files: dict[str, str], count: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert oom_kills(root=tmp_path) == count


def test_a_kernel_that_can_be_asked_answers() -> None:
    count = oom_kills()
    assert count is None or count >= 0
