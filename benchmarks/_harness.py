"""Measure contenders side by side: round by round, in one process and one event loop.

Figures of two runs on a shared machine cannot be compared: its speed changes
by more than the difference that is looked for. So each round measures every
contender in turn, and what is reported is the median of the ratios within the
rounds. See README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gc
import importlib.metadata
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

import trio
import trio.testing

ROOT = Path(__file__).resolve().parent.parent

Measure = Callable[[int], "float | Awaitable[float | None] | None"]
"""Do a thing so many times; return the seconds (or bytes) it took.

With None, the whole call counts: for when there is next to nothing to set up.
"""

On = Literal["any", "asyncio", "trio", "erlang"]
"""Where a contender can run."""

F = TypeVar("F", bound=Measure)


@dataclass(slots=True)
class Contender:
    name: str
    measure: Measure
    on: On


@dataclass(slots=True)
class Case:
    """One thing to do, and the ways to do it: the first one is ours."""

    name: str
    what: str
    unit: Literal["s", "B"] = "s"
    size: int | None = None
    """How often (or how many) in each round; if None, as often as fills `Options.target`."""
    quick_size: int = 100
    rounds: int | None = None
    """At most so many rounds: for what varies little, or takes long."""
    contenders: list[Contender] = field(default_factory=list)

    def by(self, name: str, on: On = "any") -> Callable[[F], F]:
        """Register a way to do it."""

        def register(measure: F) -> F:
            self.contenders.append(Contender(name, measure, on))
            return measure

        return register


@dataclass(frozen=True, slots=True)
class Figure:
    """What one contender took, and how the first contender of its case compares."""

    name: str
    on: On
    count: int
    values: list[float]
    """Seconds or bytes for one operation, a round each."""
    ratios: list[float]
    """The first contender's values divided by these, round by round."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    figures: list[Figure]


@dataclass(frozen=True, slots=True)
class Aim:
    """A ratio, or a size, that the project has set itself."""

    text: str
    case: str
    against: str | None = None
    """The start of another contender's name; None if the aim is on our own figure."""
    limit: float | None = None
    unit: Literal["s", "B"] | None = None
    """What the figure is in; None if it is a ratio, or is to be printed as a bare number."""

    def show(self, value: float) -> str:
        return f"{value:g}" if self.unit is None else number(value, self.unit)


@dataclass(frozen=True, slots=True)
class Options:
    rounds: int
    quick: bool
    only: str
    loop: str
    cpu: int | None
    json: Path | None
    markdown: bool

    @property
    def target(self) -> float:
        """How many seconds one contender should take in one round."""
        return 0.000_5 if self.quick else 0.005


def parse(description: str, cases: Iterable[Case], cpu: str | None = None) -> Options:
    """The options of the command line; ``cpu`` is the default of ``--cpu``."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--rounds", type=int, help="how often each contender is measured (default 31)")
    add("--quick", action="store_true", help="a smoke test: all cases, useless figures")
    add("--only", default="", metavar="PREFIX", help="only the cases whose name starts so")
    add("--loop", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    usual = cpu or "the last"
    add("--cpu", default=cpu, help=f"the one cpu to run on (default: {usual}); 'all' for any")
    add("--json", type=Path, metavar="FILE", help="write every single figure to this file, too")
    add("--markdown", action="store_true", help="print tables for a README")
    add("--list", action="store_true", help="only print the names of the cases")
    got = parser.parse_args()
    if got.list:
        print(*(case.name for case in cases), sep="\n")
        sys.exit()
    rounds = got.rounds or (2 if got.quick else 31)
    return Options(rounds, got.quick, got.only, got.loop, _pin(got.cpu), got.json, got.markdown)


def _pin(wanted: str | None) -> int | None:
    """Keep this process, and all that it starts, on one cpu, where the system can."""
    if wanted == "all" or not hasattr(os, "sched_setaffinity"):
        return None
    cpu = max(os.sched_getaffinity(0)) if wanted is None else int(wanted)
    os.sched_setaffinity(0, {cpu})
    return cpu


# -- measuring ---------------------------------------------------------------------


def run(
    cases: Iterable[Case],
    aims: Iterable[Aim],
    options: Options,
    erlang: str | None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Measure the cases, and print what came out. ``about`` is said of the machine, too."""
    chosen = [case for case in cases if case.name.startswith(options.only)]
    if not chosen:
        sys.exit(f"no case starts with {options.only!r}")
    machine = describe_machine(options, erlang) | dict(about or {})
    printer = Printer(options.markdown)
    printer.head(machine)
    present: set[On] = {"any", "trio" if options.loop == "trio" else "asyncio"}
    if erlang is not None:
        present.add("erlang")
    results: list[Result] = []

    async def main() -> None:
        gc.collect()
        gc.freeze()  # what was imported is not ours to traverse in each collection
        for case in chosen:
            results.append(result := await _measure(case, present, options))
            printer.result(result)

    if options.loop == "trio":
        trio.run(main)
    else:
        factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        if options.loop == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
    verdicts = [verdict for aim in aims if (verdict := judge(aim, results)) is not None]
    printer.aims(verdicts)
    if options.json is not None:
        options.json.write_text(json.dumps(_jsonable(machine, results, verdicts), indent=1))


