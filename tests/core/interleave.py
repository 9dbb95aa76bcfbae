"""Two threads under our own scheduler: every schedule with a few preemptions, one by one.

``Duet.run`` runs two functions in two real threads of which only one moves at a
time. A trace function counts the *steps* that a thread takes in the watched
files, and hands the baton to the other thread where the schedule says so.
``schedules`` yields all schedules that preempt at most so many times: first the
two without any; and after each run, those that go the same way up to a point
of its last stretch, and there preempt. Each one is different and none is left out.

A step is an opcode, or, to go further in the same time, an opcode that can touch
what two threads share. All others work on a frame's own values, on constants and
on what never changes: to preempt before one of those gives the same run as to
preempt before the next that is shared. ``shared_steps`` keeps a list of the
opcodes that cannot, not of those that can, so that a new opcode is a step.

``interruptions`` is for one thread only: something happens in its midst, as a
garbage collection does, once at every step in turn.
"""

from __future__ import annotations

import dis
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any, Final, Self

Job = Callable[[], None]
Steps = Callable[[CodeType], frozenset[int]]
"""The offsets of the opcodes of some code before which a thread can be preempted."""

# What no step is. Beside values of the frame itself: globals, which are never set again.
_PRIVATE = (
    *("RESUME", "NOP", "CACHE", "PRECALL", "PUSH_NULL", "KW_NAMES", "EXTENDED_ARG", "COPY", "SWAP"),
    *("LOAD_CONST", "LOAD_FAST", "STORE_FAST", "LOAD_GLOBAL", "LOAD_DEREF", "POP_TOP", "IS_OP"),
    *("COMPARE_OP", "JUMP_", "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE", "RETURN_", "BUILD_TUPLE"),
    *("POP_JUMP_FORWARD_IF_NONE", "POP_JUMP_FORWARD_IF_NOT_NONE", "END_FOR"),
    *("PUSH_EXC_INFO", "CHECK_EXC_MATCH", "POP_EXCEPT", "RERAISE", "RAISE_VARARGS"),
)
# The truth of what these leave on the stack is no question to a shared object.
_BOOLEAN = ("IS_OP", "CONTAINS_OP", "COMPARE_OP", "UNARY_NOT", "TO_BOOL")
_LIMIT = 20_000  # steps of one stretch; more, and the two wait for each other for ever


def shared_steps(*changing: str) -> Steps:
    """The steps at which shared state is read or changed, ``changing`` being its attributes."""

    def steps(code: CodeType) -> frozenset[int]:
        found = set()
        before = ""
        for instruction in dis.get_instructions(code):
            name = instruction.opname
            if name in ("LOAD_ATTR", "STORE_ATTR", "LOAD_METHOD"):
                private = instruction.argval not in changing
            elif name.startswith("POP_JUMP_") and before in _BOOLEAN:
                private = True
            else:
                private = name.startswith(_PRIVATE)
            if not private:
                found.add(instruction.offset)
            if name != "CACHE":
                before = name
        return frozenset(found)

    return steps


def every_opcode(code: CodeType) -> frozenset[int]:
    """All opcodes are steps."""
    return frozenset(instruction.offset for instruction in dis.get_instructions(code))


@dataclass(frozen=True)
class Schedule:
    """Which thread moves first, and after how many steps each stretch is preempted."""

    first: int
    stretches: tuple[int, ...] = ()


