"""Timers: never early, never after they were cancelled, never without their owner."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane.otp import (
    KILLED,
    NORMAL,
    SHUTDOWN,
    Exited,
    NoProcessError,
    NoRegistryError,
    NotInProcessError,
    Registry,
    Scope,
    Stopped,
    Timer,
    alias,
    current_process,
    exit_after,
    kill_after,
    register,
    send_after,
    send_every,
    spawn,
)

if TYPE_CHECKING:  # mypy knows it by another name than pytest
    from otp.process_world import lone, within
else:
    from .process_world import lone, within

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


async def idle() -> None:
    """Be there until told to end."""
    await current_process().receive(lambda message: message == "end")


@virtual
async def test_a_message_comes_when_it_is_due() -> None:
    async def main() -> None:
        me, began = current_process(), anyio.current_time()

        timer = send_after(60, me.pid, "ring")
        assert timer.left == pytest.approx(60)
        assert repr(timer) == f"<Timer due at {began + 60:g}>"
        message = await me.receive()

        assert message == "ring"
        assert anyio.current_time() - began == pytest.approx(60)
        assert not timer.active
        assert timer.left is None
        assert timer.due is None
        assert timer.cancel() is None
        assert repr(timer) == "<Timer over>"
        assert not me._at_end

    await within(main)


@virtual
async def test_after_a_cancel_nothing_comes() -> None:
    async def main() -> None:
        me = current_process()
        timer = send_after(60, me.pid, "ring")
        alarm = timer._alarm
        assert alarm is not None
        await anyio.sleep(20)

        assert timer.cancel() == pytest.approx(40)
        assert not alarm.cancel()  # it does not wait in the loop until it would be due
        assert timer.cancel() is None
        await anyio.sleep(100)

        assert not me.mailbox
        assert not me._at_end

    await within(main)


async def test_a_timer_is_never_early() -> None:
    async def main() -> None:
        me = current_process()
        for delay in 0, 0.001, 0.0105, 0.02:
            due = anyio.current_time() + delay  # a difference of two times would be rounded again
            timer = send_after(delay, me.pid, "ring")
            assert timer.due is not None
            assert timer.due >= due
            await me.receive()
            assert anyio.current_time() >= due

    await within(main)


@pytest.mark.parametrize("delay", [-1, math.inf, math.nan])
async def test_a_delay_must_be_finite_and_not_negative(delay: float) -> None:
    process = lone()

    for make in send_after, send_every:
        with pytest.raises(ValueError, match="a finite number of seconds"):
            make(delay, process.pid, "ring", owner=process.pid)
    with pytest.raises(ValueError, match="a finite number of seconds"):
        exit_after(delay, process.pid, owner=process.pid)

    assert not process._at_end


@virtual
async def test_timers_are_gone_with_their_owner() -> None:
    target = lone()
    timers: list[Timer] = []

    async def main() -> None:
        timers.append(send_after(60, target.pid, "ring"))
        timers.append(send_every(60, target.pid, "ring"))

    await within(main)

    assert not any(timer.active for timer in timers)
    await anyio.sleep(200)
    assert not target.mailbox
    assert not target._at_end


@virtual
async def test_a_timer_is_gone_with_its_target() -> None:
    owner, target = lone(), lone()
    once = send_after(60, target.pid, "ring", owner=owner.pid)
    often = send_every(60, target.pid, "ring", owner=owner.pid)

    target.end(NORMAL)

    assert once.left is None
    assert not often.active
    assert not owner._at_end


async def test_a_timer_to_a_dead_process_is_over_from_the_start() -> None:
    owner, target = lone(), lone()
    target.end(NORMAL)

    timer = send_after(0, target.pid, "ring", owner=owner.pid)

    assert not timer.active
    assert not owner._at_end


async def test_a_timer_has_an_owner_that_lives() -> None:
    owner, target = lone(), lone()
    owner.end(NORMAL)

    with pytest.raises(NotInProcessError, match="cannot set a timer"):
        send_after(0, target.pid, "ring")
    with pytest.raises(NotInProcessError, match="cannot set a timer"):
        exit_after(0, target.pid)
    with pytest.raises(NoProcessError, match="cannot set a timer"):
        send_after(0, target.pid, "ring", owner=owner.pid)

    assert not target._at_end


@virtual
async def test_a_name_is_looked_up_when_it_is_due() -> None:
    owner, first, second = lone(), lone(), lone()

    with Registry() as registry:
        register("name", first.pid)
        send_after(60, "name", 1, owner=owner.pid)
        send_after(60, registry.via("name"), 2, owner=owner.pid)
        first.end(NORMAL)
    registry.register("name", pid=second.pid)
    await anyio.sleep(61)

    assert sorted(second.mailbox) == [1, 2]


@virtual
async def test_to_a_name_that_is_free_nothing_is_sent() -> None:
    owner, late = lone(), lone()

    with Registry() as registry:
        once = send_after(60, "name", "once", owner=owner.pid)
        send_every(60, "name", "often", owner=owner.pid)
        exit_after(60, "name", owner=owner.pid)
    await anyio.sleep(61)
    registry.register("name", pid=late.pid)
    await anyio.sleep(60)

    assert not once.active
    assert list(late.mailbox) == ["often"]


async def test_a_plain_name_wants_a_registry_around() -> None:
    owner = lone()

    for make in send_after, send_every:
        with pytest.raises(NoRegistryError):
            make(1, "name", "ring", owner=owner.pid)
    with pytest.raises(NoRegistryError):
        exit_after(1, "name", owner=owner.pid)

    assert not owner._at_end


@virtual
async def test_what_does_not_fit_into_a_mailbox_is_lost() -> None:
    owner, target = lone(), lone(capacity=1)
    for message in 1, 2:
        send_after(message, target.pid, message, owner=owner.pid)

    await anyio.sleep(3)

    assert list(target.mailbox) == [1]


@virtual
async def test_a_target_that_raises_is_reported_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def send(self, message: object, /) -> bool:
            raise ZeroDivisionError(message)

    owner = lone()
    timer = send_every(60, Broken(), "ring", owner=owner.pid)

    await anyio.sleep(61)

    assert [record.message for record in caplog.records] == ["a timer could not send"]
    assert timer.active
    timer.cancel()


@virtual
async def test_a_message_can_go_to_an_alias() -> None:
    async def main() -> None:
        me = current_process()
        kept, revoked = alias(), alias()
        send_after(1, kept, "kept")
        send_after(1, revoked, "revoked")
        revoked.deactivate()
        await anyio.sleep(2)
        assert list(me.mailbox) == ["kept"]

    await within(main)


@virtual
async def test_ticks_come_at_whole_intervals_after_the_start() -> None:
    async def main() -> None:
        me, began = current_process(), anyio.current_time()
        timer = send_every(10, me.pid, "tick")
        assert timer.left == pytest.approx(10)
        for n in range(1, 5):
            await me.receive()
            assert anyio.current_time() - began == pytest.approx(10 * n)
            await anyio.sleep(n)  # what a tick leads to takes its time

        assert timer.cancel() == pytest.approx(6)
        await anyio.sleep(60)
        assert not me.mailbox

    await within(main)


async def test_ticks_that_a_busy_loop_has_missed_are_not_made_up_for() -> None:
    async def main() -> None:
        me, began = current_process(), anyio.current_time()
        timer = send_every(0.02, me.pid, "tick")
        due = timer.due
        time.sleep(0.07)  # noqa: ASYNC251 - the loop is to be busy

        await me.receive()
        first = anyio.current_time() - began
        await me.receive()
        second = anyio.current_time() - began

        assert due is not None
        assert timer.due is not None
        intervals = (timer.due - due) / 0.02
        assert intervals == pytest.approx(round(intervals))
        assert first >= 0.07
        assert second >= 0.08  # with its fellows made up for, it would have come at once
        assert timer.cancel() is not None

    await within(main)


async def test_an_interval_is_not_nothing() -> None:
    owner = lone()

    with pytest.raises(ValueError, match="interval must not be 0"):
        send_every(0, owner.pid, "tick", owner=owner.pid)


@virtual
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (exit_after, SHUTDOWN),
        (lambda delay, target: exit_after(delay, target, Stopped("late")), Stopped("late")),
        (kill_after, KILLED),
    ],
    ids=["exit", "exit with a reason", "kill"],
)
async def test_an_exit_comes_when_it_is_due(make: Callable[..., Timer], reason: object) -> None:
    async def main() -> None:
        began, pid = anyio.current_time(), spawn(idle)

        make(60, pid)

        assert await pid.wait() == reason
        assert anyio.current_time() - began == pytest.approx(60)

    await within(main)


@virtual
async def test_an_exit_is_sent_by_the_owner_of_its_timer() -> None:
    heard: list[Any] = []

    async def target() -> None:
        current_process().trap_exit = True
        heard.append(await current_process().receive())

    async def main() -> None:
        with Registry() as registry:
            pid = spawn(target)
            registry.register("target", pid=pid)
            exit_after(1, "target", "enough")
            await pid.wait()
        assert heard == [Exited(current_process().pid, "enough")]

    await within(main)


@virtual
async def test_a_process_can_have_itself_ended_later() -> None:
    async def main() -> None:
        exit_after(60, current_process().pid, "late")
        await anyio.sleep_forever()

    async with Scope() as scope:
        assert await scope.spawn(main).wait() == "late"

    assert 60 <= anyio.current_time() < 61


@virtual
async def test_an_exit_that_is_cancelled_does_not_come() -> None:
    async def main() -> None:
        pid = spawn(idle)
        assert exit_after(60, pid).cancel() == pytest.approx(60)
        await anyio.sleep(100)
        assert pid.alive

    await within(main)


async def test_an_owner_that_ends_in_another_thread_takes_its_timers_along() -> None:
    owner, target = lone(), lone()
    timer = send_after(0.02, target.pid, "ring", owner=owner.pid)
    often = send_every(0.02, target.pid, "ring", owner=owner.pid)

    thread = threading.Thread(target=owner.end, args=[NORMAL])
    thread.start()
    thread.join()

    assert not timer.active
    assert not often.active
    await anyio.sleep(0.05)  # in which their loop finds them cancelled
    assert not target.mailbox
    assert not target._at_end
