"""A supervisor that is stopped by signals: real ones, in this process and in others."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import sniffio
from anyio.abc import TaskStatus

from backplane.supervisor import (
    ChildSpec,
    MaxRestartsError,
    NotRunningError,
    StartError,
    Supervisor,
    SupervisorError,
)
from backplane.supervisor._signals import _Announcer, beside, run_service, stop_on_signals

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.name != "posix", reason="POSIX signals")]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers_come_back(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens, the handlers are as before."""
    caplog.set_level(logging.INFO, "backplane.supervisor")
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, receiver: socket.socket) -> None:
        self._receiver = receiver

    def heard(self) -> list[str]:
        """What has arrived, oldest first."""
        messages = []
        try:
            while True:
                messages.append(self._receiver.recv(4096).decode())
        except BlockingIOError:
            return messages

    def hear(self) -> str:
        """Wait for one message."""
        self._receiver.settimeout(20)
        try:
            return self._receiver.recv(4096).decode()
        finally:
            self._receiver.setblocking(False)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield Manager(receiver)


def once(number: signal.Signals = signal.SIGTERM) -> ChildSpec:
    """A child that sends a signal to its process, and runs on."""

    async def sender() -> None:
        signal.raise_signal(number)
        await anyio.sleep_forever()

    return ChildSpec("sender", sender)


class Stubborn:
    """A child that lets nobody cancel it, and sends a signal when somebody tries."""

    def __init__(self) -> None:
        self.released = False
        self.tries = 0

    async def run(self) -> None:
        while not self.released:
            try:
                await anyio.sleep_forever()
            except BaseException:
                self.tries += 1
                if self.tries == 1:
                    signal.raise_signal(signal.SIGTERM)

    def spec(self) -> ChildSpec:
        return ChildSpec("stubborn", self.run, shutdown=math.inf)


async def forever() -> None:
    await anyio.sleep_forever()


async def ends_badly() -> None:
    raise ValueError("bad child")


# -- run_service ---------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_stops_all_children_in_order(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    log = []

    def child(name: str) -> ChildSpec:
        async def run() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                log.append(name)

        return ChildSpec(name, run)

    with anyio.fail_after(20):
        await run_service(Supervisor([child("a"), child("b"), once(number)], name="app"))

    assert log == ["b", "a"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{number.name}: supervisor app stops"
    ]


async def test_a_second_signal_kills_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    stubborn = Stubborn()
    supervisor = Supervisor([stubborn.spec(), once()], name="app")

    with anyio.fail_after(20):
        await run_service(supervisor)

    is_zombie = sniffio.current_async_library() == "trio"
    assert "SIGTERM again: supervisor app kills all" in caplog.text
    assert ("runs on as a zombie" in caplog.text) is is_zombie
    tries = stubborn.tries
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    assert (stubborn.tries > tries) is is_zombie  # what was killed is never stepped again
    stubborn.released = True


async def test_a_second_signal_kills_what_is_below_too() -> None:
    stubborn = Stubborn()
    inner = Supervisor([stubborn.spec()], name="inner")

    with anyio.fail_after(20):
        await run_service(Supervisor([inner, once()]))

    assert stubborn.tries
    stubborn.released = True


async def test_a_signal_while_a_child_starts_stops_it_in_order(manager: Manager) -> None:
    log = []

    async def first() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("first")

    async def never_ready(*, task_status: TaskStatus[None]) -> None:
        signal.raise_signal(signal.SIGINT)
        try:
            await anyio.sleep_forever()
        finally:
            log.append("never ready")

    with anyio.fail_after(20):
        await run_service(Supervisor([first, never_ready]))

    assert log == ["never ready", "first"]
    assert manager.heard() == ["STOPPING=1"]


async def test_systemd_hears_of_the_start_and_the_stop(manager: Manager) -> None:
    heard_at = {}

    async def slow(*, task_status: TaskStatus[None]) -> None:
        heard_at["start"] = manager.heard()
        task_status.started()
        try:
            heard_at["ready"] = [await anyio.to_thread.run_sync(manager.hear)]
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep_forever()
        finally:
            heard_at["stop"] = manager.heard()

    with anyio.fail_after(20):
        await run_service(Supervisor([slow]))

    assert heard_at == {"start": [], "ready": ["READY=1"], "stop": ["STOPPING=1"]}
    assert manager.heard() == []


async def test_systemd_hears_of_an_end_without_a_signal(manager: Manager) -> None:
    supervisor = Supervisor([forever])

    async def stop() -> None:
        await anyio.to_thread.run_sync(manager.hear)
        await supervisor.stop()

    async with anyio.create_task_group() as tg:
        tg.start_soon(stop)
        await run_service(supervisor)

    assert manager.heard() == ["STOPPING=1"]


async def test_systemd_is_never_told_that_a_stopping_service_is_ready(manager: Manager) -> None:
    announcer = _Announcer()
    announcer.stopping()
    announcer.ready()
    announcer.stopping()

    assert manager.heard() == ["STOPPING=1"]


