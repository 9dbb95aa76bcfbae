"""Child processes: how each of their ends is told. Real processes, in real time."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sniffio

from backplane import CascadeCrash, Failed
from backplane.bridge._child import ChildProcess
from backplane.bridge._child_exit import (
    Exit,
    Exited,
    NotSendableError,
    ProcessExitedError,
    ProcessKilledError,
    Raised,
    Returned,
    Signalled,
    Stopped,
    value_of,
)
from backplane.bridge._errors import FrameError, RemoteError

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    import child_functions as fns
    from child_world import Until, World
else:
    from . import child_functions as fns
    from .child_world import Until, World

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("world")]
one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
three_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop", "trio"], indirect=True)
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)


async def end_of(fn: Callable[..., Any], *args: Any, **options: Any) -> Exit:
    async with ChildProcess(fn, *args, **options) as child:
        with anyio.fail_after(60):
            return await child.wait()


@three_loops
@pytest.mark.parametrize(
    ("fn", "args", "end"),
    [
        (fns.add, (1, 2), Returned(3)),
        (fns.add_later, (1, 2), Returned(3)),
        (fns.exit_at_once, (3,), Exited(3)),
        (fns.exit_at_once, (0,), Exited(0)),
        (fns.exit_politely, (4,), Exited(4)),
        (fns.exit_from_a_loop, (5,), Exited(5)),
        (fns.crash, (), Signalled(signal.SIGSEGV)),
        (fns.abort, (), Signalled(signal.SIGABRT)),
        (fns.kill_myself, (), Signalled(signal.SIGKILL)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_each_end_is_told_apart(fn: Any, args: tuple[Any, ...], end: Exit) -> None:
    assert await end_of(fn, *args) == end


@three_loops
@pytest.mark.parametrize("fn", [fns.raise_custom, fns.raise_custom_later])
async def test_an_exception_comes_back_as_itself(fn: Any) -> None:
    end = await end_of(fn)

    assert isinstance(end, Raised)
    assert isinstance(end.exception, fns.CustomError)
    assert (end.exception.what, end.exception.number) == ("it", 3)
    (note,) = end.exception.__notes__
    assert "The traceback in the child process:" in note
    assert f"in {fn.__name__}" in note


@one_loop
@pytest.mark.parametrize(
    ("fn", "kind", "text", "why"),
    [
        (fns.raise_stubborn, "StubbornError", "it was stubborn", "could not be unpickled here: "),
        (fns.raise_local, "LocalError", "with a lock", "could not be pickled there: "),
        (fns.raise_interrupt, "KeyboardInterrupt", "from nowhere", "is no Exception: "),
        (fns.raise_cancelled, "CancelledError", "", "is no Exception: "),
    ],
)
async def test_an_exception_that_cannot_come_is_told_of(
    fn: Any, kind: str, text: str, why: str
) -> None:
    end = await end_of(fn)

    assert isinstance(end, Raised)
    assert isinstance(end.exception, RemoteError)
    assert end.exception.type_name.endswith(kind)
    assert end.exception.text == text
    assert fn.__name__ in end.exception.traceback
    traceback, reason = end.exception.__notes__
    assert fn.__name__ in traceback
    assert reason.startswith(f"{end.exception.type_name} {why}")


@one_loop
@pytest.mark.parametrize("fn", [fns.raise_interrupt, fns.raise_cancelled, fns.exit_from_a_loop])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_what_would_end_a_loop_is_told_whatever_the_loop(fn: Any, backend: Any) -> None:
    if fn is fns.exit_from_a_loop:
        assert await end_of(fn, 7, backend=backend) == Exited(7)
        return
    end = await end_of(fn, backend=backend)
    assert isinstance(end, Raised)
    assert isinstance(end.exception, RemoteError)


@one_loop
async def test_a_result_that_cannot_be_sent_is_an_error() -> None:
    end = await end_of(fns.return_a_lock)

    assert isinstance(end, Raised)
    assert isinstance(end.exception, NotSendableError)
    assert "what it returned cannot be taken to another process" in str(end.exception)


@one_loop
async def test_a_plain_function_that_returns_a_coroutine_is_told_off() -> None:
    end = await end_of(fns.return_a_coroutine)

    assert isinstance(end, Raised)
    assert isinstance(end.exception, TypeError)
    assert "`async def`" in str(end.exception)


@two_loops
async def test_large_arguments_and_results_come_through() -> None:
    data = os.urandom(1 << 20) * 8

    assert await end_of(fns.echo, data) == Returned(data)


@two_loops
async def test_a_fault_of_another_device_in_the_child_comes_back_as_a_cascade() -> None:
    end = await end_of(fns.cascade)

    assert isinstance(end, Raised)
    assert isinstance(end.exception, CascadeCrash)
    assert isinstance(end.exception.root, Failed)
    assert isinstance(end.exception.root.exception, fns.CustomError)


@three_loops
async def test_it_has_a_session_and_a_main_thread_of_its_own() -> None:
    end = await end_of(fns.where)

    assert isinstance(end, Returned)
    pid, parent, group, session, in_main_thread = end.value
    assert parent == os.getpid()
    assert pid == group == session
    assert in_main_thread


@one_loop
@pytest.mark.parametrize(
    ("backend", "options", "seen"),
    [
        ("asyncio", None, ("asyncio", "asyncio")),
        ("asyncio", {"use_uvloop": True}, ("asyncio", "uvloop")),
        ("trio", None, ("trio", "trio")),
    ],
)
async def test_an_async_function_gets_the_loop_that_was_asked_for(
    backend: Any, options: Any, seen: tuple[str, str]
) -> None:
    assert await end_of(fns.where_async, backend=backend, backend_options=options) == Returned(seen)


@one_loop
async def test_keyword_arguments_reach_it() -> None:
    assert await end_of(fns.add, 1, kwargs={"b": 5}) == Returned(6)


@three_loops
async def test_what_it_has_started_with_is_told(world: World) -> None:
    heard: list[object] = []
    async with ChildProcess(fns.start_and_return, "a value", on_started=heard.append) as child:
        end = await child.wait()

    assert heard == ["a value"]
    assert end == Returned("called 'started' twice on the same task status")


@one_loop
async def test_nonsense_on_its_socket_ends_it() -> None:
    end = await end_of(fns.speak_nonsense)

    assert isinstance(end, Raised)
    assert isinstance(end.exception, FrameError)


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda: None, "it is a lambda"),
        (3, "not 3"),
        (threading.Lock().acquire, "cannot find"),
    ],
)
@one_loop
async def test_a_function_that_cannot_be_found_is_refused_at_once(fn: Any, why: str) -> None:
    with pytest.raises(NotSendableError, match=why):
        ChildProcess(fn)


@one_loop
async def test_a_function_inside_another_is_refused_at_once() -> None:
    def inner() -> None: ...

    with pytest.raises(NotSendableError, match="defined inside another function"):
        ChildProcess(inner)


@one_loop
async def test_arguments_that_cannot_be_sent_are_refused_at_once() -> None:
    with pytest.raises(NotSendableError, match="echo cannot be taken"):
        ChildProcess(fns.echo, threading.Lock())


@one_loop
@pytest.mark.parametrize(
    "options",
    [{"backend": "curio"}, {"output": "paper"}, {"grace": -1}, {"term_grace": float("nan")}],
)
async def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ChildProcess(fns.add, 1, **options)


@two_loops
async def test_what_goes_wrong_when_the_child_looks_for_the_function_is_raised_by_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone_soon.py").write_text("def work(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import gone_soon  # type: ignore[import-not-found]

    child = ChildProcess(gone_soon.work)
    (tmp_path / "gone_soon.py").unlink()
    with pytest.raises(ModuleNotFoundError, match="gone_soon"):
        await child.start()
    assert child.over
    with pytest.raises(RuntimeError, match="has not been started"):
        await child.wait()


@two_loops
async def test_an_interpreter_that_is_not_there_is_an_error_of_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/nowhere/python")
    child = ChildProcess(fns.add, 1)
    with pytest.raises(FileNotFoundError):
        await child.start()


@two_loops
@pytest.mark.parametrize(
    ("code", "error"),
    [("import os; os._exit(9)", ProcessExitedError), ("import os; os.abort()", ProcessKilledError)],
)
async def test_an_interpreter_that_dies_on_its_way_is_an_error_of_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, error: type[Exception]
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
    script.chmod(0o755)
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(script))
    with pytest.raises(error, match="'add'"):
        await ChildProcess(fns.add, 1).start()


@one_loop
async def test_one_is_started_once() -> None:
    async with ChildProcess(fns.add, 1) as child:
        with pytest.raises(RuntimeError, match="started already"):
            await child.start()
        await child.wait()


@one_loop
async def test_the_stream_is_there_once_it_has_started() -> None:
    child = ChildProcess(fns.add, 1)
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = child.stream
    async with child:
        assert isinstance(child.stream, anyio.abc.ByteStream)
        await child.wait()


@three_loops
async def test_many_may_wait_for_one() -> None:
    ends: list[Exit] = []
    async with ChildProcess(fns.add_later, 1) as child, anyio.create_task_group() as tg:

        async def wait() -> None:
            ends.append(await child.wait())

        for _ in range(3):
            tg.start_soon(wait)
    assert ends == [Returned(1)] * 3


@two_loops
async def test_a_wait_that_is_cancelled_stops_nothing() -> None:
    async with ChildProcess(fns.add_later, 1) as child:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await child.wait()
        assert await child.wait() == Returned(1)


@one_loop
async def test_it_may_be_started_in_a_thread_and_loop_that_end(tmp_path: Path) -> None:
    """The kernel may tie a child to the thread that started it; here that is its keeper."""
    path = str(tmp_path / "said")
    library = sniffio.current_async_library()
    children: list[ChildProcess] = []

    async def start() -> None:
        child = ChildProcess(fns.sleep_async, path)
        await child.start()
        children.append(child)

    thread = threading.Thread(target=lambda: anyio.run(start, backend=library))
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    (child,) = children
    await Until(lambda: os.path.exists(path))
    with anyio.move_on_after(0.2) as scope:
        await child.wait()
    assert scope.cancelled_caught
    assert await child.stop() == Stopped()
    child.close()


@pytest.mark.heavy
@two_loops
async def test_fifty_at_once() -> None:
    ends: list[Exit] = []
    async with anyio.create_task_group() as tg:

        async def run(number: int) -> None:
            ends.append(await end_of(fns.add, number))

        for number in range(50):
            tg.start_soon(run, number)
    assert sorted(value_of(end) for end in ends) == list(range(50))


@one_loop
async def test_it_works_where_the_kernel_tells_less(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.delattr(fcntl, "F_SETSIG")
    assert await end_of(fns.add, 1) == Returned(1)
    assert await end_of(fns.exit_at_once, 3) == Exited(3)


@one_loop
async def test_an_exit_code_that_somebody_else_has_collected_is_unknown() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert await end_of(fns.exit_at_once, 3) == Exited(None)
    finally:
        signal.signal(signal.SIGCHLD, before)


@three_loops
async def test_the_errors_say_what_happened_and_can_be_pickled() -> None:
    errors = [
        (ProcessExitedError(3, "a"), "process 'a' ended with exit code 3 before its function"),
        (ProcessExitedError(None), "the process ended with an unknown exit code"),
        (ProcessExitedError(3, "a", 17), "process 'a' (pid 17) ended with exit code 3 before"),
        (ProcessKilledError(11, "a"), "process 'a' was killed by SIGSEGV"),
        (ProcessKilledError(11, "a", pid=17), "process 'a' (pid 17) was killed by SIGSEGV"),
        (ProcessKilledError(11, pid=17), "the process (pid 17) was killed by SIGSEGV"),
        (ProcessKilledError(9, "a", True), "by SIGKILL, and the kernel ran out of memory"),
        (ProcessKilledError(63), "the process was killed by signal 63"),
    ]
    for error, text in errors:
        assert text in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))
