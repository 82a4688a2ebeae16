"""Changing tags: each change is planned as a value, which is also what a dry run shows, then carried out.

Planners (``plan…``) only read and raise where something cannot be; ``transaction/run.py`` calls one under the locks and
carries its plan out.  What is made and moved names a manifest that is there and complete
(:func:`cfs_tags.repo.images.missing_lines`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from cfs_tags.errors import (
    BadRefLink,
    CfsTagsError,
    ExpectationFailed,
    IncompleteTarget,
    InvalidDigest,
    NotFoundError,
    RefusedError,
    TagNotFound,
    UsageError,
)
from cfs_tags.repo import images, layout
from cfs_tags.repo.store import ReadRepo
from cfs_tags.repo.transaction.change import ABSENT, Command, RefChange, Row
from cfs_tags.tags import indexes
from cfs_tags.tags.history import logged_digest, previous_digest
from cfs_tags.tags.instructions import Instruction
from cfs_tags.tags.names import resolve, split_logged
from cfs_tags.tags.rows import HOMES, Tag, Taken, digest_of, find, is_moment, owner_of, trash
from cfs_tags.values import ContentId, Digest, ObjectId, TagName

_LONGEST_WORDS = 1000
"""Characters of what is asked for, from which on a digest of it is written down."""


class TagResult(NamedTuple):
    """What became, or would become, of a tag.  ``done``: created, moved, deleted, unchanged, verified, renamed, restored."""

    name: str
    done: str
    old: str | None
    new: str | None
    home: str


class TagPlan(NamedTuple):
    """Changes to refs, in order, and what they mean for tags.

    ``settled`` are the directories of tags that are unchanged: a run that was killed may have made them, and not synced.
    """

    changes: tuple[RefChange, ...]
    results: tuple[TagResult, ...]
    settled: tuple[str, ...] = ()


def plan(
    repo: ReadRepo, instructions: Iterable[Instruction], *, owners: Sequence[str] = (), whole: Iterable[ObjectId] = ()
) -> TagPlan:
    """Plan for a list of instructions, all or nothing.

    Args:
        repo: where; only read.
        instructions: at most one for each name.
        owners: owners, besides ``app``, whose tags may be changed.
        whole: layers whose files were found since the repository was locked, by their splitstreams; they are not looked
            at again.

    Raises:
        RefusedError, NotFoundError, UsageError: the first instruction that cannot be carried out says why.
    """
    planner = _Planner(repo, owners, whole)
    for instruction in instructions:
        planner.add(instruction)
    return planner.plan()


def plan_rename(repo: ReadRepo, old: str, new: str, *, owners: Sequence[str] = (), force: bool = False) -> TagPlan:
    """Give a tag another name.  It stays in its home; ``force`` replaces a tag that has the new name.

    Raises:
        NotFoundError, RefusedError, UsageError.
    """
    planner = _Planner(repo, owners)
    tag = planner.existing(old)
    digest = digest_of(tag)
    planner.check(digest)
    name = TagName.parse(new)
    if tag.home == "lease":
        path = f"{tag.path.rpartition('/')[0]}/{layout.encode_name(name)}"
    else:
        path = f"{HOMES[tag.home]}/{layout.encode_name(name)}"
    planner.allow(name)
    target = find(repo, new)
    if target is not None and target.path == tag.path:
        target = None  # only the place changes, if that: a name in a directory below oci/ becomes one of ours
    if target is not None and not force and not target.has_ended:
        raise RefusedError("tag-exists", name=new, found=str(target.digest or target.link), wanted=digest)
    # the new name first: at no instant is the content without a ref
    link = layout.ref_link(path, ContentId.manifest(digest))
    replaced = target.link if target is not None and target.path == path else None
    changes = [RefChange(path, replaced, link, "rename"), RefChange(tag.path, tag.link, None, "rename")]
    if target is not None and target.path != path:
        changes.append(RefChange(target.path, target.link, None, "rename"))
    if tag.path == path:
        changes = []
    elif old != new:
        changes += indexes.renamed(repo, old, new, digest)
    done = "renamed" if changes else "unchanged"
    return TagPlan(tuple(changes), (TagResult(new, done, old, digest, tag.home),))


def plan_restore(repo: ReadRepo, text: str, *, owners: Sequence[str] = ()) -> TagPlan:
    """Bring back a deleted tag, or move one back to an earlier value.

    Args:
        text: ``NAME``: out of the trash, else the value before the present one; ``NAME@{N}``: the value of that entry;
            ``NAME@{TIME}``: that of the time.

    Raises:
        NotFoundError: there is no such entry, or the tag was absent then.
        TargetNotFound, IncompleteTarget: the content has been collected since.
    """
    tag = find(repo, text)
    logged = None if tag is not None else split_logged(text)
    name = logged[0] if logged is not None else text
    current = find(repo, name) if logged is not None else tag
    if current is not None and current.has_ended:
        current = None
    kept = None
    if logged is not None:
        digest = logged_digest(repo, *logged)
    else:
        kept = next((kept for kept in reversed(trash(repo)) if kept.name == f"@trash/{name}"), None)
        if kept is not None and current is None:
            digest = digest_of(kept)
        else:
            kept = None
            digest = previous_digest(repo, name, current)
    planner = _Planner(repo, owners)
    planner.add(Instruction("set", name, "@" + digest))
    made = planner.plan()
    changes = [change._replace(action="restore") for change in made.changes]
    if kept is not None:
        changes.append(RefChange(kept.path, kept.link, None, "restore"))
    if made.changes:
        changes += indexes.restored(repo, name, digest)
    results = [result._replace(done="restored") if made.changes else result for result in made.results]
    return TagPlan(tuple(changes), tuple(results), made.settled)


def plan_empty(repo: ReadRepo, patterns: Sequence[str] = (), agreed: Container[RefChange] | None = None) -> TagPlan:
    """Take tags out of the trash for good: what they name goes with the next collection, where nothing else keeps it.

    Args:
        repo: where.
        patterns: of names; those that fit one, all where there is none.
        agreed: these alone, to which somebody has said yes; what has come into the trash since stays.  None: all.

    Raises:
        TagNotFound: a pattern fits none.
    """
    from fnmatch import fnmatchcase

    found = trash(repo)
    names = {kept.name: kept.name.removeprefix(_IN_TRASH) for kept in found}
    wanted = set() if patterns else set(names)
    for pattern in patterns:
        plain = pattern.removeprefix(_IN_TRASH)
        fits = {kept for kept, name in names.items() if name == plain or fnmatchcase(name, plain)}
        if not fits:
            raise TagNotFound(name=f"{_IN_TRASH}{plain}")
        wanted |= fits
    gone = [(kept, RefChange(kept.path, kept.link, None, "delete")) for kept in found if kept.name in wanted]
    gone = [(kept, change) for kept, change in gone if agreed is None or change in agreed]
    results = tuple(TagResult(kept.name, "deleted", kept.value, None, kept.home) for kept, _ in gone)
    return TagPlan(tuple(change for _, change in gone), results)


_IN_TRASH = "@trash/"
_MANY = 50
"""Instructions from which on the names that are taken are read at once."""


class _Planner:
    def __init__(self, repo: ReadRepo, owners: Sequence[str], whole: Iterable[ObjectId] = ()) -> None:
        self._repo = repo
        self._owners = owners
        self._changes: list[RefChange] = []
        self._results: list[TagResult] = []
        self._settled: set[str] = set()
        self._seen: set[str] = set()
        self._targets: dict[str, Digest] = {}
        self._chokes_bootc: dict[Digest, bool] = {}
        self._known: dict[ObjectId, tuple[ObjectId, ...]] = dict.fromkeys(whole, ())
        self._taken: Taken | None = None

    @cached_property
    def _bootc(self) -> bool:
        return self._repo.is_bootc

    def plan(self) -> TagPlan:
        return TagPlan(tuple(self._changes), tuple(self._results), tuple(sorted(self._settled)))

    def add(self, instruction: Instruction) -> None:
        """Plan for one more instruction.  An error says its line, where it has one."""
        try:
            self._add(instruction)
        except CfsTagsError as error:
            if instruction.line and error.line is None:
                error.line = instruction.line
            raise

    def _add(self, instruction: Instruction) -> None:
        if instruction.name in self._seen:
            raise _invalid(instruction, instruction.name, "a name may be in one instruction only")
        self._seen.add(instruction.name)
        tag = self._find(instruction)
        if instruction.expected is not None:
            self._compare(instruction, tag)
        match instruction.verb:
            case "verify":
                value = _value(tag)
                self._results.append(TagResult(instruction.name, "verified", value, value, tag.home if tag else ""))
            case "delete":
                self._delete(instruction, tag)
            case "create" | "move" | "set":
                self._set(instruction, tag)
            case verb:
                raise _invalid(instruction, verb, "no such instruction")

    def allow(self, name: str) -> None:
        """Refuse what belongs to another owner that was not named."""
        owner = owner_of(name)
        if owner != "app" and owner not in self._owners:
            raise RefusedError("owner-refused", name=name, owner=owner)

    def check(self, digest: Digest) -> None:
        """Refuse a manifest that is not there or not complete: nothing is to name it.

        What bootc could choke on is remembered for :meth:`_home`.
        """
        if digest not in self._chokes_bootc:
            missing = images.missing_lines(self._repo, digest, self._known)
            if missing:
                raise IncompleteTarget(target=digest, missing=missing)
            self._chokes_bootc[digest] = self._bootc and lacks_erofs(self._repo, digest)

    def index(self, name: str, digest: Digest | None, action: str) -> None:
        """Have the index that is kept with a tag go where it has nothing to do with what the tag will name: nothing
        (``digest`` is None), or an image that it does not list."""
        if self._taken is not None and not self._taken.has_index(name):
            return
        path = f"{layout.INDEXES}/{layout.encode_name(name)}"
        link = indexes.read_index(self._repo, path)
        if link is not None and (digest is None or not indexes.lists(self._repo, path, link, digest)):
            self._changes.append(RefChange(path, link, None, action))

    def existing(self, name: str) -> Tag:
        tag = self._no_other_ref(name, find(self._repo, name))
        if tag is None:
            raise TagNotFound(name=name)
        if tag.has_ended:
            raise NotFoundError("lease-ended", name=name, digest=tag.value, expires=tag.expires or "")
        self.allow(name)
        return tag

    def _find(self, instruction: Instruction) -> Tag | None:
        name = instruction.name
        if not name.startswith("@") or instruction.verb != "delete":
            # one look at all names is cheaper than several at each
            if len(self._seen) == _MANY:
                self._taken = Taken(self._repo)
            if self._taken is not None and not self._taken.maybe(name):
                return None
            return find(self._repo, name)
        if name.startswith("@trash/"):
            return next((kept for kept in reversed(trash(self._repo)) if kept.name == name), None)
        return self._no_other_ref(name, find(self._repo, name))

    @staticmethod
    def _no_other_ref(name: str, tag: Tag | None) -> Tag | None:
        # another program may have made a tag of that name
        for start, what in (("@deployment/", "a deployment ref"), ("@pin/", "a pin")):
            if tag is None and name.startswith(start):
                raise UsageError("invalid-argument", argument="tag", value=name, reason=f"is {what}, and no tag")
        return tag

    def _compare(self, instruction: Instruction, tag: Tag | None) -> None:
        found = _value(tag) or ABSENT
        wanted = instruction.expected
        if wanted != ABSENT and wanted is not None:
            try:
                wanted = Digest.parse(wanted.removeprefix("@"))
            except InvalidDigest as error:
                if not instruction.line:
                    raise
                raise _invalid(instruction, wanted, f"is not {error.wanted}") from None
        if found != wanted:
            raise ExpectationFailed(ref=instruction.name, wanted=str(wanted), found=found)

    def _delete(self, instruction: Instruction, tag: Tag | None) -> None:
        if tag is None:
            raise TagNotFound(name=instruction.name)
        self.allow(instruction.name)
        kept = self._target_of(tag) if instruction.expires is not None else None
        if kept is not None:
            path = self._expiring(layout.TRASH, str(instruction.expires), instruction.name)
            self._changes.append(RefChange(path, None, layout.ref_link(path, kept), "delete"))
        self._changes.append(RefChange(tag.path, tag.link, None, "delete"))
        if instruction.expires is None:
            self.index(instruction.name, None, "delete")
        self._results.append(TagResult(instruction.name, "deleted", tag.value, None, tag.home))

    def _target_of(self, tag: Tag) -> ContentId | None:
        """What a tag leads to; None where nothing is there that could be kept.

        What cannot be read is no reason to keep nothing: the error comes out.
        """
        try:
            target = layout.ref_target(tag.path, tag.link)
        except BadRefLink:
            return None
        stream = self._repo.stream_object(target)
        return target if stream is not None and self._repo.has_object(stream) else None

    def _set(self, instruction: Instruction, tag: Tag | None) -> None:
        name = instruction.name
        ended = None
        if tag is not None and tag.has_ended:
            ended, tag = tag, None
        if tag is None:
            name = TagName.parse(name)
            if instruction.verb == "move":
                raise TagNotFound(name=name)
        digest = self._target(instruction)
        home, path = self._home(instruction, tag, digest)
        link = layout.ref_link(path, ContentId.manifest(digest))
        if tag is not None and tag.digest == digest and instruction.expires is None:
            # the same again leaves a lease a lease: its end is a wish, too
            as_it_is = instruction.verb == "create" and instruction.home is None and tag.home == "lease"
            if tag.home == home or as_it_is:
                self._results.append(TagResult(name, "unchanged", digest, digest, tag.home))
                self._settled.add(tag.path.rpartition("/")[0])
                return
        if tag is not None and instruction.verb == "create" and instruction.expected is None:
            begins_or_ends = (home == "lease") != (tag.home == "lease")
            if tag.digest != digest or begins_or_ends:
                raise RefusedError("tag-exists", name=name, found=tag.value, wanted=digest)
        self.allow(name)
        action = "create" if tag is None else "move"
        if tag is not None and tag.path == path:
            self._changes.append(RefChange(path, tag.link, link, action))
        else:
            # the new home first: at no instant is the content without a ref
            self._changes.append(RefChange(path, None, link, action))
            if tag is not None:
                self._changes.append(RefChange(tag.path, tag.link, None, action))
        if ended is not None:
            self._changes.append(RefChange(ended.path, ended.link, None, "expire"))
        if tag is None or tag.digest != digest:
            self.index(name, digest, action)
        self._results.append(TagResult(name, "created" if tag is None else "moved", _value(tag), digest, home))

    def _target(self, instruction: Instruction) -> Digest:
        text = instruction.target
        if text is None:
            raise _invalid(instruction, instruction.name, "the target is missing")
        digest = self._targets.get(text)
        if digest is None:
            digest = self._targets[text] = resolve(self._repo, text)
            self.check(digest)
        return digest

    def _home(self, instruction: Instruction, tag: Tag | None, digest: Digest) -> tuple[str, str]:
        """Home and path of a tag that is set: as asked, else as it was, else by the rule; never shared where bootc
        could choke on it, unless asked."""
        encoded = layout.encode_name(instruction.name)
        if instruction.expires is not None:
            return "lease", self._expiring(layout.LEASES, instruction.expires, instruction.name)
        home = instruction.home
        if home not in (None, "shared", "private"):
            raise UsageError("invalid-argument", argument="home", value=home, reason="is none of shared, private")
        if home is None:
            home = tag.home if tag is not None and tag.home in ("shared", "private") else "shared"
            if home == "shared" and self._chokes_bootc[digest]:
                home = "private"
        if tag is not None and tag.home == home:
            return home, tag.path
        return home, f"{HOMES[home]}/{encoded}"

    def _expiring(self, top: str, expires: str, name: str) -> str:
        if not is_moment(expires):
            reason = "is no instant: write YYYYMMDDThhmmssZ"
            raise UsageError("invalid-argument", argument="expires", value=expires, reason=reason)
        number = 0
        while True:
            path = f"{top}/{expires}.{number}/{layout.encode_name(name)}"
            if self._repo.read_link(path) is None:
                return path
            number += 1


def asked(verb: str, *parts: object, once: bool = False) -> Command[TagPlan]:
    """What is asked for, so that it is known when it is asked for again after an interruption.

    Args:
        verb: what it is.
        parts: all that it depends on, instants left out.
        once: whether the planner looks at what the command itself changes: the reflog, or a value that is expected.
    """
    words = repr((verb, *parts))
    if len(words) > _LONGEST_WORDS:
        import hashlib

        words = f"{verb} {hashlib.sha256(words.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return Command(words, once, lambda made: made.results, _again)


def asked_instructions(instructions: Sequence[Instruction]) -> Command[TagPlan]:
    """The same of instructions."""
    # by hand: there may be thousands
    parts = [part or "" for one in instructions for part in (*one[:5], one.expires and "later")]
    once = any(one.expected is not None or "@{" in (one.target or "") for one in instructions)
    return asked("update", "\0".join(parts), once=once)


def _again(changes: Sequence[RefChange], rows: Sequence[Row]) -> TagPlan | None:
    try:
        return TagPlan(tuple(changes), tuple(TagResult(*row) for row in rows))  # type: ignore[arg-type]
    except TypeError:
        return None


def lacks_erofs(repo: ReadRepo, digest: Digest) -> bool:
    """Whether bootc would build an EROFS image for this manifest if it had a shared tag.

    True for a container image whose config names none in the repository's own format version (composefs-rs 0.9.4,
    ``upgrade_repo``): for images without ``/usr`` and the like that fails, and bootc's collector with it.
    """
    image = images.load(repo, digest)
    version = repo.meta.erofs_version if repo.meta is not None else 2
    key = images.EROFS_KEY if version == 2 else f"{images.EROFS_KEY}.v1"
    return image.manifest.is_container and key not in image.erofs


def _invalid(instruction: Instruction, text: str, reason: str) -> UsageError:
    return UsageError("invalid-instruction", line=instruction.line, text=text, reason=reason)


def _value(tag: Tag | None) -> str | None:
    """What a tag names now: nothing where there is none, or it was a lease that has ended."""
    return tag.value if tag is not None and not tag.has_ended else None