async def test_the_watchdog_is_pinged_while_children_start_and_run(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    heard: list[str] = []

    async def slow(*, task_status: TaskStatus[None]) -> None:
        while heard.count("WATCHDOG=1") < 3:
            heard.append(await anyio.to_thread.run_sync(manager.hear))
        task_status.started()
        while heard.count("WATCHDOG=1") < 6:
            heard.append(await anyio.to_thread.run_sync(manager.hear))
        signal.raise_signal(signal.SIGTERM)
        await anyio.sleep_forever()

    with anyio.fail_after(20):
        await run_service(Supervisor([slow]))

    assert heard[:3] == 3 * ["WATCHDOG=1"]
    assert "READY=1" in heard


async def test_a_service_that_fails_raises_as_its_supervisor_does(manager: Manager) -> None:
    async def bad_start(*, task_status: TaskStatus[None]) -> None:
        raise ValueError

    with pytest.raises(StartError):
        await run_service(Supervisor([bad_start]))
    assert manager.heard() == []
    with pytest.raises(MaxRestartsError):
        await run_service(Supervisor([ends_badly]))
    assert manager.heard()[-1] == "STOPPING=1"


async def test_a_stop_during_the_start_that_no_signal_asked_for_is_an_error() -> None:
    supervisors: list[Supervisor] = []

    async def stops(*, task_status: TaskStatus[None]) -> None:
        await supervisors[0].stop()

    supervisors.append(Supervisor([stops]))
    with pytest.raises(NotRunningError):
        await run_service(supervisors[0])


async def test_a_service_that_is_cancelled_stops_its_children(manager: Manager) -> None:
    started = anyio.Event()
    stopped = []

    async def child() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append(manager.heard()[-1])

    async with anyio.create_task_group() as tg:
        tg.start_soon(run_service, Supervisor([child]))
        await started.wait()
        await anyio.wait_all_tasks_blocked()
        tg.cancel_scope.cancel()

    assert stopped == ["STOPPING=1"]


async def test_only_the_main_thread_can_take_signals() -> None:
    backend = sniffio.current_async_library()

    def elsewhere() -> None:
        anyio.run(run_service, Supervisor([forever], name="app"), backend=backend)

    with pytest.raises(SupervisorError, match=r"'app' on signals: only the main .*signals=\(\)"):
        await anyio.to_thread.run_sync(elsewhere)


async def test_without_signals_any_thread_can_run_a_service() -> None:
    backend = sniffio.current_async_library()
    log = []

    def elsewhere() -> None:
        supervisor = Supervisor([forever])

        async def main() -> None:
            async with anyio.create_task_group() as tg:
                tg.start_soon(partial(run_service, supervisor, signals=()))
                await anyio.wait_all_tasks_blocked()
                log.append(supervisor.tree().phase)
                await supervisor.stop()

        anyio.run(main, backend=backend)

    await anyio.to_thread.run_sync(elsewhere)

    assert log == ["running"]


# -- stop_on_signals -----------------------------------------------------------


async def test_other_signals_are_taken_only_when_asked_for() -> None:
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)

    supervisor = Supervisor([once(signal.SIGUSR1)])
    with anyio.fail_after(20):
        async with stop_on_signals(supervisor, signal.SIGUSR1):
            assert signal.getsignal(signal.SIGTERM) == before[1]
            assert signal.getsignal(signal.SIGUSR1) != before[0]
            await supervisor.run()

    assert signal.getsignal(signal.SIGUSR1) == before[0]


async def test_it_works_around_a_supervisor_and_within_it() -> None:
    supervisor = Supervisor([once()])
    with anyio.fail_after(20):
        async with stop_on_signals(supervisor), supervisor:
            await supervisor.wait()

    supervisor = Supervisor([forever])
    with anyio.fail_after(20):
        async with supervisor, stop_on_signals(supervisor):
            os.kill(os.getpid(), signal.SIGTERM)
            await supervisor.wait()


async def test_a_signal_before_the_supervisor_runs_cancels_the_block(
    caplog: pytest.LogCaptureFixture,
) -> None:
    supervisor = Supervisor([forever], name="app")

    with anyio.fail_after(20):
        async with stop_on_signals(supervisor):
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep_forever()

    assert "SIGTERM: supervisor app does not run; leaving" in caplog.text


async def test_a_signal_after_its_end_cancels_the_block() -> None:
    supervisor = Supervisor([once()])

    with anyio.fail_after(20):
        async with stop_on_signals(supervisor), supervisor:
            await supervisor.wait()
            await supervisor.stop()
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep_forever()


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    error = ValueError()

    with pytest.raises(ValueError) as caught:
        async with stop_on_signals(Supervisor([forever])):
            raise error

    assert caught.value is error


async def test_another_supervisor_that_does_not_run_is_an_error_even_after_a_signal() -> None:
    supervisor, other = Supervisor([once()], name="app"), Supervisor([forever], name="other")

    async def block() -> None:
        async with stop_on_signals(supervisor):
            await supervisor.run()
            await other.stop()

    with pytest.raises(NotRunningError) as caught:
        await block()

    assert caught.value.supervisor == "other"


