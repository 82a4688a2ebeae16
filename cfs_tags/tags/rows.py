"""Tags as rows: where each stands, who owns it, what is wrong with it; all of them, or the one of a name.

A tag is one link, in one of these homes; a name has one home.

==========  =======================================  ====================================================================
home        where                                    seen by
==========  =======================================  ====================================================================
shared      ``streams/refs/oci/<name>``              cfsctl, bootc, app image tooling
private     ``streams/refs/cfs-tags/tags/<name>``    cfs-tag alone; a root for every collector
lease       ``…/cfs-tags/leases/<expiry>.<n>/…``     as private; until the expiry
trash       ``…/cfs-tags/trash/<expiry>.<n>/…``      as ``@trash/<name>``: no tag any more, content kept until the expiry
pin         ``…/cfs-tags/pins/<expiry>.<n>/…``       as ``@pin/<name>``; until the expiry, or ``always`` (``pins.py``)
deployment  ``…/cfs-tags/deployments/<id>``          as ``@deployment/<id>``
==========  =======================================  ====================================================================

A lease whose time is over is no tag any more, though its link stands until the next collection: it is listed with that for its
problem, ``why`` and ``df`` do not count it, nothing is resolved or served by it, and its name is free.

Nothing here takes a lock or changes anything: a tag that vanishes while it is read is shown without its target.
``edit.py`` changes tags.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import BadRefLink, CfsTagsError, NotALink, SystemFailure
from cfs_tags.formats.boot.paths import BOOTC_TAG_PREFIX
from cfs_tags.repo import clock, images, layout, refs
from cfs_tags.repo.images import StoredImage
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import MAX_NAME_BYTES, ContentId, Digest, instant_of

if TYPE_CHECKING:
    from datetime import datetime

_OF_PINS = tuple(f"{top}/" for top in (layout.PINS, layout.PIN_CONFIGS, layout.PIN_IMAGES))
_OF_DEPLOYMENTS = tuple(f"{top}/" for top in (layout.DEPLOYMENTS, layout.CONFIGS, layout.DEPLOYMENT_IMAGES, layout.BOUND))
HOMES = {
    "shared": layout.SHARED_TAGS,
    "private": layout.PRIVATE_TAGS,
    "lease": layout.LEASES,
    "trash": layout.TRASH,
    "pin": layout.PINS,
    "deployment": layout.DEPLOYMENTS,
}
"""Where the refs of each home stand."""
_DATED = ("lease", "trash", "pin")
"""Homes with a directory for each expiry."""
_TAGS = {home: f"{HOMES[home]}/" for home in ("shared", "private", "lease", "trash")}
"""How the paths of tags begin."""
_MOMENT = "%Y%m%dT%H%M%SZ"
ENDED = "its time is over: the next collection removes it"
"""The problem of a lease that has ended and has no other."""


class Tag(NamedTuple):
    """A tag, or another ref in a listing.

    ``digest`` is the manifest's, None where the link leads to something else; ``home`` is ``shared``, ``private``,
    ``lease``, ``trash``, ``pin``, ``deployment`` or ``other``; ``path`` is where the ref stands and ``link`` what it says;
    ``problem`` says in one line what is wrong with it; ``expires`` is set for leases, trash and pins that end
    (``YYYYMMDDThhmmssZ``).
    """

    name: str
    digest: Digest | None
    home: str
    owner: str
    path: str
    link: str
    problem: str | None = None
    expires: str | None = None

    @property
    def value(self) -> str:
        """The digest, or the text of a link that leads to no manifest."""
        return self.digest or self.link

    @property
    def ends(self) -> datetime | None:
        """When a lease or something in the trash ends."""
        return instant_of(self.expires)

    @property
    def has_ended(self) -> bool:
        """Whether it was a lease or a pin, and its time is over."""
        return self.home in ("lease", "pin") and self.expires is not None and self.expires <= moment()


class Facts(NamedTuple):
    """What a listing says of a manifest: the facts of ``cfsctl oci images --json``, as it says them."""

    is_container: bool
    architecture: str
    os: str
    created: str | None
    layer_count: int


def moment(now: float | None = None) -> str:
    """This instant, or that many seconds since 1970, as leases and trash say when they end: YYYYMMDDThhmmssZ."""
    return time.strftime(_MOMENT, time.gmtime(time.time() if now is None else now))


def is_moment(text: object) -> bool:
    """Whether a text is an instant as :func:`moment` says it."""
    try:
        return isinstance(text, str) and time.strftime(_MOMENT, time.strptime(text, _MOMENT)) == text
    except ValueError:
        return False


def expiry(seconds: float, now: float | None = None) -> str:
    """The name of the first whole second that is not before ``seconds`` from now (or from ``now``, seconds since 1970), so
    that nothing ends early: ``YYYYMMDDThhmmssZ``."""
    return moment(math.ceil((time.time() if now is None else now) + seconds))


def expiry_here(repo: ReadRepo, seconds: float) -> str:
    """The same, from the latest time that it may be: a clock that was set back ends nothing early when it is right again."""
    return expiry(seconds, clock.read(repo).latest)


def owner_of(name: str) -> str:
    """``bootc`` for tags with bootc's prefix, ``app`` for all others."""
    return "bootc" if name.startswith(BOOTC_TAG_PREFIX) else "app"


