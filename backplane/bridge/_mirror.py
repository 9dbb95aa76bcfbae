"""Links across one connection: each Device over there has an outpost here.

The design has no ids of links, and nothing to be acknowledged. All that crosses
is about Devices, which end once, and about sets:

* Whoever holds a Line to a far Device has an outpost of it, and that asks once
  to be told of its end (``Watch``). Any number of local Devices may link with
  the outpost; of that nothing crosses.
* Where a far Device is to hear of a local one, the pair crosses (``Listen``), so
  that the far node has an outpost of the local Device, and links the two there:
  should the connection break, that outpost ends like all others.
* When a Device ends, ``Fire`` crosses, once; it ends the outpost over there,
  and all who are linked with that hear.

Frames keep their order, and each says only what is so from now on. So it does not
matter how a ``Watch``, an ``Unwatch`` and a ``Fire`` cross on their way: a ``Fire``
for an outpost that has been forgotten is dropped, and one that answers an
earlier ``Watch`` for the same Device is as true for the later one.

What a Line gives no right to is refused at this end, before anything is done; the
node of the Device looks again, and ignores what comes without the right. So one
who asks for too much gets an error, and nobody else is touched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, assert_never, final

from backplane import (
    Disconnected,
    Failed,
    Fault,
    Line,
    LinkDownError,
    LinkError,
    LinkMode,
    Message,
    NoConnection,
)
from backplane.lowlevel import (
    Forgotten,
    Heard,
    Listening,
    Outpost,
    OutpostEvent,
    Sent,
    Unlistening,
)

from ._ear import Ear, Waiter
from ._errors import EncodeError, FrameError, GoneError
from ._exports import Export, Exports, Right
from ._faults import open_fault, pack_fault
from ._frames import (
    NAME,
    TOKEN,
    Fire,
    Frame,
    Listen,
    Send,
    Unlisten,
    Unwatch,
    Watch,
    WireFault,
    WireLine,
)
from ._identity import Identity, pack_export
from ._key import Key
from ._limits import Limits
from ._mesh_messages import open_message, pack_message
from ._outposts import Outposts
from ._pairs import Pairs
from ._speakers import Speakers
from ._watches import Watches

GONE = GoneError("it had ended, or was revoked, before anybody asked to hear of it")


@final
class Mirror:
    """The links across one connection. It is for the node's loop alone.

    It knows what each frame means that comes, and what is to be said of that which
    happens here. Who is to hear of whom is in four tables.
    """

    ear: Ear
    """Hears of the ends of ours, for them."""
    outposts: Outposts
    """Devices of theirs to which somebody here has a Line, or of which one is to hear."""
    pairs: Pairs
    """Which of ours are to hear of which of theirs, since it was linked over there."""
    watches: Watches
    """Devices of ours to which somebody there has a Line, and wants to hear of them."""
    speakers: Speakers
    """Which of theirs are to hear of which of ours, since it was linked here."""
    unknown: int
    """Messages for Devices that are not there, or that they may not send to."""

    def __init__(
        self,
        me: Identity,
        exports: Exports,
        limits: Limits,
        put: Callable[[Frame], None],
        events: deque[Any],
        waiter: Waiter,
        tracebacks: bool,
    ) -> None:
        self._me = me
        self.exports = exports
        self._lock = exports.lock
        self._limits = limits
        self._put = put
        self._tracebacks = tracebacks
        self.peer: Identity | None = None
        self.session: Any = None
        """Whose links these are; it is for those who find an outpost by a Line to it."""
        self.ear = Ear(events, waiter)
        self.outposts = Outposts(events, waiter)
        self.pairs = Pairs(self.ear)
        self.watches = Watches(self.ear)
        self.speakers = Speakers(me, exports, put, self._pack_fault)
        self.unknown = 0

    def __len__(self) -> int:
        return len(self.outposts) + len(self.watches) + len(self.speakers)

    # -- lines -----------------------------------------------------------------------

    def pack(self, export: Export) -> WireLine:
        """A Line to a Device of ours, for the wire."""
        return pack_export(self._me, export)

    def open(self, wire: WireLine, listen: bool = False) -> Line:
        """A Line to a Device of theirs; it has ended if the connection has.

        Args:
            wire: What leads to it.
            listen: It is not for a user, but to be heard of by a Device of ours.
        """
        if len(wire.token) != TOKEN or len(wire.name or "") > NAME:
            raise FrameError("a Line with an impossible token or name")
        with self._lock:  # whoever opens an answer may do so in a thread of his own
            line = self.outposts.line(wire.token)
            if line is None:
                line = self.outposts.open(Key(self.session, wire, not listen))
                if not listen and wire.rights & Right.MONITOR.value:
                    self._put(Watch(wire.token))
            return line

    def _remove(self, outpost: Outpost) -> list[bytes]:
        """Forget an outpost, and whom it was to hear of, and who of it; return its tokens."""
        tokens = self.outposts.remove(outpost)
        for token in tokens:
            self.pairs.discard_speaker(token)
        self.speakers.forget(outpost)
        return tokens

    def _pack_fault(self, fault: Fault | None) -> WireFault | None:
        return pack_fault(fault, self._limits, self._tracebacks)

    # -- what happens here -------------------------------------------------------------

    def note(self, event: OutpostEvent) -> None:
        """Tell the peer of what has happened at an outpost."""
        with self._lock:
            self._note(event)

    def _note(self, event: OutpostEvent) -> None:
        mine = event.outpost is self.ear.outpost
        match event:
            case Heard(_, message) if mine:
                self._tell_watchers(message)
            case Heard(outpost, message):
                if self._is_here(outpost):
                    self.speakers.tell(outpost, message)
            case Listening(outpost, speaker):
                if not mine and self._is_here(outpost):
                    self.speakers.listen(outpost, speaker)
            case Unlistening(outpost, speaker):
                if not mine:
                    self.speakers.unlisten(outpost, speaker.id)
            case Sent(outpost, message):
                self._send(outpost.key.line.token, message)
            case Forgotten(outpost):
                self._unwatch(outpost)
            case never:
                assert_never(never)

    def _is_here(self, outpost: Outpost) -> bool:
        return outpost.key.line.token in self.outposts

    def _unwatch(self, outpost: Outpost) -> None:
        line = outpost.key.line
        if line.token in self._remove(outpost) and line.rights & Right.MONITOR.value:
            self._put(Unwatch(line.token))

    def _tell_watchers(self, message: Disconnected) -> None:
        device = message.sender
        self.ear.heard(device)
        for token in self.pairs.discard_listener(device):
            self._forget_alias(token)
        wire = self._pack_fault(message.fault)
        for token in self.watches.discard_device(device):
            self._put(Fire(token, wire))

    def _send(self, token: bytes, message: Message) -> None:
        try:
            frame = pack_message(token, message, self._limits, self._tracebacks)
        except EncodeError:
            return  # its sender has an identity that no Device can have
        self._put(frame)

    # -- what comes ------------------------------------------------------------------------

    def on_watch(self, frame: Watch) -> None:
        """They want to hear of the end of a Device of ours."""
        token = frame.token
        if token in self.watches:
            return
        export = self.exports.get(token)
        if export is not None and export.rights & Right.MONITOR:
            self._check_links()
            try:
                self.watches.add(token, export.line)
                return
            except LinkDownError:
                pass  # of whose end `fault_of` knows
        known = self.exports.fault_of(token)
        fault: Fault | None = Failed(GONE) if known is None else known[0]
        self._put(Fire(token, self._pack_fault(fault)))

    def on_unwatch(self, frame: Unwatch) -> None:
        """They do not any longer."""
        self.watches.discard(frame.token)

    def on_listen(self, frame: Listen) -> None:
        """A Device of ours is to hear of the end of one of theirs."""
        self.check_own(frame.line)
        export = self.exports.get(frame.token)
        if export is None or not export.rights & Right.LINK:
            self.count_unknown(frame.token)
            return
        listener, token = export.line, frame.line.token
        if (listener, token) not in self.pairs:
            self._check_links()
            try:
                self.pairs.add(listener, token)
            except LinkDownError:
                return  # they have been told, or will be
        speaker = self.open(frame.line, listen=True)
        try:
            if speaker != listener:  # it may be that very one, by a detour
                listener.link(speaker, LinkMode.MONITOR)
                return
        except LinkError:
            pass  # one has ended meanwhile; if it is ours, they have been told, or will be
        self._forget_pair(listener, token)

    def on_unlisten(self, frame: Unlisten) -> None:
        """It is not to hear of that."""
        export = self.exports.get(frame.token)
        line = self.outposts.line(frame.speaker)
        if export is not None and line is not None and line != export.line:
            export.line.unlink(line, LinkMode.MONITOR)
            self._forget_pair(export.line, frame.speaker)

    def _forget_pair(self, listener: Line, token: bytes) -> None:
        if self.pairs.discard(listener, token):
            self._forget_alias(token)

    def _forget_alias(self, token: bytes) -> None:
        """Forget by what else a Device of theirs was called, if nobody hears of it by that."""
        with self._lock:
            if not self.pairs.is_speaker(token):
                self.outposts.forget_alias(token)

    def on_fire(self, frame: Fire) -> None:
        """A Device of theirs has ended."""
        fault = open_fault(frame.fault)
        with self._lock:
            outpost = self.outposts.get(frame.token)
            if outpost is not None:
                self._remove(outpost)
        if outpost is not None:
            outpost.disconnect(fault)

    def on_send(self, frame: Send) -> None:
        """A message of the mesh."""
        export = self.exports.get(frame.token)
        message = open_message(frame)
        if export is None or not export.rights & Right.SEND:
            self.count_unknown(frame.token)
            return
        try:
            export.line.send(message)
        except LinkError:
            self.count_unknown(frame.token)  # it is on a third node, where this one may not send

    def check_own(self, line: WireLine) -> None:
        """A Line that must lead to a Device of theirs."""
        peer = self.peer
        if peer is None or line.node != peer.name or line.incarnation != peer.incarnation:
            raise FrameError("a Line to a Device that is not the peer's")

    def count_unknown(self, token: bytes) -> bool:
        """Something came for nobody. Of what has just ended, an honest peer cannot know yet."""
        counts = self.exports.fault_of(token) is None
        self.unknown += counts
        return counts

    def _check_links(self) -> None:
        if len(self.pairs) + len(self.watches) >= self._limits.links:
            raise FrameError(f"more than {self._limits.links} links")

    # -- the end -----------------------------------------------------------------------

    def close(self, node: str) -> None:
        """The connection is gone: each outpost ends, once."""
        lost = NoConnection(node)
        with self._lock:
            outposts = self.outposts.lose(lost)
        self.pairs.clear()
        self.watches.clear()
        self.speakers.clear()
        for outpost in outposts:
            outpost.disconnect(lost)
        self.ear.close()
