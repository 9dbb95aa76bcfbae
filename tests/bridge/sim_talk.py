"""What users of the simulation say: messages, requests and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from backplane import DeviceID, Disconnected, NoConnection
from backplane.bridge._errors import NotAllowedError
from backplane.bridge._exports import Right
from backplane.bridge._frames import Tell
from backplane.bridge._requests import Asked

if TYPE_CHECKING or not __package__:
    from sim_nodes import Dev, Node, Side
    from sim_world import DOWN, BugError, World, same
else:
    from .sim_nodes import Dev, Node, Side
    from .sim_world import DOWN, BugError, World, same


class Talk:
    """Each act is done at a node, by chance. Requests are heard here: each must end well, once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._answers: dict[int, bool] = {}
        """The requests that were answered, by their numbers, and whether well."""

    def do_tell(self, node: Node) -> None:
        """Say something to a port, or to a mailbox."""
        world = self._world
        dev = world.theirs(node)
        if dev is None:
            return
        side, line = world.side_to(node, dev), node.lines[dev]
        if side is None:
            return
        number = world.next_message()
        world.say(node.name, "tells", dev, number)
        if world.rng.random() < 0.5:
            if line.connected and not side.session.finished:  # it has said good-bye
                side.session.outbox.say(
                    Tell(dev.token, msgspec.Raw(msgspec.msgpack.encode(number)))
                )
                side.sent.append((number, dev))
        elif line.connected and Right.SEND not in dev.rights:
            try:
                line.send(Disconnected(DeviceID(number, 1), None))
            except NotAllowedError:
                return
            raise BugError(f"{dev} may be sent to")
        elif line.send(Disconnected(DeviceID(number, 1), None)):
            side.sent.append((number, dev))
        elif line.connected:
            raise BugError(f"{dev} takes no messages")

    def do_ask(self, node: Node) -> None:
        world = self._world
        dev = world.theirs(node)
        side = None if dev is None else world.side_to(node, dev)
        if dev is None or side is None or not side.is_up or side.session.finished:
            return
        number = world.next_message()
        world.say(node.name, "asks", dev, number)

        def hear() -> None:
            with world.within():
                ask = side.asks.pop(number, None)
                if ask is None:
                    raise BugError(f"request {number} ends twice, or after it was given up")
                self._answered(side, number, *ask)

        raw = msgspec.msgpack.encode(number)
        asked = side.session.calls.ask(dev.token, raw, None, hear)
        side.asks[number] = asked, dev
        side.sent.append((number, dev))

    def _answered(self, side: Side, number: int, asked: Asked, dev: Dev) -> None:
        self._world.say("request", number, "to", dev, "is over")
        if asked.payload is not None:
            good = self._answers.get(number) and asked.payload == msgspec.msgpack.encode(number)
        elif isinstance(asked.fault, NoConnection):
            good = side.session.state is DOWN
        elif asked.ended:
            good = dev.ended and same(asked.fault, dev.fault)
        else:
            good = self._answers.get(number) is False
        if not good:
            raise BugError(f"request {number} to {dev} ends with {asked.payload!r} {asked.fault}")

    def do_give_up(self, node: Node) -> None:
        world = self._world
        side = world.up(node)
        if side is not None and side.asks:
            number = world.rng.choice(list(side.asks))
            world.say(node.name, "gives up", number)
            asked, _ = side.asks.pop(number)
            asked.give_up()

    def do_answer(self, node: Node) -> None:
        world = self._world
        if node.port.requests:
            request, number = node.port.requests.pop(world.rng.randrange(len(node.port.requests)))
            well = world.rng.random() < 0.8
            if request.reply(number) if well else request.fail(ValueError(number)):
                world.say(node.name, "answers", number)
                self._answers[number] = well
            if request.reply(0) or request.refuse(True, None):
                raise BugError(f"request {number} is answered twice")
