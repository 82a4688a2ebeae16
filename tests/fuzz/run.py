"""Fuzz with atheris, in ``tests/``: ``python -m fuzz.run --runs N [TARGET...]``, or one target with options of libFuzzer:
``python -m fuzz.run TARGET [OPTION...]``.

What the fuzzer learns is kept in ``.fuzz/TARGET`` of the checkout, and what it finds in ``tests/fuzz/found/TARGET``, where
every later run of the tests tries it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MOST = 1 << 20
"""Bytes of the longest input."""
LONG = 0.04
"""Part of the runs that have inputs of all lengths up to ``MOST``; they take ten times as long as the others."""


def main() -> None:
    """Fuzz what the command line says; ends the process."""
    if sys.argv[1:2] == ["--runs"]:
        sys.exit(every(int(sys.argv[2]), sys.argv[3:]))
    one_target()


def every(runs: int, names: list[str]) -> int:
    """So many runs of each target, of all without names, one on each processor; 1 where one of them found something."""
    from fuzz.targets import TARGETS

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sound = list(pool.map(lambda name: fuzzed(name, runs), names or TARGETS))
    return int(not all(sound))


def fuzzed(name: str, runs: int) -> bool:
    """Whether so many runs of a target, short inputs and then long ones, find nothing; prints how it went."""
    from fuzz.targets import TARGETS

    log = ROOT / ".fuzz" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    long = round(runs * LONG)
    with log.open("wb") as output:
        for count, most in ((runs - long, TARGETS[name].usual), (long, MOST)):
            words = [sys.executable, "-m", "fuzz.run", name, f"-runs={count}", f"-max_len={most}"]
            if subprocess.run(words, stderr=output, check=False).returncode:
                print(f"{name}: found something, see {log}", flush=True)
                return False
    passed = time.monotonic() - started
    print(f"{name}: {runs} runs, {runs / passed:.0f} a second, nothing found", flush=True)
    return True


def one_target() -> None:
    """Run the fuzzer on one; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["cfs_tags"], enable_loader_override=False):
        from fuzz import targets
        from fuzz.bounds import within_bounds

    name, *options = sys.argv[1:]
    target = targets.TARGETS[name]
    learned, found = ROOT / ".fuzz" / name, ROOT / "tests/fuzz/found" / name
    for place in (learned, found):
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for number, data in enumerate(targets.corpus(name, Path(work))):
            (learned / f"real-{number}").write_bytes(data)

    def one(data: bytes) -> None:
        within_bounds(lambda: targets.run(target, data), len(data))

    # what is slow is found by processor time, whatever else the machine does
    limits = [f"-max_len={MOST}", "-rss_limit_mb=1500", "-timeout=300", "-report_slow_units=300", f"-artifact_prefix={found}/"]
    atheris.Setup([sys.argv[0], *limits, *options, str(learned)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
