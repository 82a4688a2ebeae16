"""Many hosts import a new image at the same time: the network has what one of them has fetched.

The hosts are processes of the program, each with a repository and a ``serve`` of its own; the registry is the real one
(distribution), whose log says what left it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import IO, Any

import pytest

from cfs_tags import Repository
from cfs_tags.apps import lan
from cfs_tags.apps.importing.choose import Options
from cfs_tags.apps.importing.plan import plan_import
from cfs_tags.apps.importing.run import Imported, run_import
from cfs_tags.apps.importing.source import open_source, shared
from cfs_tags.apps.importing.source.http import Server
from cfs_tags.apps.importing.source.shared import Shared
from cfs_tags.errors import UsageError
from support.images import Image, Layer, base_layer, build_image, directory, file, random_bytes
from support.importing import import_image, machine
from support.mending import answering, assert_whole, head, objects
from support.networks import NET, Network, linked, why_not
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


def test_a_host_that_is_slow_at_every_look_is_left_out(
    image: Image, new_repo: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_PATIENCE", 0.5)
    monkeypatch.setattr(shared, "_LOOK", 0.05)
    asked: list[bytes] = []

    def answer(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        time.sleep(0.3)
        connection.sendall(head("200 OK", "Content-Length: 13") + b'{"layers":{}}')

    with answering(answer) as address:
        done, made = take(new_repo(tmp_path / "mine"), image.source, address)
    assert list(done.fetched) == [image.source]
    assert len(asked) <= 3
    assert "too slow" in made.problems[0].message


def test_an_import_that_has_waited_in_vain_often_enough_waits_for_nobody(
    image: Image, new_repo: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host says nothing of a layer but that it fetches it, of one layer after the other."""
    monkeypatch.setattr(shared, "_PATIENCE", 0.5)
    monkeypatch.setattr(shared, "_POLL", 0.05)
    monkeypatch.setattr(shared, "_TURN", 0.0)
    monkeypatch.setattr(shared, "_SLOWEST", 1 << 30)
    slept: list[float] = []
    monkeypatch.setattr(shared, "sleep", lambda seconds: (slept.append(seconds), time.sleep(seconds)))

    def answer(connection: socket.socket, request: bytes) -> None:
        digests = request.split(b" ")[1].decode().partition("=")[2].split(",")
        said = {digest: {"state": "fetching", "by": os.urandom(16).hex()} for digest in digests[:1]}
        data = json.dumps({"layers": said}).encode()
        connection.sendall(head("200 OK", f"Content-Length: {len(data)}") + data)

    with answering(answer) as address:
        done, _ = take(new_repo(tmp_path / "mine"), image.source, address)
    assert list(done.fetched) == [image.source]
    assert sum(slept) < 1.5 * shared._IN_VAIN * 2 * 0.5


# -- found on the network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "is_near"),
    [
        ("192.0.2.9", True),
        ("2001:db8::9", True),
        ("192.0.2.2", False),  # this host
        ("2001:db8::2", False),
        ("198.51.100.7", False),  # this host, by a network of one address
        ("198.51.100.8", False),  # beyond a router
        ("2001:db8:1::9", False),
        ("169.254.169.254", False),  # where clouds have their metadata
        ("169.254.3.4", False),
        ("fe80::9", False),
        ("127.0.0.1", False),
        ("127.0.0.2", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:192.0.2.9", False),
        ("0.0.0.0", False),
        ("::", False),
        ("224.0.0.251", False),
        ("255.255.255.255", False),
    ],
)
def test_only_other_hosts_of_networks_that_this_one_is_in_are_taken(address: str, is_near: bool) -> None:
    mine = ("192.0.2.2/24", "198.51.100.7/32", "127.0.0.1/8", "169.254.3.3/16", "2001:db8::2/64", "fe80::2/64", "::1/128")
    assert lan.is_near(address, [ip_interface(one) for one in mine]) == is_near


LIAR = """
import sys, time
from zeroconf import InterfaceChoice, ServiceInfo, Zeroconf
service, running = "_cfs-tags._tcp.local.", Zeroconf()
for number, address in enumerate(["127.0.0.1", "169.254.169.254", "192.0.2.1", "::1", *sys.argv[1:]]):
    for port in (80, 8080):
        info = ServiceInfo(service, f"liar{number}-{port}.{service}", port=port, parsed_addresses=[address])
        running.register_service(info, cooperating_responders=True, strict=False)
info = ServiceInfo(service, f"aaaa.{service}", port=81, parsed_addresses=["127.0.0.1", sys.argv[1]])
running.register_service(info, cooperating_responders=True)
print("ready", flush=True)
time.sleep(100)
"""
FIND = "from cfs_tags.apps.lan import find; print('\\n'.join(find('a test')))"


@pytest.fixture
def network() -> Iterator[Network]:
    """Two hosts on one network."""
    if (why := why_not()) is not None:
        pytest.skip(why)
    with linked(2) as made:
        yield made


def start(space: str, program: Sequence[object]) -> subprocess.Popen[bytes]:
    """Start a program of Python's on a host of the network."""
    words = ["ip", "netns", "exec", space, sys.executable, *map(str, program)]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return out.decode()


@contextmanager
def beside(process: subprocess.Popen[bytes], stream: IO[bytes], word: bytes) -> Iterator[None]:
    """Have a program run beside the block, from when it says a word."""
    try:
        while word not in (line := stream.readline()):
            assert line, process.poll()
        yield
    finally:
        process.kill()
        process.communicate()


def test_what_a_liar_announces_is_not_asked(network: Network) -> None:
    near, self = f"{NET}.10", f"{NET}.11"
    liar = start(network.names[0], ["-c", LIAR, near, self])
    with beside(liar, liar.stdout, b"ready"):  # type: ignore[arg-type]
        found = ended(start(network.names[1], ["-c", FIND])).split()
        few = ended(start(network.names[1], ["-c", f"from cfs_tags.apps import lan; lan._MOST = 2\n{FIND}"])).split()
    assert set(found) == {f"http://{near}:{port}" for port in (80, 81, 8080)}
    assert (len(few), set(few) <= set(found)) == (2, True)


@pytest.fixture
def alone(network: Network) -> Callable[..., dict[str, Any]]:
    """Call the program on a host of a network where another one announces itself."""

    def call(other: Path, mine: Path, *words: str) -> dict[str, Any]:
        program = ["-m", "cfs_tags", "--repo"]
        serve = start(network.names[0], [*program, other, "serve", "--announce", "--listen", f"{NET}.10:5000"])
        with beside(serve, serve.stderr, b"announced"):  # type: ignore[arg-type]
            result: dict[str, Any] = json.loads(ended(start(network.names[1], [*program, mine, *words])))["result"]
        return result

    return call


def test_a_host_that_announces_itself_is_found(
    alone: Callable[..., dict[str, Any]], image: Image, new_repo: Callable[..., Path], tmp_path: Path
) -> None:
    other, mine = new_repo(tmp_path / "other"), new_repo(tmp_path / "mine")
    import_image(other, image.source, "app")
    places = [one["from"] for one in alone(other, mine, "import", "--json", "--lan", image.source, "app")["fetched"]]
    assert places == [f"http://{NET}.10:5000"]


def test_an_address_that_only_this_machine_can_reach_is_not_announced() -> None:
    with pytest.raises(UsageError, match="other machines"), socket.create_server(("127.0.0.1", 0)) as one:
        lan.announced([one]).__enter__()


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