def owner_of_ref(path: str) -> str:
    """Whose a ref is, by its path: one of :data:`OWNERS`."""
    kept_with = index_of_ref(path)
    if kept_with is not None:
        return owner_of(kept_with)
    if path.startswith(_OF_DEPLOYMENTS):
        return "deployment"
    if path.startswith(_OF_PINS):
        return "pin"
    name = tag_of_ref(path)
    return owner_of(name) if name is not None else "foreign"


def name_of_ref(path: str) -> str:
    """The name of the tag that a ref stands for, as commands take it; the path itself where it is no tag's."""
    for home, top in HOMES.items():
        if path.startswith(f"{top}/"):
            relative = path[len(top) + 1 :]
            if home in _DATED:
                relative = relative.partition("/")[2]
            name = layout.decode_name(relative)
            return f"@{home}/{name}" if home in ("trash", "pin", "deployment") else name
    return path


def tag_of_ref(path: str) -> str | None:
    """The name of the tag, lease or trash at ``path``; None where another ref stands there."""
    for home, top in _TAGS.items():
        if path.startswith(top):
            rest = path[len(top) :]
            return layout.decode_name(rest.partition("/")[2] if home in ("lease", "trash") else rest)
    return None


def pin_of_ref(path: str) -> str | None:
    """The name of the pin that a ref is a part of; None for another ref."""
    for top in _OF_PINS:
        if path.startswith(top):
            return layout.decode_name(path[len(top) :].partition("/")[2])
    return None


def index_of_ref(path: str) -> str | None:
    """The tag that the index at ``path`` is kept with; None for another ref."""
    top = f"{layout.INDEXES}/"
    return layout.decode_name(path[len(top) :]) if path.startswith(top) else None


def deployment_of_ref(path: str) -> str | None:
    """The deployment that a ref is a part of, or that an app image is bound to by it; None for another ref."""
    if not path.startswith(_OF_DEPLOYMENTS):
        return None
    top = next(top for top in _OF_DEPLOYMENTS if path.startswith(top))
    return path[len(top) :].partition("/")[0]


@refs.at_once
def list_tags(repo: ReadRepo, *, owners: Sequence[str] = ("app", "bootc", "deployment", "pin")) -> list[Tag]:
    """All tags, leases, pins and deployment refs, by name; foreign refs too where ``owners`` has ``foreign``.

    Of each transaction it shows all changes or none (:func:`cfs_tags.repo.refs.read_at_once`).  A ref that leads nowhere, or
    should not be there, is a row with its ``problem``.

    Raises:
        FormatError: a directory of refs is no directory.
    """
    found: list[Tag] = []
    health = Health(repo)
    for home, top in HOMES.items():
        if home == "trash":
            continue
        owned = home in ("deployment", "pin")
        if (owned and home not in owners) or (not owned and "app" not in owners and "bootc" not in owners):
            continue
        start = len(top) + 1
        for path, link in refs.walk(repo, top):
            tag = health.tag(home, path, path[start:], link)
            if tag.owner in owners:
                found.append(tag)
    if "foreign" in owners:
        found.extend(_foreign(repo, health))
    found.sort(key=lambda tag: tag.name)
    return found


@refs.at_once
def trash(repo: ReadRepo) -> list[Tag]:
    """Deleted tags that are kept for a while, by name, then expiry, then as they were deleted."""
    health = Health(repo)
    start = len(layout.TRASH) + 1
    found = [health.tag("trash", path, path[start:], link) for path, link in refs.walk(repo, layout.TRASH)]
    return sorted(found, key=lambda tag: (tag.name, _by_expiry(tag.path[start:].partition("/")[0])))


