"""Tags: names for manifests, who owns them, and the planning of every change to them.

A tag is one link, in one of these homes; a name has one home.

=========  =======================================  ====================================================================
home       where                                    seen by
=========  =======================================  ====================================================================
shared     ``streams/refs/oci/<name>``              cfsctl, bootc, app image tooling
private    ``streams/refs/cfs-tags/tags/<name>``    cfs-tag alone; a root for everybody
lease      ``…/cfs-tags/leases/<expiry>.<n>/…``     as private; until the expiry
trash      ``…/cfs-tags/trash/<expiry>.<n>/…``      as ``@trash/<name>``: no tag any more, content kept until the expiry
=========  =======================================  ====================================================================

A lease whose time is over is no tag any more, though its link stands until the next collection: it is listed with that for its
problem, ``why`` and ``df`` do not count it, nothing is resolved or served by it, and its name is free.

Nothing here takes a lock or changes anything: what vanishes while it is read is shown as it is.  ``tagging.py`` changes.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import (
    AmbiguousName,
    BadRefLink,
    CfsTagsError,
    DamagedError,
    InvalidArgument,
    LeaseEnded,
    NotALink,
    ReflogEntryNotFound,
    TagNotFound,
    TargetIsIndex,
    TargetNotFound,
    UnsupportedError,
)
from cfs_tags.formats import layout
from cfs_tags.repo import contents, reflog, refs
from cfs_tags.values import MAX_NAME_BYTES, ContentId, Digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from cfs_tags.formats.oci import Index
    from cfs_tags.repo.contents import StoredImage
    from cfs_tags.repo.store import ReadRepo

__all__ = [
    "BOOTC_PREFIX",
    "ENDED",
    "HOMES",
    "OWNERS",
    "Facts",
    "LogLine",
    "Tag",
    "Taken",
    "deployment_of_ref",
    "digest_of",
    "facts",
    "find",
    "index_of_ref",
    "kept_index",
    "kept_indexes",
    "list_tags",
    "log",
    "logged_digest",
    "moment",
    "orphaned_indexes",
    "owner_of",
    "owner_of_ref",
    "previous_digest",
    "referrers",
    "resolve",
    "split_numbered",
    "tag_of_ref",
    "trash",
]

OWNERS = ("app", "bootc", "deployment", "foreign")
"""Who may move or delete a ref: see ``owner_of``."""
BOOTC_PREFIX = "localhost/bootc-"
"""bootc takes every tag with this prefix for its own, and removes those that it cannot match to a deployment
(bootc 1.16.9, ``bootc_composefs/gc.rs``)."""

_OF_DEPLOYMENTS = tuple(f"{top}/" for top in (layout.DEPLOYMENTS, layout.CONFIGS, layout.DEPLOYMENT_IMAGES, layout.BOUND))

HOMES = {
    "shared": layout.SHARED_TAGS,
    "private": layout.PRIVATE_TAGS,
    "lease": layout.LEASES,
    "trash": layout.TRASH,
    "deployment": layout.DEPLOYMENTS,
}
"""Where the refs of each home stand."""

ENDED = "its time is over: the next collection removes it"
"""The problem of a lease that has ended and has no other."""
_NUMBERED = re.compile(r"(.+)@\{(\d{1,9})\}", re.DOTALL | re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
_SHORTEST_PREFIX = 6
_MANIFEST = "oci-manifest-"


class Tag(NamedTuple):
    """A tag, or another ref in a listing.

    ``digest`` is the manifest's, None where the link leads to something else; ``home`` is ``shared``, ``private``,
    ``lease``, ``trash``, ``deployment`` or ``other``; ``path`` is where the ref stands and ``link`` what it says;
    ``problem`` says in one line what is wrong with it; ``expires`` is set for leases and trash
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
    def has_ended(self) -> bool:
        """Whether it was a lease, and its time is over."""
        return self.home == "lease" and self.expires is not None and self.expires <= moment()


class Facts(NamedTuple):
    """What a listing says of a manifest: the facts of ``cfsctl oci images --json``, as it says them."""

    is_container: bool
    architecture: str
    os: str
    created: str | None
    layer_count: int


class LogLine(NamedTuple):
    """One entry of a tag's history.  ``number`` counts back from 0, the newest: the N of ``NAME@{N}``."""

    number: int
    name: str
    entry: reflog.Entry
    old: str | None
    new: str | None


# -- reading -----------------------------------------------------------------------------------------------------------


