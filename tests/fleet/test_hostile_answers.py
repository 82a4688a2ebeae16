"""A registry that answers what it should not, at any moment: every command ends soon, with an error that has a code, and what
the host uses stays.

``CFS_TAGS_PROOF=long`` takes 2,000 runs, ``ci`` 200, else it is 40.
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

from cli.conftest import Run
from fleet.conftest import NAME, OS
from support.registries import Between, Distribution
from support.sysroots import Host
from support.trees import tree

RUNS = {"long": 2000, "ci": 200}.get(os.environ.get("CFS_TAGS_PROOF", ""), 40)
SEED = int(os.environ.get("CFS_TAGS_SEED", "1"))
SOON = 30.0

STATUSES = [
    *("100", "101", "102", "199", "200", "201", "202", "203", "204", "205", "206", "207", "226", "300", "301", "302", "303"),
    *("304", "307", "308", "400", "401", "403", "404", "405", "406", "409", "410", "416", "418", "429", "431", "500", "501"),
    *("502", "503", "504", "511", "599", "600", "999", "000", "-1", "1e3", "20", "2000", "abc", "", "2\u00b2"),
]
DIGESTS = [
    "",
    "sha256:",
    "sha256:" + "0" * 64,
    "sha512:" + "0" * 128,
    "md5:00",
    "sha256:" + "A" * 64,
    "x" * 60_000,
    "sha256:\u00e9",
]
ADDRESSES = [
    *("", "/", "//", "//evil.invalid/x", "http://", "http://[", "http://[::1", "http://127.0.0.1:1/x", "file:///etc/passwd"),
    *(
        "ftp://127.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://a..b/",
        "http://" + "a" * 300,
        "?" * 5000,
        "http://u:p@127.0.0.1:1/",
    ),
    *(
        "javascript:alert(1)",
        "\u00fc\u00e9",
        "/v2/\x0bx",
        "/v2/../../x",
        "http://127.0.0.1:\u00b2/",
        "http:///x",
        "gopher:x",
        " ",
    ),
]
HEADERS: dict[str, list[str]] = {
    "Docker-Content-Digest": DIGESTS,
    "Location": ADDRESSES,
    "Link": [f'<{address}>; rel="next"' for address in ADDRESSES] + ["<", '<>; rel="next"', "<" * 1000, '; rel="next"'],
    "Date": ["", "x", "Thu, 01 Jan 0000 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 1 0:0:0", "1" * 5000],
    "WWW-Authenticate": [
        *(
            "Basic",
            "Bearer",
            'Bearer realm=""',
            "Bearer " + "x" * 9000,
            'Basic realm="\u00e9"',
            "Negotiate",
            ",,,",
            'Bearer realm="',
        ),
        *(f'Bearer realm="{address}",service="s",scope="repository:{OS}:pull,push"' for address in ADDRESSES),
    ],
    "Content-Type": ["", "x" * 5000, "text/html; charset=utf-7", "multipart/x; boundary=", "application/\u00e9"],
    "Retry-After": ["-1", "1e9", "nan", "", "\u00b2", "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"],
    "Content-Length": ["-1", "0", "5", "99999999999999999999", "0x10", "1,2", "", "\u00b2", "+3"],
    "Transfer-Encoding": ["chunked", "gzip", "chunked, chunked", "identity", "\u00e9"],
    "Content-Encoding": ["gzip", "br", "zstd", "deflate, gzip", "\u00e9"],
    "Connection": ["close", "upgrade", "\u00e9"],
    "Set-Cookie": ["a=b; Max-Age=99999999999999999999999"],
}
BODIES: list[bytes] = [
    *(
        b"",
        b"{}",
        b"[]",
        b"null",
        b"0",
        b'""',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe{",
        b"\x00",
        b"{" + b" " * 5_000_000 + b"}",
    ),
    *(
        b'{"tags":null}',
        b'{"tags":[null]}',
        b'{"tags":{}}',
        b'{"tags":["' + b"a" * 300_000 + b'"]}',
        b'{"tags":["host-a","host-a"]}',
    ),
    b'{"tags":["host-\\ud800","seen-a-00000000T000000Z-000000000000","host-' + b"9" * 63 + b'","host-.."]}',
    b'{"tags":["seen-a-99999999T999999Z-000000000000","host-a","seen-host-1-20261301T256199Z-000000000000"]}',
    *(b'{"errors":[{"code":"\\u001b[31m","message":"\\u202e\\n\\n"}]}', b'{"errors":[]}', b'{"errors":[1]}', b'{"errors":{}}'),
    *(b'{"token":""}', b'{"token":1}', b'{"token":"a\\nb"}', b'{"schemaVersion":2}', b'{"schemaVersion":1e999}'),
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"x","digest":"sha256:0","size":-1},"layers":[]}',
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"sha256:'
    + b"0" * 64
    + b'","size":1,"mediaType":"x","platform":{"os":"\\u0000","architecture":null}}]}',
    b'{"schemaVersion":2,"config":{},"config":{}}',
    b'{"n":' + b"9" * 100_000 + b"}",
    b'{"n":NaN}',
]


def twisted(chance: random.Random, status: int, headers: dict[str, str], data: bytes, seen: list[bytes]) -> bytes:
    """An answer of which something is wrong."""
    said = str(status)
    lines = {name: value for name, value in headers.items() if name.lower() not in ("connection", "transfer-encoding")}
    for _ in range(chance.choice([1, 1, 2, 3])):
        match chance.choice(["status", "header", "header", "header", "body", "body", "other", "flip", "cut", "without"]):
            case "status":
                said = chance.choice(STATUSES)
            case "header":
                name = chance.choice(list(HEADERS))
                lines[name] = chance.choice(HEADERS[name])
                if name in ("Location", "WWW-Authenticate", "Retry-After") and chance.random() < 0.7:
                    said = {"Location": chance.choice(["302", "307", said]), "Retry-After": "429"}.get(name, "401")
            case "body":
                data = chance.choice(BODIES)
            case "other" if seen:
                data = chance.choice(seen)
            case "flip" if data:
                at = chance.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
            case "cut":
                data = data[: chance.randrange(len(data) + 1)]
            case _:
                lines.pop(chance.choice(list(lines) or [""]), None)
    if "Content-Length" not in lines or lines["Content-Length"] == headers.get("Content-Length"):
        lines["Content-Length"] = str(len(data))
    head = f"HTTP/1.1 {said} x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    return head.encode("utf-8") + data


@pytest.fixture
def between(shop: Distribution, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    made = Between(shop)
    for name, value in {"_BACKOFF": 0.001, "_READ": 1.0, "_WHOLE": 3.0, "_LONGEST_WAIT": 0.01, "_CONNECT": 1.0}.items():
        monkeypatch.setattr(f"cfs_tags.remote.client.{name}", value)
    yield made
    made.close()


def test_whatever_a_registry_answers_commands_end_with_a_code_and_what_is_used_stays(
    publish: Any, call: Run, host: Host, shop: Distribution, between: Between, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfs_tags.cli.registries.cache_directory", lambda: str(tmp_path / "cache"))
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {between.address: {"auth": "dXNlcjpzZWNyZXQ="}}}))
    through = types.SimpleNamespace(address=between.address)
    assert publish(host, shop=through).status == 0
    before = tree(host.repo)
    place = f"{between.address}/{OS}"
    seen: list[bytes] = []
    codes: dict[str, int] = {}
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
    print(RUNS, codes)
    assert tree(host.repo) == before
    assert publish(host, shop=through).status == 0
    assert all(shop.is_pullable(OS, host.pool.images[name].manifest) for name in ("old", "new"))
    tags = shop.tags(OS)
    assert {f"deployed-{NAME}-booted", f"deployed-{NAME}-rollback", f"host-{NAME}", "old", "new", "same"} <= tags
