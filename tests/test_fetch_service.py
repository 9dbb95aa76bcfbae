"""The fetch service: its workers crash, its hosts misbehave, and all notes agree in the end."""

from __future__ import annotations

import ast
import importlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from backplane.otp import CallTimeoutError, Registry, ServerDownError, child_spec
from backplane.supervisor import Supervisor

EXAMPLES = Path(__file__).parents[1] / "examples"
STATUSES = ("200", "500", "reset", "short")

both_loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a module of the example's, as the example does."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def run(*command: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *command],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    # asyncio's debug mode notes each step that took long, as on a busy machine.
    result.stderr = re.sub(
        r"^Executing .* took .* seconds\n", "", result.stderr, flags=re.MULTILINE
    )
    return result


def run_until(text: str, *command: str, seconds: str = "1") -> subprocess.CompletedProcess[str]:
    """Run it for some time; for longer if the machine stood still, so that some text is missing."""
    result = run(*command, "--seconds", seconds)
    if re.search(text, result.stdout, re.MULTILINE) is None:
        result = run(*command, "--seconds", "10")
    return result


def rows(text: str) -> list[tuple[str, str]]:
    """The rows of a summary, by name; long ones are joined."""
    return re.findall(r"^(\S+|  \S+) +(\S.*(?:\n {13}\S.*)*)$", text, re.MULTILINE)


def documented() -> str:
    """What the docstring of the program says that it prints."""
    source = (EXAMPLES / "fetch_service.py").read_text("utf-8")
    return textwrap.dedent((ast.get_docstring(ast.parse(source)) or "").partition("Prints:\n")[2])


def first_number(text: str) -> int:
    found = re.search(r"\d+", text)
    assert found is not None, text
    return int(found[0])


# -- whole runs -----------------------------------------------------------------------


@both_loops
def test_both_sides_agree_though_workers_crash(loop: str) -> None:
    all_statuses = "".join(f"(?=.* x {status})" for status in STATUSES)
    result = run_until(f"^  host-1 {all_statuses}", "fetch_service.py", "--loop", loop, seconds="2")

    found = dict(rows(result.stdout))
    assert result.stderr == ""
    assert result.returncode == 0, result.stdout
    assert found["accounting"] == "agrees"
    assert first_number(found["restarts"]) == first_number(found["crashes"]) > 0
    for status in STATUSES:
        assert f" x {status}" in found["  host-1"]
    cached = re.search(r"(\d+) hit \+ (\d+) miss", found["cache"])
    assert cached is not None, found["cache"]
    assert min(int(cached[1]), int(cached[2])) > 0
    assert re.search(r"3 heard of [1-9]\d* finished", found["subscribers"])


def test_the_summary_has_the_rows_that_the_docstring_shows() -> None:
    result = run_until("^  host-4 .*(.*\n)*^restarts +[1-9]", "fetch_service.py", "--seed", "7")

    assert [name for name, _ in rows(result.stdout)] == [name for name, _ in rows(documented())]


@both_loops
def test_many_impatient_clients_of_one_host_get_their_timeouts_in_time(loop: str) -> None:
    options = ["--hosts", "1", "--clients", "60", "--loop", loop]

    result = run_until("x CallTimeoutError", "fetch_service.py", *options, seconds="2")

    found = dict(rows(result.stdout))
    assert result.stderr == ""
    assert result.returncode == 0, result.stdout
    assert re.search(r"[1-9]\d* x CallTimeoutError", found["answers"])


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Start programs that hear ctrl-C, though these tests may run where a shell has it ignored.

    A program inherits that, and does well to respect it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.usefixtures("interruptible")
@both_loops
def test_ctrl_c_stops_the_service_in_order(loop: str) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "fetch_service.py", "--loop", loop]
    master, slave = os.openpty()
    terminal = b""

    with subprocess.Popen(command, cwd=EXAMPLES, stdout=slave, stderr=subprocess.PIPE) as process:
        os.close(slave)
        while not re.search(rb"[1-9]\d* answers", terminal):
            terminal += os.read(master, 1000)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    with suppress(OSError):  # Linux says so when the other side is closed
        while more := os.read(master, 1000):
            terminal += more
    os.close(master)

    assert terminal.endswith(b"accounting   not made, stopped by Ctrl-C\r\n")
    assert b"Traceback" not in stderr
    assert process.returncode == 130