async def test_a_signal_that_cannot_be_taken_leaves_all_as_it_was() -> None:
    with pytest.raises((RuntimeError, OSError, ValueError)):
        async with stop_on_signals(Supervisor([forever]), signal.SIGTERM, signal.SIGKILL):
            pass  # pragma: no cover - never reached


async def test_a_handler_from_before_is_put_back() -> None:
    heard = []

    def handler(number: int, frame: object) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with anyio.fail_after(20):
            await run_service(Supervisor([once()]))
        assert signal.getsignal(signal.SIGTERM) is handler
        assert heard == []

        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_an_inner_one_never_leaves_the_process_deaf() -> None:
    inner, outer = Supervisor([once()]), Supervisor([forever])

    async with stop_on_signals(outer), outer:
        with anyio.fail_after(20):
            await run_service(inner)
        outer_works = sniffio.current_async_library() == "trio"
        assert (signal.getsignal(signal.SIGTERM) is signal.SIG_DFL) is not outer_works
        assert outer.tree().phase == "running"


async def test_a_helper_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    failed = anyio.Event()

    async def bad_helper() -> None:
        failed.set()
        raise ValueError("bad helper")

    async with beside(bad_helper):
        await failed.wait()

    assert "ValueError: bad helper" in caplog.text


# -- whole programs ------------------------------------------------------------

SCRIPT = """
import faulthandler, logging, math, signal, sys, time
import anyio
from backplane.supervisor import ChildSpec, Restart, Supervisor
from backplane.supervisor._signals import run_service

faulthandler.dump_traceback_later(60, exit=True)
logging.basicConfig(level=logging.INFO, format="%(message)s")

def say(text):
    print(text, flush=True)

async def orderly(name):
    try:
        await anyio.sleep_forever()
    finally:
        say(f"{name} ends")

async def never_ready(*, task_status):
    say("ready")
    await orderly("never ready")

async def stubborn():
    told = False
    while True:
        try:
            await anyio.sleep(3600)
        except BaseException:
            if not told:
                told = True
                say("no")

async def ready():
    say("ready")
    await anyio.sleep_forever()

async def ends_badly():
    raise ValueError

a, b = ChildSpec("a", orderly, ("a",)), ChildSpec("b", orderly, ("b",))
children = {
    "orderly": [a, b, ready],
    "starting": [a, never_ready],
    "stubborn": [a, ChildSpec("stubborn", stubborn, shutdown=math.inf), ready],
    "failing": [a, ends_badly],
}[sys.argv[2]]
async def main():
    await run_service(Supervisor(children, name="app"))
    say(f"over, {signal.getsignal(signal.SIGTERM).name}")

anyio.run(main, backend=sys.argv[1])
"""

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Program:
    """A program of its own that runs a service."""

    def __init__(self, backend: str, scenario: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, backend, scenario],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_until(self, text: str) -> None:
        assert self._process.stdout is not None
        assert any(text in line for line in self._process.stdout), f"it never said {text!r}"

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        out, err = self._process.communicate(timeout=60)
        return self._process.returncode, out.splitlines(), err


@both
@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_that_is_told_to_stop_exits_with_0(backend: str, number: signal.Signals) -> None:
    program = Program(backend, "orderly")
    program.read_until("ready")
    program.send(number)
    code, out, err = program.end()

    assert (code, out) == (0, ["b ends", "a ends", "over, SIG_DFL"])
    assert err == f"{number.name}: supervisor app stops\n"


@both
def test_a_program_that_starts_can_be_interrupted(backend: str) -> None:
    program = Program(backend, "starting")
    program.read_until("ready")
    program.send(signal.SIGINT)
    code, out, err = program.end()

    assert (code, out) == (0, ["never ready ends", "a ends", "over, SIG_DFL"])
    assert err == "SIGINT: supervisor app stops\n"


@pytest.mark.parametrize("second", SIGNALS)
def test_a_program_with_a_child_that_refuses_to_end_ends_by_a_second_signal(
    second: signal.Signals,
) -> None:
    program = Program("asyncio", "stubborn")
    program.read_until("ready")
    program.send(signal.SIGTERM)
    program.read_until("no")
    program.send(second)
    code, out, err = program.end()

    assert (code, out[-1]) == (0, "over, SIG_DFL")
    assert "a ends" in out
    assert f"{second.name} again: supervisor app kills all" in err
    assert "stubborn did not stop in time and was killed" in err


def test_on_trio_a_zombie_keeps_the_program_until_a_third_signal() -> None:
    program = Program("trio", "stubborn")
    program.read_until("ready")
    program.send(signal.SIGTERM)
    program.read_until("no")
    program.send(signal.SIGTERM)
    program.read_until("over")
    program.send(signal.SIGTERM)
    code, _, err = program.end()

    assert code == -signal.SIGTERM
    assert "stubborn could not be killed, and runs on as a zombie" in err


@both
def test_a_program_whose_supervisor_gives_up_fails(backend: str) -> None:
    code, out, err = Program(backend, "failing").end()

    assert (code, out) == (1, ["a ends"])
    assert "MaxRestartsError: supervisor 'app' gave up" in err