class _Lane:
    """One of the two threads."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.baton = threading.Lock()
        self.baton.acquire()
        self.job: Job | None = None
        self.error: BaseException | None = None
        self.left = -1  # steps until the preemption; negative: until the end
        self.taken = 0  # steps of the present stretch


class Duet:
    """Two threads that move one at a time, as a schedule says."""

    def __init__(self, codes: Iterable[CodeType], steps: Steps) -> None:
        """Watch these pieces of code, and step where ``steps`` says."""
        self._tracer = _Tracer({code: steps(code) for code in codes}, self._step)
        self._lanes = (_Lane(0), _Lane(1))
        self._by_thread: dict[int, _Lane] = {}
        self._done = threading.Lock()
        self._done.acquire()
        self._closing = False
        self._stretches: Iterator[int] = iter(())
        self._last_stretch = 0
        self._preempted: list[tuple[_Lane, CodeType, int]] = []

    def __enter__(self) -> Self:
        self._tracer.start()
        self._threads = [
            threading.Thread(target=self._loop, args=(lane,), daemon=True) for lane in self._lanes
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing = True
        for lane, thread in zip(self._lanes, self._threads, strict=True):
            lane.baton.release()
            thread.join()
        self._tracer.stop()

    def run(self, jobs: tuple[Job, Job], schedule: Schedule) -> int:
        """Run both to their ends; return how many steps the last stretch of the schedule took.

        Raises:
            Exception: What either raised.
        """
        self._preempted = []
        self._stretches = iter(schedule.stretches)
        self._last_stretch = -1
        for lane, job in zip(self._lanes, jobs, strict=True):
            lane.job = job
        self._go_on(self._lanes[schedule.first])
        self._done.acquire()
        for lane in self._lanes:
            if lane.error is not None:
                error, lane.error = lane.error, None
                raise error
        return self._last_stretch

    def preemptions(self) -> list[str]:
        """Where those of the last run were, in words."""
        return [
            f"thread {lane.number + 1} before {place_of(code, offset)}"
            for lane, code, offset in self._preempted
        ]

    def _go_on(self, lane: _Lane) -> None:
        lane.left = next(self._stretches, -1)
        lane.taken = 0
        lane.baton.release()

    def _loop(self, lane: _Lane) -> None:
        self._by_thread[threading.get_ident()] = lane
        self._tracer.start_thread()
        while True:
            lane.baton.acquire()
            if self._closing:
                self._tracer.stop_thread()
                return
            job = lane.job
            assert job is not None
            try:
                job()
            except BaseException as error:
                lane.error = error
            job = lane.job = None
            if lane.left >= 0:
                lane.error = lane.error or AssertionError("the same schedule went another way")
            elif self._last_stretch < 0:
                self._last_stretch = lane.taken
            other = self._lanes[1 - lane.number]
            if other.job is None:
                self._done.release()
            else:
                self._go_on(other)

    def _step(self, code: CodeType, offset: int) -> None:
        """Called in whatever thread is about to take a step."""
        lane = self._by_thread.get(threading.get_ident())
        if lane is None:
            return
        if lane.taken == lane.left:
            self._preempt(lane, code, offset)
        lane.taken += 1
        if lane.taken > _LIMIT:
            raise AssertionError(f"no end is in sight in {code.co_qualname}")

    def _preempt(self, lane: _Lane, code: CodeType, offset: int) -> None:
        other = self._lanes[1 - lane.number]
        if other.job is None:
            raise AssertionError("the same schedule went another way")
        self._preempted.append((lane, code, offset))
        self._go_on(other)
        lane.baton.acquire()


def place_of(code: CodeType, offset: int) -> str:
    """Where an opcode is, in words."""
    line = None
    for instruction in dis.get_instructions(code):
        line = instruction.positions.lineno if instruction.positions else line
        if instruction.offset == offset:
            name = f"{instruction.opname} {instruction.argrepr}".rstrip()
            return f"{name} in {code.co_qualname}, line {line}"
    raise AssertionError("no such opcode")


class _Tracer:
    """Calls ``on_step(code, offset)`` in the thread that is about to run that opcode."""

    def __init__(
        self, steps: dict[CodeType, frozenset[int]], on_step: Callable[[CodeType, int], None]
    ) -> None:
        # By identity: a code object is hashed and compared by all that is in it.
        self._steps = {id(code): (code, offsets) for code, offsets in steps.items()}
        self._on_step = on_step

    if sys.version_info >= (3, 12):
        # Here `sys.settrace` misses opcodes (3.12), or crashes when two threads are in
        # one piece of code (3.13).

        _TOOL: Final = 4  # neither a debugger, a profiler nor coverage

        def start(self) -> None:
            monitoring = sys.monitoring
            steps, on_step = self._steps, self._on_step

            def on_instruction(code: CodeType, offset: int) -> object:
                return on_step(code, offset) if offset in steps[id(code)][1] else monitoring.DISABLE

            monitoring.use_tool_id(self._TOOL, "interleave")
            monitoring.register_callback(self._TOOL, monitoring.events.INSTRUCTION, on_instruction)
            for code, _ in self._steps.values():
                monitoring.set_local_events(self._TOOL, code, monitoring.events.INSTRUCTION)
            monitoring.restart_events()

        def start_thread(self) -> None:
            pass

        def stop_thread(self) -> None:
            pass

        def stop(self) -> None:
            monitoring = sys.monitoring
            for code, _ in self._steps.values():
                monitoring.set_local_events(self._TOOL, code, 0)
            monitoring.register_callback(self._TOOL, monitoring.events.INSTRUCTION, None)
            monitoring.free_tool_id(self._TOOL)

    else:

        def start(self) -> None:
            pass

        def start_thread(self) -> None:
            local = {
                number: self._stepper(code, offsets)
                for number, (code, offsets) in self._steps.items()
            }

            def trace(frame: FrameType, event: str, arg: object) -> Any:
                stepper = local.get(id(frame.f_code))
                if stepper is not None:
                    frame.f_trace_lines = False
                    frame.f_trace_opcodes = True
                return stepper

            self._former = sys.gettrace()
            sys.settrace(trace)

        def stop_thread(self) -> None:
            sys.settrace(self._former)

        def stop(self) -> None:
            pass

        def _stepper(
            self, code: CodeType, offsets: frozenset[int]
        ) -> Callable[[FrameType, str, Any], Any]:
            on_step = self._on_step

            def step(frame: FrameType, event: str, arg: object) -> Any:
                if event == "opcode" and frame.f_lasti in offsets:
                    on_step(code, frame.f_lasti)
                return step

            return step


def code_of(*modules: ModuleType) -> list[CodeType]:
    """All code that is defined in these modules, as their names have it now."""
    files = {module.__file__ for module in modules}
    found = {}
    rest: list[object] = [thing for module in modules for thing in vars(module).values()]
    while rest:
        thing = rest.pop()
        if isinstance(thing, FunctionType):
            thing = thing.__code__
        if isinstance(thing, CodeType):
            if thing.co_filename in files and id(thing) not in found:
                found[id(thing)] = thing
                rest += thing.co_consts
        elif isinstance(thing, type) and sys.modules[thing.__module__] in modules:
            rest += vars(thing).values()
        elif isinstance(thing, property):
            rest.append(thing.fget)
    return list(found.values())


def schedules(run: Callable[[Schedule], int], preemptions: int) -> Iterator[Schedule]:
    """Run all schedules of up to so many preemptions, yielding each when it has run."""

    def explore(schedule: Schedule) -> Iterator[Schedule]:
        steps = run(schedule)
        yield schedule
        if len(schedule.stretches) < preemptions:
            # To preempt before the first step is what another schedule does without.
            for taken in range(1, steps):
                yield from explore(Schedule(schedule.first, (*schedule.stretches, taken)))

    return itertools.chain.from_iterable(explore(Schedule(first)) for first in (0, 1))


def interruptions(
    codes: Iterable[CodeType], steps: Steps, prepare: Callable[[], Job], interrupt: Job
) -> Iterator[tuple[CodeType, int]]:
    """Do a job again and again, each time prepared anew, and interrupt it: at each step in turn.

    Yields where it was, after each run. Ends with a run that was over before.
    """
    places: list[tuple[CodeType, int]] = []
    count = wanted = 0

    def on_step(code: CodeType, offset: int) -> None:
        nonlocal count
        count += 1
        if count == wanted:
            places.append((code, offset))
            interrupt()

    tracer = _Tracer({code: steps(code) for code in codes}, on_step)
    while True:
        wanted += 1
        count = 0
        job = prepare()
        tracer.start()
        tracer.start_thread()
        try:
            job()
        finally:
            tracer.stop_thread()
            tracer.stop()
        if count < wanted:
            return
        yield places.pop()
