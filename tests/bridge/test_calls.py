"""Requests: each is over once, with its answer or the reason why there is none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from backplane import (
    Cancelled,
    Cascaded,
    Device,
    DeviceID,
    Dropped,
    Failed,
    Fault,
    Killed,
    NoConnection,
)
from backplane.bridge._errors import (
    BusyError,
    EncodeError,
    EndedError,
    FrameError,
    NobodyError,
    NotConnectedError,
    PayloadError,
    RemoteError,
)
from backplane.bridge._exports import Right
from backplane.bridge._frames import Call, Cancel, Frame, Refuse, Reply, WireFault
from backplane.bridge._limits import Limits
from backplane.bridge._requests import Asked, Message, Request, error_of

if TYPE_CHECKING:
    from liar import Liar
    from wire import End, pair
else:
    from .liar import Liar
    from .wire import End, pair

NIL = msgspec.Raw(b"\xc0")


class Desk:
    """A port that keeps its requests, or does something with them."""

    def __init__(self, does: Callable[[Request], object] | None = None) -> None:
        self.requests: list[Request] = []
        self._does = does

    def tell(self, message: Message) -> None:
        raise AssertionError("nobody tells")

    def call(self, request: Request) -> None:
        self.requests.append(request)
        if self._does is not None:
            self._does(request)


class Asking:
    """Two nodes, and a desk at one of them."""

    def __init__(
        self,
        does: Callable[[Request], object] | None = None,
        rights: Right = Right.ALL,
        **options: Any,
    ) -> None:
        self.here, self.there, self.wire = pair(**options)
        self.device, self.desk = Device("desk"), Desk(does)
        self.token = self.there.exports.mint(self.device.line(), rights, self.desk).token
        self.over: list[Asked] = []

    def ask(self, value: Any = None, seconds: float | None = None, settle: bool = True) -> Asked:
        session = self.wire.a
        raw = session.payloads.pack(value)
        made: list[Asked] = []
        asked = session.calls.ask(self.token, raw, seconds, lambda: self.over.append(made[0]))
        made.append(asked)
        if settle:
            self.wire.settle()
        return asked

    @property
    def left(self) -> int:
        """What the two sides hold of requests."""
        sides = (self.wire.a.calls, self.wire.b.calls)
        return sum(len(calls) + sum(map(len, calls._desks.values())) for calls in sides)


# -- answers --------------------------------------------------------------------------------------


def test_a_request_is_answered() -> None:
    asking = Asking(lambda request: request.reply(request.open(int) + 1))
    asked = asking.ask(5)

    assert asking.over == [asked]
    assert asked.over
    assert asked.result(int) == 6
    assert asking.left == 0


def test_answers_may_come_in_any_order() -> None:
    asking = Asking()
    asks = [asking.ask(n) for n in range(5)]
    for n in (3, 0, 4, 1, 2):
        assert asking.desk.requests[n].reply(n * 10)
        asking.wire.settle()

    assert [asked.result() for asked in asks] == [0, 10, 20, 30, 40]
    assert asking.over == [asks[n] for n in (3, 0, 4, 1, 2)]


def test_none_is_an_answer() -> None:
    asking = Asking(lambda request: request.reply(None))

    assert asking.ask().result() is None


def test_a_request_knows_who_asks_whom_and_for_how_long() -> None:
    asking = Asking()
    asking.ask("secret", 2)
    [request] = asking.desk.requests

    assert request.node == "a"
    assert request.device == asking.device.id
    assert request.seconds == 2.0
    assert request.open(str) == "secret"
    assert repr(request) == "<Request 1 from 'a'>"
    assert request.ref == 1


@pytest.mark.parametrize(("seconds", "seen"), [(0, 0.0), (float("inf"), None), (None, None)])
def test_times_that_can_be_waited(seconds: float | None, seen: float | None) -> None:
    asking = Asking()
    asking.ask(seconds=seconds)

    assert asking.desk.requests[0].seconds == seen
    assert asking.wire.b.is_up


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("-inf")])
def test_times_that_cannot(seconds: float) -> None:
    asking = Asking()
    with pytest.raises(ValueError, match="cannot be waited for"):
        asking.ask(seconds=seconds)
    assert asking.left == 0


def test_an_answer_that_is_not_of_the_type_is_an_error() -> None:
    asking = Asking(lambda request: request.reply("text"))
    asked = asking.ask()

    with pytest.raises(PayloadError, match="a message is no int"):
        asked.result(int)


# -- refusals -------------------------------------------------------------------------------------


def test_a_request_may_fail() -> None:
    asking = Asking(lambda request: request.fail(KeyError("x")))

    with pytest.raises(RemoteError) as raised:
        asking.ask().result()
    assert str(raised.value) == "builtins.KeyError: 'x'"
    assert asking.left == 0


def test_a_port_that_raises_has_its_request_fail(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Request) -> None:
        raise ZeroDivisionError("oh")

    asking = Asking(broken)
    with caplog.at_level(logging.ERROR, "backplane.bridge"):
        asked = asking.ask("secret")

    with pytest.raises(RemoteError, match=r"^builtins\.ZeroDivisionError: oh$"):
        asked.result()
    assert "secret" not in caplog.text
    assert asking.wire.b.is_up
    assert asking.left == 0


def test_a_port_that_has_answered_and_then_raises_has_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(request: Request) -> None:
        request.reply(1)
        raise ZeroDivisionError

    asking = Asking(broken)
    with caplog.at_level(logging.ERROR, "backplane.bridge"):
        assert asking.ask().result() == 1
    assert asking.left == 0


def test_a_failure_whose_text_is_too_large_is_cut_short() -> None:
    """For a peer that takes little, even when it is the port's own exception."""

    def broken(request: Request) -> None:
        raise ValueError("ä" * 4000)

    asking = Asking(broken, limits=Limits(frame=4096))
    asked = asking.ask()
    with pytest.raises(RemoteError) as raised:
        asked.result()

    assert raised.value.text == "ä" * 100
    assert asking.wire.b.is_up


