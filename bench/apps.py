"""What is measured of app images: in, out and served, beside cfsctl, skopeo and the reference registry.

All with one image of many files, from layouts that were built once.  Every import goes into a repository of its own, and
every export into a layout of its own: what they write is compared once, and measured then.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
import zlib
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import APP
from measure import BenchError, Comparison, Run, compare, memory_of, watched
from rows import MIB, Bench, Row, _by_time

from support.peers import find_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["GROUPS"]

_TAG = "registry.example.org/apps/app:1"
_REPOSITORY, _REFERENCE = "registry.example.org/apps/app", "1"
_MEMORY = 150
"""MiB that all processes of a command may have together."""
_MEMORY_SERVED = 100
"""MiB that the registry may have."""
_CONNECTIONS = 4
_READY = 20.0
_REGISTRY = """\
version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {root}
http:
  addr: {address}
"""


def apps(bench: Bench) -> Iterator[Row]:
    """Importing and exporting one image."""
    if not bench.has("import"):
        yield Row("apps", "import", "cfs-tag import", "cfsctl oci pull", limit=1.0)
        return
    sizes = bench.sizes
    made = bench.data.app(sizes.app_files, sizes.app_bytes)
    what = f"image of {sizes.app_bytes / 1e9:g} GB in {sizes.app_files:,} files, five layers"
    repo = _imported(bench, made)
    yield from _importing(bench, made, what)
    yield from _exporting(bench, made, repo, what)


def served(bench: Bench) -> Iterator[Row]:
    """Serving the same image."""
    sizes = bench.sizes
    made = bench.data.app(sizes.app_files, sizes.app_bytes)
    repo = _new_repo(bench)
    bench.ours("--repo", repo, "import", f"oci:{made / 'gzip'}:{APP}", _TAG)
    yield from _serving(bench, made, repo, f"image of {sizes.app_bytes / 1e9:g} GB in {sizes.app_files:,} files, five layers")


def _new_repo(bench: Bench) -> Path:
    repo = bench.fresh("composefs")
    bench.launcher.run(bench.cfsctl, "init", "--insecure", repo)
    # what was written before is not to be written while something is measured
    os.sync()
    return repo


def _memory(name: str, ours: str, bytes_: float, note: str, limit: float = _MEMORY) -> Row:
    figure = (bytes_ / MIB,) * 3
    return Row("apps", name, ours, "", None, figure, "MiB", limit, note=f"all processes together (PSS); {note}")


# -- in ----------------------------------------------------------------------------------------------------------------


def _imported(bench: Bench, made: Path) -> Path:
    """A repository with the image; ours and cfsctl's have the same streams."""
    ours, theirs = _new_repo(bench), _new_repo(bench)
    bench.ours("--repo", ours, "import", f"oci:{made / 'gzip'}:{APP}", _TAG)
    bench.launcher.run(bench.cfsctl, "--repo", theirs, "oci", "pull", f"oci:{made / 'gzip'}:{APP}", _TAG)
    mine, other = (
        json.loads(bench.launcher.output(bench.cfsctl, "--repo", repo, "oci", "inspect", _TAG)) for repo in (ours, theirs)
    )
    if any(mine[key] != other[key] for key in mine if not key.startswith("composefs_")):
        raise BenchError("cfs-tag import and cfsctl oci pull made different images")
    # cfsctl has more: the EROFS image, and config and manifest that name it beside those that do not
    if _layers(ours) != _layers(theirs) or not _objects(ours) <= _objects(theirs):
        raise BenchError("cfs-tag import and cfsctl oci pull stored different objects")
    return ours


def _layers(repo: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in (repo / "streams").glob("oci-layer-*")}


def _objects(repo: Path) -> set[str]:
    return {parent.name + path.name for parent in (repo / "objects").iterdir() for path in parent.iterdir()}


def _importing(bench: Bench, made: Path, what: str) -> Iterator[Row]:
    source = f"oci:{made / 'gzip'}:{APP}"
    again: list[Run] = []

    def ours() -> Run:
        repo = _new_repo(bench)
        first = bench.ours("--repo", repo, "import", source, _TAG)
        again.append(bench.ours("--repo", repo, "import", source, _TAG))
        return first

    def theirs() -> Run:
        return bench.launcher.run(bench.cfsctl, "--repo", _new_repo(bench), "oci", "pull", source, _TAG)

    text = "cfs-tag import oci:DIR:REF NAME"
    found = compare(ours, theirs, bench.sizes.app_pairs, 1)
    note = f"{what}, gzip; the peer also makes the EROFS image"
    yield _by_time("apps", "import", text, "cfsctl oci pull oci:DIR:REF NAME", found, 1.0, note=note)
    found = Comparison(tuple(again[1:]), found.ours)
    yield _by_time("apps", "import-again", f"{text}, which is there", f"{text}, the first time", found, 0.1, note=what)
    seen = watched([bench.program, "--repo", _new_repo(bench), "import", source, _TAG])
    yield _memory("import-memory", text, seen.memory, what)