class Taken:
    """All names that are taken now, read once; for callers with thousands of look-ups.  Later changes are not seen."""

    def __init__(self, repo: ReadRepo) -> None:
        self._shared = frozenset(repo.names(layout.SHARED_TAGS) or ())
        leases = (repo.names(f"{layout.LEASES}/{directory}") or () for directory in repo.names(layout.LEASES) or ())
        self._others = frozenset(repo.names(layout.PRIVATE_TAGS) or ()).union(*leases)
        self._indexes = frozenset(repo.names(layout.INDEXES) or ())

    def maybe(self, name: str) -> bool:
        """False where no tag has that name; True where :func:`find` has to look."""
        component = file_name(name)
        # a directory in the place of the first part may hold a tag that stands below it
        return component in self._shared or component in self._others or name.partition("/")[0] in self._shared

    def has_index(self, name: str) -> bool:
        """Whether an index is kept with a tag of that name."""
        return bool(self._indexes) and file_name(name) in self._indexes


@refs.at_once
def find(repo: ReadRepo, name: str, health: Health | None = None) -> Tag | None:
    """The tag of exactly that name, in whichever home, or None: none that a transaction is moving is missed."""
    health = health or Health(repo)
    for home, path in _places(repo, name):
        target = link_at(repo, path)
        if target is not None:
            return health.tag(home, path, path[len(HOMES[home]) + 1 :], target or None)
    return _find_lease(repo, name, health)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names as numbers: 2 before 28."""
    parts = re.split(r"(\d{1,18})", name)
    return [(0, int(part), part) if number % 2 else (1, 0, part) for number, part in enumerate(parts)]


def digest_of(tag: Tag) -> Digest:
    """The manifest's digest of a tag.

    Raises:
        BadRefLink: the tag leads to something else.
    """
    if tag.digest is None:
        raise BadRefLink(path=tag.path, target=tag.link, reason=tag.problem or "it leads to no manifest")
    return tag.digest


def facts(image: StoredImage) -> Facts:
    """The facts of a listing.  Artifacts have neither architecture nor os nor creation time, as with cfsctl."""
    config = image.config
    return Facts(
        is_container=image.manifest.is_container,
        architecture=config.architecture if config is not None else "",
        os=config.os if config is not None else "",
        created=config.created if config is not None else None,
        layer_count=len(image.manifest.layers),
    )


def referrers(repo: ReadRepo, digest: Digest) -> list[Digest]:
    """Digests of the artifacts that say they refer to a manifest (signatures, SBOMs), sorted.

    Those that cfsctl counts: they are there, and the ref leads to the one that it is named after (composefs-rs 0.9.4,
    ``oci_image.rs``).
    """
    found = []
    for name in repo.names(f"{layout.REFERRERS}/{digest}") or ():
        try:
            artifact = Digest.parse(name)
            target = link_at(repo, f"{layout.REFERRERS}/{digest}/{name}") or ""
            content_id = ContentId.manifest(artifact)
            if target.rpartition("/")[2] == content_id and repo.stream_object(content_id) is not None:
                found.append(artifact)
        except CfsTagsError:
            continue
    return sorted(found)


class Health:
    """Makes rows of refs, and looks at each target once.

    Attributes:
        failure: what the system said when it would not look at one.
    """

    def __init__(self, repo: ReadRepo) -> None:
        self.failure: SystemFailure | None = None
        self._repo = repo
        self._targets: dict[tuple[int, str], tuple[Digest | None, str | None]] = {}

    def tag(self, home: str, path: str, relative: str, link: str | None) -> Tag:
        """A row for the ref at ``path``; ``relative`` is the path within the home."""
        expires = None
        if home in _DATED:
            directory, _, relative = relative.partition("/")
            expires = layout.expiry_of(directory)
        name = layout.decode_name(relative)
        if home == "deployment":
            name, owner = f"@deployment/{name}", "deployment"
        elif home == "pin":
            name, owner = f"@pin/{name}", "pin"
        elif home == "trash":
            name, owner = f"@trash/{name}", "app"
        else:
            owner = owner_of(name)
        digest, problem = self.target(path, link)
        if problem is None and home == "shared" and relative.startswith(".symlink-"):
            problem = "left over from an interrupted cfsctl"
        tag = Tag(name, digest, home, owner, path, link or "", problem, expires)
        return tag._replace(problem=ENDED) if problem is None and tag.has_ended else tag

    def target(self, path: str, link: str | None) -> tuple[Digest | None, str | None]:
        """Digest and problem of a ref."""
        if link is None:
            return None, "no link, which stops the collectors of cfsctl and bootc"
        key = path.count("/"), link  # one directory deeper the same text leads elsewhere
        known = self._targets.get(key)
        if known is None or known[1] is not None:  # a problem names its path
            known = self._targets[key] = self._look(path, link)
        return known

    def _look(self, path: str, link: str) -> tuple[Digest | None, str | None]:
        digest = None
        try:
            content_id = layout.ref_target(path, link)
            digest = content_id.manifest_digest
            object_id = self._repo.stream_object(content_id)
            if object_id is None:
                return digest, "dangling: it leads to nothing, which stops the collectors of cfsctl and bootc"
            if not self._repo.has_object(object_id):
                return digest, "its object is missing"
        except BadRefLink as error:
            return None, error.reason
        except CfsTagsError as error:
            self.failure = error if isinstance(error, SystemFailure) else self.failure
            return digest, error.message
        return digest, None if digest is not None else f"it leads to {content_id}, which is no manifest"


def _foreign(repo: ReadRepo, health: Health) -> Iterator[Tag]:
    ours = (layout.SHARED_TAGS, layout.OUR_REFS, layout.OUR_IMAGE_REFS)
    for tree in (layout.STREAM_REFS, layout.IMAGE_REFS):
        for path, link in refs.walk(repo, tree):
            if path.startswith(tuple(f"{top}/" for top in ours)):
                continue
            digest, problem = None, None
            if link is None:
                problem = "no link, which stops the collectors of cfsctl and bootc"
            elif tree == layout.STREAM_REFS:
                digest, problem = health.target(path, link)
                if problem is not None and problem.endswith("no manifest"):
                    problem = None
            elif (missing := images.missing_behind(repo, path, link)) != ():
                problem = missing[0]
            yield Tag(path, digest, "other", "foreign", path, link or "", problem)


def file_name(name: str) -> str | None:
    """The file name of a tag, None where no file can have it."""
    try:
        size = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return None
    if not name or "\0" in name or name in (".", "..") or size > MAX_NAME_BYTES:
        return None
    encoded = layout.encode_name(name)
    return encoded if len(encoded) - len(name) + size <= MAX_NAME_BYTES else None


def _places(repo: ReadRepo, name: str) -> Iterator[tuple[str, str]]:
    component = file_name(name)
    if component is not None:
        yield "shared", f"{layout.SHARED_TAGS}/{component}"
        yield "private", f"{layout.PRIVATE_TAGS}/{component}"
    # cfsctl lists what stands in real directories below oci/ under its path, and names without an escape as they are
    if "%" in name:
        for entry in refs.walk(repo, layout.SHARED_TAGS):
            if layout.decode_name(entry.path[len(layout.SHARED_TAGS) + 1 :]) == name:
                yield "shared", entry.path
    elif "/" in name and "\0" not in name:
        yield from _in_directories(repo, layout.SHARED_TAGS, name.split("/"))


def _in_directories(repo: ReadRepo, top: str, parts: list[str]) -> Iterator[tuple[str, str]]:
    """Where a name without ``%`` may stand in real directories below ``top``; no link is followed to get there."""
    for size in range(1, len(parts)):
        component = file_name("/".join(parts[:size]))
        if component is not None and repo.is_directory(f"{top}/{component}"):
            last = file_name("/".join(parts[size:]))
            if last is not None:
                yield "shared", f"{top}/{component}/{last}"
            yield from _in_directories(repo, f"{top}/{component}", parts[size:])


def _find_lease(repo: ReadRepo, name: str, health: Health) -> Tag | None:
    component = file_name(name)
    if component is None:
        return None
    for directory in sorted(repo.names(layout.LEASES) or (), key=_by_expiry, reverse=True):
        relative = f"{directory}/{component}"
        target = link_at(repo, f"{layout.LEASES}/{relative}")
        if target is not None:
            return health.tag("lease", f"{layout.LEASES}/{relative}", relative, target or None)
    return None


def _by_expiry(directory: str) -> tuple[str, int]:
    """For sorting the directories ``<expiry>.<n>``: 10 comes after 9."""
    expiry, _, number = directory.partition(".")
    return expiry, int(number) if number.isdecimal() and len(number) < 10 else 0


def link_at(repo: ReadRepo, path: str) -> str | None:
    """The text of a link; empty for something else, but None for a directory, which is no ref and may hold some."""
    try:
        return repo.read_link(path)
    except NotALink:
        return None if repo.is_directory(path) else ""
