"""What is measured: each function here is a group of rows of the table, for one data set.

The goals are those of ``docs/performance.md``.  Before something is measured, what it does is compared with what the peer
does, so that no row compares different work.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasets import Data, copy, deployment_ids, tag_names
from measure import BenchError, Comparison, Launcher, Run, compare, drop_caches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FULL", "GROUPS", "QUICK", "Bench", "Row", "Sizes"]

MIB = 1 << 20


class Sizes(NamedTuple):
    """How much of everything: ``pairs`` of runs, the other numbers are of the data sets."""

    pairs: int
    slow_pairs: int
    images: int
    tags: int
    creates: int
    peer_creates: int
    deployments: int
    manifests: int
    large_deployments: int
    files: int
    shared_files: int
    garbage: tuple[int, ...]
    collections: int
    app_files: int
    app_bytes: int
    app_pairs: int


FULL = Sizes(
    pairs=15,
    slow_pairs=7,
    images=100,
    tags=10_000,
    creates=10_000,
    peer_creates=200,
    deployments=20,
    manifests=1_000,
    large_deployments=10,
    files=100_000,
    shared_files=99_000,
    garbage=(10_000, 100_000, 1_000_000),
    collections=3,
    app_files=50_000,
    app_bytes=1_000_000_000,
    app_pairs=5,
)
QUICK = FULL._replace(
    pairs=7,
    slow_pairs=3,
    peer_creates=50,
    manifests=100,
    large_deployments=3,
    files=5_000,
    shared_files=4_900,
    garbage=(10_000, 50_000),
    collections=2,
    app_files=2_000,
    app_bytes=40_000_000,
    app_pairs=3,
)
"""Fewer pairs on smaller data: to see that everything runs, and large changes."""


class Row(NamedTuple):
    """One line of the table.

    Args:
        group: what it belongs to: a name of :data:`GROUPS`.
        name: short and stable, for programs that compare two results.
        ours: our command, for people.
        peer: the other one; empty where a figure stands alone.
        comparison: all runs; None where nothing was measured.
        figure: what is judged, with the least and the greatest one seen: a ratio of times, or MiB.
        unit: of the figure: ``x``, ``MiB`` or ``s``.
        limit: of the figure; None where there is no goal.
        at_least: whether the figure should be the limit or more, not the limit or less.
        note: what has to be known to read it.
    """

    group: str
    name: str
    ours: str
    peer: str = ""
    comparison: Comparison | None = None
    figure: tuple[float, float, float] | None = None
    unit: str = "x"
    limit: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """``met``, ``missed by …``, or what there is to say instead."""
        if self.figure is None:
            return "not available"
        if self.limit is None:
            return "no goal"
        value = self.figure[0]
        if value >= self.limit if self.at_least else value <= self.limit:
            return "met"
        return f"missed by {abs(value / self.limit - 1):.0%}"


class Bench(NamedTuple):
    """What every group needs: programs, data, and directories to work in: ``work`` beside the data, ``memory`` on a tmpfs."""

    program: Path
    cfsctl: Path
    git: Path | None
    python: Path
    launcher: Launcher
    data: Data
    sizes: Sizes
    work: Path
    memory: Path | None
    cold: bool

    def ours(self, *words: str | Path, stdin: Path | None = None) -> Run:
        """Run cfs-tag."""
        return self.launcher.run(self.program, *words, stdin=stdin)

    def has(self, command: str) -> bool:
        """Whether cfs-tag has the command."""
        try:
            self.ours(command, "--help")
        except BenchError:
            return False
        return True

    def before(self) -> None:
        """Called before each run of a command that only reads."""
        if self.cold:
            drop_caches()

    def reading(self, *words: str | Path) -> Callable[[], Run]:
        """A command that only reads, to be run again and again."""

        def once() -> Run:
            self.before()
            return self.launcher.run(*words)

        return once

    def copied(self, source: Path, where: Path | None = None) -> Path:
        """A copy to change, on disk before anything is measured on it."""
        copied = copy(source, self.fresh("copy", where))
        os.sync()
        return copied

    def fresh(self, name: str, where: Path | None = None) -> Path:
        """A path where nothing is, below ``work`` unless another directory is named.

        What stands there later is removed at the very end: on ext4 without a journal every new file is slow for minutes
        after many were deleted, because the numbers of deleted ones are looked through and passed over
        (Linux, fs/ext4/ialloc.c, ``recently_deleted``).
        """
        return Path(tempfile.mkdtemp(dir=where or self.work, prefix="")) / name


def _by_time(
    group: str,
    name: str,
    ours: str,
    peer: str,
    comparison: Comparison,
    limit: float | None,
    *,
    at_least: bool = False,
    scale: float = 1.0,
    note: str = "",
) -> Row:
    """A row judged by the ratio of times: ours to the peer's, or the other way round where more is better."""
    ratios = sorted((scale / ratio if at_least else ratio * scale) for ratio in comparison.ratios)
    middle = scale / comparison.ratio if at_least else comparison.ratio * scale
    return Row(group, name, ours, peer, comparison, (middle, ratios[0], ratios[-1]), "x", limit, at_least, note)


