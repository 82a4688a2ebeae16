"""A process exchanges parts of a repository with links and with names of root's files, in a loop, while root works in it.

A short run is part of every test run; ``make attack`` (``CFS_TAGS_ATTACK_SECONDS``) goes on for longer.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostile.conftest import APP, USER, Outside, Result, give, needs_root, run
from support.registries import distribution

SECONDS = float(os.environ.get("CFS_TAGS_ATTACK_SECONDS", "10"))
"""How long each of the two attacks goes on."""

DIRECTORIES = [
    "objects",
    "streams",
    "images",
    "streams/refs",
    "streams/refs/oci",
    "streams/refs/cfs-tags",
    "streams/refs/cfs-tags/tags",
    "streams/refs/cfs-tags/deployments",
    "streams/refs/cfs-tags/configs",
    "streams/refs/cfs-tags/leases",
    "streams/refs/cfs-tags/pins",
    "streams/refs/cfs-tags/trash",
    "images/refs",
    "images/refs/cfs-tags",
    "images/refs/cfs-tags/deployments",
    "images/refs/cfs-tags/pins",
    "cfs-tags",
    "cfs-tags/tmp",
    "cfs-tags/journal",
    "cfs-tags/reflog",
    "cfs-tags/undo",
    "cfs-tags/pins",
    "cfs-tags/pins/mine",
    "cfs-tags/pins/mine/objects",
    "cfs-tags/quarantine",
    "cfs-tags/incoming",
    *(f"objects/{number:02x}" for number in range(0, 256, 5)),
]
STATE = ["refs.lock", "seen.json", "good.json", "maintain.json", "clock", "forgotten", "pins/mine/pin.json"]
FILES = ["meta.json", *(f"cfs-tags/{name}" for name in STATE), *(f"cfs-tags/reflog/{number:02x}" for number in range(256))]

CC = shutil.which("cc") or ("cc" if os.environ.get("CFS_TAGS_REQUIRE_PEERS") == "1" else None)

pytestmark = [needs_root, pytest.mark.skipif(CC is None, reason="needs a C compiler")]


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program of ``attacker.c``."""
    path = tmp_path_factory.mktemp("attacker") / "attacker"
    source = Path(__file__).with_name("attacker.c")
    subprocess.run([str(CC), "-O2", "-Wall", "-Wextra", "-Werror", "-o", path, source], check=True)
    return path.read_bytes()


def pairs(repo: Path, outside: Path) -> list[str]:
    """What is exchanged with what: each directory with a link to the same one outside, each file with a name of one there."""
    (repo / "evil").mkdir()
    found = []
    for number, place in enumerate(DIRECTORIES):
        for one in (repo, outside):
            (one / place).mkdir(parents=True, exist_ok=True)
        (repo / f"evil/{number}").symlink_to(outside / place)
        found += [place, f"evil/{number}"]
    for number, place in enumerate(FILES):
        (outside / place).touch()
        os.link(outside / place, repo / f"evil/file-{number}")
        found += [place, f"evil/file-{number}"]
    return found


