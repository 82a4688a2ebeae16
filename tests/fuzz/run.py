"""Fuzz with atheris: ``python -m fuzz.run TARGET [OPTION OF LIBFUZZER...]``, or ``--runs N`` for all targets, in ``tests/``.

What the fuzzer learns is kept in ``.fuzz/TARGET`` of the checkout, and what it finds in ``tests/fuzz/found/TARGET``, where
every later run of the tests tries it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MOST = 1 << 20
"""Bytes of the longest input."""


def main() -> None:
    """Fuzz what the command line says; ends the process."""
    if sys.argv[1:2] == ["--runs"]:
        sys.exit(every(sys.argv[2]))
    one_target()


def every(runs: str) -> int:
    """So many runs of every target, one after the other; 1 where one of them found something."""
    from fuzz.targets import TARGETS

    failed = []
    for name in TARGETS:
        if subprocess.run([sys.executable, "-m", "fuzz.run", name, f"-runs={runs}"], check=False).returncode:
            failed.append(name)
    print(f"{len(TARGETS)} targets, {runs} runs each; found something: {', '.join(failed) or 'none'}")
    return int(bool(failed))


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

    limits = [f"-max_len={MOST}", "-rss_limit_mb=1500", "-timeout=60", f"-artifact_prefix={found}/"]
    atheris.Setup([sys.argv[0], *limits, *options, str(learned)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
