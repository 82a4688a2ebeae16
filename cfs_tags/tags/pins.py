"""Pins: refs that keep a deployment or an image whatever becomes of tags, entries and state directories.

A pin is two or three links, which every collector honours, made in one transaction; ``<when>`` is the instant at which it ends
(``YYYYMMDDThhmmssZ.0``), or ``always``::

    streams/refs/cfs-tags/pins/<when>/<name>            -> manifest
    streams/refs/cfs-tags/pin-configs/<when>/<name>     -> config
    images/refs/cfs-tags/pins/<when>/<name>             -> the EROFS image: the deployment, where it keeps one

What the repository does not have stands beside, in ``cfs-tags/pins/<hash of the name>/``; without it a pin keeps the same
content::

    pin.json            who pinned it when and why; the places where the boot entries stood
    origin              the origin, as it was
    entry.0 …           the files of the boot entries
    objects/<id>        hard links of the objects of files in /boot, which some programs remove whoever else has them
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import BadRefLink, CfsTagsError, NotALink, NotFoundError, about
from cfs_tags.formats import json_fields
from cfs_tags.repo import clock, layout, refs
from cfs_tags.tags.rows import moment
from cfs_tags.values import ContentId, DeploymentId, Digest, instant_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from cfs_tags.repo.store import ReadRepo

ALWAYS = "always"
PARTS = {"manifest": layout.PINS, "config": layout.PIN_CONFIGS, "image": layout.PIN_IMAGES}
"""Where the parts of a pin stand."""
RECORD, ORIGIN, ENTRY, OBJECTS = "pin.json", "origin", "entry.", "objects"
_MAX_RECORD = 1 << 20
_DIGITS = 32


class Record(NamedTuple):
    """What was written down of a pin; None for what is not known.

    ``made`` is an instant (``YYYY-MM-DDThh:mm:ssZ``), ``entries`` are the paths of the boot entries in the order of the files
    that are kept of them.
    """

    made: str | None = None
    reason: str | None = None
    by: str | None = None
    entries: tuple[str, ...] = ()


class Pin(NamedTuple):
    """A pin.

    Attributes:
        name: its name.
        manifest: what it keeps; None where its first link leads elsewhere, or is gone.
        deployment: the EROFS image that it keeps, where it keeps one.
        expires: when it ends: ``YYYYMMDDThhmmssZ``; None for never.
        links: path and text of each of its links.
        has_ended: whether its time is over, by the clock as far as that is believed: the next collection removes it, and
            nothing goes by it any more.
    """

    name: str
    manifest: Digest | None
    deployment: DeploymentId | None
    expires: str | None
    links: Mapping[str, str]
    has_ended: bool = False

    @property
    def ends(self) -> datetime | None:
        """When it ends."""
        return instant_of(self.expires)

    @property
    def home(self) -> str:
        """Where the rest of it is kept."""
        return home_of(self.name)


def has_ended(repo: ReadRepo, path: str) -> bool:
    """Whether a ref at a path belongs to a pin that has ended."""
    for top in PARTS.values():
        if path.startswith(f"{top}/"):
            expires = layout.expiry_of(path[len(top) + 1 :].partition("/")[0])
            return _is_over(repo, expires)
    return False


def _is_over(repo: ReadRepo, expires: str | None) -> bool:
    return expires is not None and expires <= moment(clock.read(repo).earliest)


def home_of(name: str) -> str:
    """Where what is beside the refs of a pin of that name is kept."""
    import hashlib

    return f"{layout.PINNED}/{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:_DIGITS]}"


def path_of(part: str, expires: str | None, name: str) -> str:
    """Where a part of a pin stands; ``expires`` is None for one without an end."""
    return f"{PARTS[part]}/{ALWAYS if expires is None else f'{expires}.0'}/{layout.encode_name(name)}"


@refs.at_once
def list_pins(repo: ReadRepo, *, exact: bool = False) -> list[Pin]:
    """All pins, by name; those that have ended and are still there, too.

    Args:
        repo: where.
        exact: whether a link that the system does not give is an error, and what is no link left out: for changes.  Else
            the text of both is empty, and nothing is known of what they lead to.

    Raises:
        FormatError: a directory of refs is no directory.
        SystemFailure: as said.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for top in PARTS.values():
        for path, link in refs.walk(repo, top):
            when, _, name = path[len(top) + 1 :].partition("/")
            if link is None and exact:
                with suppress(NotALink):
                    link = repo.read_link(path)
            if name and (link is not None or not exact):
                found.setdefault((layout.decode_name(name), when), {})[path] = link or ""
    return [_pin(repo, name, when, links) for (name, when), links in sorted(found.items())]


