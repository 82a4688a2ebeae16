"""Answers over HTTP of which something is wrong."""

from __future__ import annotations

import random

__all__ = ["twisted"]

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
        *(f'Bearer realm="{address}",service="s",scope="repository:example/os:pull,push"' for address in ADDRESSES),
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