def moment(now: float | None = None) -> str:
    """This instant, or that many seconds since 1970, as leases and trash say when they end: YYYYMMDDThhmmssZ."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() if now is None else now))


def owner_of(name: str) -> str:
    """``bootc`` for tags with bootc's prefix, ``app`` for all others."""
    return "bootc" if name.startswith(BOOTC_PREFIX) else "app"


def owner_of_ref(path: str) -> str:
    """Whose a ref is, by its path: ``app``, ``bootc``, ``deployment`` or ``foreign``."""
    kept_with = index_of_ref(path)
    if kept_with is not None:
        return owner_of(kept_with)
    if path.startswith(_OF_DEPLOYMENTS):
        return "deployment"
    name = tag_of_ref(path)
    return owner_of(name) if name is not None else "foreign"


def tag_of_ref(path: str) -> str | None:
    """The name of the tag, lease or trash at ``path``; None where another ref stands there."""
    for home in ("shared", "private", "lease", "trash"):
        top = HOMES[home]
        if path.startswith(f"{top}/"):
            rest = path[len(top) + 1 :]
            return layout.decode_name(rest.partition("/")[2] if home in ("lease", "trash") else rest)
    return None


def index_of_ref(path: str) -> str | None:
    """The tag that the index at ``path`` is kept with; None for another ref."""
    top = f"{layout.INDEXES}/"
    return layout.decode_name(path[len(top) :]) if path.startswith(top) else None


def deployment_of_ref(path: str) -> str | None:
    """The deployment that a ref is a part of, or that an app image is bound to by it; None for another ref."""
    for top in _OF_DEPLOYMENTS:
        if path.startswith(top):
            return path[len(top) :].partition("/")[0]
    return None


def list_tags(repo: ReadRepo, *, owners: Sequence[str] = ("app", "bootc", "deployment")) -> list[Tag]:
    """All tags, leases and deployment refs, by name; foreign refs too where ``owners`` has ``foreign``.

    Takes no lock.  A ref that leads nowhere, or should not be there, is a row with its ``problem``.

    Raises:
        FormatError: a directory of refs is no directory.
    """
    found: list[Tag] = []
    health = _Health(repo)
    for home, top in HOMES.items():
        if home == "trash":
            continue
        owned = home == "deployment"
        if (owned and "deployment" not in owners) or (not owned and "app" not in owners and "bootc" not in owners):
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


def trash(repo: ReadRepo) -> list[Tag]:
    """Deleted tags that are kept for a while, by name, then expiry, then as they were deleted."""
    health = _Health(repo)
    start = len(layout.TRASH) + 1
    found = [health.tag("trash", path, path[start:], link) for path, link in refs.walk(repo, layout.TRASH)]
    return sorted(found, key=lambda tag: (tag.name, _by_expiry(tag.path[start:].partition("/")[0])))


class Taken:
    """The names that are taken now, read at once: for who asks for thousands.  Later changes are not seen."""

    def __init__(self, repo: ReadRepo) -> None:
        self._shared = frozenset(repo.names(layout.SHARED_TAGS) or ())
        leases = (repo.names(f"{layout.LEASES}/{directory}") or () for directory in repo.names(layout.LEASES) or ())
        self._others = frozenset(repo.names(layout.PRIVATE_TAGS) or ()).union(*leases)

    def maybe(self, name: str) -> bool:
        """False where no tag has that name; True where :func:`find` has to look."""
        component = _component(name)
        # a directory in the place of the first part may hold a tag that stands below it
        return component in self._shared or component in self._others or name.partition("/")[0] in self._shared


def find(repo: ReadRepo, name: str) -> Tag | None:
    """The tag of exactly that name, in whichever home, or None.  Takes no lock."""
    health = _Health(repo)
    for home, path in _places(repo, name):
        target = _link(repo, path)
        if target is not None:
            return health.tag(home, path, path[len(HOMES[home]) + 1 :], target or None)
    return _find_lease(repo, name, health)