async def _measure(case: Case, present: set[On], options: Options) -> Result:
    contenders = [one for one in case.contenders if one.on in present]
    counts = [await _count(case, one, options) for one in contenders]
    values: list[list[float]] = [[] for _ in contenders]
    rounds = options.rounds if case.rounds is None else min(case.rounds, options.rounds)
    for number in range(rounds):
        order = list(range(len(contenders)))
        if number % 2:  # so that nobody always has the same one before it
            order.reverse()
        for i in order:
            values[i].append(await _once(contenders[i], counts[i]) / counts[i])
    figures = [
        Figure(one.name, one.on, counts[i], values[i], _divide(values[0], values[i]))
        for i, one in enumerate(contenders)
    ]
    return Result(case, figures)


def _divide(ours: list[float], theirs: list[float]) -> list[float]:
    return [
        mine / other if other else float("inf") for mine, other in zip(ours, theirs, strict=True)
    ]


async def _count(case: Case, contender: Contender, options: Options) -> int:
    """How often to do it a round. It is also the warm-up."""
    if case.size is not None:
        count = case.quick_size if options.quick else case.size
        await _once(contender, min(count, case.quick_size))
        return count
    await _once(contender, 1)  # may import something
    count = 1
    while (took := await _once(contender, count)) < options.target:
        # Aim a little too high, but do not believe in one short measurement.
        count = min(count * 10, int(count * options.target / max(took, 1e-9) * 1.1) + 1)
    return count


async def _once(contender: Contender, count: int) -> float:
    gc.collect()  # what others left behind is not this one's cost
    start = perf_counter()
    result = contender.measure(count)
    if inspect.isawaitable(result):
        result = await result
    took = perf_counter() - start
    return took if result is None else result


def judge(aim: Aim, results: list[Result]) -> tuple[Aim, float] | None:
    """The figure that the aim is about, if it was measured."""
    for result in results:
        if result.case.name == aim.case:
            for figure in result.figures:
                if aim.against is None:
                    return aim, figure.median
                if figure.name.startswith(aim.against):
                    return aim, figure.ratio
    return None


# -- what contenders share ---------------------------------------------------------

Spawn = Callable[[Callable[[Any], Awaitable[object]], Any], object]


@asynccontextmanager
async def tasks(on: On) -> AsyncIterator[Spawn]:
    """A function that starts ``fn(arg)`` as a bare task. Leaving waits for all of them."""
    if on == "trio":
        async with trio.open_nursery() as nursery:
            yield nursery.start_soon
    else:
        started: list[asyncio.Future[object]] = []
        yield lambda fn, arg: started.append(asyncio.ensure_future(fn(arg)))
        await asyncio.gather(*started)


async def settle(on: On) -> None:
    """Let all the tasks run until they wait."""
    if on == "trio":
        await trio.testing.wait_all_tasks_blocked()
    else:
        for _ in range(5):
            await asyncio.sleep(0)


# -- printing ----------------------------------------------------------------------


