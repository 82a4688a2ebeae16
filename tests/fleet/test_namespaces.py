"""Hosts in network namespaces of their own, which reach the registry by veth addresses alone; all publish at once.

``CFS_TAGS_PROOF=long`` takes 50 of them, else it is 4.  Needs root and ip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.conftest import OS, push
from support.networks import NET, Network, ip, linked, why_not
from support.registries import Distribution, distribution
from support.sysroots import Host

HOSTS = 50 if os.environ.get("CFS_TAGS_PROOF") == "long" else 4
RUN = "import sys; from cfs_tags.cli.main import main; sys.exit(main())"


@pytest.fixture
def network() -> Iterator[Network]:
    if (why := why_not()) is not None:
        pytest.skip(why)
    with linked(HOSTS) as made:
        yield made


def start(name: str, host: Host, shop: Distribution, place: Path) -> subprocess.Popen[bytes]:
    """Publish from a namespace."""
    words = ["--sysroot", host.root, "publish", f"{shop.address}/{OS}", "--plain-http", "--name", name, *host.options, "--json"]
    environment = {**os.environ, "STATE_DIRECTORY": str(place / name), "REGISTRY_AUTH_FILE": str(place / "auth.json")}
    command = ["ip", "netns", "exec", name, sys.executable, "-c", RUN, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def ended(process: subprocess.Popen[bytes]) -> Any:
    out, err = process.communicate(timeout=120)
    assert out, err.decode()
    return json.loads(out)


def test_hosts_behind_addresses_of_their_own_publish_at_once(
    network: Network, host: Host, registry: Path, tmp_path: Path
) -> None:
    with distribution(registry, tmp_path / "bridged", address=f"{NET}.1") as shop:
        for name, deployed in host.pool.images.items():
            push(shop, OS, deployed.image, name)
        for _ in range(2):
            running = [start(name, host, shop, tmp_path) for name in network.names]
            said = [ended(process) for process in running]
            assert all(one["result"]["host"] == name for one, name in zip(said, network.names, strict=True)), said
        assert all(one["result"]["unchanged"] for one in said)
        for name in ("old", "new", "same"):
            shop.fetch(f"/v2/{OS}/manifests/{name}", "DELETE")
        shop.collect()
        assert all(shop.is_pullable(OS, host.pool.images[name].manifest) for name in ("old", "new"))
        assert len(shop.manifests(OS)) == 2 + HOSTS
        ip("-n", network.names[0], "link", "set", network.inner, "down")
        error = ended(start(network.names[0], host, shop, tmp_path))["error"]
        assert error["code"] == "registry-unreachable"
        ip("-n", network.names[0], "link", "set", network.inner, "up")
        assert ended(start(network.names[0], host, shop, tmp_path))["result"]["unchanged"]