@pytest.mark.parametrize("rights", [Right.ALL & ~Right.TALK, Right(0)])
def test_who_may_not_talk_is_refused(rights: Right) -> None:
    asking = Asking(rights=rights)
    asked = asking.ask()

    with pytest.raises(NobodyError, match="nobody takes requests there"):
        asked.result()
    assert not asked.ended
    assert asking.desk.requests == []


def test_a_device_without_a_port_takes_no_requests() -> None:
    asking = Asking()
    other = Device()
    asking.token = asking.there.exports.mint(other.line(), Right.ALL).token

    with pytest.raises(NobodyError, match="nobody takes requests there"):
        asking.ask().result()


def test_who_is_asked_in_the_moment_of_his_end_has_ended_for_the_true_reason() -> None:
    """Another thread has ended the Device, and has not told anybody yet."""
    asking = Asking()
    board = asking.device._board
    board.end = board.setdefault("end", Killed())

    with pytest.raises(EndedError) as raised:
        asking.ask().result()

    assert raised.value.fault == Killed()


def test_a_token_that_was_never_given_out_takes_no_requests() -> None:
    asking = Asking()
    asking.token = bytes(12)
    asked = asking.ask()

    with pytest.raises(EndedError):
        asked.result()
    assert isinstance(asked.fault, Failed)


# -- the end of who was asked ---------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, Killed(), Cascaded(DeviceID(5, 5), Dropped())], ids=str)
@pytest.mark.parametrize("when", ["before", "after", "on the way"])
def test_who_was_asked_has_ended_and_the_reason_comes_at_once(
    fault: Fault | None, when: str
) -> None:
    asking = Asking()
    if when == "before":
        asking.device.disconnect(fault)
    asked = asking.ask(settle=when == "after")
    asking.device.disconnect(fault)
    asking.wire.settle()

    assert asking.over == [asked]
    assert asked.ended
    with pytest.raises(EndedError) as raised:
        asked.result()
    assert raised.value.fault == fault
    assert asking.left == 0
    assert len(asking.wire.b.mirror.ear) == 0


