"""Everything that can go wrong, one type each.

Every error has a stable ``code`` (kebab-case, for programs), an exit ``status`` (see below), its facts as attributes, a
one-line ``str()`` for people and, where something can be done about it, a ``hint``.  Nothing here prints or exits.

Exit statuses::

    CfsTagsError                    1  failed
    +-- UsageError                  2  what was asked makes no sense
    +-- NotFoundError               3  what was named is not there
    +-- RefusedError                4  refused: exists, expectation not met, owner, incomplete target
    +-- LockTimeout                 5  somebody else holds a lock
    +-- DamagedError                6  the repository is damaged
    |   +-- FormatError             6  bytes that are not what they should be
    +-- UnsupportedError            7  a version, algorithm or feature from the future
    +-- Interrupted               130  stopped by a signal

Facts are declared as annotations; the constructor takes them by keyword::

    class TagNotFound(NotFoundError):
        code = "tag-not-found"
        name: str
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, dataclass_transform

__all__ = [
    "AmbiguousName",
    "BadRefLink",
    "BrokenRoots",
    "CfsTagsError",
    "CommandLineError",
    "DamagedError",
    "DeploymentMismatch",
    "DigestMismatch",
    "ExpectationFailed",
    "FormatError",
    "IncompleteTarget",
    "InternalError",
    "Interrupted",
    "InvalidArgument",
    "InvalidDigest",
    "InvalidInstruction",
    "InvalidTagName",
    "LayerTooLarge",
    "LockConflict",
    "LockTimeout",
    "MissingExtra",
    "MissingObject",
    "NotALink",
    "NotFoundError",
    "NothingToUndo",
    "OutputFailed",
    "OwnerRefused",
    "PlaceUnread",
    "PlatformNotFound",
    "ProgramFailed",
    "ProgramMissing",
    "ReadOnlyRepository",
    "RefusedError",
    "ReflogEntryNotFound",
    "RepositoryNotFound",
    "SourceNotFound",
    "SysrootNotFound",
    "SysrootUnseen",
    "SystemFailure",
    "TagExists",
    "TagNotFound",
    "TargetExists",
    "TargetNotFound",
    "TransactionAbandoned",
    "UnresolvedDeployment",
    "UnsupportedError",
    "UnsupportedFeature",
    "UnsupportedVersion",
    "UsageError",
    "WouldLoseContent",
    "printable",
]

_DIGITS = re.compile(r"[0-9a-f]{6,64}", re.ASCII)

Fact = Any
"""A fact of an error: anything that JSON can hold, or a value whose ``str()`` is its JSON form."""


def printable(text: object) -> str:
    """Foreign text as one line that is safe on a terminal.

    Control characters, line separators, bidirectional overrides and undecodable bytes (surrogates) come out as
    backslash escapes; everything else stays as it is.

    >>> printable("a\\x1b[31m\\n")
    'a\\\\x1b[31m\\\\n'
    """
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


@dataclass_transform(kw_only_default=True, eq_default=False)
class CfsTagsError(Exception):
    """Base of all errors of this package.  Facts are keyword arguments and attributes."""

    code: ClassVar[str] = "failed"
    status: ClassVar[int] = 1
    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = tuple(name for name, kind in cls.__annotations__.items() if not str(kind).startswith("ClassVar"))
        cls._fields = (*cls._fields, *(name for name in own if name not in cls._fields))

    def __init__(self, **facts: Fact) -> None:
        for name in self._fields:
            if name in facts:
                setattr(self, name, facts.pop(name))
            elif not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs the fact {name!r}")
        if facts:
            raise TypeError(f"{type(self).__name__} has no fact {next(iter(facts))!r}")
        super().__init__()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.facts())

    def facts(self) -> dict[str, Fact]:
        """The facts, by name, in the order they are declared."""
        return {name: getattr(self, name) for name in self._fields}

    @property
    def message(self) -> str:
        """What went wrong, without the hint; may hold foreign text, unescaped."""
        return self.code

    @property
    def hint(self) -> str | None:
        """What to do about it, or None."""
        return None

    def __str__(self) -> str:
        return printable(self.message)


def _rebuild(cls: type[CfsTagsError], facts: dict[str, Fact]) -> CfsTagsError:
    return cls(**facts)


# -- families ----------------------------------------------------------------------------------------------------------


class UsageError(CfsTagsError):
    """What was asked makes no sense, whatever the repository holds."""

    code = "usage"
    status = 2


class NotFoundError(CfsTagsError):
    """What was named is not there."""

    code = "not-found"
    status = 3


class RefusedError(CfsTagsError):
    """It could be done, and must not be."""

    code = "refused"
    status = 4


class DamagedError(CfsTagsError):
    """The repository holds something that it may not hold, or lacks something that it needs."""

    code = "damaged"
    status = 6


class UnsupportedError(CfsTagsError):
    """Written by a newer program, or for another one."""

    code = "unsupported"
    status = 7


# -- usage -------------------------------------------------------------------------------------------------------------


class CommandLineError(UsageError):
    """Words that make no command.  ``command`` is as much of it as was understood, ``text`` what is wrong."""

    code = "command-line"
    command: str
    text: str

    @property
    def message(self) -> str:
        return self.text

    @property
    def hint(self) -> str:
        return f"'{self.command} --help' shows how it is written"


class InvalidArgument(UsageError):
    """An argument has a form that it may not have.  ``reason`` completes "NAME 'VALUE' …"."""

    code = "invalid-argument"
    argument: str
    value: str
    reason: str

    @property
    def message(self) -> str:
        return f"{self.argument} {_short(self.value)!r} {self.reason}"


class InvalidTagName(UsageError):
    """A name that may not be made.  ``rule`` completes "a tag name may not …"."""

    code = "invalid-tag-name"
    name: str
    rule: str

    @property
    def message(self) -> str:
        return f"tag name {_short(self.name)!r} {self.rule}"

    @property
    def hint(self) -> str:
        return "names look like quay.io/org/app:1.2: at most 255 bytes once encoded, no control characters, no leading @ or -"


class InvalidDigest(UsageError):
    """Text that should be a digest and is not."""

    code = "invalid-digest"
    text: str
    wanted: str

    @property
    def message(self) -> str:
        return f"{_short(self.text)!r} is not a digest: wanted {self.wanted}"

    @property
    def hint(self) -> str:
        if self.wanted.startswith("sha256:"):
            return "'cfs-tag resolve NAME' prints the digest of a tag, or of its first digits"
        return "the whole id of a deployment or object: 'cfs-tag deployments --json' has those of deployments"


class InvalidInstruction(UsageError):
    """A line given to ``update --stdin`` that is not an instruction.  ``line`` counts from 1."""

    code = "invalid-instruction"
    line: int
    text: str
    reason: str

    @property
    def message(self) -> str:
        return f"line {self.line} {_short(self.text)!r}: {self.reason}"

    @property
    def hint(self) -> str:
        return "one of: create NAME TARGET | move NAME TARGET [EXPECTED] | delete NAME [EXPECTED] | verify NAME EXPECTED"


class AmbiguousName(UsageError):
    """A name or prefix that fits several things."""

    code = "ambiguous-name"
    name: str
    candidates: tuple[str, ...]

    @property
    def message(self) -> str:
        shown = ", ".join(self.candidates[:5]) + (", …" if len(self.candidates) > 5 else "")
        return f"{_short(self.name)!r} is ambiguous: {shown}"

    @property
    def hint(self) -> str:
        if ":" in self.name and not self.name.startswith("sha256:"):  # a source of images
            return f"say which: {self.name}:{self.candidates[0]}"
        return "give more digits, or the whole name"


# -- not found ---------------------------------------------------------------------------------------------------------


class RepositoryNotFound(NotFoundError):
    """No composefs repository at a path.  ``reason`` says what is there instead."""

    code = "repository-not-found"
    path: str
    reason: str

    @property
    def message(self) -> str:
        return f"no composefs repository at {self.path}: {self.reason}"

    @property
    def hint(self) -> str:
        return "name one with --repo DIR, --sysroot DIR, --user or --system, or set CFS_TAG_REPO; 'cfsctl init DIR' makes one"


class SysrootNotFound(NotFoundError):
    """A command about deployments, and no sysroot with the repository."""

    code = "sysroot-not-found"
    path: str

    @property
    def message(self) -> str:
        return f"{self.path} is no repository of a bootc host: there is no state/deploy beside it"

    @property
    def hint(self) -> str:
        return "name the physical root with --sysroot DIR, or set CFS_TAG_SYSROOT"


class TagNotFound(NotFoundError):
    """No tag of that name.  ``near`` are names like it, where somebody looked."""

    code = "tag-not-found"
    name: str
    near: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        return f"no tag {_short(self.name)!r}"

    @property
    def hint(self) -> str:
        tag, _, digest = self.name.rpartition("@")
        if tag and digest.startswith("sha256:"):
            return f"a digest alone names an image: @{digest}"
        if _DIGITS.fullmatch(self.name):
            return f"if these are digits of a digest: @sha256:{self.name}"
        if self.near:
            return f"there is {', '.join(self.near)}"
        return "'cfs-tag list' shows the tags, 'cfs-tag trash' deleted ones that are kept"


class TargetNotFound(NotFoundError):
    """Something that a name or digest stands for is not in the repository.  ``kind``: manifest, deployment, …"""

    code = "target-not-found"
    kind: str
    name: str

    @property
    def message(self) -> str:
        return f"no {self.kind} {_short(self.name)!r} in the repository"

    @property
    def hint(self) -> str | None:
        if self.kind == "EROFS image of":
            return "'cfs-tag import --mountable' makes it, and so does cfsctl when it mounts the image"
        if self.name in ("booted", "staged", "rollback"):
            return "'cfs-tag deployments' lists what is known; for another system --booted ID and --run DIR say it"
        return "'cfs-tag deployments' lists them" if self.kind.startswith("deployment") else None


class ReflogEntryNotFound(NotFoundError):
    """The reflog of a tag does not reach back that far."""

    code = "reflog-entry-not-found"
    name: str
    number: int
    entries: int

    @property
    def message(self) -> str:
        entries = "1 entry" if self.entries == 1 else f"{self.entries} entries"
        return f"the log of {_short(self.name)!r} has {entries}, none with number {self.number}"

    @property
    def hint(self) -> str:
        return "'cfs-tag log NAME' shows the entries"


class SourceNotFound(NotFoundError):
    """What was to be imported is not there.  ``names`` are the images that the source has instead."""

    code = "source-not-found"
    source: str
    reason: str
    names: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        return f"{_short(self.source)}: {self.reason}"

    @property
    def hint(self) -> str | None:
        if not self.names:
            return None
        return f"it has: {', '.join(self.names[:10])}{', …' if len(self.names) > 10 else ''}"


class NothingToUndo(NotFoundError):
    """There is no record of a migration."""

    code = "nothing-to-undo"
    path: str

    @property
    def message(self) -> str:
        return f"no migration to undo: {self.path} is not there"


# -- refused -----------------------------------------------------------------------------------------------------------


class TagExists(RefusedError):
    """The tag is there and names something else."""

    code = "tag-exists"
    name: str
    found: str
    wanted: str

    @property
    def message(self) -> str:
        return f"tag {_short(self.name)!r} exists and names {self.found}"

    @property
    def hint(self) -> str:
        return "--force moves it all the same"


class TargetExists(RefusedError):
    """A file that would have to be replaced."""

    code = "target-exists"
    path: str

    @property
    def message(self) -> str:
        return f"{self.path} exists"

    @property
    def hint(self) -> str:
        return "name another file; an archive is not added to"


class PlatformNotFound(RefusedError):
    """An index where an image is needed, and none of its images is for the platform.  ``platforms`` are those it has."""

    code = "platform-not-found"
    target: str
    wanted: str
    platforms: tuple[str, ...]

    @property
    def message(self) -> str:
        shown = ", ".join(self.platforms[:20]) + (", …" if len(self.platforms) > 20 else "")
        return f"{_short(self.target)} has no image for {self.wanted}; it has: {shown or 'none'}"

    @property
    def hint(self) -> str:
        return "choose with --platform OS/ARCH[/VARIANT], or take --all-platforms"


class TargetIsIndex(RefusedError):
    """An index that is kept, where an image is needed.  ``platforms`` are those of its images."""

    code = "target-is-index"
    target: str
    platforms: tuple[str, ...]

    @property
    def message(self) -> str:
        shown = ", ".join(self.platforms[:20]) + (", …" if len(self.platforms) > 20 else "")
        return f"{_short(self.target)} is an index, and a tag names one image; it has: {shown or 'none'}"

    @property
    def hint(self) -> str:
        return "name one of its images; import --all-platforms makes a tag for each"


class ExpectationFailed(RefusedError):
    """A ref does not have the value that was expected, or lost it while we worked.  Values are targets or ``absent``."""

    code = "expectation-failed"
    ref: str
    wanted: str
    found: str

    @property
    def message(self) -> str:
        return f"{self.ref}: expected {self.wanted}, found {self.found}"

    @property
    def hint(self) -> str:
        return "somebody else moved it: look at it with 'cfs-tag show', then decide again"


class OwnerRefused(RefusedError):
    """The ref belongs to somebody else."""

    code = "owner-refused"
    name: str
    owner: str

    @property
    def message(self) -> str:
        return f"{_short(self.name)!r} belongs to {self.owner}"

    @property
    def hint(self) -> str:
        return f"--owner {self.owner} changes it all the same"


class IncompleteTarget(RefusedError):
    """The target lacks something.  ``missing`` has one line for each thing that is not there."""

    code = "incomplete-target"
    target: str
    missing: tuple[str, ...]

    @property
    def message(self) -> str:
        shown = "; ".join(self.missing[:3]) + (f"; and {len(self.missing) - 3} more" if len(self.missing) > 3 else "")
        return f"{self.target} is incomplete: {shown}"

    @property
    def hint(self) -> str:
        return "pull the image again; a name for it would not keep it whole"


class UnresolvedDeployment(RefusedError):
    """No manifest for a deployment, or several.  ``notes`` say what was tried; ``candidates`` are digests."""

    code = "unresolved-deployment"
    deployment: str
    notes: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        if self.candidates:
            return f"deployment {self.deployment[:12]}… may be of any of {', '.join(self.candidates)}"
        return f"no manifest for deployment {self.deployment[:12]}…: {'; '.join(self.notes) or 'nothing says which'}"

    @property
    def hint(self) -> str:
        return "name its manifest: @sha256:…"


class PlaceUnread(RefusedError):
    """A place where deployments are seen could not be read, so that nobody knows which there are."""

    code = "place-unread"
    place: str
    path: str
    reason: str

    @property
    def message(self) -> str:
        return f"{self.path} could not be read ({self.reason}): the content of deployments without a ref would be collected"

    @property
    def hint(self) -> str:
        return "mount it; gc --no-sysroot collects by the refs that there are, without a look at deployments"


class SysrootUnseen(RefusedError):
    """bootc's repository, reached on a way that does not lead to its deployments.

    ``images`` are EROFS images that no ref leads to, and that may be theirs; a collection stops where there are any.
    """

    code = "sysroot-unseen"
    path: str
    images: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        where = f"{self.path} is a repository of bootc's, and its sysroot is not known"
        if not self.images:
            return f"{where}: no deployment is adopted or retired"
        named = ", ".join(f"{image[:12]}…" for image in self.images[:3])
        more = f" and {len(self.images) - 3} more" if len(self.images) > 3 else ""
        return f"{where}: images without a ref may be of deployments, and would be collected: {named}{more}"

    @property
    def hint(self) -> str:
        return "name the physical root with --sysroot DIR; gc --no-sysroot collects by the refs that there are"


class DeploymentMismatch(RefusedError):
    """A manifest that was made into other EROFS images than the deployment's."""

    code = "deployment-mismatch"
    deployment: str
    manifest: str
    images: tuple[str, ...]

    @property
    def message(self) -> str:
        made = ", ".join(f"{image[:12]}…" for image in self.images)
        return f"{self.manifest} was made into {made}, not into {self.deployment[:12]}…"

    @property
    def hint(self) -> str:
        return "name another manifest; 'cfs-tag create --deployment ID @sha256:… --force' takes this one all the same"


