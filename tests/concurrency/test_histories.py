"""Eight processes on one repository, cfs-tag and the real cfsctl: what each of them saw has one explanation.

Every tag is a register: the order in which it changed explains every answer, of ours and of cfsctl's.  Two tags that only
transactions change are one register.  No update is lost, nothing live is collected.

``CFS_TAGS_PROOF=ci`` runs at least 10,000 operations, ``CFS_TAGS_PROOF=long`` ten times as many, else a few hundred.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from cfs_tags.cli.main import main
from support.crowd import PAIR, Spec
from support.everywhere import run_words
from support.history import ABSENT, ANY, Kind, Operation, explain
from support.images import app_image, base_layer, pull_image
from support.peers import Cfsctl
from support.stock import before_call

FORM = os.environ.get("CFS_TAGS_PROOF", "short")
WANTED = {"short": 800, "ci": 10_400, "long": 100_000}[FORM]
SEED = int(os.environ.get("CFS_TAGS_SEED") or random.SystemRandom().randrange(1_000_000))
REGISTERS = [f"r/{number}" for number in range(6)]
ROLES = ("writer", "writer", "writer", "reader", "collector", "peer", "peer", "stock")
UNKILLED = ("stock",)
"""``cfsctl gc`` takes content before its names: killed in between, it leaves links that its pulls trust and stumble over."""
TESTS = Path(__file__).parent.parent
DEADLINE = 3000.0

pytestmark = pytest.mark.slow


class Event(NamedTuple):
    """An operation of a process as it was written down; without ``returned`` it was killed."""

    who: str
    called: float
    returned: float
    words: list[str]
    status: int | None
    document: Any

    def __str__(self) -> str:
        return f"{self.who}: {' '.join(self.words)[:160]} -> {self.status} {json.dumps(self.document)[:300]}"


class Crowd:
    """The processes, their repository and what they wrote down."""

    def __init__(self, home: Path, cfsctl: Cfsctl, count: int, *, careless: bool = False) -> None:
        self.home, self.cfsctl = home, cfsctl
        self.repo = home / "composefs"
        cfsctl(None, "init", "--insecure", self.repo)
        layout = home / "images/layout"
        held = [app_image(layout, f"held-{number}", [base_layer("held")]) for number in range(30)]
        for image in held:
            pull_image(cfsctl, self.repo, image, f"keep/{image.ref}")
        loose = [app_image(layout, f"loose-{number}", [base_layer(f"of {number // 2}")]).ref for number in range(8)]
        for name in PAIR:
            cfsctl(self.repo, "oci", "tag", held[0].manifest_digest, name)
        self.stop = home / "stop"
        shares = {"writer": 0.17, "reader": 0.17, "peer": 0.12}
        self.specs = [
            Spec(
                role=role,
                repo=str(self.repo),
                operations=int(count * shares.get(role, 100)),
                seed=SEED + number,
                cfsctl=str(cfsctl.program),
                layout=str(layout),
                out=str(home / f"{number}-{role}.jsonl"),
                stop=str(self.stop),
                registers=REGISTERS,
                held=[image.manifest_digest for image in held],
                loose=loose,
                slow=role == "writer" and number > 0 and not careless,
                careless=careless,
            )
            for number, role in enumerate(ROLES)
        ]
        self.wanted = [spec.operations for spec in self.specs]
        self.first = held[0].manifest_digest
        self.killed = 0

    def run(self, *, kills: bool) -> None:
        """Start all, disturb them, and wait until those that are counted are done."""
        running = {number: self._start(spec) for number, spec in enumerate(self.specs)}
        chance = random.Random(SEED)
        end = time.monotonic() + DEADLINE
        try:
            while any(self._counted(number) and process.poll() is None for number, process in running.items()):
                assert time.monotonic() < end, "not done in time"
                time.sleep(chance.uniform(0.05, 0.5))
                number = chance.choice(sorted(running))
                self._disturb(running, number, chance, kills=kills)
                failed = [self.specs[n].role for n, process in running.items() if process.poll() not in (None, 0)]
                assert not failed, f"{failed} ended with an error"
        finally:
            self.stop.touch()
            for process in running.values():
                with_error = process.wait(timeout=300)
                assert with_error == 0

    def _counted(self, number: int) -> bool:
        return self.specs[number].role not in ("collector", "stock")

    def _start(self, spec: Spec) -> subprocess.Popen[bytes]:
        path = self.home / f"{Path(spec.out).stem}.spec"
        path.write_text(json.dumps(spec._asdict()))
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "support.crowd", path], cwd=TESTS, env=environment, start_new_session=True
        )

    def _disturb(self, running: dict[int, subprocess.Popen[bytes]], number: int, chance: random.Random, *, kills: bool) -> None:
        """Stop a process, with what it started, for a while, or kill it and start another in its place."""
        process = running[number]
        if process.poll() is not None:
            return
        if not kills or self.specs[number].role in UNKILLED or chance.random() < 0.6:
            os.killpg(process.pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0.01, 0.3))
            os.killpg(process.pid, signal.SIGCONT)
            return
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.killed += 1
        spec = self.specs[number]
        left = self.wanted[number] - sum(1 for _ in events_of(spec))
        self.specs[number] = spec._replace(operations=max(1, left), seed=spec.seed + 1000)
        running[number] = self._start(self.specs[number])

    def events(self) -> list[Event]:
        """All that was written down."""
        return sorted((event for spec in self.specs for event in events_of(spec)), key=lambda event: event.called)


def events_of(spec: Spec) -> Iterator[Event]:
    path = Path(spec.out)
    pending: dict[str, Any] | None = None
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # killed while it wrote
        if "called" in row:
            if pending is not None:
                yield Event(path.stem, pending["called"], math.inf, pending["words"], None, None)
            pending = row
        elif pending is not None:
            yield Event(path.stem, pending["called"], row["returned"], pending["words"], row["status"], row["document"])
            pending = None
    if pending is not None:
        yield Event(path.stem, pending["called"], math.inf, pending["words"], None, None)


# -- from events to registers ------------------------------------------------------------------------------------------


def name_of(ref: str) -> str:
    return ref.removeprefix("streams/refs/oci/").replace("%2F", "/")


def digest_of(link: str | None) -> str:
    return ABSENT if link is None else link.rpartition("oci-manifest-")[2]


class Histories:
    """The operations on each register, from what was written down."""

    def __init__(self, digests: dict[str, str], held: list[str]) -> None:
        self.of: dict[str, list[Operation]] = {name: [] for name in (*REGISTERS, "pair")}
        self.digests, self.held = digests, held
        self.torn: list[Event] = []
        """Lists that showed a part of a transaction."""
        self._marks = 0

    def add(self, event: Event) -> None:
        """What an event says of the registers."""
        words = event.words
        if words[0] == "look":
            return
        if words[0] == "cfsctl":
            self._of_cfsctl(event, words[1:])
        elif event.status is None:
            self._killed(event, dict(self._wanted(words)))
        elif event.status != 0:
            self._failed(event)
        elif words[0] == "resolve":
            self._note(event, words[1], Kind.LOOK, event.document["result"]["digest"])
        elif words[0] == "list":
            self._listed(event, {row["name"]: row["digest"] for row in event.document["result"]})
        elif words[0] == "update" and words[-1].startswith("verify"):
            value = words[-1].split()[2]
            self._note(event, "pair", Kind.READ, (value, value))
        elif "changes" in event.document["result"]:
            self._changed(event, event.document["result"]["changes"])

    def _note(self, event: Event, name: str, kind: Kind, new: Any = ABSENT, old: Any = ABSENT, **more: Any) -> None:
        if name in self.of:
            self.of[name].append(Operation(event.called, event.returned, kind, new, old, who=str(event), **more))

    def _changed(self, event: Event, changes: list[dict[str, Any]]) -> None:
        by_name = {name_of(change["ref"]): (digest_of(change["old"]), digest_of(change["new"])) for change in changes}
        for name, (old, new) in by_name.items():
            self._note(event, name, Kind.SWAP, new, old)
        if set(PAIR) <= by_name.keys():
            old, new = zip(*(by_name[name] for name in PAIR), strict=True)
            self._note(event, "pair", Kind.SWAP, new, old)
        else:
            assert not set(PAIR) & by_name.keys(), event
        unchanged = {row["name"]: row["new"] for row in event.document["result"]["tags"] if row["done"] == "unchanged"}
        for name, value in unchanged.items():
            self._note(event, name, Kind.READ, value)
        if set(PAIR) <= unchanged.keys():
            self._note(event, "pair", Kind.READ, tuple(unchanged[name] for name in PAIR))

    def _listed(self, event: Event, found: dict[str, str]) -> None:
        for name in REGISTERS:
            self._note(event, name, Kind.LOOK, found.get(name, ABSENT))
        pair = tuple(found.get(name, ABSENT) for name in PAIR)
        if pair[0] != pair[1]:
            self.torn.append(event)
        else:
            self._note(event, "pair", Kind.LOOK, pair)

    def _failed(self, event: Event) -> None:
        """A command that was refused has seen something; one that a peer overtook may have been seen for an instant."""
        error = event.document["error"]
        facts = error["facts"]
        name = name_of(str(facts.get("ref") or facts.get("name") or ""))
        match error["code"]:
            case "tag-not-found" if event.words[0] != "restore":
                self._note(event, name, Kind.LOOK if event.words[0] == "resolve" else Kind.READ, ABSENT)
            case "tag-exists":
                self._note(event, name, Kind.READ, facts["found"])
            case "expectation-failed":
                for changed, new in self._wanted(event.words):
                    self._maybe(event, changed, new)
            case "target-not-found" | "incomplete-target" | "reflog-entry-not-found" | "tag-not-found":
                pass  # nothing of that name was found to make a tag of
            case "tag-collected":
                assert facts["digest"] not in self.held, event
            case code:
                raise AssertionError(f"{code}: {event}")

    def _killed(self, event: Event, wanted: dict[str, Any]) -> None:
        for name, new in wanted.items():
            self._maybe(event, name, new)
        if set(PAIR) <= wanted.keys():
            self._maybe(event, "pair", tuple(wanted[name] for name in PAIR))

    def _maybe(self, event: Event, name: str, new: Any) -> None:
        self._marks += 1
        self._note(event, name, Kind.MAYBE, new, mark=self._marks)
        self._note(event, name, Kind.BACK, of=self._marks)

    def _wanted(self, words: list[str]) -> Iterator[tuple[str, Any]]:
        """What a command of ours would have changed."""
        match words[0]:
            case "create":
                yield words[1], words[2].removeprefix("@")
            case "delete":
                yield words[1], ABSENT
            case "restore":
                yield words[1], ANY
            case "rename":
                yield words[1], ABSENT
                yield words[2], ANY
            case "update":
                for line in words[-1].splitlines():
                    verb, name, *rest = line.split()
                    if verb == "verify":
                        continue
                    yield name, ABSENT if verb == "delete" else rest[0].removeprefix("@")

    def _of_cfsctl(self, event: Event, words: list[str]) -> None:
        if words[0] != "oci":
            return
        if words[1] == "images":
            if event.status == 0:
                found = {row["name"]: row["manifest_digest"] for row in event.document["images"]}
                for name in REGISTERS:
                    self._note(event, name, Kind.READ, found.get(name, ABSENT))
            return
        name = words[-1]
        new = {"tag": words[2], "pull": self.digests.get(words[2].rpartition(":")[2]), "untag": ABSENT}[words[1]]
        if event.status is None:
            self._maybe(event, name, new)
        elif event.status == 0:
            self._note(event, name, Kind.REMOVE if words[1] == "untag" else Kind.WRITE, new)
        elif words[1] == "untag":
            self._note(event, name, Kind.READ, ABSENT)
        else:
            raise AssertionError(f"cfsctl failed: {event}")


def histories_of(crowd: Crowd) -> Histories:
    """The histories of all registers; what has nothing to do with registers is judged at once."""
    index = json.loads((crowd.home / "images/layout/index.json").read_text())["manifests"]
    name = "org.opencontainers.image.ref.name"
    histories = Histories({entry["annotations"][name]: entry["digest"] for entry in index}, crowd.specs[0].held)
    for event in crowd.events():
        histories.add(event)
        if event.words[0] == "look" and event.status is not None:
            assert not event.document, f"something live was collected: {event}"
        if event.words[:2] == ["cfsctl", "gc"] or event.words[0] == "gc":
            assert event.status in (0, None), event
    return histories


def unexplained(crowd: Crowd, histories: Histories) -> list[str]:
    """A text for each register whose history no order explains."""
    found = []
    for name, operations in histories.of.items():
        problem = explain(operations, (crowd.first, crowd.first) if name == "pair" else ABSENT)
        if problem is not None:
            stuck = "".join(f"\n{shown(one)}" for one in problem.stuck)
            whole = "".join(f"\n{shown(one)}" for one in sorted(operations, key=lambda one: one[:2]))
            state = f"after {problem.explained} operations it is {problem.value}"
            found.append(f"{name}: {state}; none of these fits:{stuck}\nall of it:{whole}")
    return found


def shown(operation: Operation) -> str:
    """A line about an operation: from when to when in milliseconds, and what it has seen and done."""
    called, returned, kind, new, old, *_, who = operation
    return f"  {called / 1e6:.3f} to {returned / 1e6:.3f}: {kind.value} {old} {new}, {who}"


@pytest.mark.parametrize("kills", [False, True], ids=["and are stopped", "and are killed"])
def test_there_is_one_order_that_explains_what_eight_processes_saw_that_work_at_the_same_time(
    kills: bool, ram: Path, cfsctl: Cfsctl, tell: Callable[[str], None]
) -> None:
    crowd = Crowd(ram, cfsctl, WANTED // 2)

    crowd.run(kills=kills)

    events, histories = crowd.events(), histories_of(crowd)
    counts = Counter(event.words[1 if event.words[0] == "cfsctl" else 0] for event in events)
    tell(f"{len(events)} operations, {crowd.killed} processes killed, {len(histories.torn)} torn lists; CFS_TAGS_SEED={SEED}")
    tell(str(dict(counts)))
    assert len(events) > WANTED * 0.45
    problems = unexplained(crowd, histories)
    assert kills or histories.torn == [], f"CFS_TAGS_SEED={SEED}"  # what a killed process left halfway is seen
    assert not problems, "\n".join([f"CFS_TAGS_SEED={SEED}", *problems])
    cfsctl(crowd.repo, "gc")
    cfsctl.assert_healthy(crowd.repo)


def test_a_program_that_does_not_look_at_what_came_out_does_not_pass(ram: Path, cfsctl: Cfsctl) -> None:
    """What a peer did between the look and the exchange is lost, and no order explains that."""
    for attempt in range(5):
        home = ram / f"{attempt}"
        home.mkdir()
        crowd = Crowd(home, cfsctl, 400, careless=True)
        crowd.run(kills=False)
        if unexplained(crowd, histories_of(crowd)):
            return
    pytest.fail("the checker finds nothing wrong")


def test_a_list_shows_all_of_a_transaction_or_nothing(ram: Path, cfsctl: Cfsctl) -> None:
    crowd = Crowd(ram, cfsctl, 0)
    lines = "".join(f"move {name} @{crowd.specs[0].held[1]}\n" for name in PAIR)
    words = ("--repo", "composefs", "list", "pair/*", "--json")
    listed = []

    def look() -> None:
        listed.append(other.submit(run_words, ram, words))
        time.sleep(0.5)  # it looks in the middle of the transaction, and has to wait for its end

    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as other:
        other.submit(run_words, ram, words).result()
        with patch("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode()))), before_call("exchange", look, 2):
            assert main(["--repo", str(crowd.repo), "update", "--stdin"]) == 0
        (said,) = [one.result() for one in listed]

    rows = json.loads(said.out)["result"]
    assert {row["digest"] for row in rows} == {crowd.specs[0].held[1]}
    assert [row["name"] for row in rows] == list(PAIR)