@contextmanager
def attack(program: Path, repo: Path, exchanged: list[str], uid: int) -> Iterator[Callable[[], bool]]:
    """Run the attacker for the block; gives what says whether it is at work still."""
    with subprocess.Popen(
        [program, repo, "5000", *exchanged], user=uid, group=uid, extra_groups=[], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield lambda: process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
        said = process.stdout.read()
        assert process.wait(60) == 0
        assert int(said.split()[0]) > 10 * SECONDS, said


def commands(repo: Path, image: Path, shop: str) -> list[list[str]]:
    """Every command that changes something, and some that look at everything; ``shop`` is a registry's address."""
    digest = "@" + os.readlink(repo / APP).rpartition("oci-manifest-")[2]
    away = ["--boot", str(repo.parent / "boot"), "--esp", "none", "--run", str(repo.parent / "run"), "--booted", "none"]
    instructions = image.parent / "instructions"
    instructions.write_text(f"create many1 {digest}\ncreate many2 {digest}\n")
    policy = image.parent / "policy.toml"
    policy.write_text('[[rule]]\ntags = ["many*", "shared"]\ngroup-by = "rule"\nkeep-last = 1\n')
    deployment = min(path.name for path in (repo.parent / "state/deploy").iterdir())
    out, mends = str(image.parent / "out"), ["fsck", "--repair", "--from", f"oci:{image}:fresh"]
    publish = ["publish", f"{shop}/os", "--name", "host", *away]
    return [
        ["create", "made", digest],
        ["create", "app", digest, "--force"],
        ["create", "shared", digest, "--shared"],
        ["create", "leased", digest, "--expires", "1d"],
        ["delete", "made"],
        ["delete", "shared", "--keep-for", "1d"],
        ["restore", "shared"],
        ["rename", "app", "other"],
        ["rename", "other", "app"],
        ["delete", "other"],
        ["update", "--stdin"],
        ["delete", "many1", "many2"],
        ["import", f"oci:{image}:fresh", "fresh"],
        ["import", f"oci:{image}:app", "app", "--force"],
        ["delete", "fresh"],
        ["policy", "apply", "--file", str(policy)],
        ["good-boot", deployment, *away],
        ["migrate", *away],
        ["create", "--deployment", deployment, "--bind"],
        ["bind", deployment, *away],
        ["migrate", "--undo", *away],
        ["retire", *away],
        ["gc", *away],
        ["gc", "--no-sysroot"],
        ["fsck", "--repair"],
        mends,
        [*mends, "--content"],
        ["restore", "lost"],
        ["pin", deployment, "--name", "mine", *away],
        ["pin", deployment, "--name", "mine", "--until", "1s", *away],
        ["pin", "app", "--until", "9d"],
        ["unpin", "mine", *away],
        ["unpin", "app"],
        ["revive", "mine", "--export-only", "--force", "--to", out, *away],
        ["hold", "app", "--for", "10s", "--", "true"],
        ["trash", "empty", "--yes"],
        ["maintain", "--check-every", "1s", *away],
        [*publish, "--restore"],
        [*publish, "--retract"],
        ["status", *away],
        ["diff", "app", "other"],
        ["report", "-", *away],
    ]


def carry_out(repo: Path, words: list[str], instructions: Path) -> Result:
    patience = () if words[0] in ("status", "diff") else ("--lock-timeout", "2")
    end = words.index("--") if "--" in words else len(words)
    with instructions.open() as lines:
        return run("--repo", repo, *words[:end], *patience, *words[end:], stdin=lines.fileno())


def unsettle(repo: Path, image: Path, home: Path, uid: int) -> None:
    """A tag whose image only a source has, a log that is soon forgotten, and directories beside for what is written there."""
    fresh = next(one for one in json.loads((image / "index.json").read_text())["manifests"] if "fresh" in str(one))
    (repo / APP).with_name("lost").symlink_to(f"../../../oci-manifest-{fresh['digest']}")
    (repo / "cfs-tags/policy.toml").write_text('[log]\nkeep-for = "1s"\n')
    for name in ("out", "state"):
        (home / name).mkdir()
        os.chown(home / name, uid, uid)


@pytest.mark.slow
@pytest.mark.parametrize("uid", [USER, 0], ids=["of another user", "of root's own"])
def test_nothing_outside_changes(
    attacker: bytes,
    home: Path,
    repo: Path,
    image: Path,
    outside: Callable[[], Outside],
    registry: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
) -> None:
    """In the repository of another user root becomes that user; in its own, the way in which paths are followed is all
    that keeps it inside."""
    program = home / "attacker"
    program.write_bytes(attacker)
    program.chmod(0o755)
    beside = outside()
    exchanged = pairs(repo, beside.path)
    unsettle(repo, image, home, uid)
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    give(repo, uid)
    for number in range(len(FILES)):  # these are root's files, under whatever names they are here
        os.chown(repo / f"evil/file-{number}", 0, 0)
    beside = beside.again()
    choose = random.Random(20261126)
    ended: Counter[tuple[str, int]] = Counter()
    with distribution(registry, home / "registry") as shop, attack(program, repo, exchanged, uid) as is_at_work:
        every = commands(repo, image, shop.address)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            some = [choose.choice(every) for _ in range(5)]
            results = [carry_out(repo, words, home / "instructions") for words in some]
            assert [both for both in zip(some, results, strict=True) if not both[1].is_sound] == []
            assert (beside.changed(), some, results) == ([], some, results)
            ended.update((words[0], result.status) for words, result in zip(some, results, strict=True))
            assert is_at_work()

    print(sorted(ended.items()))
    assert any(status == 0 for _, status in ended), ended
    assert any(status in (1, 6) for _, status in ended), ended