def describe_machine(options: Options, erlang: str | None) -> dict[str, str]:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    packages = ("anyio", "trio", "uvloop") if options.loop == "uvloop" else ("anyio", "trio")
    affinity = "any" if options.cpu is None else f"number {options.cpu}"
    load = (
        ", ".join(f"{x:.1f}" for x in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores, used: {affinity}, load {load}",
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}"
        + ("" if gil else " without the GIL"),
        "loop": options.loop,
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        "erlang": erlang or "not found (erl, escript): its rows are skipped",
        "rounds": f"up to {options.rounds}"
        + (" (quick: the figures mean nothing)" * options.quick),
    }


def _commit() -> str:
    def git(*args: str) -> str:
        command = ["git", "-C", str(ROOT), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return commit + (" and changes to it" * bool(git("status", "--short", "--", "backplane")))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def number(value: float, unit: str) -> str:
    """Three digits and a unit."""
    if unit == "B":
        return f"{value:,.0f} B"
    for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns")):
        if value * factor >= 1 or name == "ns":
            return f"{_three(value * factor)} {name}"
    raise AssertionError


def _three(value: float) -> str:
    return (
        f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    )


def _middle(values: list[float]) -> tuple[float, float]:
    """The range of the middle half."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


class Printer:
    """Prints as it goes, as plain text or as Markdown."""

    def __init__(self, markdown: bool) -> None:
        self._markdown = markdown

    def head(self, machine: dict[str, str]) -> None:
        for key, value in machine.items():
            self._say(f"- {key}: {value}" if self._markdown else f"{key + ':':<10}{value}")
        self._say("")
        self._say(
            "ratio: what backplane takes, divided by what this takes; "
            "below 1, backplane takes less."
        )
        self._say("In brackets, and after ±: the middle half of the rounds.")
        if self._markdown:
            self._say("\n| case | contender | median | ratio |\n|---|---|---:|---:|")

    def result(self, result: Result) -> None:
        case = result.case
        many = case.unit == "s" and case.size is not None and case.size > 1
        size = f" (of {result.figures[0].count})" if many else ""
        if not self._markdown:
            self._say(f"\n{case.name}: {case.what}")
        for i, figure in enumerate(result.figures):
            total = figure.median * figure.count if size else figure.median
            low, high = _middle(figure.values)
            spread = (high - low) / 2 / figure.median * 100 if figure.median else 0
            ratio = f"{_three(figure.ratio)}" if i else ""
            text = number(total, case.unit)
            if self._markdown:
                name = f"`{case.name}`{size}" if i == 0 else ""
                self._say(f"| {name} | {figure.name} | {text} | {ratio} |")
                continue
            around = "{} .. {}".format(*map(_three, _middle(figure.ratios))) if i else ""
            self._say(
                f"  {figure.name:<58}{text:>9} ±{spread:3.0f}%  {ratio:>7}"
                + (f"  ({around})" if i else size)
            )

    def aims(self, verdicts: list[tuple[Aim, float]]) -> None:
        if not verdicts:
            return
        self._say("\nAgainst the aims\n")
        if self._markdown:
            self._say("| what | aim | now |\n|---|---:|---:|")
        for aim, value in verdicts:
            limit = "none" if aim.limit is None else f"< {aim.show(aim.limit)}"
            now = _three(value) if aim.unit is None else aim.show(value)
            met = "" if aim.limit is None else "  met" if value < aim.limit else "  missed"
            if self._markdown:
                self._say(f"| {aim.text} | {limit} | {now}{met} |")
            else:
                self._say(f"  {aim.text:<58}{limit:>10}{now:>10}{met}")

    def _say(self, text: str) -> None:
        print(text, flush=True)


def _jsonable(
    machine: dict[str, str], results: list[Result], verdicts: list[tuple[Aim, float]]
) -> dict[str, object]:
    return {
        "machine": machine,
        "cases": [
            {
                "name": result.case.name,
                "what": result.case.what,
                "unit": result.case.unit,
                "contenders": [
                    {
                        "name": figure.name,
                        "count": figure.count,
                        "median": figure.median,
                        "ratio": figure.ratio,
                        "values": figure.values,
                        "ratios": figure.ratios,
                    }
                    for figure in result.figures
                ],
            }
            for result in results
        ],
        "aims": [{"what": aim.text, "aim": aim.limit, "now": value} for aim, value in verdicts],
    }