@pytest.mark.parametrize("known", [True, False])
def test_who_ends_in_another_thread_while_he_is_asked_has_ended(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = Asking()
    exports = asking.there.exports
    monkeypatch.setattr(exports, "get", lambda token: exports._tokens.get(token))
    if not known:
        monkeypatch.setattr(exports, "fault_of", lambda token: None)
    asked = asking.ask(settle=False)
    asking.device.disconnect(Killed())
    asking.wire.settle()

    assert asked.ended
    assert asked.fault == (Killed() if known else None)
    assert asking.left == 0


def test_a_device_that_ends_in_its_port_was_asked() -> None:
    asking = Asking(lambda _: asking.device.disconnect(Cancelled()))
    asked = asking.ask()

    assert asked.ended
    assert asked.fault == Cancelled()


def test_an_answer_that_was_given_before_the_end_counts() -> None:
    asking = Asking()
    asked = asking.ask()
    asking.desk.requests[0].reply("done")
    asking.device.disconnect(Killed())
    asking.wire.settle()

    assert asked.result() == "done"
    assert asking.over == [asked]
    assert asking.left == 0


def test_the_end_of_one_device_is_not_that_of_another() -> None:
    asking = Asking()
    one = asking.ask(1)
    other, asking.device = asking.device, Device()
    asking.token = asking.there.exports.mint(asking.device.line(), Right.ALL, asking.desk).token
    two = asking.ask(2)
    other.disconnect()
    asking.wire.settle()

    assert one.over
    assert not two.over


def test_who_is_asked_again_and_again_is_listened_to_all_the_time() -> None:
    asking = Asking(lambda request: request.reply(None))
    board: Any = asking.device._board
    asking.ask()
    before = dict(board)
    for _ in range(3):
        asking.ask()
        assert dict(board) == before
    asking.device.disconnect()
    asking.wire.settle()

    assert len(asking.wire.b.mirror.ear) == 0
    assert not asking.wire.b.calls._desks
    assert not asking.wire.b.calls._of


def test_few_are_listened_to_that_nobody_asks_any_longer() -> None:
    asking = Asking(lambda request: request.open() and request.reply(None))
    mint, calls = asking.there.exports.mint, asking.wire.b.calls
    devices = [Device() for _ in range(1000)]
    asks = []
    for device in devices:
        for rights in (Right.ALL, Right.TALK):
            asking.token = mint(device.line(), rights, asking.desk).token
            asks.append(asking.ask(device is not devices[7]))

    assert [asked.over for asked in asks].count(False) == 2
    assert len(asking.wire.b.mirror.ear) <= 64
    assert len(calls._desks) <= 64
    assert set(calls._of) >= {devices[7].id, devices[-1].id}
    devices[7].disconnect(Killed())
    devices[-1].disconnect()
    asking.wire.settle()
    assert all(asked.over for asked in asks)
    assert len(asking.wire.b.mirror.ear) == len(calls._of)
    assert sum(map(len, calls._of.values())) == len(calls._desks)


# -- giving up ------------------------------------------------------------------------------------


def test_who_gives_up_hears_nothing_and_the_other_is_told() -> None:
    asking = Asking()
    asked = asking.ask()
    told: list[str] = []
    [request] = asking.desk.requests
    request.over = lambda: told.append("over")
    asked.give_up()
    asked.give_up()
    asking.wire.settle()

    assert told == ["over"]
    assert request.reply(1) is False
    assert request.fail(ValueError()) is False
    asking.wire.settle()
    assert asking.over == []
    assert asking.left == 0


def test_an_answer_that_crosses_the_cancel_reaches_nobody() -> None:
    asking = Asking()
    asked = asking.ask()
    asking.desk.requests[0].reply(1)
    asked.give_up()
    asking.wire.settle()

    assert asking.over == []
    assert asking.left == 0


def test_a_refusal_that_crosses_the_cancel_reaches_nobody() -> None:
    asking = Asking()
    asked = asking.ask()
    asking.device.disconnect()
    asked.give_up()
    asking.wire.settle()

    assert asking.over == []
    assert asking.left == 0


def test_what_was_given_up_before_it_was_sent_is_asked_and_cancelled() -> None:
    asking = Asking()
    asking.ask(settle=False).give_up()
    asking.wire.settle()

    assert len(asking.desk.requests) == 1
    assert asking.left == 0


def test_whoever_is_told_that_it_is_over_may_raise(caplog: pytest.LogCaptureFixture) -> None:
    def raises() -> None:
        raise ZeroDivisionError

    def watch(request: Request) -> None:
        request.over = raises

    asking = Asking(watch)
    with caplog.at_level(logging.ERROR, "backplane.bridge"):
        asking.ask().give_up()
        asking.wire.settle()
        asking.ask()
        asking.wire.lose()

    assert len(caplog.records) == 2
    assert "a port failed for a message from 'a'" in caplog.text


def test_whoever_hears_the_answer_may_raise(caplog: pytest.LogCaptureFixture) -> None:
    asking = Asking(lambda request: request.reply(1))
    device = Device()

    def raises() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "backplane.bridge"):
        asking.wire.a.calls.ask(asking.token, b"\xc0", None, raises)
        asking.wire.settle()
        asking.wire.a.calls.ask(asking.token, b"\xc0", None, raises)
        asking.wire.lose()

    assert device.connected
    assert len(caplog.records) == 2
    assert asking.here.downs == [asking.wire.a]