class WouldLoseContent(RefusedError):
    """Carrying it out would leave content that is kept today to the collectors.  ``lost`` has one line each."""

    code = "would-lose-content"
    what: str
    lost: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"{self.what} would lose content: {'; '.join(self.lost[:3])}{'; …' if len(self.lost) > 3 else ''}"

    @property
    def hint(self) -> str | None:
        return "--force leaves a tag migrated/ID for each" if self.what == "undoing" else None


class TransactionAbandoned(RefusedError):
    """An interrupted transaction could not be finished and was put back."""

    code = "transaction-abandoned"
    transaction: str
    reasons: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"transaction {self.transaction} was taken back: {'; '.join(self.reasons[:3])}"


class ReadOnlyRepository(RefusedError):
    """The repository may be read and not written."""

    code = "read-only-repository"
    path: str
    reason: str

    @property
    def message(self) -> str:
        return f"{self.path} can only be read: {self.reason}"

    @property
    def hint(self) -> str | None:
        if "mounted" not in self.reason:
            return None
        return "for this command alone: unshare -m sh -c 'mount -o remount,rw MOUNTPOINT && cfs-tag …', as bootc does"


# -- locks -------------------------------------------------------------------------------------------------------------


class LockTimeout(CfsTagsError):
    """A lock was not to be had in time.

    ``mode`` is ``shared`` or ``exclusive``; ``seconds`` what was waited; ``holders`` one dict for each process that has
    the lock, as far as the system shows them: ``pid`` (int), ``command`` (str), ``mode``.
    """

    code = "lock-timeout"
    status = 5
    path: str
    mode: str
    seconds: float
    holders: tuple[dict[str, Any], ...] = ()

    @property
    def message(self) -> str:
        held = ", ".join(f"{h['command']} (PID {h['pid']}, {h['mode']})" for h in self.holders)
        holders = held or "a process that the system does not show"
        return f"no {self.mode} lock on {self.path} within {self.seconds:g} s: held by {holders}"

    @property
    def hint(self) -> str:
        return "wait for it to finish, or give more time with --lock-timeout SECONDS"