def test_a_worker_that_forgets_a_fetch_is_found_out() -> None:
    careless = """
import fetch_audit, fetch_service, sys
begin = fetch_audit.Books.begin
def forget(self, *args):
    fetch = begin(self, *args)
    if fetch.id == 5:
        self.fetches[5] = fetch_audit.Fetch(5, "host-1", "/elsewhere", 0, 0)
    return fetch
fetch_audit.Books.begin = forget
sys.exit(fetch_service.main())
"""

    result = run_until("request 5", "-c", careless)

    assert re.search(r"^problem +request 5 for .* nobody sent it so", result.stdout, re.MULTILINE)
    assert re.search(r"^accounting +DISAGREES in \d+ cases$", result.stdout, re.MULTILINE)
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--seconds", "0", "--seconds must be at least 0.1, not 0.0"),
        ("--seconds", "nan", "--seconds must be at least 0.1, not nan"),
        ("--hosts", "0", "--hosts must be at least 1, not 0"),
        ("--clients", "0", "--clients must be at least 1, not 0"),
        ("--loop", "curio", "invalid choice: 'curio'"),
    ],
)
def test_a_senseless_option_is_refused(option: str, value: str, complaint: str) -> None:
    result = run("fetch_service.py", option, value)

    assert complaint in result.stderr
    assert result.stdout == ""
    assert result.returncode == 2


# -- the servers ----------------------------------------------------------------------


class World:
    """One host that deals from a given deck, and what fetches from it."""

    def __init__(self, module: Callable[[str], Any], host: Any, **limits: float) -> None:
        self.parts = module("fetch_parts")
        audit = module("fetch_audit")
        self.books = audit.Books(audit.Limits(**{"rate": 100, "burst": 4, "ttl": 30} | limits))
        self.site = self.parts.Site({host.name: host.url}, self.books)
        self.top = Supervisor(
            [
                child_spec(self.parts.Cache, self.books.limits.ttl, name="cache"),
                child_spec(self.parts.Subscriber, self.site.fetched, name="reader"),
                child_spec(self.parts.Worker, host.name, self.site),
            ],
            subscribers=[],
        )
        self.worker = self.site.worker(host.name)

    async def fetch(self, path: str, seconds: float = 20) -> Any:
        until = time.monotonic() + seconds
        return await self.worker.within(seconds).call(self.parts.Worker.fetch, path, until)


@pytest.fixture
def dealing(module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    @contextmanager
    def deal(*deck: str, slow: float = 0.0, **limits: float) -> Iterator[tuple[World, Any]]:
        server = module("fetch_server")
        monkeypatch.setattr(server, "SLOW", (slow, slow))
        with server.serving(1, "seed") as (host,), Registry():
            host.deck.extend(reversed(deck))
            yield World(module, host, **limits), host

    return deal


@pytest.mark.anyio
async def test_a_page_is_fetched_once_and_then_comes_from_the_cache(
    dealing: Callable[..., Any],
) -> None:
    with dealing("200") as (world, host), anyio.fail_after(30):
        async with world.top:
            pages = [await world.fetch("/1") for _ in range(3)]

    assert [hit.path for hit in host.hits] == ["/1"]
    assert pages[0].text == "host-1/1 0\n" * 50
    assert pages[1:] == [pages[0], pages[0]]
    assert world.books.lookups == Counter(asked=3, hit=2, miss=1)


@pytest.mark.anyio
async def test_a_page_that_is_too_old_is_fetched_again(dealing: Callable[..., Any]) -> None:
    with dealing("200", "200", ttl=0.01) as (world, host), anyio.fail_after(30):
        async with world.top:
            while len(host.hits) < 2:
                await world.fetch("/1")

    first, second = world.books.fetches
    assert second.sent >= first.ended + 0.01


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "reason"), [("reset", "ReadError"), ("short", "RemoteProtocolError")]
)
async def test_a_broken_answer_ends_the_worker_and_whoever_waits_is_told(
    dealing: Callable[..., Any], kind: str, reason: str
) -> None:
    reasons: list[str] = []

    async def ask(world: World, path: str) -> None:
        with pytest.raises(ServerDownError) as caught:
            await world.fetch(path)
        reasons.append(type(caught.value.reason).__name__)

    with dealing(kind, "200") as (world, _), anyio.fail_after(30):
        async with world.top:
            async with anyio.create_task_group() as tg:
                tg.start_soon(ask, world, "/1")
                tg.start_soon(ask, world, "/2")
            await world.site.workers.await_name("host-1")
            page = await world.fetch("/1")
            restarts = world.top.which_child("Worker").restarts

    assert reasons == [reason, reason]
    assert page.status == 200
    assert restarts == 1
    assert [fetch.outcome for fetch in world.books.fetches] == [kind, "200"]


