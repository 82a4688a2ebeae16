"""``varlink``: a client of another implementation gets what the commands say, and their errors under their codes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import varlink
from cli.conftest import Run

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
STOPPED = ("--esp", "none", "--run", "none", "--booted", "none")
PROGRAM = Path(sys.executable).parent / "cfs-tag"


@pytest.fixture
def address(tmp_path: Path, sysroot: Path) -> Iterator[str]:
    path = tmp_path / "socket"
    words = [PROGRAM, "--sysroot", sysroot, "varlink", "--listen", path, *STOPPED]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(200):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    break
            assert server.poll() is None, server.communicate()[1]
            time.sleep(0.05)
        yield f"unix:{path}"
    finally:
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=20)
    assert (server.returncode, said) == (0, "")
    assert not path.exists()


@pytest.fixture
def service(address: str) -> Iterator[Any]:
    client = varlink.Client.new_with_address(address)
    with client, client.open("org.cfstags") as opened:
        yield opened


def test_the_interface_is_described(address: str) -> None:
    with varlink.Client.new_with_address(address) as client:
        client.get_interfaces()
        methods = [name for name in client.get_interface("org.cfstags").members if name[0].isupper()]

    assert {"List", "Resolve", "Update", "Deployments", "Lookup", "Pin", "Why", "Gc"} <= set(methods)


def test_it_says_what_the_commands_say(service: Any, call: Run, sysroot: Path, run: Run, web: str) -> None:
    rows = run("list", "--json").result
    assert [(tag["name"], tag["digest"], tag["owner"]) for tag in service.List()["tags"]] == [
        (row["name"], row["digest"], row["owner"]) for row in rows
    ]
    assert [tag["name"] for tag in service.List(["*/web:*"])["tags"]] == [WEB]
    assert service.Resolve(WEB)["digest"] == web
    deployments = call("--sysroot", sysroot, "deployments", *STOPPED, "--json").result["deployments"]
    found = service.Deployments()["deployments"]
    assert [(one["id"], one["state"], one["ref"]) for one in found] == [
        (one["id"], one["state"], one["ref"]) for one in deployments
    ]
    one = call("--sysroot", sysroot, "lookup", found[0]["id"], *STOPPED, "--json").result
    assert service.Lookup(found[0]["id"])["found"]["manifest"] == one["manifest"]
    kept = service.Why(WEB)["kept"]
    assert kept["live"]
    assert any("streams/refs/oci/quay.io%2Fapps%2Fweb:1" in chain for chain in kept["chains"])


def test_it_changes_what_the_commands_change(service: Any, run: Run, web: str) -> None:
    changes = [
        {"verb": "create", "name": "a:1", "target": WEB, "expected": None},
        {"verb": "move", "name": DB, "target": WEB, "expected": None},
    ]
    made = service.Update(changes, "by a program")["changed"]

    assert [(one["name"], one["done"], one["new"]) for one in made] == [("a:1", "created", web), (DB, "moved", web)]
    assert run("log", "a:1", "--json").result[0]["reason"] == "by a program"
    name = service.Pin(WEB, "mine", 30, "kept")["name"]
    assert name in run("pins", "--json").raw.decode()


@pytest.mark.parametrize(
    ("method", "arguments", "error", "status"),
    [
        ("Resolve", ["absent"], "TagNotFound", 3),
        ("Update", [[{"verb": "create", "name": WEB, "target": DB, "expected": None}]], "TagExists", 4),
        ("Why", ["@sha256:zz"], "InvalidArgument", 2),
        ("Lookup", ["ffff"], "TargetNotFound", 3),
    ],
)
def test_an_error_has_the_name_of_its_code(method: str, arguments: list[Any], error: str, status: int, service: Any) -> None:
    with pytest.raises(varlink.VarlinkError) as refused:
        getattr(service, method)(*arguments)

    assert refused.value.error() == f"org.cfstags.{error}"
    facts = refused.value.parameters()
    assert "".join(word.capitalize() for word in facts["code"].split("-")) == error
    assert facts["status"] == status
    assert facts["message"]


def test_a_collection_says_how_far_it_is(address: str, call: Run, sysroot: Path) -> None:
    would = call("--sysroot", sysroot, "gc", "--dry-run", *STOPPED, "--json").result
    with varlink.Client.new_with_address(address) as client, client.open("org.cfstags") as service:
        answers = [one["collected"] for one in service.Gc(None, "now", _more=True)]

    assert len(answers) >= 3
    assert answers[0].get("objects") is None, "what is null is left out"
    assert (answers[-1]["objects"], answers[-1]["bytes"]) == (would["objects"], would["bytes"])
    assert all(one["done"] <= one["total"] for one in answers)


def test_many_at_once_are_answered(address: str, web: str) -> None:
    wrong: list[object] = []

    def ask(number: int) -> None:
        try:
            with varlink.Client.new_with_address(address) as client, client.open("org.cfstags") as service:
                change = {"verb": "create", "name": f"t/{number}", "target": WEB, "expected": None}
                if service.Update([change], None)["changed"][0]["new"] != web or not service.Why(WEB)["kept"]["live"]:
                    wrong.append(number)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_a_client_that_makes_no_sense_keeps_nobody_waiting(address: str, service: Any, web: str) -> None:
    for data in (b"\0", b"{\0", b'{"method": 1}\0', b'{"method": "org.cfstags.Resolve"}\0', b"x" * 100_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address.removeprefix("unix:"))
            client.sendall(data)

    assert service.Resolve(WEB)["digest"] == web


@pytest.mark.parametrize(
    "data",
    [b"{\0", b"[]\0", b"\xff\0", b"[" * 100_000 + b"\0", b'{"method":' + b"[" * 5000 + b"]" * 5000 + b"}\0"],
    ids=["broken", "list", "bytes", "deep", "deep inside"],
)
def test_what_is_no_call_ends_the_connection_and_that_alone(data: bytes, address: str, service: Any, web: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(address.removeprefix("unix:"))
        client.sendall(data + b'{"method":"org.cfstags.List"}\0')
        with suppress(ConnectionResetError):
            assert client.recv(1000) == b""
    assert service.Resolve(WEB)["digest"] == web


def test_a_call_without_an_end_is_cut(address: str, service: Any, web: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(address.removeprefix("unix:"))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(b" " * (64 << 20))
    assert service.Resolve(WEB)["digest"] == web


@pytest.mark.parametrize("days", [10**12, -(10**12), 10**9, 0])
def test_days_that_no_calendar_has_are_an_error(days: int, service: Any) -> None:
    with pytest.raises(varlink.VarlinkError) as caught:
        service.Pin(WEB, None, days)
    assert caught.value.error() == "org.cfstags.InvalidArgument"


def test_a_socket_of_the_network_is_refused(repo: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        script = (
            "import os, sys\n"
            "os.dup2(int(sys.argv[1]), 3)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        words = [sys.executable, "-c", script, str(listener.fileno()), str(PROGRAM), "--repo", str(repo), "varlink"]
        done = subprocess.run(words, pass_fds=(listener.fileno(),), stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "Unix socket" in done.stderr


def test_the_socket_is_its_users_alone(address: str) -> None:
    assert stat.S_IMODE(os.stat(address.removeprefix("unix:")).st_mode) == 0o600


def test_wrong_use(run: Run, repo: Path, tmp_path: Path) -> None:
    assert run("varlink").status == 2
    hidden = "import sys; sys.modules['asyncvarlink'] = None"
    words = ("-c", f"{hidden}; from cfs_tags.cli.main import main; sys.exit(main(sys.argv[1:]))")
    done = subprocess.run(
        [sys.executable, *words, "--repo", repo, "varlink", "--listen", tmp_path / "socket"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "asyncvarlink" in done.stderr