class LockConflict(CfsTagsError):
    """This process holds the lock itself, in a mode that excludes what was asked.  Waiting would never end."""

    code = "lock-conflict"
    path: str
    held: str
    wanted: str

    @property
    def message(self) -> str:
        return f"this process holds {self.path} {self.held} already and asked for it {self.wanted}"

    @property
    def hint(self) -> str:
        return "close the other handle first"


# -- damage ------------------------------------------------------------------------------------------------------------


class FormatError(DamagedError):
    """Bytes that are not what they should be.

    ``structure`` names the format, ``offset`` the byte (0 where the whole is meant) within the structure, ``wanted`` and
    ``found`` say what stood there; ``path`` is added by the layer that knows where the bytes came from.
    """

    code = "malformed"
    structure: str
    offset: int
    wanted: str
    found: str
    path: str | None = None

    @property
    def message(self) -> str:
        where = f"{self.path}: " if self.path is not None else ""
        return f"{where}{self.structure} at byte {self.offset}: wanted {self.wanted}, found {_short(self.found)}"


class LayerTooLarge(FormatError):
    """A layer that is longer than was allowed."""

    code = "layer-too-large"

    @property
    def hint(self) -> str:
        return "--max-layer-size GIB allows more"


class BadRefLink(DamagedError):
    """A ref whose link leads somewhere that a ref may not lead: absolute, nested, looping, outside."""

    code = "bad-ref-link"
    path: str
    target: str
    reason: str

    @property
    def message(self) -> str:
        return f"{self.path} -> {_short(self.target)}: {self.reason}"