# -- out ---------------------------------------------------------------------------------------------------------------


def _exporting(bench: Bench, made: Path, repo: Path, what: str) -> Iterator[Row]:
    skopeo = find_peer("skopeo")
    pairs = bench.sizes.app_pairs
    layers = _diff_ids(made / "plain")

    def ours(*options: str) -> Callable[[Path], list[str | Path]]:
        return lambda target: [bench.program, "--repo", repo, "export", *options, _TAG, f"oci:{target}:{APP}"]

    def theirs(source: str, transport: str, *options: str) -> Callable[[Path], list[str | Path]]:
        assert skopeo is not None
        copy = [skopeo, "--insecure-policy", "copy", "--quiet", *options]
        return lambda target: [*copy, f"oci:{made / source}:{APP}", f"{transport}:{target}" + f":{APP}" * (transport == "oci")]

    def run(words: Callable[[Path], list[str | Path]]) -> Callable[[], Run]:
        def once() -> Run:
            with _new_layout(bench) as target:
                os.sync()
                return bench.launcher.run(*words(target))

        return once

    def same(mine: Callable[[Path], list[str | Path]], other: Callable[[Path], list[str | Path]]) -> str:
        sizes = []
        for words in (mine, other):
            with _new_layout(bench) as target:
                bench.launcher.run(*words(target))
                if _diff_ids(target) != layers:
                    raise BenchError(f"{words(target)[0]} wrote other layers than the image has")
                sizes.append(sum(path.stat().st_size for path in target.rglob("*") if path.is_file()))
        return f"{sizes[0] / 1e6:,.0f} and {sizes[1] / 1e6:,.0f} MB written"

    for name, options, source, transport, flags, limit, note in (
        (
            "export",
            (),
            "gzip",
            "dir",
            ("--dest-decompress",),
            1.2,
            "both write plain tars, skopeo into a directory of its own format",
        ),
        ("export-copy", (), "gzip", "oci", (), 1.2, "ours writes plain tars, skopeo the compressed layers as they are"),
        ("export-gzip", ("--compress", "gzip"), "plain", "oci", (), 1.2, "both write gzip, from plain layers"),
    ):
        text = " ".join(("cfs-tag export", *options, "NAME oci:NEW"))
        if skopeo is None:
            yield Row("apps", name, text, "skopeo copy", limit=limit, note="skopeo is not there")
        else:
            mine, other = ours(*options), theirs(source, transport, *flags)
            written = same(mine, other)
            found = compare(run(mine), run(other), pairs, 1)
            peer = " ".join(("skopeo copy", *flags, f"oci:{source} {transport}:NEW"))
            yield _by_time("apps", name, text, peer, found, limit, note=f"{what}; {note}; {written}")
        if name != "export-copy":
            with _new_layout(bench) as target:
                seen = watched(ours(*options)(target))
            yield _memory(f"{name}-memory", text, seen.memory, what)


@contextmanager
def _new_layout(bench: Bench) -> Iterator[Path]:
    """A path for a layout that is removed afterwards: it has a few large files, so that this slows nothing down."""
    target = bench.fresh("layout")
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _diff_ids(layout: Path) -> set[str]:
    """Digests of all layers, uncompressed, of a layout or of what skopeo's ``dir:`` writes."""
    blobs = layout / "blobs" / "sha256"
    found = set()
    for path in (blobs if blobs.is_dir() else layout).iterdir():
        if path.stat().st_size < 10_000:  # manifest and config
            continue
        digest = hashlib.sha256()
        with path.open("rb") as file:
            start = file.peek(2)[:2]
            inflate = zlib.decompressobj(31) if start == b"\x1f\x8b" else None
            while data := file.read(1 << 20):
                digest.update(data if inflate is None else inflate.decompress(data))
        found.add(digest.hexdigest())
    return found


# -- served ------------------------------------------------------------------------------------------------------------


