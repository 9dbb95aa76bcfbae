"""Thousands of lives of a small cluster with a bad network; and whether they would tell a bug."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Failed
from backplane._plugboard import Plugboard
from backplane.bridge._calls import Calls
from backplane.bridge._ear import Ear
from backplane.bridge._exports import Exports
from backplane.bridge._frames import Fire
from backplane.bridge._handshake import Handshake
from backplane.bridge._mirror import GONE, Mirror
from backplane.bridge._outbox import Outbox
from backplane.bridge._outposts import Outposts
from backplane.bridge._pairs import Pairs
from backplane.bridge._peers import Peers
from backplane.bridge._pulse import Pulse
from backplane.bridge._session import Session
from backplane.bridge._speakers import Speakers
from backplane.bridge._states import TAKES, State

if TYPE_CHECKING:
    import sim
else:
    from . import sim

FULL = os.environ.get("CI") and os.environ.get("HYPOTHESIS_PROFILE") != "dev"
LIVES = 100_000 if FULL else 2_000
CORES = 2


def test_nothing_goes_wrong_in_any_life() -> None:
    share = LIVES // CORES
    runs = [
        subprocess.Popen(
            [sys.executable, sim.__file__, "--seeds", f"{start}-{start + share}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for start in range(0, LIVES, share)
    ]
    said = [run.communicate()[0] for run in runs]

    assert [run.returncode for run in runs] == [0] * CORES, "\n".join(said)
    assert all("none of them failed" in each for each in said)


def test_a_life_follows_from_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for _ in range(2):
        sim.play(7, loud=True)
        told.append(capsys.readouterr().out)

    # The numbers of Devices go on, and what is told does not show them.
    assert told[0] == told[1]
    assert len(told[0].splitlines()) > 20


def test_a_seed_can_be_played_from_the_command_line() -> None:
    run = subprocess.run(
        [sys.executable, sim.__file__, "--seed", "3", "--steps", "30"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "a dials b" in run.stdout
    assert "-- the faults stop" in run.stdout


# -- planted faults -------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: dict[str, tuple[int, Plant]] = {}


def plant(lives: int) -> Callable[[Plant], Plant]:
    """A fault that must be found within so many lives."""

    def add(fn: Plant) -> Plant:
        PLANTS[fn.__name__.replace("_", " ")] = lives, fn
        return fn

    return add


def edit(patch: pytest.MonkeyPatch, owner: type, name: str, *changes: tuple[str, str]) -> None:
    """Have a method do something else: its own text with changes."""
    method = inspect.unwrap(getattr(owner, name))
    text = textwrap.dedent(inspect.getsource(method))
    for old, new in changes:
        assert text.count(old) == 1, f"{owner.__name__}.{name} has no longer one {old!r}"
        text = text.replace(old, new)
    space: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + text, method.__globals__, space)
    patch.setattr(owner, name, space[name])


@plant(50)
def links_are_forgotten_when_the_connection_is_lost(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Mirror, "close", ("outpost.disconnect(lost)", "pass"))


@plant(500)
def a_line_gives_rights_that_it_has_not(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("backplane.bridge._outposts.permit", None)


@plant(500)
def who_is_refused_has_linked_half(patch: pytest.MonkeyPatch) -> None:
    def pair(self: Plugboard, other: Plugboard) -> None:
        self.listen(other)
        other.listen(self)

    patch.setattr(Plugboard, "pair", pair)


@plant(500)
def a_fire_overtakes_the_messages_before_it(patch: pytest.MonkeyPatch) -> None:
    put = Outbox.put
    patch.setattr(
        Outbox,
        "put",
        lambda self, frame, urgent=False: put(self, frame, urgent or isinstance(frame, Fire)),
    )


@plant(500)
def frames_of_a_lost_connection_are_applied(patch: pytest.MonkeyPatch) -> None:
    for name in ("receive", "_handle_all"):
        edit(patch, Session, name, ("if self.state is State.DOWN:", "if False:"))
    edit(patch, Session, "down", ("self._parser = Parser(0)", "pass"))
    patch.setitem(TAKES, State.DOWN, TAKES[State.UP])


@plant(500)
def an_unlisten_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mirror, "on_unlisten", lambda self, frame: None)


@plant(500)
def an_unlisten_is_not_said(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Speakers, "unlisten", ("self._put(Unlisten(token, speaker.line.token))", "pass"))


@plant(500)
def what_is_linked_from_both_sides_fires_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outposts, "_join", lambda self, new: None)


@plant(500)
def a_watch_of_one_that_is_gone_is_not_answered(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Mirror, "on_watch", ("self._put(Fire(token, ", "(Fire(token, "))


@plant(500)
def a_watch_of_one_that_is_gone_does_not_tell_why(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Exports, "fault_of", lambda self, token: (Failed(GONE),))


@plant(2000)
def what_is_forgotten_is_forgotten_though_it_is_there_again(patch: pytest.MonkeyPatch) -> None:
    edit(
        patch,
        Outposts,
        "remove",
        ("if self._outposts.get(token) is outpost:", "if token in self._outposts:"),
    )


@plant(1000)
def a_line_that_is_dropped_is_watched_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mirror, "on_unwatch", lambda self, frame: None)


@plant(1000)
def a_listener_that_has_ended_is_never_forgotten(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Speakers, "forget", ("self._forget_listener(device, key.line.token)", "pass"))


@plant(2000)
def a_link_that_was_told_is_not_told_again(patch: pytest.MonkeyPatch) -> None:
    edit(
        patch,
        Speakers,
        "_say_listen",
        (
            "    self._put(Listen(token, speaker.line))",
            "    token in speaker.listeners or self._put(Listen(token, speaker.line))",
        ),
    )


@plant(5000)
def a_speaker_has_another_token_each_time(patch: pytest.MonkeyPatch) -> None:
    edit(
        patch,
        Speakers,
        "_say_listen",
        (
            "self._put(Listen(token, speaker.line))",
            "self._put(Listen(token, pack_ended(self._me, device)))",
        ),
    )


@plant(5000)
def an_answer_overtakes_what_was_said_before(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Session, "_handle_all", ("if events:", "if False:"))


@plant(500)
def who_was_asked_has_ended_and_nobody_says_so(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Calls, "device_ended", lambda self, device, fault: None)


@plant(1000)
def a_request_that_was_given_up_is_answered(patch: pytest.MonkeyPatch) -> None:
    edit(
        patch,
        Calls,
        "give_up",
        ("self._asked.pop(asked.ref, None) is not None", "asked.ref in self._asked"),
    )


@plant(1000)
def a_request_that_was_given_up_is_kept_over_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Calls, "on_cancel", lambda self, frame: None)
    edit(patch, Calls, "answer", ("if not self._take", "if len(self._asked) or not self._take"))


@plant(500)
def requests_do_not_end_with_the_connection(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Calls, "close", ("asked.finish(None, False, NoConnection(node))", "pass"))


@plant(500)
def an_answer_counts_again(patch: pytest.MonkeyPatch) -> None:
    edit(
        patch,
        Calls,
        "_take",
        ("request.desk.pop(request, self)", "request.desk.get(request, self)"),
        ("del self.incoming[request.ref]", "self.incoming.pop(request.ref, None)"),
    )


@plant(2000)
def a_line_opened_after_the_loss_seems_to_live(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Outposts, "_make", ("if self._lost is None:", "if True:"))


@plant(500)
def two_connections_may_live(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Peers, "admit", lambda self, new: None)


@plant(2000)
def of_two_that_cross_each_node_keeps_its_own(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Peers, "admit", ("new.order >= old.order", "not new.dialled"))


@plant(1000)
def a_former_life_blocks_the_next(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "probe", lambda self, now: None)


@plant(1000)
def a_former_life_blocks_the_next_if_it_was_not_in_use_yet(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Pulse, "probe", ("self._until = min(self._until, now + PROBE)", "pass"))


@plant(1000)
def of_two_with_one_name_the_last_stays(patch: pytest.MonkeyPatch) -> None:
    rule = "return _refuse(*_rivals(old, new))"
    edit(patch, Peers, "admit", (rule, "old.down(DuplicateError(name))"))


@plant(1000)
def who_lives_fails_the_probe(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Pulse, "answered", ("pong.number == _PROBED", "False"))


@plant(1000)
def silence_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Pulse, "_lack", ("silent >= dead_after", "False"))


@plant(1000)
def a_peer_that_is_silent_for_a_heartbeat_is_given_up(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Pulse, "_lack", ("silent >= dead_after", "silent >= self._heartbeat / 2"))


@plant(500)
def a_close_overtakes_what_was_said_before(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Session, "close", ('.put(Close("bye"))', '.put(Close("bye"), True)'))


@plant(2000)
def messages_to_one_device_are_swapped(patch: pytest.MonkeyPatch) -> None:
    swapped = "(self._out.pop() if len(self._out) > 4 else self._out.popleft())"
    edit(
        patch,
        Outbox,
        "take",
        (
            "(self._urgent or self._out).popleft()",
            f"self._urgent.popleft() if self._urgent else {swapped}",
        ),
    )


@plant(500)
def links_of_one_that_has_ended_are_counted_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pairs, "discard_listener", lambda self, listener: ())


@plant(2000)
def who_hears_is_counted_once_too_often(patch: pytest.MonkeyPatch) -> None:
    edit(patch, Ear, "let_go", ("if left > 0:", "if left >= 0:"))


@plant(5000)
def a_ping_overtakes_the_first_frame(patch: pytest.MonkeyPatch) -> None:
    said = "session.outbox.put(Ready(), urgent=True)"
    edit(patch, Handshake, "on_proof", (said, "session.outbox.put(Ready())"))


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lives, fn = PLANTS[name]
    fn(monkeypatch)

    failure = sim.play_many(range(lives))

    assert failure is not None
    if os.environ.get("SHOW_PLANTS"):
        print(f"\n{name}: {failure}")  # noqa: T201