class NotALink(DamagedError):
    """Something in a place where only links may be: it stops the collectors of cfsctl and bootc."""

    code = "not-a-link"
    path: str
    found: str

    @property
    def message(self) -> str:
        return f"{self.path} is {self.found}, not a link"


class BrokenRoots(DamagedError):
    """Something that refs lead to cannot be followed, so that nothing can be said to be dead.

    ``problems`` has what is wrong and the refs that need it, for each.
    """

    code = "broken-roots"
    SHOWN: ClassVar[int] = 5
    problems: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def message(self) -> str:
        shown = "; ".join(_needed(what, refs) for what, refs in self.problems[: self.SHOWN])
        more = f"; and {len(self.problems) - self.SHOWN} more" if len(self.problems) > self.SHOWN else ""
        return f"refs lead to what cannot be followed: {shown}{more}"

    @property
    def hint(self) -> str:
        return "'cfs-tag fsck --repair' takes dangling refs out; --keep-broken collects what nothing broken leads to"


class MissingObject(DamagedError):
    """An object that something names is not in the repository."""

    code = "missing-object"
    object: str
    needed_by: str

    @property
    def message(self) -> str:
        return f"object {self.object}, needed by {self.needed_by}, is missing"


class DigestMismatch(DamagedError):
    """Bytes that do not have the digest they are kept under."""

    code = "digest-mismatch"
    path: str
    wanted: str
    found: str

    @property
    def message(self) -> str:
        return f"{self.path}: wanted {self.wanted}, found {self.found}"


