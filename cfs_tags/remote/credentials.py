"""Credentials for a registry, from the files that containers' tools and Docker keep.

``auths`` has user and password in base64, by registry or by the start of a repository's name, the most exact first, as in
containers-auth.json(5); ``credHelpers`` and ``credsStore`` name a program ``docker-credential-NAME`` that is asked.
"""

from __future__ import annotations

import base64
import binascii
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, SystemFailure, about
from cfs_tags.formats import json_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfs_tags.remote.names import Place

_MAX_FILE = 1 << 20
_MAX_ANSWER = 1 << 16
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", re.ASCII)
_SECONDS = 30
_OF_DOCKER_HUB = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"


class Credentials(NamedTuple):
    """Who asks: user and password, or a token that is exchanged for others (``identity``)."""

    user: str
    password: str
    identity: str | None = None

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find(place: Place, files: Sequence[str]) -> Credentials | None:
    """The credentials for a repository in the first file that has some; None where none has.

    Args:
        place: the repository.
        files: paths, the first counts first; those that are not there are left out.

    Raises:
        FormatError: a file is not what it should be.
        SystemFailure: a file is there and cannot be read.
        CfsTagsError (program-failed): a program that keeps them failed.
    """
    for path in files:
        data = _read(path)
        if data is None:
            continue
        with about(path):
            found = _in_file(data, place)
        if found is not None:
            return found
    return None


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SystemFailure.of(error, "read", path) from error


def _in_file(data: bytes, place: Place) -> Credentials | None:
    if not data.strip():
        return None  # what 'podman logout' leaves
    document = json_fields.load(data, "credentials", _MAX_FILE)
    try:
        auths = json_fields.struct(document.get("auths") or {}, ())
        helpers = json_fields.text_map(document, "credHelpers")
        store = json_fields.optional_text(document, "credsStore")
        for key in _keys(place):
            if key in helpers:
                return _ask(helpers[key], key)
            if key in auths:
                found = _entry(auths[key], key)
                if found is not None:
                    return found
        return _ask(store, _OF_DOCKER_HUB if place.registry == "docker.io" else place.registry) if store else None
    except json_fields.Wrong as wrong:
        raise wrong.as_error("credentials") from None


def _keys(place: Place) -> Iterator[str]:
    """Keys under which the credentials of a repository may stand, the most exact first."""
    path = str(place)
    while path:
        yield path
        path = path.rpartition("/")[0]
    host = place.registry
    if host in ("docker.io", "index.docker.io"):
        yield from (_OF_DOCKER_HUB, "index.docker.io", "docker.io")
    yield from (f"https://{host}", f"https://{host}/", f"https://{host}/v1/", f"https://{host}/v2/", f"http://{host}")


def _entry(value: Any, key: str) -> Credentials | None:
    fields = json_fields.struct(value, ("auth", "username", "password", "identitytoken"))
    identity = json_fields.optional_text(fields, "identitytoken")
    auth = json_fields.optional_text(fields, "auth")
    if auth:
        try:
            user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            raise json_fields.Wrong("user and password in base64", "something else", f"auths/{key}/auth") from None
        if not colon:
            raise json_fields.Wrong("user:password in base64", "no colon", f"auths/{key}/auth")
        return Credentials(user, password.rstrip("\0"), identity or None)
    user = json_fields.optional_text(fields, "username") or ""
    password = json_fields.optional_text(fields, "password") or ""
    return Credentials(user, password, identity or None) if user or identity else None


def _ask(helper: str, server: str) -> Credentials | None:
    """What the program says that keeps credentials (docker-credential-helpers); None where it has none."""
    import subprocess

    if _HELPER.fullmatch(helper) is None:
        raise json_fields.Wrong("the name of a program", json_fields.shown(helper), "credHelpers")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=server.encode(), capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        said = f"no answer within {_SECONDS} s"
        raise CfsTagsError("program-failed", program=program, exit_status=-1, said=said) from None
    except OSError as error:
        raise SystemFailure.of(error, "run", program) from error
    if done.returncode != 0:
        text = done.stdout[:_MAX_ANSWER].decode("utf-8", "replace").strip()
        if "credentials not found" in text:
            return None
        raise CfsTagsError("program-failed", program=program, exit_status=done.returncode, said=text[:200])
    answer = json_fields.load(done.stdout, f"answer of {program}", _MAX_ANSWER)
    try:
        user, secret = json_fields.text(answer, "Username"), json_fields.text(answer, "Secret")
    except json_fields.Wrong as wrong:
        raise wrong.as_error(f"answer of {program}") from None
    return Credentials("", "", secret) if user == _TOKEN_USER else Credentials(user, secret)


class Challenge(NamedTuple):
    """What a registry wants of those who ask: ``scheme`` is ``basic`` or ``bearer``, which names where tokens are had."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


_PARAMETER = re.compile(r'([A-Za-z_]{1,30})="([^"\\\x00-\x1f]{0,2000})"', re.ASCII)


def parse_challenge(header: str) -> Challenge | None:
    """Read a WWW-Authenticate header (RFC 7235, distribution ``docs/content/spec/auth/token.md``); None for another scheme."""
    for scheme in ("bearer", "basic"):
        start = header.lower().find(f"{scheme} ")
        if header[:8000].lower().strip() == "basic" and scheme == "basic":
            return Challenge("basic")
        if start < 0:
            continue
        found = dict(_PARAMETER.findall(header[start : start + 8000]))
        if scheme == "bearer" and not found.get("realm"):
            return None
        return Challenge(scheme, found.get("realm", ""), found.get("service", ""), found.get("scope", ""))
    return None


def parse_token(data: bytes, limit: int) -> str:
    """The token in the answer of a token server.

    Raises:
        FormatError: there is none, or one that no header can hold.
    """
    document = json_fields.load(data, "token", limit)
    with suppress(json_fields.Wrong):
        token = json_fields.optional_text(document, "token") or json_fields.optional_text(document, "access_token")
        if token and token.isascii() and token.isprintable() and " " not in token:
            return token
    raise FormatError(structure="token", offset=0, wanted="a token", found="none that can be used")