@pytest.mark.anyio
async def test_a_fetch_does_not_go_on_for_longer_than_its_caller_waits(
    dealing: Callable[..., Any],
) -> None:
    pages, fetches = list[Any](), list[Any]()
    # The longer if a standstill lets the time pass by before the fetch.
    for patience in 0.5, 5.0:
        with dealing("slow", "200", slow=40.0) as (world, _), anyio.fail_after(30):
            async with world.top:
                with pytest.raises(CallTimeoutError):
                    await world.fetch("/1", patience)
                if world.books.fetches:
                    pages.append(await world.fetch("/2"))
                    fetches = world.books.fetches
                    break

    (page,), (abandoned, _) = pages, fetches
    assert page.status == 200
    assert abandoned.outcome == "abandoned"
    assert abandoned.until <= abandoned.ended


@pytest.mark.anyio
async def test_a_new_worker_fetches_no_faster_than_its_bucket_fills(
    module: Callable[[str], Any], dealing: Callable[..., Any]
) -> None:
    with dealing(*["200"] * 8, rate=20, burst=4) as (world, host), anyio.fail_after(30):
        began = time.monotonic()
        async with world.top:
            for number in range(8):
                await world.fetch(f"/{number}")

    sent = [fetch.sent for fetch in world.books.fetches]
    assert len(host.hits) == 8
    assert sent[-1] - began >= 8 / 20
    assert module("fetch_audit").keeps_to(sent, world.books.limits, 1e-3)


# -- the accounting -------------------------------------------------------------------


class Notes:
    """Notes of both sides that agree, to be tampered with."""

    def __init__(self, module: Callable[[str], Any]) -> None:
        self.audit = module("fetch_audit")
        self.Hit = module("fetch_server").Hit
        self.books = self.audit.Books(self.audit.Limits(rate=10, burst=2, ttl=1))
        self.hits = [
            self.Hit("a", 0, "/1", "200", 100.01),
            self.Hit("b", 1, "/1", "reset", 100.02),
            self.Hit("a", 2, "/2", "500", 100.11),
            self.Hit("a", 4, "/1", "200", 102.01),
        ]
        outcomes = ["200", "reset", "500", "abandoned", "200"]
        paths = [("a", "/1"), ("b", "/1"), ("a", "/2"), ("a", "/3"), ("a", "/1")]
        times = [100.0, 100.01, 100.1, 101.0, 102.0]
        for number, (where, outcome, at) in enumerate(zip(paths, outcomes, times, strict=True)):
            fetch = self.audit.Fetch(number, *where, at + 0.5, at, at + 0.05, outcome)
            self.books.fetches.append(fetch)
        self.books.published = {0: 2, 2: 2, 4: 2}
        self.books.heard = {"x": [0, 2, 4], "y": [0, 2, 4]}
        self.books.lookups = Counter(asked=9, hit=3, miss=5, unanswered=1)
        self.books.cache = Counter(hit=3, miss=6)
        self.books.waits = [(0.5, 0.51), (3.0, 3.2)]

    @property
    def problems(self) -> list[str]:
        problems: list[str] = self.audit.audit(self.books, self.hits).problems
        return problems


def change(what: Any, **fields: Any) -> None:
    """Change what is noted, frozen or not."""
    for name, value in fields.items():
        object.__setattr__(what, name, value)