# -- unsupported -------------------------------------------------------------------------------------------------------


class UnsupportedVersion(UnsupportedError):
    """A version of a format that this program does not know."""

    code = "unsupported-version"
    structure: str
    wanted: str
    found: str

    @property
    def message(self) -> str:
        return f"{self.structure} version {self.found}: this program knows {self.wanted}"

    @property
    def hint(self) -> str:
        return "use a newer cfs-tag"


class UnsupportedFeature(UnsupportedError):
    """A feature flag or algorithm that this program does not know."""

    code = "unsupported-feature"
    structure: str
    features: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"{self.structure} needs {', '.join(self.features)}, which this program does not know"

    @property
    def hint(self) -> str:
        return "use a newer cfs-tag"


# -- the system --------------------------------------------------------------------------------------------------------


class SystemFailure(CfsTagsError):
    """The system refused an operation: no permission, no space, an I/O error.

    ``operation`` is what was tried, ``path`` on what, ``reason`` the system's words, ``errno`` its number.
    """

    code = "system-failure"
    operation: str
    path: str
    reason: str
    errno: int

    @classmethod
    def of(cls, error: OSError, operation: str, path: object) -> SystemFailure:
        """From the exception of a failed system call."""
        return cls(operation=operation, path=str(path), reason=error.strerror or str(error), errno=error.errno or 0)

    @property
    def message(self) -> str:
        return f"cannot {self.operation} {self.path}: {self.reason}"

    @property
    def hint(self) -> str | None:
        import errno

        if self.errno in (errno.EACCES, errno.EPERM):
            return "run it as the owner, or as root"
        if self.errno in (errno.ENOSPC, errno.EDQUOT):
            return "make room; nothing was changed"
        return None