def resolve(repo: ReadRepo, text: str, *, ended: bool = False) -> Digest:
    """The manifest that a name stands for.

    Args:
        repo: where.
        text: a tag; ``@sha256:`` and hexadecimal digits, or at least six of them; ``@deployment/<id or prefix>``;
            ``@trash/<name>``; ``NAME@{N}`` from the log; or, where no tag is called that, ``sha256:`` and digits.
        ended: whether a lease whose time is over stands for what it named: for who explains what there is.

    Raises:
        TagNotFound, TargetNotFound, ReflogEntryNotFound: it stands for nothing.
        LeaseEnded: not any more.
        AmbiguousName: a prefix fits several.
        InvalidArgument: ``@`` and something else.
        BadRefLink, TargetNotFound: the tag leads somewhere that is no manifest, or to nothing.
    """
    if text.startswith("@"):
        return _resolve_special(repo, text)
    tag = find(repo, text)
    if tag is not None:
        digest = digest_of(tag)
        if tag.has_ended and not ended:
            raise LeaseEnded(name=text, digest=digest, expires=tag.expires or "")
        if repo.stream_object(ContentId.manifest(digest)) is None:
            raise TargetNotFound(kind="manifest", name=digest)
        return digest
    numbered = split_numbered(text)
    if numbered is not None:
        return logged_digest(repo, *numbered)
    if text.startswith("sha256:") and _HEX.fullmatch(text[7:]):
        return _by_prefix(repo, text)
    raise TagNotFound(name=text)


def split_numbered(text: str) -> tuple[str, int] | None:
    """``NAME@{N}`` as name and number; None for other text."""
    match = _NUMBERED.fullmatch(text)
    return (match[1], int(match[2])) if match is not None else None


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
            target = _link(repo, f"{layout.REFERRERS}/{digest}/{name}") or ""
            content_id = ContentId.manifest(artifact)
            if target.rpartition("/")[2] == content_id and repo.stream_object(content_id) is not None:
                found.append(artifact)
        except CfsTagsError:
            continue
    return sorted(found)


def log(repo: ReadRepo, name: str) -> list[LogLine]:
    """The history of a tag, newest first, completed with what others did since the last record.  Takes no lock.

    Raises:
        TagNotFound: there is no such tag, and never was.
    """
    lines = _history(repo, name)
    if not lines:
        raise TagNotFound(name=name)
    return lines


# -- details -----------------------------------------------------------------------------------------------------------


class _Health:
    """Makes rows of refs, and looks at each target once."""

    def __init__(self, repo: ReadRepo) -> None:
        self._repo = repo
        self._targets: dict[tuple[int, str], tuple[Digest | None, str | None]] = {}

    def tag(self, home: str, path: str, relative: str, link: str | None) -> Tag:
        """A row for the ref at ``path``; ``relative`` is the path within the home."""
        expires = None
        if home in ("lease", "trash"):
            directory, _, relative = relative.partition("/")
            expires = layout.expiry_of(directory)
        name = layout.decode_name(relative)
        if home == "deployment":
            name, owner = f"@deployment/{name}", "deployment"
        elif home == "trash":
            name, owner = f"@trash/{name}", "app"
        else:
            owner = "bootc" if name.startswith(BOOTC_PREFIX) else "app"
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
        except BadRefLink as error:
            return None, error.reason
        except CfsTagsError as error:
            return digest, error.message
        if object_id is None:
            return digest, "dangling: it leads to nothing, which stops the collectors of cfsctl and bootc"
        if not self._repo.has_object(object_id):
            return digest, "its object is missing"
        return digest, None if digest is not None else f"it leads to {content_id}, which is no manifest"


def _foreign(repo: ReadRepo, health: _Health) -> Iterator[Tag]:
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
            elif (missing := contents.missing_behind(repo, path, link)) != ():
                problem = missing[0]
            yield Tag(path, digest, "other", "foreign", path, link or "", problem)


def _component(name: str) -> str | None:
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
    component = _component(name)
    if component is not None:
        yield "shared", f"{layout.SHARED_TAGS}/{component}"
        yield "private", f"{layout.PRIVATE_TAGS}/{component}"
    # cfsctl lists what stands in real directories below oci/ under its path, and what nobody encoded as it is
    if "%" in name:
        for entry in refs.walk(repo, layout.SHARED_TAGS):
            if layout.decode_name(entry.path[len(layout.SHARED_TAGS) + 1 :]) == name:
                yield "shared", entry.path
    elif "/" in name and "\0" not in name:
        yield from _in_directories(repo, layout.SHARED_TAGS, name.split("/"))


def _in_directories(repo: ReadRepo, top: str, parts: list[str]) -> Iterator[tuple[str, str]]:
    """Where a name without ``%`` may stand in real directories below ``top``; no link is followed to get there."""
    for size in range(1, len(parts)):
        component = _component("/".join(parts[:size]))
        if component is not None and repo.is_directory(f"{top}/{component}"):
            last = _component("/".join(parts[size:]))
            if last is not None:
                yield "shared", f"{top}/{component}/{last}"
            yield from _in_directories(repo, f"{top}/{component}", parts[size:])