def _by_memory(group: str, name: str, ours: str, comparison: Comparison, limit: float) -> Row:
    peaks = sorted(run.peak / MIB for run in comparison.ours)
    figure = (peaks[len(peaks) // 2], peaks[0], peaks[-1])
    return Row(group, name, ours, "", comparison, figure, "MiB", limit)


# -- how much is noise -------------------------------------------------------------------------------------------------


def noise(bench: Bench) -> Iterator[Row]:
    """The same command twice: what a ratio of 1 looks like on this machine now."""
    program = _empty_program(bench)
    once = bench.reading(program, "first")
    found = compare(once, once, bench.sizes.pairs)
    yield _by_time("noise", "noise", "typer program of two empty commands", "the same", found, None)


def _empty_program(bench: Bench) -> Path:
    """The smallest typer program with two commands, installed as pip installs: a script, and a compiled module."""
    home = bench.work / "empty"
    if not home.exists():
        home.mkdir()
        module = home / "empty_program.py"
        shutil.copyfile(Path(__file__).with_name("empty_program.py"), module)
        compileall.compile_file(module, quiet=1)
        script = home / "empty-program"
        script.write_text(
            f"#!{bench.python}\n"
            "import re\n"
            "import sys\n"
            "from empty_program import main\n"
            "if __name__ == '__main__':\n"
            "    sys.exit(main())\n"
        )
        script.chmod(0o755)
    return home / "empty-program"


# -- listing -----------------------------------------------------------------------------------------------------------


def listing(bench: Bench) -> Iterator[Row]:
    """All tags of a repository with many."""
    sizes = bench.sizes
    repo = bench.data.tags(sizes.images, sizes.tags)
    images = (bench.cfsctl, "--repo", repo, "oci", "images", "--json")
    short = (bench.program, "--repo", repo, "list", "--format", "{name} {digest}")
    full = (bench.program, "--repo", repo, "list", "--json", "--long")

    theirs = {row["name"]: row["manifest_digest"] for row in json.loads(bench.launcher.output(*images))["images"]}
    lines = dict(line.split(" ", 1) for line in bench.launcher.output(*short).splitlines())
    rows = {row["name"]: row["digest"] for row in json.loads(bench.launcher.output(*full))["result"]}
    if not theirs == lines == rows:
        raise BenchError("cfs-tag and cfsctl list different tags")

    what = f"{len(theirs):,} tags of {sizes.images} manifests"
    peer = "cfsctl oci images --json"
    text = "cfs-tag list --format '{name} {digest}'"
    found = compare(bench.reading(*short), bench.reading(*images), sizes.pairs)
    yield _by_time("listing", "list", text, peer, found, 0.2, note=what)
    yield _by_memory("listing", "list-memory", text, found, 60)
    text = "cfs-tag list --json --long"
    found = compare(bench.reading(*full), bench.reading(*images), sizes.pairs)
    yield _by_time("listing", "list-long", text, peer, found, 0.3, note=what)
    yield _by_memory("listing", "list-long-memory", text, found, 60)


# -- starting ----------------------------------------------------------------------------------------------------------


def starting(bench: Bench) -> Iterator[Row]:
    """Commands that do next to nothing, against a program that does nothing."""
    sizes = bench.sizes
    source = bench.data.tags(sizes.images, sizes.tags)
    name = tag_names(1)[0]
    empty = bench.reading(_empty_program(bench), "first")
    peer = "typer program of two empty commands"
    what = f"repository of {sizes.tags:,} tags"

    found = compare(bench.reading(bench.program, "--repo", source, "resolve", name), empty, sizes.pairs)
    yield _by_time("starting", "resolve", "cfs-tag resolve NAME", peer, found, 1.4, note=what)

    for where, name, limit, note in (
        (bench.work, "create", 1.4, f"{what}; waits for the disk"),
        (bench.memory, "create-tmpfs", None, f"{what}; on tmpfs, which has no disk to wait for"),
    ):
        if where is not None:
            creating = _creating(bench, bench.copied(source, where))
            found = compare(creating, empty, sizes.pairs)
            yield _by_time("starting", name, "cfs-tag create NAME TARGET", peer, found, limit, note=note)


def _creating(bench: Bench, repo: Path) -> Callable[[], Run]:
    made = count()

    def create() -> Run:
        return bench.ours("--repo", repo, "create", f"registry.example.org/new:{next(made)}", tag_names(1)[0])

    return create


# -- many at once ------------------------------------------------------------------------------------------------------


def transactions(bench: Bench) -> Iterator[Row]:
    """Many tags made at once."""
    sizes = bench.sizes
    source = bench.data.images(sizes.images)
    tags = tag_names(sizes.images)
    names = [f"new/{name}" for name in tag_names(sizes.creates)]
    instructions = bench.work / "instructions"
    instructions.write_text("".join(f"create {name} {tags[number % len(tags)]}\n" for number, name in enumerate(names)))
    pairs = sizes.slow_pairs

    def tags_in(repo: Path) -> int:
        return len(json.loads(bench.launcher.output(bench.cfsctl, "--repo", repo, "oci", "images", "--json"))["images"])

    def update(where: Path) -> Callable[[], Run]:
        return lambda: bench.ours("--repo", bench.copied(source, where), "update", "--stdin", stdin=instructions)

    repo = bench.copied(source)
    bench.ours("--repo", repo, "update", "--stdin", stdin=instructions)
    if tags_in(repo) != len(tags) + len(names):
        raise BenchError("cfs-tag update did not make the tags that it was told to make")

    digests = {
        row["name"]: row["manifest_digest"]
        for row in json.loads(bench.launcher.output(bench.cfsctl, "--repo", source, "oci", "images", "--json"))["images"]
    }

    def tag() -> Run:
        repo = bench.copied(source)
        targets = [digests[tags[number % len(tags)]] for number in range(sizes.peer_creates)]
        words = [(bench.cfsctl, "--repo", repo, "oci", "tag", digest) for digest in targets]
        return bench.launcher.run_all([(*word, name) for word, name in zip(words, names, strict=False)])

    ours = f"cfs-tag update --stdin, {len(names):,} creates"
    found = compare(update(bench.work), tag, pairs, 1)
    yield _by_time(
        "transactions",
        "update-cfsctl",
        ours,
        f"{len(names):,} processes cfsctl oci tag",
        found,
        20,
        at_least=True,
        scale=len(names) / sizes.peer_creates,
        note=f"{sizes.peer_creates} processes measured, their time taken {len(names) / sizes.peer_creates:g} times; "
        "the figure is how much faster we are",
    )

    if bench.git is None:
        yield Row("transactions", "update-git", ours, "git update-ref --stdin", limit=1.0, note="git was not found")
        return
    durable = ("-c", "core.fsync=committed,reference")
    for name, where, config, limit, times, note in (
        ("update-git", bench.work, (), 1.0, pairs, "git as it comes, which does not wait for refs to be on disk"),
        ("update-git-tmpfs", bench.memory, (), None, pairs, "on tmpfs, which has no disk to wait for"),
        ("update-git-durable", bench.work, durable, None, 3, "git waits for refs to be on disk, as cfs-tag does"),
    ):
        if where is not None:
            found = compare(update(where), _git_update(bench, names, config, where), times, 1)
            peer = " ".join(["git", *config, "update-ref --stdin"])
            yield _by_time("transactions", name, ours, peer, found, limit, note=note)


def _git_update(bench: Bench, names: list[str], config: tuple[str, ...], where: Path) -> Callable[[], Run]:
    git = bench.git
    assert git is not None
    instructions = bench.work / "git-instructions"
    head = bench.work / "git-tree"
    head.write_bytes(b"")

    def once() -> Run:
        repo = bench.fresh("git", where)
        bench.launcher.run(git, "init", "--quiet", "--bare", repo)
        tree = bench.launcher.output(git, "-C", repo, "mktree", stdin=head).strip()
        identity = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
        commit = bench.launcher.output(git, "-C", repo, *identity, "commit-tree", "-m", "bench", tree).strip()
        refs = [name.replace(":", "-") for name in names]
        instructions.write_text("".join(f"create refs/heads/{name} {commit}\n" for name in refs))
        os.sync()
        run = bench.launcher.run(git, "-C", repo, *config, "update-ref", "--stdin", stdin=instructions)
        made = bench.launcher.output(git, "-C", repo, "for-each-ref", "--format=%(refname)")
        if len(made.splitlines()) != len(names):
            raise BenchError("git update-ref did not make the refs that it was told to make")
        return run

    return once


# -- deployments -------------------------------------------------------------------------------------------------------


def deployments(bench: Bench) -> Iterator[Row]:
    """Look-up and listing of deployments that have their refs."""
    sizes = bench.sizes
    looking = "cfs-tag lookup ID"
    showing = "cfs-tag deployments"
    many = f"{sizes.deployments} deployments, {sizes.manifests:,} manifests"
    if not (bench.has("migrate") and bench.has("lookup")):
        yield Row("deployments", "lookup", looking, "the same with 1 manifest", limit=1.2)
    else:
        runs = []
        for manifests in (sizes.manifests, 1):
            sysroot = bench.copied(bench.data.sysroot(1, manifests))
            bench.ours("--sysroot", sysroot, "migrate")
            name = deployment_ids(sysroot)[0]
            source = json.loads(bench.launcher.output(bench.program, "--sysroot", sysroot, "lookup", name, "--json"))
            if source["result"]["source"] != "ref":
                raise BenchError(f"a look-up by {source['result']['source']}, not by ref")
            runs.append(bench.reading(bench.program, "--sysroot", sysroot, "lookup", name))
        note = f"by ref, {sizes.manifests:,} manifests against 1"
        found = compare(runs[0], runs[1], sizes.pairs)
        yield _by_time("deployments", "lookup", looking, "the same with 1 manifest", found, 1.2, note=note)
    if not (bench.has("migrate") and bench.has("deployments")):
        yield Row("deployments", "deployments", showing, "cfs-tag list", limit=1.5, note=many)
        return
    sysroot = bench.copied(bench.data.sysroot(sizes.deployments, sizes.manifests))
    bench.ours("--sysroot", sysroot, "migrate")
    show = bench.reading(bench.program, "--sysroot", sysroot, "deployments")
    tags = bench.reading(bench.program, "--sysroot", sysroot, "list")
    found = compare(show, tags, sizes.pairs)
    yield _by_time("deployments", "deployments", showing, "cfs-tag list", found, 1.5, note=many)


def migration(bench: Bench) -> Iterator[Row]:
    """Moving a host with large deployments over, with the proof that nothing is lost."""
    sizes = bench.sizes
    ours = "cfs-tag migrate"
    peer = "cfsctl gc --dry-run on the result"
    note = (
        f"{sizes.large_deployments} deployments of {sizes.files:,} files in objects each, "
        f"{sizes.shared_files:,} of them in a layer of all"
    )
    if not bench.has("migrate"):
        yield Row("migration", "migrate", ours, peer, limit=2.0, note=note)
        return
    source = bench.data.large_sysroot(sizes.large_deployments, sizes.files, sizes.shared_files)
    measured: list[tuple[Run, Run]] = []
    for _ in range(1 + sizes.slow_pairs):
        sysroot = bench.copied(source)
        # each is run once before, so that what they read is in memory for both
        bench.ours("--sysroot", sysroot, "migrate", "--dry-run")
        our = bench.ours("--sysroot", sysroot, "migrate")
        collect = (bench.cfsctl, "--repo", sysroot / "composefs", "--no-upgrade", "gc", "--dry-run")
        bench.launcher.run(*collect)
        measured.append((our, bench.launcher.run(*collect)))
    found = Comparison(tuple(pair[0] for pair in measured[1:]), tuple(pair[1] for pair in measured[1:]))
    yield _by_time("migration", "migrate", ours, peer, found, 2.0, note=note)


# -- history and retention ---------------------------------------------------------------------------------------------

_MOVES = 10
"""How often each tag moved."""


def history(bench: Bench) -> Iterator[Row]:
    """The log of a tag among many, and a policy over all tags."""
    sizes = bench.sizes
    source = bench.data.tags(sizes.images, sizes.tags)
    names = tag_names(sizes.tags)
    repo = bench.copied(source)
    listed = bench.reading(bench.program, "--repo", repo, "list")
    long = bench.reading(bench.program, "--repo", repo, "list", "--long")
    instructions = bench.work / "moves"
    for turn in range(_MOVES):
        lines = (
            f"move {name} {names[(number + turn + 1) % sizes.images]}\n" for number, name in enumerate(names[sizes.images :])
        )
        instructions.write_text("".join(lines))
        bench.ours("--repo", repo, "update", "--stdin", stdin=instructions)
    name = names[-1]
    moves = json.loads(bench.launcher.output(bench.program, "--repo", repo, "log", name, "--json"))["result"]
    if len(moves) < _MOVES:
        raise BenchError("the log does not have what was moved")
    entries = _MOVES * (sizes.tags - sizes.images)
    what = f"{entries:,} entries in the log, {len(moves)} of them the tag's; {sizes.tags:,} tags"
    found = compare(bench.reading(bench.program, "--repo", repo, "log", name), listed, sizes.pairs)
    yield _by_time("history", "log", "cfs-tag log NAME", "cfs-tag list", found, 1.5, note=what)

    policy = bench.work / "policy.toml"
    for row, time in (("policy", "created"), ("policy-logged", "logged")):
        rule = f'tags = ["*"]\nkeep-last = 3\nkeep-daily = 7\nkeep-tags = ["*:latest"]\ngroup-by = "rule"\ntime = "{time}"\n'
        policy.write_text(f"[[rule]]\n{rule}")
        checking = (bench.program, "--repo", repo, "policy", "check", "--file", policy)
        rows = json.loads(bench.launcher.output(*checking, "--json"))["result"]
        if len(rows) != sizes.tags:
            raise BenchError("the policy does not say something of each tag")
        dropped = sum(not row["reasons"] for row in rows)
        found = compare(bench.reading(*checking), long, sizes.pairs)
        what = f"{sizes.tags:,} tags, of which it drops {dropped:,}; times as {time}"
        yield _by_time("history", row, "cfs-tag policy check", "cfs-tag list --long", found, 3.0, note=what)


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "noise": noise,
    "listing": listing,
    "starting": starting,
    "transactions": transactions,
    "deployments": deployments,
    "history": history,
    "migration": migration,
}
"""All groups of rows, in the order of the report."""
