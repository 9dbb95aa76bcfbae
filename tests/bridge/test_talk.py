"""Users' messages and requests between nodes."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest
import sniffio

from backplane import Device, Disconnected, Killed, Line, LinkError
from backplane.bridge import (
    Asked,
    BridgeError,
    BusyError,
    EncodeError,
    EndedError,
    Limits,
    NotAllowedError,
    NotConnectedError,
    PayloadError,
    RemoteError,
    Right,
    ask,
    call,
    tell,
    wait_tell,
)

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from nodes import Desk, Way, monitor, news, until
else:
    from .nodes import Desk, Way, monitor, news, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("discreet", "no_socket_left", "nothing_of_nodes_left"),
]
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
by_tcp = pytest.mark.parametrize("way", ["tcp"], indirect=True)
by_memory = pytest.mark.parametrize("way", ["memory"], indirect=True)


class Order(msgspec.Struct):
    article: str
    count: int = 1


@dataclass
class Point:
    x: int
    y: int


async def test_messages_arrive_in_their_order(way: Way) -> None:
    async with way.pair() as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)

        for number in range(500):
            tell(line, number)
        await wait_tell(line, 500)

        await until(lambda: len(desk.told) == 501)
        assert desk.told == list(range(501))


async def test_a_request_is_answered(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far, port=Desk(answers=lambda question: question * 2))

        assert await call(line, 21) == 42
        assert await call(line, "ab", None) == "abab"


async def test_many_requests_at_once_get_each_its_answer(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far, port=Desk(answers=lambda question: question + 1))
        answers: dict[int, int] = {}

        async def one(number: int) -> None:
            answers[number] = await call(line, number)

        async with anyio.create_task_group() as tg:
            for number in range(100):
                tg.start_soon(one, number)

        assert answers == {number: number + 1 for number in range(100)}
        assert world.a.stats().peers[0].calls == world.b.stats().peers[0].calls == 0


@by_memory
@two_loops
async def test_an_answer_is_opened_as_a_type(way: Way) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far, port=Desk(answers=lambda question: question))

        assert await call(line, Order("tea", 2), as_type=Order) == Order("tea", 2)
        assert await call(line, Point(1, 2), as_type=Point) == Point(1, 2)
        assert await call(line, [1, 2], as_type=tuple[int, int]) == (1, 2)
        with pytest.raises(PayloadError, match="a message is no Order"):
            await call(line, "coffee", as_type=Order)


@by_memory
@two_loops
async def test_what_has_no_form_is_refused_before_it_is_sent(way: Way) -> None:
    async with way.pair() as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)

        for thing in (object(), 1 << 70, ValueError()):
            with pytest.raises(EncodeError):
                tell(line, thing)
            with pytest.raises(EncodeError):
                await call(line, thing)
        with pytest.raises(EncodeError, match="too large"):
            tell(line, bytes(1 << 20))

        tell(line, "this")
        await until(lambda: desk.told)
        assert desk.told == ["this"]
        assert world.a.stats().peers[0].calls == 0


@two_loops
async def test_a_device_of_this_process_is_talked_to_directly() -> None:
    here = Device()

    for talk in (tell, lambda line, message: ask(line, message, None, lambda: None)):
        with pytest.raises(ValueError, match="leads to a Device of this process"):
            talk(here.line(), "anything")


@by_memory
@two_loops
@pytest.mark.parametrize("wrong", [-1, float("inf"), float("nan")])
async def test_a_time_that_is_none_is_refused_here(way: Way, wrong: float) -> None:
    async with way.pair() as world:
        far = Device()
        line = await world.reach(far, port=Desk(answers=lambda question: question))

        with pytest.raises(ValueError, match="no time to wait"):
            await call(line, "question", wrong)

        assert await call(line, "still there") == "still there"


# -- requests without an answer ------------------------------------------------------------


async def test_no_answer_in_time(way: Way) -> None:
    async with way.pair() as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)

        with pytest.raises(TimeoutError, match=r"did not answer within 0\.02 seconds"):
            await call(line, "question", 0.02)

        await until(lambda: desk.asked and world.b.stats().peers[0].calls == 0)
        assert desk.asked[0].reply("late") is False
        assert world.a.stats().peers[0].calls == 0


@by_memory
@two_loops
async def test_a_cancelled_request_is_told_of_over_there(way: Way) -> None:
    async with way.pair() as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)
        over: list[bool] = []

        async with anyio.create_task_group() as tg:
            tg.start_soon(call, line, "question", None)
            await until(lambda: desk.asked)
            desk.asked[0].over = lambda: over.append(True)
            tg.cancel_scope.cancel()

        await until(lambda: over)
        assert world.a.stats().peers[0].calls == world.b.stats().peers[0].calls == 0


async def test_who_is_asked_ends_first(way: Way) -> None:
    async with way.pair() as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)
        near = monitor(line)

        async def end() -> None:
            await until(lambda: desk.asked)
            far.disconnect(Killed())

        async with anyio.create_task_group() as tg:
            tg.start_soon(end)
            with pytest.raises(EndedError) as caught:
                await call(line, "question", None)
        assert caught.value.fault == Killed()
        assert await news(near) == Disconnected(far.id, Killed())
        with pytest.raises(EndedError) as caught:
            await call(line, "another")
        assert caught.value.fault == Killed()


@by_memory
@two_loops
async def test_a_request_fails_over_there(way: Way) -> None:
    def fail(question: Any) -> Any:
        raise LookupError("not in stock")

    async with way.pair() as world:
        far = Device()
        line = await world.reach(far, port=Desk(answers=fail))

        with pytest.raises(RemoteError) as caught:
            await call(line, "question")

        assert str(caught.value) == "builtins.LookupError: not in stock"
        assert world.to_b.connected


TALKS: dict[str, Any] = {
    "tell": tell,
    "tell by force": lambda line, message: tell(line, message, force=True),
    "wait_tell": wait_tell,
    "call": call,
    "ask": lambda line, message: ask(line, message, None, lambda: None),
}


async def said(talk: Any, line: Line) -> None:
    """Say something, in whatever way."""
    result = talk(line, "anything")
    if result is not None and not isinstance(result, Asked):
        await result


@by_memory
@two_loops
@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
async def test_who_has_no_right_to_talk_or_nobody_to_talk_to_is_told_here(
    way: Way, talk: Any
) -> None:
    async with way.pair() as world:
        far = Device()
        sent = world.a.open_line(world.b.pack_line(far.line()))
        for line in (await world.reach(far), await world.reach(far, Right.MONITOR, Desk()), sent):
            with pytest.raises(NotAllowedError) as caught:
                await said(talk, line)

            assert isinstance(caught.value, BridgeError)
            assert isinstance(caught.value, LinkError)
            assert (caught.value.device, caught.value.node) == (far.id, "b")
            assert f"{far.id!r} of node 'b' is exported without a port" in str(caught.value)
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
            assert line.connected
        assert world.a.stats().peers[0].calls == world.b.stats().peers[0].unheard == 0


@by_memory
@two_loops
@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
async def test_who_talks_to_one_that_has_ended_is_told_why(way: Way, talk: Any) -> None:
    async with way.pair() as world:
        far, desk = Device(), Desk()
        line = await world.reach(far, port=desk)
        near = monitor(line)
        far.disconnect(Killed())
        await news(near)

        if talk is TALKS["ask"]:
            over = anyio.Event()
            asked = ask(line, "anything", None, over.set)
            await over.wait()
            with pytest.raises(EndedError) as caught:
                asked.result()
        else:
            with pytest.raises(EndedError, match=r"has ended: Killed\(\)") as caught:
                await said(talk, line)

        assert caught.value.fault == Killed()
        assert world.to_b.connected


@by_memory
@two_loops
@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
async def test_who_talks_over_a_connection_that_is_lost_is_told_why(way: Way, talk: Any) -> None:
    async with way.pair() as world:
        line = await world.reach(world.b.device, port=Desk())
        near = monitor(line)
        world.to_a.close()
        await news(near)

        with pytest.raises(NotConnectedError) as caught:
            await said(talk, line)

        assert caught.value.node == "b"
        assert str(caught.value).startswith("cannot ")
        assert str(caught.value).endswith(": node 'b' has closed the connection; connect again")


@by_memory
@two_loops
async def test_what_comes_for_nobody_is_counted_and_logged_once_a_minute(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    """An honest peer sends no such thing, but for what was on its way as a port was taken back."""
    async with way.pair() as world:
        far, desk = Device(), Desk()
        line = await world.reach(far, port=desk)
        world.b.revoke(far)
        for _ in range(5):
            tell(line, "too late")

        await until(lambda: world.b.stats().peers[0].unheard == 5)
        assert desk.told == []
        said = [text for text in caplog.messages if "reached nobody" in text]
        assert said == [
            "node 'b': a message from 'a' reached nobody: its Device has no port, or 'a' may not "
            "talk to it, or it was revoked"
        ]


async def test_the_connection_is_lost_first(way: Way) -> None:
    async with way.pair() as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)

        async def lose() -> None:
            await until(lambda: desk.asked)
            world.to_a.close()

        async with anyio.create_task_group() as tg:
            tg.start_soon(lose)
            with pytest.raises(NotConnectedError, match="wait for the answer"):
                await call(line, "question", None)


@by_memory
@two_loops
async def test_a_line_in_an_answer_that_is_opened_too_late_has_ended(way: Way) -> None:
    """Nobody would ever hear of its end: the connection that it came by is gone."""
    async with way.pair() as world:
        other = Device()
        far = Device()
        line = await world.reach(far, port=Desk(answers=lambda question: other.line()))
        answers: list[Line] = []

        def hear() -> None:
            world.a.peer("b")._session.down(NotConnectedError("b"))

        asked = ask(line, "where is it?", None, hear)
        await until(lambda: asked.over)
        answers.append(asked.result())

        assert not answers[0].connected


# -- slow peers --------------------------------------------------------------------------------


def flood(line: Line) -> None:
    """Send more than is taken at once; nobody reads meanwhile."""
    for _ in range(100):
        tell(line, "x" * 10_000)


SMALL = Limits(outbox=1 << 16, frame=1 << 16, outbox_hard=1 << 18)


@by_tcp
async def test_a_slow_peer_makes_senders_wait_and_nothing_is_lost(way: Way) -> None:
    async with way.pair(limits=SMALL) as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)
        message = "x" * 10_000

        with pytest.raises(BusyError, match="bytes wait to be written to node 'b'") as caught:
            flood(line)
        assert str(caught.value).endswith(f", more than Limits(outbox={SMALL.outbox})")
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), vars(again)) == (str(caught.value), vars(caught.value))
        assert caught.value.waiting > SMALL.outbox
        with pytest.raises(BusyError):
            await call(line, message)
        sent = caught.value.waiting // 10_000
        tell(line, "urgent", force=True)
        for _ in range(50):
            await wait_tell(line, message)

        await until(lambda: len(desk.told) == sent + 51)
        assert desk.told[sent] == "urgent"
        assert world.to_b.connected
        assert world.a.stats().peers[0].waiting == 0


@by_tcp
@two_loops
async def test_waiting_for_a_slow_peer_can_be_cancelled_and_then_nothing_was_sent(way: Way) -> None:
    async with way.pair(limits=SMALL) as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)
        with pytest.raises(BusyError):
            flood(line)

        with anyio.CancelScope() as scope:
            scope.cancel()
            await wait_tell(line, "never")

        await wait_tell(line, "last")
        await until(lambda: desk.told and desk.told[-1] == "last")
        assert "never" not in desk.told


@by_tcp
async def test_those_who_wait_for_a_slow_peer_have_their_turn_in_the_order_of_coming(
    way: Way,
) -> None:
    async with way.pair(limits=SMALL) as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)
        session = world.to_b._session
        async with anyio.create_task_group() as tg:
            with pytest.raises(BusyError):
                flood(line)
            before = session.outbox.waiting // 10_000
            session.outbox.waiting += 1 << 17  # there is no room, whatever is written
            for number in range(30):
                tg.start_soon(wait_tell, line, number)
                await until(lambda number=number: len(session.outbox.room) == number + 1)  # type: ignore[misc]
            session.outbox.waiting -= 1 << 17
            session.outbox.room.open()

        await until(lambda: len(desk.told) == before + 30)
        heard = [number for number in desk.told if isinstance(number, int)]
        if sniffio.current_async_library() == "trio":  # which runs those in any order who can run
            heard.sort()
        assert heard == list(range(30))


@by_memory
@two_loops
@pytest.mark.parametrize("how", ["lost", "closed", "ended"])
async def test_who_waits_for_a_slow_peer_hears_that_it_is_in_vain(way: Way, how: str) -> None:
    async with way.pair(limits=SMALL) as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)
        near = monitor(line)
        session = world.to_b._session
        errors: list[Exception] = []

        async def wait() -> None:
            try:
                await wait_tell(line, "in vain")
            except (EndedError, NotConnectedError) as error:
                errors.append(error)

        async with anyio.create_task_group() as tg:
            with pytest.raises(BusyError):
                flood(line)
            session.outbox.waiting += 1 << 17  # from now on there is no room
            for number in range(3):
                tg.start_soon(wait)
                await until(lambda number=number: len(session.outbox.room) == number + 1)  # type: ignore[misc]
            if how == "lost":
                session.down(NotConnectedError("b"))
            elif how == "closed":
                world.to_b.close()
            else:
                far.disconnect(Killed())
                await news(near)
                session.outbox.waiting -= 1 << 17
                session.outbox.room.open()

        kind = EndedError if how == "ended" else NotConnectedError
        assert [type(error) for error in errors] == [kind] * 3
        assert len(session.outbox.room) == 0
        assert "in vain" not in desk.told


# -- threads -----------------------------------------------------------------------------------


@by_tcp
async def test_messages_are_sent_from_any_thread(way: Way) -> None:
    async with way.pair() as world:
        desk, far = Desk(), Device()
        line = await world.reach(far, port=desk)

        def work(thread: int) -> None:
            for number in range(100):
                tell(line, [thread, number])

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
        for each in threads:
            each.start()
        await until(lambda: len(desk.told) == 400)
        for each in threads:
            each.join()

        for thread in range(4):
            mine = [number for who, number in desk.told if who == thread]
            assert mine == list(range(100))