TAMPERINGS: dict[str, tuple[Callable[[Notes], object], str]] = {
    "a request that the host does not know": (
        lambda notes: notes.hits.pop(0),
        "request 0 reached a 0 times",
    ),
    "a request that the workers do not know": (
        lambda notes: notes.hits.append(notes.Hit("a", 9, "/1", "200", 110.0)),
        "request 9 for /1 reached a, and nobody sent it so",
    ),
    "a request noted twice": (
        lambda notes: notes.hits.append(notes.hits[2]),
        "request 2 reached a 2 times",
    ),
    "another status": (
        lambda notes: change(notes.hits[1], status="200"),
        "request 1 was answered 200, and taken for reset",
    ),
    "counts of a status": (
        lambda notes: change(notes.hits[1], status="200"),
        "b answered 0 x reset, and its workers counted 1",
    ),
    "another host": (
        lambda notes: change(notes.hits[0], host="b"),
        "request 0 for /1 reached b, and nobody sent it so",
    ),
    "an arrival before it was sent": (
        lambda notes: change(notes.hits[3], at=101.9),
        "request 4 arrived before it was sent",
    ),
    "too many sent at once": (
        lambda notes: notes.books.fetches.extend([notes.books.fetches[2]] * 2),
        "a was sent requests faster than allowed",
    ),
    "too many arrived at once": (
        lambda notes: notes.hits.extend([notes.hits[2]] * 8),
        "a was fetched from faster than allowed",
    ),
    "a page fetched though it was cached": (
        lambda notes: change(notes.books.fetches[4], sent=101.0),
        "a/1 was fetched again after 0.950 s",
    ),
    "a lookup lost by a caller": (
        lambda notes: notes.books.lookups.subtract(["hit"]),
        "the cache was called 9 times; callers know of 7 hits and misses",
    ),
    "a lookup lost by the cache": (
        lambda notes: notes.books.cache.subtract(["hit"]),
        "hit: 2 in the cache, 3 at callers",
    ),
    "a fetch that was not published": (
        lambda notes: notes.books.published.pop(2),
        "3 fetches were finished, and 2 published",
    ),
    "a fetch that reached one subscriber": (
        lambda notes: notes.books.published.update({2: 1}),
        "fetch 2 was told to 1 of 2 subscribers",
    ),
    "a subscriber that missed a fetch": (
        lambda notes: notes.books.heard["x"].remove(2),
        "x missed 1 fetches, and heard of 0 too often",
    ),
    "a subscriber that heard of one twice": (
        lambda notes: notes.books.heard["y"].append(4),
        "y missed 0 fetches, and heard of 1 too often",
    ),
    "a subscriber that heard in another order": (
        lambda notes: notes.books.heard["y"].reverse(),
        "y missed 0 fetches, and heard of 0 too often",
    ),
    "a client that waited for too long": (
        lambda notes: notes.books.waits.append((0.5, 1.5)),
        "a client that waits for 0.5 s waited for 1.500 s",
    ),
    "a client that gave up too early": (
        lambda notes: notes.books.waits.append((0.5, 0.2)),
        "a client that waits for 0.5 s waited for 0.200 s",
    ),
    "a fetch that went on": (
        lambda notes: change(notes.books.fetches[3], ended=103.0),
        "request 3 went on for 1.500 s after its caller had left",
    ),
    "what a part found itself": (
        lambda notes: notes.books.problems.append("a/1 is 'b'"),
        "a/1 is 'b'",
    ),
}


def test_notes_that_agree_are_told_to(module: Callable[[str], Any]) -> None:
    notes = Notes(module)

    result = notes.audit.audit(notes.books, notes.hits)

    assert result.problems == []
    assert result.agrees
    assert (result.abandoned, result.reached, result.fastest) == (1, 0, 2)


def test_an_abandoned_request_may_have_reached_its_host(module: Callable[[str], Any]) -> None:
    notes = Notes(module)
    notes.hits.insert(3, notes.Hit("a", 3, "/3", "200", 101.2))

    result = notes.audit.audit(notes.books, notes.hits)

    assert result.problems == []
    assert (result.abandoned, result.reached) == (1, 1)


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampered_notes_are_reported_as_disagreement(
    module: Callable[[str], Any], tampering: str
) -> None:
    tamper, problem = TAMPERINGS[tampering]
    notes = Notes(module)

    tamper(notes)

    assert problem in notes.problems
