"""Hosts in network namespaces of their own, which reach each other by veth addresses alone."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["NET", "Inside", "Network", "ip", "linked", "why_not"]

NET = "10.213.77"
"""Of the bridge, which is ``.1``; hosts follow from ``.10`` on."""
_CLONE_NEWNET = 0x40000000


def ip(*words: str) -> None:
    """Run ip."""
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


class Network(NamedTuple):
    """Names of namespaces that are linked to a bridge, and of the link in the first."""

    names: list[str]
    inner: str


def why_not() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "namespaces need root and ip"
    bridge = f"cfsx{os.getpid() % 100_000}"
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "del", bridge)
    except subprocess.CalledProcessError as error:
        return f"this machine makes no bridge: {error.stderr.decode()}"
    return None


@contextmanager
def linked(hosts: int) -> Iterator[Network]:
    """So many namespaces on a bridge, for the block."""
    mark = f"{os.getpid() % 100_000}"
    bridge, names = f"cfsb{mark}", [f"cfst{mark}-{number}" for number in range(hosts)]
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("addr", "add", f"{NET}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for number, name in enumerate(names):
            inner, outer = f"cfsi{mark[-4:]}x{number}", f"cfso{mark[-4:]}x{number}"
            ip("netns", "add", name)
            ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
            ip("link", "set", outer, "master", bridge, "up")
            ip("-n", name, "addr", "add", f"{NET}.{number + 10}/24", "dev", inner)
            ip("-n", name, "link", "set", inner, "up")
        yield Network(names, f"cfsi{mark[-4:]}x0")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)


class Inside:
    """A thread of this process whose connections begin in a namespace; None for this one."""

    def __init__(self, name: str | None) -> None:
        self._pool = ThreadPoolExecutor(1, initializer=_enter, initargs=(name,))

    def do(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have something done there."""
        return self._pool.submit(work, *arguments)

    def close(self) -> None:
        """Wait for all that was to be done."""
        self._pool.shutdown()


def _enter(name: str | None) -> None:
    if name is None:
        return
    with (Path("/run/netns") / name).open("rb") as space:
        if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