# -- answered twice -------------------------------------------------------------------------------


def test_only_the_first_answer_counts() -> None:
    asking = Asking()
    asked = asking.ask()
    [request] = asking.desk.requests

    assert request.reply(1) is True
    assert request.reply(2) is False
    assert request.fail(ValueError()) is False
    assert request.refuse(True, None) is False
    asking.wire.settle()
    assert request.reply(3) is False
    assert asked.result() == 1


def test_of_answers_from_many_threads_one_counts() -> None:
    asking = Asking()
    for _ in range(30):
        asked = asking.ask()
        request = asking.desk.requests.pop()
        gate = threading.Barrier(4)
        won: list[int] = []

        def answer(n: int, request: Request = request, gate: Any = gate, won: Any = won) -> None:
            gate.wait()
            if request.reply(n):
                won.append(n)

        threads = [threading.Thread(target=answer, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asking.wire.settle()

        assert won == [asked.result()]
    assert len(asking.over) == 30
    assert asking.left == 0


def test_requests_from_many_threads_have_numbers_of_their_own() -> None:
    asking = Asking(lambda request: request.reply(request.open()))
    asks: dict[int, Asked] = {}

    def ask(start: int) -> None:
        for n in range(start, start + 100):
            raw = msgspec.msgpack.encode(n)
            asks[n] = asking.wire.a.calls.ask(asking.token, raw, None, lambda: None)

    threads = [threading.Thread(target=ask, args=(n * 100,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asking.wire.settle()

    assert {n: asked.result() for n, asked in asks.items()} == {n: n for n in range(400)}


def test_an_answer_that_has_no_form_leaves_it_unanswered() -> None:
    asking = Asking()
    asked = asking.ask()
    [request] = asking.desk.requests
    for value in (object(), 1 << 70, "x" * (1 << 20)):
        with pytest.raises(EncodeError):
            request.reply(value)
    asking.wire.settle()
    assert not asked.over
    assert request.reply("good")
    asking.wire.settle()

    assert asked.result() == "good"


# -- the end of the connection --------------------------------------------------------------------


def test_requests_end_with_the_connection_at_both_ends() -> None:
    asking = Asking()
    asks = [asking.ask(), asking.ask(), asking.ask(settle=False)]
    told: list[int] = []
    for request in asking.desk.requests:
        request.over = lambda request=request: told.append(request.ref)
    asking.wire.lose()

    assert asking.over == asks[::-1]
    assert told == [1, 2]
    for asked in asks:
        assert asked.fault == NoConnection("b")
        with pytest.raises(NotConnectedError) as raised:
            asked.result()
        assert raised.value.node == "b"
    assert [request.reply(1) for request in asking.desk.requests] == [False, False]
    assert asking.left == 0
    asks[0].give_up()
    asking.wire.a.outbox.say(Cancel(1), force=True)  # as another thread does that is late


def test_nothing_can_be_asked_when_it_is_down() -> None:
    asking = Asking()
    asking.wire.lose()

    with pytest.raises(NotConnectedError):
        asking.ask()
    assert asking.left == 0


def test_nothing_is_asked_of_a_slow_peer() -> None:
    asking = Asking(limits=Limits(frame=4096, outbox=10_000, outbox_hard=20_000))
    while asking.wire.a.outbox.waiting <= 10_000:
        asking.ask("x" * 1000, settle=False)
    with pytest.raises(BusyError):
        asking.ask("x")
    calls = asking.wire.a.calls
    count = len(calls)
    asking.wire.settle()

    assert count == len(asking.desk.requests) == len(calls)


def test_a_request_that_is_too_large_is_not_asked() -> None:
    asking = Asking()
    with pytest.raises(EncodeError):
        asking.ask("x" * (1 << 20))
    assert asking.left == 0


# -- peers that lie -------------------------------------------------------------------------------


def lying(limits: Limits | None = None) -> tuple[Liar, Desk, bytes, Device]:
    end, desk, device = End("b", limits=limits or Limits()), Desk(), Device()
    token = end.exports.mint(device.line(), Right.ALL, desk).token
    return Liar(end).shake(), desk, token, device


def test_a_number_is_taken_once() -> None:
    liar, desk, token, device = lying()
    liar.say(Call(token, 1, None, NIL), Call(token, 1, None, NIL))

    assert str(liar.session.reason) == "a request with a number that is taken"
    assert len(desk.requests) == 1
    assert device.connected


def test_a_number_may_be_used_again_when_it_was_answered() -> None:
    liar, desk, token, device = lying()
    for _ in range(3):
        liar.say(Call(token, 1, None, NIL))
        desk.requests.pop().reply(None)
        assert liar.hear() == [Reply(1, NIL)]
    assert device.connected


def test_so_many_requests_at_once_and_no_more() -> None:
    liar, desk, token, device = lying(Limits(calls=10))
    for n in range(10):
        liar.say(Call(token, n, None, NIL))
    desk.requests[0].reply(None)
    liar.hear()
    liar.say(Call(token, 10, None, NIL))
    assert liar.session.is_up
    liar.say(Call(token, 11, None, NIL))

    assert str(liar.session.reason) == "more than 10 requests under way"
    assert device.connected


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), float("-inf")])
def test_an_impossible_time_is_an_error(seconds: float) -> None:
    liar, desk, token, device = lying()
    liar.say(Call(token, 1, seconds, NIL))

    assert isinstance(liar.session.reason, FrameError)
    assert desk.requests == []
    assert device.connected


@pytest.mark.parametrize(
    "frame",
    [Reply(1, NIL), Refuse(1, True, None), Refuse(1, False, WireFault("killed")), Cancel(1)],
)
def test_answers_that_nobody_waits_for_are_dropped(frame: Frame) -> None:
    liar, *_, device = lying()
    liar.say(frame, frame)

    assert liar.session.is_up
    assert len(liar.session.calls) == 0
    assert device.connected


def test_a_refusal_with_a_lie_in_it_is_a_lost_connection() -> None:
    liar, _, _, device = lying()
    over: list[Asked] = []
    asked = liar.session.calls.ask(bytes(12), b"\xc0", None, lambda: over.append(asked))
    liar.hear()
    liar.say(Refuse(asked.ref, False, WireFault("unheard of")))

    assert over == [asked]
    assert asked.fault == NoConnection("liar")
    assert device.connected


# -- what a failure is raised as ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Failed(RemoteError("x.Y", "z")), "x.Y: z"),
        (Failed(KeyboardInterrupt()), "backplane.Failed"),
        (Killed(), "backplane.Killed"),
        (None, "backplane.Cancelled"),
    ],
    ids=str,
)
def test_what_a_failure_is_raised_as(fault: Fault | None, text: str) -> None:
    assert str(error_of(fault)) == text
