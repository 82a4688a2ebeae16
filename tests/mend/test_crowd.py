"""Many hosts import a new image at the same time: the network has what one of them has fetched.

The hosts are processes of the program, each with a repository and a ``serve`` of its own; the registry is the real one
(distribution), whose log says what left it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.apps import lan
from cfs_tags.apps.importing.choose import Options
from cfs_tags.apps.importing.plan import plan_import
from cfs_tags.apps.importing.run import Imported, run_import
from cfs_tags.apps.importing.source import open_source, shared
from cfs_tags.apps.importing.source.http import Server
from cfs_tags.apps.importing.source.shared import Shared
from support.images import Image, Layer, base_layer, build_image, directory, file, random_bytes
from support.importing import import_image, machine
from support.mending import answering, assert_whole, head, objects
from support.peers import Cfsctl
from support.registries import Distribution, distribution
from support.serving import program, serving
from support.trees import copy_tree

ROOT = Path(__file__).parent.parent.parent
HOSTS = 20


@pytest.fixture
def upstream(registry: Path, tmp_path: Path) -> Iterator[Distribution]:
    with distribution(registry, tmp_path / "registry") as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Ten layers, 12 MiB compressed."""
    layers = [base_layer()]
    layers += [Layer([directory("usr"), file(f"usr/{n}", random_bytes(f"crowd{n}", 1_300_000))], "gzip") for n in range(9)]
    return build_image(tmp_path / "layout", "app", layers)


@pytest.fixture
def pushed(image: Image, upstream: Distribution, skopeo: Path) -> Image:
    place = f"docker://{upstream.address}/org/app:1"
    subprocess.run([skopeo, "copy", "--quiet", "--dest-tls-verify=false", image.source, place], check=True)
    return image


def size_of(layout: Path, image: Image) -> int:
    """Bytes of all that a registry gives of an image."""
    raw = (layout / "blobs" / image.manifest_digest.replace(":", "/")).read_bytes()
    manifest = json.loads(raw)
    return len(raw) + sum(one["size"] for one in (manifest["config"], *manifest["layers"]))


