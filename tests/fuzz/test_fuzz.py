"""Any bytes that others wrote are a value or refused, within time and memory that their length bounds.

Everywhere: what fuzzing found before, real files, and damaged real files, some of them 1 MiB long.  With
``CFS_TAGS_PROOF=ci`` a short run of a fuzzer that is guided by coverage (atheris, where it can be installed) for each
target; ``make fuzz`` runs it for as long as is said.
"""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.bounds import TooSlow, within_bounds
from fuzz.targets import TARGETS, corpus, run
from support.everywhere import Said
from support.peers import no_peer

FORM = os.environ.get("CFS_TAGS_PROOF", "short")
SEED = int(os.environ.get("CFS_TAGS_SEED") or random.SystemRandom().randrange(1_000_000))
DAMAGED = {"short": 60, "ci": 300, "long": 5_000}[FORM]
RUNS = {"short": 0, "ci": 4_000, "long": 1_000_000}[FORM]
MOST = 1 << 20
FOUND = Path(__file__).parent / "found"
NUMBERS = (
    *(b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x01" + b"\0" * 7),
    *(b"-1", b"99999999999999999999", b"1e999", b"\xc3\x28"),
)


def damaged(inputs: list[bytes], count: int, chance: random.Random) -> Iterator[bytes]:
    """Inputs that were changed in a few places: bits, cuts, repetitions, numbers, parts of another."""
    for _ in range(count):
        data = bytearray(chance.choice(inputs))
        for _ in range(chance.choice([1, 1, 2, 4, 8])):
            place = chance.randrange(len(data) + 1)
            end = min(len(data), place + chance.choice([1, 4, 16, 200]))
            match chance.randrange(7):
                case 0 if data:
                    data[place % len(data)] ^= 1 << chance.randrange(8)
                case 1:
                    del data[place:end]
                case 2:
                    data[place:place] = data[place:end] * chance.choice([1, 3, 100])
                case 3:
                    number = chance.choice(NUMBERS)
                    data[place : place + len(number)] = number
                case 4:
                    other = chance.choice(inputs)
                    begin = chance.randrange(len(other) + 1)
                    data[place:end] = other[begin : begin + chance.choice([4, 64, 1000])]
                case 5 if chance.random() < 0.2:
                    del data[place:]
                case _ if chance.random() < 0.1 and end > place:
                    part = bytes(data[place:end])
                    data[place:place] = part * ((MOST - len(data)) // len(part))
                case _:
                    data[place:end] = bytes(reversed(data[place:end]))
        yield bytes(data[:MOST])


@pytest.mark.parametrize("name", TARGETS)
def test_real_and_damaged_files_are_a_value_or_refused(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    inputs = corpus(name, tmp_path)
    chance = random.Random(f"{SEED} {name}")
    refused = sum(run(target, data) is not None for data in inputs)
    assert refused < len(inputs) or len(inputs) == 1, "the corpus is none of what is parsed"

    for data in damaged(inputs, DAMAGED, chance):
        try:
            within_bounds(lambda data=data: run(target, data), len(data))  # type: ignore[misc]
        except Exception as fault:
            kept = tmp_path / "fault"
            kept.write_bytes(data)
            pytest.fail(f"{type(fault).__name__}: {fault}; CFS_TAGS_SEED={SEED}, the input is {kept}: {data[:100]!r}")


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_before_is_a_value_or_refused(path: Path) -> None:
    data = path.read_bytes()
    within_bounds(lambda: run(TARGETS[path.parent.name], data), len(data))


def test_the_bound_stops_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.bounds.ALWAYS", 0.1)

    def forever() -> None:
        while True:
            pass

    with pytest.raises(TooSlow):
        within_bounds(forever, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_fuzzer_that_is_guided_by_coverage_finds_nothing(name: str, tmp_path: Path) -> None:
    if not RUNS:
        pytest.skip("only with CFS_TAGS_PROOF=ci, or by 'make fuzz'")
    if importlib.util.find_spec("atheris") is None:
        no_peer("atheris", "'make fuzz' installs it")
    said = fuzz(name, f"-runs={RUNS}", f"-seed={SEED % 2**31}", f"-artifact_prefix={tmp_path}/")
    kept = [f"{path}: {path.read_bytes()[:300]!r}" for path in tmp_path.iterdir()]
    assert said.status == 0, f"CFS_TAGS_SEED={SEED}\n{said.err[-6000:]}\n{kept}"


def fuzz(name: str, *options: str) -> Said:
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.run", name, *options],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, errors="replace", check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)
