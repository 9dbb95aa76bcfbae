"""Child processes where something is odd: in what they are given, their parent, themselves."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from backplane.bridge import NotSendableError, ProcessKilledError, in_process
from backplane.bridge import _child_keeper as keeper_module
from backplane.bridge import _child_main as main_module
from backplane.bridge._child import ChildProcess
from backplane.bridge._child_control import Conversation
from backplane.bridge._child_exit import Exit, Exited, Raised, Signalled, Stopped
from backplane.bridge._child_system import pidfd, shared, tie

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    import child_functions as fns
    import child_odd as odd
    from child_world import ROOT, Until, lives, words
else:
    from . import child_functions as fns
    from . import child_odd as odd
    from .child_world import ROOT, Until, lives, words

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("world")]
one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)


async def end_of(fn: Callable[..., Any], *args: Any, **options: Any) -> Exit:
    async with ChildProcess(fn, *args, **options) as child:
        with anyio.fail_after(60):
            return await child.wait()


# -- what it was given ----------------------------------------------------------------


@one_loop
@pytest.mark.parametrize("fn", [fns.add, fns.add_later])
async def test_options_that_its_loop_does_not_take_are_its_error(fn: Any) -> None:
    end = await end_of(fn, 1, backend_options={"loop_factory": "none"})

    assert isinstance(end, Raised)
    assert isinstance(end.exception, TypeError)


@one_loop
async def test_a_function_that_only_this_process_has_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def late() -> None: ...

    late.__qualname__, late.__module__ = "late", fns.__name__
    monkeypatch.setattr(fns, "late", late, raising=False)
    with pytest.raises(AttributeError, match="late") as caught:
        await in_process(late)()
    assert "The traceback in the child process" in caught.value.__notes__[0]


@one_loop
async def test_a_result_that_can_be_opened_only_there_is_an_error() -> None:
    end = await end_of(odd.return_what_stays_there)

    assert isinstance(end, Raised)
    assert isinstance(end.exception, NotSendableError)
    assert "return_what_stays_there returned cannot be put together again" in str(end.exception)


@one_loop
async def test_a_result_that_is_too_long_is_an_error() -> None:
    end = await end_of(odd.return_too_much)

    assert isinstance(end, Raised)
    assert isinstance(end.exception, NotSendableError)
    assert "more than can be sent at once" in str(end.exception)


# -- a parent that lets go, or cannot start it ----------------------------------------


@one_loop
@pytest.mark.parametrize("fn", [odd.return_when_told, odd.interrupt_when_told])
async def test_a_word_that_nobody_can_take_is_an_exit(fn: Any, path: str) -> None:
    async with ChildProcess(fn, path, grace=20) as child:
        await Until(lambda: words(path))
        assert child._keeper is not None
        child._keeper.socket.shutdown(socket.SHUT_RD)
        fns.say(path, "go")
        with anyio.fail_after(20):
            assert await child.wait() == Exited(0)


@one_loop
async def test_one_whose_parent_has_changed_its_mind_ends_by_itself() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        fds = [os.dup(theirs.fileno()) for _ in range(3)]
        try:
            done = await anyio.to_thread.run_sync(
                functools.partial(
                    subprocess.run,
                    [sys.executable, "-P", main_module.__file__, *map(str, fds)],
                    pass_fds=fds,
                    timeout=60,
                    check=True,
                )
            )
        finally:
            for fd in fds:
                os.close(fd)
    assert done.returncode == 0


@two_loops
@pytest.mark.parametrize("how", ["start", "block"])
async def test_code_that_is_closed_over_its_head_leaves_no_process(how: str) -> None:
    """As when a loop has ended without it: nothing can be awaited any more."""
    child = ChildProcess(fns.sleep_plainly, "/dev/null")

    if how == "start":
        closed_at_its_first_wait(child.start())
    else:
        await child.start()
        closed_at_its_first_wait(without_its_start(child))
    assert child._keeper is not None
    await child._keeper.wait_over()
    assert child.exit == Signalled(signal.SIGKILL)


async def without_its_start(child: ChildProcess) -> None:
    try:
        await anyio.sleep_forever()
    except BaseException as error:
        await child.__aexit__(type(error), error, None)
        raise


def closed_at_its_first_wait(work: Awaitable[object]) -> None:
    steps = work.__await__()
    next(steps)
    steps.close()


@two_loops
async def test_one_that_is_stopped_while_it_starts_is_killed() -> None:
    child = ChildProcess(fns.add, 1)
    assert child.exit is None

    async def stop() -> None:
        while child._keeper is None:
            await anyio.lowlevel.checkpoint()
        child.stop_soon()

    async with anyio.create_task_group() as tg:
        tg.start_soon(stop)
        with pytest.raises(ProcessKilledError):
            await child.start()


@one_loop
async def test_a_lack_of_threads_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    child = ChildProcess(fns.add, 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            await child.start()
    child.close()


@one_loop
async def test_a_frozen_program_is_told_that_it_has_no_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    child = ChildProcess(fns.add, 1)
    with pytest.raises(NotImplementedError, match="frozen"):
        await child.start()
    assert child.exit is None


@one_loop
@pytest.mark.parametrize("output", ["inherit", "log"])
async def test_a_fault_of_its_keeper_is_an_error_and_leaves_nothing(
    output: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no epoll")

    monkeypatch.setattr(keeper_module.Keeper, "_attend", fail)
    child = ChildProcess(fns.sleep_plainly, "/dev/null", output=output)
    with pytest.raises(OSError, match="no epoll"):
        await child.start()
    assert child.exit == Signalled(signal.SIGKILL)


@one_loop
async def test_a_fault_of_its_keeper_after_its_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = threading.Event()

    def fail(*_: object) -> None:
        asked.wait(20)
        raise OSError("no epoll")

    async def ask(*_: object) -> bool:
        asked.set()
        return True

    monkeypatch.setattr(keeper_module.Keeper, "_attend", fail)
    monkeypatch.setattr(Conversation, "send", ask)
    with pytest.raises(OSError, match="no epoll"):
        await ChildProcess(fns.add, 1).start()


@one_loop
async def test_signals_reach_no_process_that_is_not_there() -> None:
    keeper = keeper_module.Keeper("none", "inherit")
    keeper.signal(signal.SIGTERM)
    keeper.socket.close()
    keeper._far.close()


@one_loop
async def test_what_the_kernel_refuses_is_done_without() -> None:
    assert not tie(10**6, 1)
    assert pidfd(-1) is None
    assert shared(10**6) == subprocess.DEVNULL


# -- a parent that has closed, or copied, what it has -----------------------------------


@one_loop
@pytest.mark.parametrize("output", ["inherit", "log"])
async def test_a_parent_that_has_closed_its_standard_files_has_children(
    output: str, path: str
) -> None:
    await anyio.run_process(
        [sys.executable, odd.__file__, path, output],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    kind = "/dev/null" if output == "inherit" else "pipe"
    assert [word.partition(":")[0] for word in words(path)] == ["/dev/null", kind, kind]


@two_loops
async def test_a_copy_of_the_parent_does_not_kill_its_children() -> None:
    assert await in_process(odd.fork_beside_a_child, grace=100)() == (0, Stopped())


# -- what it does --------------------------------------------------------------------


@two_loops
async def test_one_that_closes_all_its_files_is_stopped(path: str) -> None:
    async with ChildProcess(odd.close_all_files, path, grace=0.1, term_grace=20) as child:
        await Until(lambda: words(path))
        assert await child.stop() == Signalled(signal.SIGTERM)
    assert not lives(int(words(path)[0]))