def find(repo: ReadRepo, name: str) -> Pin | None:
    """The pin of exactly that name that has not ended; None where there is none."""
    return next((pin for pin in list_pins(repo, exact=True) if pin.name == name and not pin.has_ended), None)


def not_found(name: str, known: Iterable[Pin]) -> NotFoundError:
    """The error that there is no such pin, with the names that are like it."""
    from difflib import get_close_matches

    names = {pin.name for pin in known if not pin.has_ended and pin.name.isprintable()}
    near = tuple(get_close_matches(name, sorted(names), 3, 0.7))
    return NotFoundError("pin-not-found", name=name, near=near)


def manifest_of(repo: ReadRepo, name: str) -> Digest:
    """The manifest that the pin of a name keeps.

    Raises:
        NotFoundError (pin-not-found): there is none.
        BadRefLink: it leads elsewhere.
    """
    pin = find(repo, name)
    if pin is None:
        raise not_found(name, list_pins(repo))
    if pin.manifest is None:
        path = path_of("manifest", pin.expires, name)
        raise BadRefLink(path=path, target=pin.links.get(path, ""), reason="it leads to no manifest")
    return pin.manifest


def of_deployments(repo: ReadRepo, *, exact: bool = False) -> dict[DeploymentId, tuple[Pin, ...]]:
    """The pins of each deployment that is pinned now.  Arguments and errors are those of :func:`list_pins`."""
    found: dict[DeploymentId, tuple[Pin, ...]] = {}
    for pin in list_pins(repo, exact=exact):
        if pin.deployment is not None and not pin.has_ended:
            found[pin.deployment] = (*found.get(pin.deployment, ()), pin)
    return found


def record_of(repo: ReadRepo, pin: Pin) -> Record:
    """What was written down of a pin; nothing where that is lost or cannot be read."""
    try:
        return read_record(repo, pin.home)
    except CfsTagsError:
        return Record()


def read_record(repo: ReadRepo, home: str) -> Record:
    """What is written down at the home of a pin; nothing where there is no such file.

    Raises:
        FormatError: it is damaged.
        SystemFailure: the system would not give it.
    """
    data = repo.read_file(f"{home}/{RECORD}", _MAX_RECORD)
    if data is None:
        return Record()
    with about(f"{repo.path}/{home}/{RECORD}"):
        fields = json_fields.load(data, "record of a pin", _MAX_RECORD)
        try:
            made, reason, by = (json_fields.optional_text(fields, key) for key in ("made", "reason", "by"))
            return Record(made, reason, by, json_fields.texts(fields, "entries") if "entries" in fields else ())
        except json_fields.Wrong as wrong:
            raise wrong.as_error("record of a pin") from None


def kept_file(repo: ReadRepo, pin: Pin, file: str, limit: int) -> bytes | None:
    """A file that is kept beside the refs of a pin; None where there is none.

    Raises:
        FormatError: it is no file, or too large.
        SystemFailure: the system would not give it.
    """
    return repo.read_file(f"{pin.home}/{file}", limit)


def _pin(repo: ReadRepo, name: str, when: str, links: Mapping[str, str]) -> Pin:
    targets: dict[str, str | None] = dict.fromkeys(PARTS)
    for part, target in _targets(links):
        targets[part] = target
    image = targets["image"]
    is_id = image is not None and re.fullmatch(f"[0-9a-f]{{{repo.algorithm.hex_length}}}", image, re.ASCII) is not None
    return Pin(
        name,
        ContentId.trusted(targets["manifest"]).manifest_digest if targets["manifest"] is not None else None,
        DeploymentId.trusted(image) if image is not None and is_id else None,
        layout.expiry_of(when),
        links,
        _is_over(repo, layout.expiry_of(when)),
    )


def _targets(links: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for path, link in links.items():
        with suppress(BadRefLink):
            target = layout.ref_target(path, link)
            yield next(part for part, top in PARTS.items() if path.startswith(f"{top}/")), target