def started(repo: Path, source: str, peers: Sequence[str]) -> subprocess.Popen[bytes]:
    options = [word for peer in peers for word in ("--peer", f"http://{peer}")]
    command = [sys.executable, "-m", "cfs_tags", "--repo", repo, "import", "--json", source, "app:1", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """How many bytes came from where."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    return {one["from"]: one["bytes"] for one in json.loads(out)["result"]["fetched"]}


@pytest.mark.slow
def test_twenty_hosts_at_once_take_little_more_than_one_image_from_the_registry(
    new_repo: Callable[..., Path], upstream: Distribution, pushed: Image, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    empty = new_repo(tmp_path / "empty")
    repos = [copy_tree(empty, tmp_path / f"host{number}") for number in range(HOSTS)]
    total = size_of(tmp_path / "layout", pushed)
    with ExitStack() as stack:
        served = [stack.enter_context(program(repo, tmp_path / f"log{repo.name}")) for repo in repos]
        addresses = [one.address for one in served]
        began = time.monotonic()
        with upstream.counted() as asked:
            running = [started(repo, f"http://{upstream.address}/org/app:1", addresses) for repo in repos]
            fetched = [finished(one) for one in running]
        seconds = time.monotonic() - began
    left = sum(one.size for one in asked)
    print(f"{HOSTS} hosts, {total} bytes each, {seconds:.0f} s: {left} bytes left the registry: {left / total:.3f} images")
    assert left <= 1.3 * total
    for repo, places in zip(repos, fetched, strict=True):
        assert sum(places.values()) > 0.9 * total
        with Repository.open(repo) as opened:
            assert opened.tags.resolve("app:1") == pushed.manifest_digest
    assert_whole(cfsctl, repos[0])


@pytest.mark.slow
def test_through_skopeo_each_layer_leaves_the_registry_once(
    new_repo: Callable[..., Path], upstream: Distribution, pushed: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / ".config/containers/registries.conf"
    config.parent.mkdir(parents=True)
    config.write_text(f'[[registry]]\nlocation = "{upstream.address}"\ninsecure = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    repos = [new_repo(tmp_path / f"host{number}") for number in range(3)]
    total = size_of(tmp_path / "layout", pushed)
    with ExitStack() as stack:
        served = [stack.enter_context(program(repo, tmp_path / f"log{repo.name}")) for repo in repos]
        addresses = [one.address for one in served]
        with upstream.counted() as asked:
            running = [started(repo, f"docker://{upstream.address}/org/app:1", addresses) for repo in repos]
            for one in running:
                finished(one)
    left = sum(one.size for one in asked)
    print(f"3 hosts through skopeo: {left / total:.3f} images left the registry")
    assert left <= 1.3 * total


@pytest.mark.slow
def test_a_host_that_dies_while_it_fetches_costs_time_and_not_the_image(
    new_repo: Callable[..., Path], upstream: Distribution, pushed: Image, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    repos = [new_repo(tmp_path / name) for name in ("first", "second", "third")]
    with ExitStack() as stack:
        served = [stack.enter_context(program(repo, tmp_path / f"log{repo.name}")) for repo in repos]
        addresses = [one.address for one in served]
        running = [started(repo, f"http://{upstream.address}/org/app:1", addresses) for repo in repos]
        time.sleep(1.5)
        running[0].send_signal(signal.SIGKILL)
        running[0].communicate()
        served[1].process.kill()  # its layers are had by no other any more
        for one in running[1:]:
            finished(one)
    for repo in repos[1:]:
        assert_whole(cfsctl, repo)


# -- one import, other hosts as they come ------------------------------------------------------------------------------


def take(repo: Path, source: str, *hosts: str) -> tuple[Imported, Shared]:
    options = Options()
    with Repository.open(repo, write=True) as opened:
        made = Shared(open_source(source, machine(), options.limit), opened, [Server(host, 3.0) for host in hosts], seed=1)
        done = run_import(opened, made, lambda: plan_import(opened, made, "app", options))
        made.close()
    return done, made


def test_layers_that_another_host_has_are_not_read_from_the_source(
    new_repo: Callable[..., Path], image: Image, tmp_path: Path, cfsctl: Cfsctl
) -> None:
    other, mine = new_repo(tmp_path / "other"), new_repo(tmp_path / "mine")
    import_image(other, image.source, "quay.io/another/name:7")
    with serving(other) as served:
        done, _ = take(mine, image.source, f"http://{served.address}")
    assert list(done.fetched) == [f"http://{served.address}"]
    with Repository.open(mine) as opened:
        assert opened.tags.resolve("app") == image.manifest_digest
    assert_whole(cfsctl, mine)


LIES = {
    "has everything, and gives other bytes": ("here", head("200 OK", "Content-Length: 9") + b"123456789"),
    "has everything, and gives nothing": ("here", head("404 No")),
    "fetches everything, for ever": ("fetching", head("404 No")),
    "claims everything, for ever": ("claiming", head("404 No")),
    "wants everything, and never begins": ("wanted", head("404 No")),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_host_that_lies_costs_time_and_not_the_image(
    lie: str, repo: Path, image: Image, new_repo: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_PATIENCE", 0.5)
    monkeypatch.setattr(shared, "_TURN", 0.5)
    monkeypatch.setattr(shared, "_SLOWEST", 1 << 30)
    mine = new_repo(tmp_path / "mine")
    state, blob = LIES[lie]

    def answer(connection: socket.socket, request: bytes) -> None:
        path = request.split(b" ")[1].decode()
        if "layers?digests=" not in path:
            connection.sendall(blob)
            return
        digests = path.partition("=")[2].split(",")
        said = {digest: {"state": state, "by": "f" * 32, "size": 5} for digest in digests}
        data = json.dumps({"layers": said}).encode()
        connection.sendall(head("200 OK", f"Content-Length: {len(data)}") + data)

    with answering(answer) as address:
        done, made = take(mine, image.source, address)
    assert list(done.fetched)[-1] == image.source
    with Repository.open(mine) as opened:
        assert opened.tags.resolve("app") == image.manifest_digest
    assert len(made.problems) == (1 if state == "here" else 0)


@pytest.mark.parametrize("state", ["fetching", "claiming", "wanted", "here"])
def test_a_host_that_is_another_import_at_every_look_is_not_waited_for_for_ever(
    state: str, image: Image, new_repo: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_PATIENCE", 0.5)
    monkeypatch.setattr(shared, "_TURN", 0.5)
    monkeypatch.setattr(shared, "_SLOWEST", 1 << 30)
    mine = new_repo(tmp_path / "mine")
    asked: list[bytes] = []

    def answer(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        assert len(asked) < 100
        digests = request.split(b" ")[1].decode().partition("=")[2].split(",")
        # that it has it is said to the one who is about to fetch it alone
        shown = "wanted" if state == "here" and len(digests) > 1 else state
        by = "0" * 32 if shown == "here" else os.urandom(16).hex()
        said = {digest: {"state": shown, "by": by, "size": 5} for digest in digests}
        data = json.dumps({"layers": said}).encode()
        connection.sendall(head("200 OK", f"Content-Length: {len(data)}") + data)

    with answering(answer) as address:
        done, _ = take(mine, image.source, address)
    assert list(done.fetched) == [image.source] if state != "here" else image.source in done.fetched


@pytest.mark.parametrize(
    "layer",
    [
        {"state": "wanted", "by": "\ud800"},
        {"state": "wanted", "by": 7},
        {"state": "wanted", "by": "f" * 65},
        {"state": "\ud800", "by": ""},
        {"state": ["here"], "by": ""},
        {"by": ""},
        [],
        "here",
    ],
    ids=str,
)
def test_a_host_that_says_what_makes_no_sense_is_told_of_once_and_left_out(
    layer: Any, image: Image, new_repo: Callable[..., Path], tmp_path: Path
) -> None:
    def answer(connection: socket.socket, request: bytes) -> None:
        digests = request.split(b" ")[1].decode().partition("=")[2].split(",")
        data = json.dumps({"layers": dict.fromkeys(digests, layer)}).encode()
        connection.sendall(head("200 OK", f"Content-Length: {len(data)}") + data)

    with answering(answer) as address:
        done, made = take(new_repo(tmp_path / "mine"), image.source, address)
    assert list(done.fetched) == [image.source]
    assert [one.code for one in made.problems] == ["source-failed"]


def test_a_host_that_does_not_answer_is_told_of_once_and_left_out(
    image: Image, new_repo: Callable[..., Path], tmp_path: Path
) -> None:
    done, made = take(new_repo(tmp_path / "mine"), image.source, "http://127.0.0.1:1")
    assert list(done.fetched) == [image.source]
    assert [one.code for one in made.problems] == ["source-failed"]


# -- found on the network ----------------------------------------------------------------------------------------------

ALONE = """
import json, subprocess, sys, time
other, log, mine, *words = sys.argv[1:]
command = [sys.executable, "-m", "cfs_tags", "--repo"]
serve = subprocess.Popen([*command, other, "serve", "--announce", "--listen", "127.0.0.1:0"], stderr=open(log, "w"))
while "announced" not in open(log).read():
    assert serve.poll() is None, open(log).read()
    time.sleep(0.05)
done = subprocess.run([*command, mine, *words], capture_output=True)
serve.terminate()
serve.wait(20)
sys.stderr.buffer.write(done.stderr)
sys.stdout.buffer.write(done.stdout)
sys.exit(done.returncode)
"""


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Call the program in a network namespace that has the loopback interface alone, where a host announces itself."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network of its own needs root and ip")

    def call(other: Path, mine: Path, *words: str) -> dict[str, Any]:
        inside = 'ip link set lo up multicast on && ip route add 224.0.0.0/4 dev lo && exec "$@"'
        program = ["unshare", "--net", "sh", "-c", inside, "sh", sys.executable, "-c", ALONE]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*program, other, tmp_path / "log", mine, *words], env=environment, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode()
        result: dict[str, Any] = json.loads(done.stdout)["result"]
        return result

    return call


def test_a_host_that_announces_itself_is_found(
    alone: Callable[..., dict[str, Any]], image: Image, new_repo: Callable[..., Path], tmp_path: Path
) -> None:
    other, mine = new_repo(tmp_path / "other"), new_repo(tmp_path / "mine")
    import_image(other, image.source, "app")
    places = [one["from"] for one in alone(other, mine, "import", "--json", "--lan", image.source, "app")["fetched"]]
    assert len(places) == 1
    assert places[0].startswith("http://127.0.0.1:")


def test_a_repair_finds_it_too(
    alone: Callable[..., dict[str, Any]], image: Image, new_repo: Callable[..., Path], tmp_path: Path, cfsctl: Cfsctl
) -> None:
    other = new_repo(tmp_path / "other")
    import_image(other, image.source, "app")
    mine = copy_tree(other, tmp_path / "mine")
    for path in objects(mine)[::2]:
        path.unlink()
    assert alone(other, mine, "fsck", "--repair", "--lan", "--json")["mended"]["left"] == []
    assert_whole(cfsctl, mine)


def test_where_no_host_announces_itself_none_is_found() -> None:
    """Asked on the loopback interface alone."""
    assert lan.find("a test", 0.3, ["127.0.0.1"]) == []