class MissingExtra(CfsTagsError):
    """A command needs a package that is not installed.  ``extra`` of ours brings it along."""

    code = "missing-extra"
    command: str
    package: str
    extra: str

    @property
    def message(self) -> str:
        return f"{self.command} needs the Python package {self.package}, which is not installed"

    @property
    def hint(self) -> str:
        return f"pip install {self.package}"


class ProgramMissing(CfsTagsError):
    """Another program is needed and is not installed.  ``purpose`` says for what."""

    code = "program-missing"
    program: str
    purpose: str

    @property
    def message(self) -> str:
        return f"{self.program} is needed {self.purpose}, and is not installed"

    @property
    def hint(self) -> str:
        return f"install {self.program}"


class ProgramFailed(CfsTagsError):
    """Another program that we ran failed.  ``said`` is the end of what it wrote."""

    code = "program-failed"
    program: str
    exit_status: int
    said: str

    @property
    def message(self) -> str:
        return f"{self.program} ended with status {self.exit_status}: {_short(self.said, 1000)}"


class OutputFailed(CfsTagsError):
    """What was to be said could not be written to standard output; what was to be done is done."""

    code = "output-failed"
    reason: str

    @property
    def message(self) -> str:
        return f"cannot write to standard output: {self.reason}"


class InternalError(CfsTagsError):
    """A mistake in this program.  ``kind`` is the type of the exception, ``text`` what it says."""

    code = "internal"
    kind: str
    text: str

    @property
    def message(self) -> str:
        return f"internal error: {self.kind}: {_short(self.text)}"

    @property
    def hint(self) -> str:
        return "this is a mistake in cfs-tag: please report it with what CFS_TAG_DEBUG=1 shows"


class Interrupted(CfsTagsError):
    """Stopped by a signal."""

    code = "interrupted"
    status = 130

    @property
    def message(self) -> str:
        return "interrupted"


def _needed(what: str, refs: tuple[str, ...]) -> str:
    """A problem with the refs that need it, where it does not name them itself."""
    others = [ref for ref in refs[:3] if ref not in what]
    return f"{what} (needed by {', '.join(others)})" if others else what


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