def _find_lease(repo: ReadRepo, name: str, health: _Health) -> Tag | None:
    component = _component(name)
    if component is None:
        return None
    for directory in sorted(repo.names(layout.LEASES) or (), key=_by_expiry, reverse=True):
        relative = f"{directory}/{component}"
        target = _link(repo, f"{layout.LEASES}/{relative}")
        if target is not None:
            return health.tag("lease", f"{layout.LEASES}/{relative}", relative, target or None)
    return None


def _by_expiry(directory: str) -> tuple[str, int]:
    """For sorting the directories ``<expiry>.<n>``: 10 comes after 9."""
    expiry, _, number = directory.partition(".")
    return expiry, int(number) if number.isdecimal() and len(number) < 10 else 0


def _link(repo: ReadRepo, path: str) -> str | None:
    """The text of a link; empty for something else, but None for a directory, which is no ref and may hold some."""
    try:
        return repo.read_link(path)
    except NotALink:
        return None if repo.is_directory(path) else ""


def digest_of(tag: Tag) -> Digest:
    """The manifest's digest of a tag.

    Raises:
        BadRefLink: the tag leads to something else.
    """
    if tag.digest is None:
        raise BadRefLink(path=tag.path, target=tag.link, reason=tag.problem or "it leads to no manifest")
    return tag.digest


def _resolve_special(repo: ReadRepo, text: str) -> Digest:
    kind, _, rest = text[1:].partition("/")
    if text.startswith("@sha256:"):
        return _by_prefix(repo, text[1:])
    if kind == "deployment" and rest:
        return _deployment(repo, rest)
    if kind == "trash" and rest:
        for tag in reversed(trash(repo)):
            if tag.name == text:
                return digest_of(tag)
        raise TagNotFound(name=text)
    raise InvalidArgument(argument="name", value=text, reason="is none of @sha256:DIGITS, @deployment/ID and @trash/NAME")


def _by_prefix(repo: ReadRepo, text: str) -> Digest:
    digits = text.partition(":")[2]
    if len(digits) == 64 and _HEX.fullmatch(digits):
        digest = Digest.trusted(text)
        if repo.stream_object(ContentId.manifest(digest)) is None:
            index = kept_index(repo, ContentId.blob(digest))
            if index is not None:
                raise TargetIsIndex(target=text, platforms=_platforms(index))
            raise TargetNotFound(kind="manifest", name=text)
        return digest
    if not _SHORTEST_PREFIX <= len(digits) < 64 or not _HEX.fullmatch(digits):
        raise InvalidArgument(
            argument="digest", value=text, reason=f"needs {_SHORTEST_PREFIX} to 64 hexadecimal digits in lower case"
        )
    start = _MANIFEST + text
    names = [name for name in repo.names(layout.STREAMS) or () if name.startswith(start)]
    found = [found_digest for name in names if (found_digest := ContentId(name).manifest_digest) is not None]
    return Digest.trusted(_only(found, text, "manifest"))


def kept_index(repo: ReadRepo, content_id: ContentId) -> Index | None:
    """The index whose bytes are kept under a name in ``streams/``; None where there is none, or it cannot be read."""
    from cfs_tags.formats import oci

    try:
        found = repo.stream_object(content_id)
        if found is None:
            return None
        return oci.parse_index(repo.sole_content(repo.stream(found, content_id), content_id))
    except (DamagedError, UnsupportedError):
        return None


def kept_indexes(repo: ReadRepo) -> Iterator[tuple[str, str, str | None]]:
    """Of each index that is kept: the tag that it is kept with, path and link of its ref."""
    for path, link in refs.walk(repo, layout.INDEXES):
        yield index_of_ref(path) or "", path, link


