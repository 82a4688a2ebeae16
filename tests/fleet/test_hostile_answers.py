"""A registry that answers what it should not, at any moment: every command ends soon, with an error that has a code, and what
the host uses stays.

``CFS_TAGS_PROOF=long`` takes 2,000 runs, ``ci`` 200, else it is 30.
"""

from __future__ import annotations

import json
import os
import random
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.remote import pool, transport
from cli.conftest import Run
from fleet.conftest import NAME, OS
from support.registries import Between, Distribution
from support.sysroots import Host
from support.trees import tree
from support.twisting import twisted

RUNS = {"long": 2000, "ci": 200}.get(os.environ.get("CFS_TAGS_PROOF", ""), 30)
SEED = int(os.environ.get("CFS_TAGS_SEED", "1"))
SOON = 60.0
"""Seconds, on a machine with other work."""


@pytest.fixture
def between(shop: Distribution, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    made = Between(shop)
    monkeypatch.setattr("cfs_tags.remote.transport._BACKOFF", 0.001)
    monkeypatch.setattr("cfs_tags.remote.transport._LONGEST_WAIT", 0.01)
    yield made
    made.close()


def test_whatever_a_registry_answers_commands_end_with_a_code_and_what_is_used_stays(
    publish: Any,
    call: Run,
    host: Host,
    shop: Distribution,
    between: Between,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr("cfs_tags.cli.registries.cache_directory", lambda: str(tmp_path / "cache"))
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {between.address: {"auth": "dXNlcjpzZWNyZXQ="}}}))
    through = types.SimpleNamespace(address=between.address)
    assert publish(host, shop=through).status == 0
    before = tree(host.repo)
    place = f"{between.address}/{OS}"
    seen: list[bytes] = []
    codes: dict[str, int] = {}
    patience = pytest.MonkeyPatch()
    request.addfinalizer(patience.undo)
    for module, name, seconds in ((transport, "_READ", 1.0), (pool, "WHOLE", 3.0), (transport, "_CONNECT", 1.0)):
        patience.setattr(module, name, seconds)
    for number in range(RUNS):
        chance = random.Random(SEED * 1_000_003 + number)
        often = chance.choice([0.1, 0.3, 1.0])

        def twist(method: str, path: str, status: int, headers: dict[str, str], data: bytes) -> bytes | None:
            if len(data) < 1 << 20 and len(seen) < 200:
                seen.append(data)
            return twisted(chance, status, headers, data, seen) if chance.random() < often else None  # noqa: B023

        between.twist = twist
        began = time.monotonic()
        what = chance.choice(["publish", "publish", "restore", "retract", "fleet", "what-if", "report"])
        match what:
            case "publish" | "restore" | "retract":
                said = publish(host, *([] if what == "publish" else [f"--{what}"]), shop=through)
            case "report":
                said = call("fleet", "report", place, tmp_path / "page.html", "--json")
            case "what-if":
                said = call("fleet", "what-if", place, chance.choice(["new", host.pool.images["old"].manifest]), "--json")
            case _:
                said = call("fleet", place, "--wanted", "new", "--json")
        took = time.monotonic() - began
        code = said.json["error"]["code"] if "error" in said.json else "ok"
        codes[code] = codes.get(code, 0) + 1
        assert code not in ("internal", "system-failure"), (number, what, said)
        assert took < SOON, (number, what, took)
    between.twist = lambda *answer: None
    patience.undo()
    print(RUNS, codes)
    assert tree(host.repo) == before
    assert publish(host, shop=through).status == 0
    assert all(shop.is_pullable(OS, host.pool.images[name].manifest) for name in ("old", "new"))
    tags = shop.tags(OS)
    assert {f"deployed-{NAME}-booted", f"deployed-{NAME}-rollback", f"host-{NAME}", "old", "new", "same"} <= tags