def _serving(bench: Bench, made: Path, repo: Path, what: str) -> Iterator[Row]:
    text, peer = "cfs-tag serve", "registry serve"
    registry = find_peer("registry")
    blobs = sorted((made / "plain/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    layers = [path for path in blobs if path.stat().st_size >= 10_000]
    with _ours(bench, repo) as (address, pid):
        paths = [f"/v2/{_REPOSITORY}/blobs/sha256:{path.name}" for path in layers]
        _same_blobs(address, paths, layers)
        if registry is None:
            yield Row("serve", "serve", text, peer, limit=0.4, at_least=True, note="the reference registry is not there")
        else:
            with _reference(bench, registry) as other:
                _push(other, layers)
                _same_blobs(other, paths, layers)
                for name, connections, goal in (("serve", 1, 0.4), ("serve-parallel", _CONNECTIONS, 0.3)):
                    got = compare(
                        _fetching(bench, address, connections, paths),
                        _fetching(bench, other, connections, paths),
                        bench.sizes.pairs,
                    )
                    size = sum(path.stat().st_size for path in layers)
                    speeds = [size / min(run.seconds for run in runs) / 1e6 for runs in (got.ours, got.peer)]
                    note = (
                        f"{what}, plain; {connections} connection{'s' * (connections > 1)}; at best "
                        f"{speeds[0]:,.0f} and {speeds[1]:,.0f} MB/s, client included"
                    )
                    yield _by_time("serve", name, text, peer, got, goal, at_least=True, note=note)
        with _watching(pid) as most:
            for connections in (1, _CONNECTIONS, 24):
                _fetching(bench, address, connections, paths * (1 + connections // len(paths)))()
        yield _memory("serve-memory", text, most[0], f"{what}; 24 connections", _MEMORY_SERVED)._replace(group="serve")


def _fetching(bench: Bench, address: str, connections: int, paths: Sequence[str]) -> Callable[[], Run]:
    script = Path(__file__).with_name("fetching.py")
    return lambda: bench.launcher.run(bench.python, "-I", script, address, str(connections), *paths)


@contextmanager
def _ours(bench: Bench, repo: Path) -> Iterator[tuple[str, int]]:
    log = bench.work / "serve.log"
    words = [bench.program, "--repo", repo, "serve", "--listen", "127.0.0.1:0"]
    with log.open("wb") as sink, _process(words, bench, sink.fileno()) as process:

        def address() -> str | None:
            said = [line for line in log.read_text().splitlines() if " serving " in line]
            return said[0].rpartition("http://")[2] if said else None

        yield _until(address, process), process.pid


@contextmanager
def _reference(bench: Bench, registry: Path) -> Iterator[str]:
    root = bench.fresh("registry")
    root.mkdir()
    address = f"127.0.0.1:{_free_port()}"
    config = root / "config.yml"
    config.write_text(_REGISTRY.format(root=root / "data", address=address))
    with _process([registry, "serve", config], bench, subprocess.DEVNULL) as process:

        def answers() -> str | None:
            try:
                return address if _request(address, "GET", "/v2/")[0] == 200 else None
            except OSError:
                return None

        yield _until(answers, process)


@contextmanager
def _process(words: Sequence[str | Path], bench: Bench, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=bench.launcher.environment
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _until(ready: Callable[[], str | None], process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + _READY
    while time.monotonic() < deadline and process.poll() is None:
        if found := ready():
            return found
        time.sleep(0.02)
    raise BenchError(f"{process.args!r} does not serve: status {process.poll()}")


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _request(address: str, method: str, path: str, body: Path | None = None) -> tuple[int, str | None, str]:
    """Status, ``Location``, and the digest of the body of a response."""
    connection = HTTPConnection(address, timeout=60)
    try:
        if body is None:
            connection.request(method, path)
        else:
            with body.open("rb") as file:
                size = str(body.stat().st_size)
                connection.request(method, path, file, {"Content-Length": size, "Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        digest = hashlib.sha256()
        while data := response.read(1 << 20):
            digest.update(data)
        return response.status, response.headers["Location"], digest.hexdigest()
    finally:
        connection.close()


def _push(address: str, layers: Sequence[Path]) -> None:
    for path in layers:
        status, location, _ = _request(address, "POST", f"/v2/{_REPOSITORY}/blobs/uploads/")
        if status != 202 or location is None:
            raise BenchError(f"the registry answers {status} to an upload")
        target = location.removeprefix(f"http://{address}")
        status, _, _ = _request(address, "PUT", f"{target}{'&' if '?' in target else '?'}digest=sha256:{path.name}", path)
        if status != 201:
            raise BenchError(f"the registry answers {status} to a blob")


def _same_blobs(address: str, paths: Sequence[str], layers: Sequence[Path]) -> None:
    for path, layer in zip(paths, layers, strict=True):
        status, _, digest = _request(address, "GET", path)
        if (status, digest) != (200, layer.name):
            raise BenchError(f"{address}{path}: {status}, {digest}")


@contextmanager
def _watching(pid: int) -> Iterator[list[float]]:
    """The largest memory of a process and its children while the block lasts, in bytes."""
    most = [0.0]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], float(memory_of(pid)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {"apps": apps, "serve": served}
"""As ``rows.GROUPS``."""