def orphaned_indexes(repo: ReadRepo, gone: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Path and link of kept indexes that are left alone: there is neither a tag of their name nor one in the trash.

    Args:
        repo: where.
        gone: paths of leases and trash that do not count.
    """
    kept = None
    for name, path, link in kept_indexes(repo):
        tag = find(repo, name)
        if link is None or (tag is not None and tag.path not in gone):
            continue
        if kept is None:
            kept = {one.name for one in trash(repo) if one.path not in gone}
        if f"@trash/{name}" not in kept:
            yield path, link


def _platforms(index: Index) -> tuple[str, ...]:
    found = [entry.platform for entry in index.manifests if entry.platform is not None]
    shown = ["/".join(part for part in (one.os, one.architecture, one.variant) if part) for one in found]
    return tuple(one for one in dict.fromkeys(shown) if "unknown" not in one)


def _deployment(repo: ReadRepo, prefix: str) -> Digest:
    found = [name for name in repo.names(layout.DEPLOYMENTS) or () if name.startswith(prefix)]
    path = f"{layout.DEPLOYMENTS}/{_only(found, prefix, 'deployment ref')}"
    link = repo.read_link(path)
    return digest_of(_Health(repo).tag("deployment", path, path.rpartition("/")[2], link))


def _only(found: Sequence[str], text: str, kind: str) -> str:
    if not found:
        raise TargetNotFound(kind=kind, name=text)
    if len(found) > 1:
        raise AmbiguousName(name=text, candidates=tuple(sorted(found)))
    return found[0]


def _history(repo: ReadRepo, name: str) -> list[LogLine]:
    if name.startswith("@deployment/"):
        paths = [f"{layout.DEPLOYMENTS}/{name.partition('/')[2]}"]
    else:
        component = _component(name)
        paths = [f"{top}/{component}" for top in (layout.SHARED_TAGS, layout.PRIVATE_TAGS)] if component else []
        tag = find(repo, name)
        if tag is not None and tag.path not in paths:
            paths.append(tag.path)
        if component and (tag.home == "lease" if tag is not None else not any(reflog.last_value(repo, path) for path in paths)):
            paths.extend(_past_leases(repo, component, paths))
    dated: list[tuple[str, reflog.Entry]] = []
    for path in paths:
        known = reflog.history(repo, path).entries
        latest = ""
        for entry in reflog.with_found(known, path, _link(repo, path), reflog.timestamp()):
            latest = max(latest, entry.time)  # the clock may have been set back; the order in the file is right
            dated.append((latest, entry))
    dated.sort(key=lambda pair: pair[0])
    entries = reversed(_one_home([entry for _, entry in dated]))
    return [
        LogLine(number, name, entry, _digest_text(entry.old), _digest_text(entry.new)) for number, entry in enumerate(entries)
    ]


def _past_leases(repo: ReadRepo, component: str, known: list[str]) -> list[str]:
    """Where leases of that file name once stood."""
    ends = f"/{component}"
    paths = {entry.ref for entry in reflog.all_entries(repo).entries}
    return sorted(path for path in paths if path.startswith(f"{layout.LEASES}/") and path.endswith(ends) and path not in known)


def _one_home(entries: list[reflog.Entry]) -> list[reflog.Entry]:
    """A move between homes as one entry: what was made in one and removed from another in the same transaction."""
    made: dict[str, reflog.Entry] = {}
    left: dict[str, reflog.Entry] = {}
    for entry in entries:
        if entry.action != reflog.FOUND:
            (left if entry.new is None else made)[entry.transaction] = entry
    result = []
    pending: set[str] = set()
    for entry in entries:
        transaction = entry.transaction
        if entry.action == reflog.FOUND or transaction not in made or transaction not in left:
            result.append(entry)
        elif transaction not in pending:
            pending.add(transaction)  # where the other half stands, the move was done
        else:
            both = made[transaction]
            result.append(both._replace(old=both.old or left[transaction].old))
    return result


def _digest_text(link: str | None) -> str | None:
    return None if link is None else link.rpartition("/")[2].removeprefix(_MANIFEST)


def logged_digest(repo: ReadRepo, name: str, number: int) -> Digest:
    """The value that a tag had after entry ``number`` of its log, 0 being the newest.

    Raises:
        TagNotFound: no such tag, ever.
        ReflogEntryNotFound: no such entry, or the tag was absent then, or led to something that is no manifest.
    """
    lines = _history(repo, name)
    if not lines:
        raise TagNotFound(name=name)
    digest = _logged(lines[number]) if number < len(lines) else None
    if digest is None:
        raise ReflogEntryNotFound(name=name, number=number, entries=len(lines))
    return digest


def previous_digest(repo: ReadRepo, name: str, current: Tag | None) -> Digest:
    """The newest value in a tag's log that differs from the present one.  Raises as :func:`logged_digest`."""
    now = current.value if current is not None else None
    lines = _history(repo, name)
    if not lines:
        raise TagNotFound(name=name)
    for line in lines:
        digest = _logged(line)
        if digest is not None and digest != now:
            return digest
    raise ReflogEntryNotFound(name=name, number=1, entries=len(lines))


def _logged(line: LogLine) -> Digest | None:
    return ContentId(f"{_MANIFEST}{line.new}").manifest_digest
