"""Two or three nodes in one thread, and a network that does its worst: as many lives as wanted.

Run: ``python tests/bridge/sim.py --seed 7`` plays one life, step by step, and
``--seeds 0-100000`` so many; a failing one is named with its seed.

What is real: ``Session`` with its ``Mirror`` and ``Calls``, ``Exports``, ``Peers``,
``Reach``, and the Devices. What is simulated: the bytes on their way (split anywhere,
late, lost with their connection), the two ends of a connection that do not learn of
its loss at the same time, or only by silence; dials that cross or repeat; nodes
that die and come again, or have a rival of their name; and the clock.

It has these parts: who and what there is (``sim_world``, ``sim_nodes``); what may happen
to it: in the network (``sim_network``), to nodes as a whole (``sim_cluster``), and by their
users (``sim_links``, ``sim_talk``); and what must be so after each step and at rest
(``sim_judge``). Here is what happens when.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING or not __package__:  # this file is a script, too
    from sim_cluster import Cluster
    from sim_judge import Judge
    from sim_links import Links
    from sim_network import Network
    from sim_nodes import Node
    from sim_talk import Talk
    from sim_world import HEARTBEAT, LIMITS, World
else:
    from .sim_cluster import Cluster
    from .sim_judge import Judge
    from .sim_links import Links
    from .sim_network import Network
    from .sim_nodes import Node
    from .sim_talk import Talk
    from .sim_world import HEARTBEAT, LIMITS, World

WEIGHTS: Final[dict[str, float]] = {
    "open": 10, "open_ended": 1.5, "find": 2, "hand_over": 1.5, "drop_line": 5,
    "link": 16, "unlink": 8, "end": 4, "drop": 1.5, "make": 3,
    "tell": 7, "ask": 4, "give_up": 1.5, "answer": 3,
    "move": 22, "pump": 5, "flush": 2, "time": 0.7, "close": 0.7, "dial": 2.5,
}  # fmt: skip
FAULTY: Final[dict[str, float]] = {
    "stall": 1.2, "resume": 1.2, "cut": 1.5, "notice": 1.5, "restart": 0.7, "return": 0.3,
    "open_lost": 1, "dial": 4, "rival": 0.3,
}  # fmt: skip
ACTS: Final = WEIGHTS | FAULTY


class Sim:
    """One life of the whole: everything that happens follows from its seed."""

    def __init__(self, seed: int | random.Random, loud: bool = False) -> None:
        rng = random.Random(seed) if isinstance(seed, int) else seed
        self.world = world = World(rng, loud)
        self.judge = Judge(world)
        self.network = Network(world, self.judge)
        self.cluster = Cluster(world, self.judge, self.network)
        self.links = Links(world, self.judge)
        self.talk = Talk(world)
        for name in "ab" if rng.random() < 0.8 else "abc":
            self.cluster.birth(name)
        self.cluster.dial(0, 1)
        luck = rng.random()
        if luck < 0.1:
            self.cluster.dial(1, 0)
            for _ in range(rng.randrange(20)):
                self.network.do_move(world.nodes[0])
        elif luck < 0.9:
            self.network.flush()

    def run(self, steps: int) -> None:
        """Live, come to rest, and part."""
        rng = self.world.rng
        faults = rng.random() < 0.7
        weights = ACTS if faults else WEIGHTS
        for act in rng.choices(list(weights), list(weights.values()), k=steps):
            self.step(act, rng.choice(self.world.nodes))
        self.rest()
        self.part()
        self.world.raise_bugs()

    def step(self, act: str, node: Node) -> None:
        """Do one thing, and look at what it did."""
        getattr(getattr(self, _WHOSE[act]), f"do_{act}")(node)
        self.world.raise_bugs()
        for each in self.world.nodes:
            self.judge.poll(each)

    def rest(self) -> None:
        """The faults stop: all must come to agree."""
        world = self.world
        world.say("-- the faults stop")
        self.network.resume()
        self.network.flush()
        now = world.now
        while world.now < now + LIMITS.handshake and any(pipe.is_odd for pipe in world.pipes):
            self.network.age(HEARTBEAT / 2)  # as often as it wants to look: none is late any longer
        self.judge.up()
        if world.rng.random() < 0.2:
            self.cluster.meet_all()
        self.judge.agree()

    def part(self) -> None:
        """All Devices end and all Lines are dropped: nothing may be left."""
        world = self.world
        world.say("-- all end")
        for node in world.nodes:
            while node.port.requests:
                self.talk.do_answer(node)
            for dev in list(node.devs):
                self.links.end(dev, None)
            node.lines.clear()
        self.network.flush()
        for node in world.nodes:
            node.lines.clear()  # what was found meanwhile
        self.network.flush()
        self.judge.nothing_left()


_PARTS: Final = {"network": Network, "cluster": Cluster, "links": Links, "talk": Talk}
_WHOSE: Final = {
    act: part for act in ACTS for part, its in _PARTS.items() if hasattr(its, f"do_{act}")
}


def play(seed: int, steps: int | None = None, loud: bool = False) -> None:
    """Live one life."""
    sim = Sim(seed, loud)
    sim.run(steps or sim.world.rng.randrange(25, 61))


def play_many(seeds: range, steps: int | None = None) -> str | None:
    """Live many; what failed, with its seed."""
    gc.disable()  # when what is dropped is forgotten must follow from the seed alone
    try:
        for seed in seeds:
            try:
                play(seed, steps)
            except Exception as error:  # whatever it is, it names the seed
                return f"seed {seed}: {type(error).__name__}: {error}"
            if seed % 500 == 0:
                gc.collect()
    finally:
        gc.enable()
    return None


def main() -> None:
    """Play what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="one life, told step by step")
    parser.add_argument("--seeds", help="many: FIRST-LAST")
    parser.add_argument("--steps", type=int, help="how long each is; by default it follows")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        gc.disable()
        play(arguments.seed, arguments.steps, loud=True)
        return
    first, last = map(int, (arguments.seeds or "0-2000").split("-"))
    began = time.perf_counter()
    failure = play_many(range(first, last), arguments.steps)
    if failure is not None:
        sys.exit(f"{failure}\nTo see it: python {sys.argv[0]} --seed {failure.split()[1][:-1]}")
    seconds = time.perf_counter() - began
    print(f"{last - first} lives in {seconds:.1f} s, none of them failed")  # noqa: T201


if __name__ == "__main__":
    main()
