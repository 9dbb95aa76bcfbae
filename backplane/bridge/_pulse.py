"""When a peer is to be asked for a sign of life, and when it is given up.

Nothing here reads a clock, writes, or ends anything: it is told what happens and
when, and says what is due. There are two ways to be late. Until a connection is
in use, and again once it is being closed, there is a time by which that must be
over, whatever comes meanwhile. In between the peer must do three things, and is
given up when it fails in any of them for long:

* It is heard of: any byte of it counts.
* It takes what is written to it, or some of that.
* It answers, and so reads: it is asked when it is silent, and now and then if it is not.
"""

from __future__ import annotations

from typing import Final, final

from ._frames import Ping, Pong

PROBE: Final = 1.0
"""Seconds within which a peer has to show that it lives, while another of its name waits."""

_ASKED, _UNASKED, _PROBED = range(3)
"""What the numbers of a ``Ping`` and a ``Pong`` stand for. An unasked one answers nothing."""


@final
class Pulse:
    """The time of one connection. Whoever tells it of something tells it the time."""

    __slots__ = (
        "_dead_after", "_grace", "_granted_at", "_heard_at", "_heartbeat", "_looked_at",
        "_pinged_at", "_ponged_at", "_probe_until", "_shown_at", "_shows_for", "_until",
        "_writing_since", "_wrote_at", "now",
    )  # fmt: skip

    now: float
    """The time, as it was told last."""

    def __init__(self, now: float, heartbeat: float, dead_after: float, handshake: float) -> None:
        """Begin: it has to come up.

        Args:
            now: The time.
            heartbeat: Seconds of silence at most, either way; half of them are no cause for doubt.
            dead_after: Seconds until a peer is given up; for an answer it has twice as long.
            handshake: Seconds until it must be up. An answer to a probe counts for as long.
        """
        self._heartbeat = heartbeat
        self._dead_after = dead_after
        self._shows_for = handshake
        self._until: float | None = now + handshake
        """By when it must be up, or over. None: it is in use."""
        self.now = self._heard_at = self._wrote_at = self._looked_at = self._ponged_at = now
        self._grace = self._granted_at = now
        """Until when nobody is given up, and when that was granted."""
        self._writing_since: float | None = None
        self._pinged_at: float | None = None
        """When a question was asked that is not answered yet."""
        self._probe_until: float | None = None
        self._shown_at = float("-inf")

    # -- what happens ----------------------------------------------------------------------

    def heard(self, now: float) -> None:
        """Some bytes have come."""
        self.now = self._heard_at = now

    def writing(self) -> None:
        """Some bytes were taken to be written."""
        self._writing_since = self.now

    def wrote(self, now: float, all_: bool = True) -> None:
        """What was taken has been written, or some of it: then the peer takes bytes still."""
        self._wrote_at = self.now = now
        self._writing_since = None if all_ else now

    def come_up(self) -> None:
        """The connection is in use from now on."""
        self._until = None
        self._heard_at = self._wrote_at = self._looked_at = self._ponged_at = self.now

    def close(self, until: float) -> None:
        """It is being closed, and has so long for that."""
        self._until = until

    def answered(self, pong: Pong) -> None:
        """The peer has sent this."""
        if pong.number == _ASKED:
            self._pinged_at, self._ponged_at = None, self.now
        elif pong.number == _PROBED and self._probe_until is not None:
            self._probe_until, self._shown_at = None, self.now

    def probe(self, now: float) -> Ping | None:
        """Have the peer show within ``PROBE`` seconds that it lives, or take it into use.

        Return the question to ask it, if there is one to ask.
        """
        self.now = now
        if self._until is not None:
            self._until = min(self._until, now + PROBE)
        elif self._probe_until is None:
            self._probe_until = now + PROBE
            return Ping(_PROBED)
        return None

    # -- what is so, and what is due -------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether all that was taken is written."""
        return self._writing_since is None

    @property
    def has_shown_life(self) -> bool:
        """Whether it has answered a probe lately."""
        return self.now - self._shown_at <= self._shows_for

    def look(self, now: float, late: str) -> str | None:
        """Look at the time; return why the connection is over, if it is.

        A loop that was late itself (blocked, or the machine asleep) reads first
        what has come meanwhile: the peer gets as much time again.

        Args:
            now: The time.
            late: What to say if it was not up, or not over, by the time that it had.
        """
        since = now - self._looked_at
        self.now = self._looked_at = now
        if self._until is not None:
            return late if now >= self._until else None
        if (
            since > self._heartbeat and self._heard_at >= self._granted_at
        ):  # it looks twice as often
            self._granted_at, self._grace = now, now + self._dead_after
        if self._probe_until is not None and now >= self._probe_until:
            return "the peer did not answer while another of its name was there"
        return None if now < self._grace else self._lack(now)

    def _lack(self, now: float) -> str | None:
        """What the peer has not done for too long."""
        dead_after = self._dead_after
        silent = now - self._heard_at
        if silent >= dead_after:
            return f"nothing was heard of the peer for {silent:.1f} seconds"
        if self._writing_since is not None and now - self._writing_since >= dead_after:
            return "the peer takes no bytes any longer"
        if self._pinged_at is not None and now - self._pinged_at >= 2 * dead_after:
            return "the peer reads nothing any longer, though it writes"
        return None

    def sign(self, waits: bool) -> Ping | Pong | None:
        """What is to be said now: a question, or a sign of life of this side.

        Args:
            waits: Something waits to be written, and is as good a sign.
        """
        if self._until is not None:
            return None
        now, heartbeat = self.now, self._heartbeat
        # A peer that writes all the time is asked, too, whether it reads.
        doubt = now - self._heard_at >= heartbeat / 2 or now - self._ponged_at >= heartbeat
        if self._pinged_at is None and doubt:
            self._pinged_at = now
            return Ping(_ASKED)
        if now - self._wrote_at >= heartbeat / 2 and not waits:
            return Pong(_UNASKED)
        return None

    @property
    def due(self) -> float:
        """When to look again."""
        if self._until is not None:
            return self._until
        due = self.now + self._heartbeat / 2
        return due if self._probe_until is None else min(due, self._probe_until)
