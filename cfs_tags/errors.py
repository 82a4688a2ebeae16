"""Types of errors.  What each code means, says and needs stands in ``cfs_tags/catalogue.py``.

An error has a stable ``code`` (kebab-case, for programs), an exit ``status``, its facts as attributes, a one-line
``str()`` for people, and a ``hint``: what to do about it.  Nothing here prints or exits.

Families, with their exit statuses::

    CfsTagsError                    1  failed
    +-- UsageError                  2  what was asked makes no sense
    +-- NotFoundError               3  what was named is not there
    +-- RefusedError                4  refused: exists, expectation not met, owner, incomplete target
    +-- LockTimeout                 5  another process holds a lock
    +-- DamagedError                6  the repository is damaged
    |   +-- FormatError             6  bytes that are not what they should be
    +-- UnsupportedError            7  a version, algorithm or feature from the future
    +-- Interrupted               130  stopped by a signal

Most errors are a code on a family::

    raise RefusedError("tag-exists", name=name, found=found, wanted=digest)

An error has a type of its own where a caller catches it or reads its facts; such a type has one code and its facts as
annotations::

    raise TagNotFound(name=name)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, dataclass_transform

from cfs_tags.catalogue import CATALOGUE
from cfs_tags.messages import render

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


class CfsTagsError(Exception):
    """Base of all errors of this package.

    Args:
        code: a code of the catalogue that this type has; a type with one code of its own needs none.
        facts: those of the code, by name; they become attributes.

    Raises:
        TypeError: the code is not of this type, or a fact is missing or unknown.
    """

    code: str = ""
    status: ClassVar[int] = 1
    line: int | None = None
    """Which line of the instructions it is about, from 1; None where there are none."""

    def __init__(self, code: str = "", **facts: Fact) -> None:
        self.code = code or type(self).code
        entry = CATALOGUE.get(self.code)
        if entry is None or not any(kind.__name__ == entry.family for kind in type(self).__mro__):
            raise TypeError(f"{type(self).__name__} has no code {self.code!r}")
        for name in entry.names:
            if name not in facts and name not in entry.defaults:
                raise TypeError(f"{self.code} needs the fact {name!r}")
            setattr(self, name, facts.pop(name) if name in facts else entry.defaults[name])
        if facts:
            raise TypeError(f"{self.code} has no fact {next(iter(facts))!r}")
        super().__init__()

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name: getattr(self, name) for name in CATALOGUE[self.code].names}
        return _rebuild, (type(self), self.code, own, self.line)

    def facts(self) -> dict[str, Fact]:
        """The facts, by name, in the order of the catalogue; then the line, where there is one."""
        own = {name: getattr(self, name) for name in CATALOGUE[self.code].names}
        return own if self.line is None else {**own, "line": self.line}

    @property
    def message(self) -> str:
        """What went wrong, without the hint; may hold foreign text, unescaped."""
        said = render(CATALOGUE[self.code].message, self.facts()) or self.code
        return said if self.line is None or "line" in CATALOGUE[self.code].names else f"line {self.line}: {said}"

    @property
    def hint(self) -> str | None:
        """What to do about it, or None; may hold foreign text, unescaped."""
        return render(CATALOGUE[self.code].way_out, self.facts())

    def __str__(self) -> str:
        return printable(self.message)


def _rebuild(kind: type[CfsTagsError], code: str, facts: dict[str, Fact], line: int | None) -> CfsTagsError:
    error = kind(code, **facts)
    error.line = line
    return error


@dataclass_transform(kw_only_default=True, eq_default=False)
class _Typed(CfsTagsError):
    """A type of one code; its annotations are the facts of that code, and are checked like arguments."""


@contextmanager
def installed(package: str, *, extra: str, command: str) -> Iterator[None]:
    """For the block that imports what one package brings, which only an extra of this one asks for.

    Args:
        package: its name, as pip has it.
        extra: the extra of this package.
        command: what needs it.

    Raises:
        CfsTagsError (missing-extra): it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package.replace("-", "_"):
            raise
        raise CfsTagsError("missing-extra", package=package, extra=extra, command=command) from None


# -- families ----------------------------------------------------------------------------------------------------------


class UsageError(CfsTagsError):
    """What was asked makes no sense, whatever the repository holds."""

    status = 2


class NotFoundError(CfsTagsError):
    """What was named is not there."""

    status = 3


class RefusedError(CfsTagsError):
    """It could be done, and must not be."""

    status = 4


class DamagedError(CfsTagsError):
    """The repository holds something that it may not hold, or lacks something that it needs."""

    status = 6


class UnsupportedError(CfsTagsError):
    """Written by a newer program, or for another one."""

    status = 7


class Interrupted(CfsTagsError):
    """Stopped by a signal."""

    code = "interrupted"
    status = 130


# -- types that callers catch, or whose facts they read ----------------------------------------------------------------


class InvalidDigest(UsageError, _Typed):
    """Text that should be a digest and is not.  ``wanted`` says which form was."""

    code = "invalid-digest"
    text: str
    wanted: str


class RepositoryNotFound(NotFoundError, _Typed):
    """No composefs repository at a path.  ``reason`` says what is there instead."""

    code = "repository-not-found"
    path: str
    reason: str


class TagNotFound(NotFoundError, _Typed):
    """No tag of that name.  ``near`` are names like it, or what it was before it was deleted, where they were looked for."""

    code = "tag-not-found"
    name: str
    near: tuple[str, ...] = ()


class TargetNotFound(NotFoundError, _Typed):
    """Something that a name, a digest or a path stands for is not there.  ``kind``: manifest, deployment, file, …"""

    code = "target-not-found"
    kind: str
    name: str
    where: str = "the repository"


class SourceNotFound(NotFoundError, _Typed):
    """What is to be imported is not there.  ``names`` are the images that the source has instead."""

    code = "source-not-found"
    source: str
    reason: str
    names: tuple[str, ...] = ()


class SourceFailed(_Typed):
    """A source of images does not answer, answers with an error, or is too slow; another may have what was wanted."""

    code = "source-failed"
    source: str
    reason: str


class PlatformNotFound(RefusedError, _Typed):
    """An index where an image is needed, and none of its images is for the platform.  ``platforms`` are those it has."""

    code = "platform-not-found"
    target: str
    wanted: str
    platforms: tuple[str, ...]


class ExpectationFailed(RefusedError, _Typed):
    """A ref does not have the value that was expected, or lost it meanwhile.  Values are targets or ``absent``."""

    code = "expectation-failed"
    ref: str
    wanted: str
    found: str


class IncompleteTarget(RefusedError, _Typed):
    """The target lacks something.  ``missing`` has one line for each thing that is not there."""

    code = "incomplete-target"
    target: str
    missing: tuple[str, ...]


class UnresolvedDeployment(RefusedError, _Typed):
    """No manifest for a deployment, or several.  ``notes`` say what was tried; ``candidates`` are digests."""

    code = "unresolved-deployment"
    deployment: str
    notes: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()


class PlaceUnread(RefusedError, _Typed):
    """A place where deployments are seen could not be read, so that it is not known which there are."""

    code = "place-unread"
    place: str
    path: str
    reason: str


class NoDeployments(RefusedError, _Typed):
    """Tags that bootc made for deployments, and no deployment: what is live is not seen."""

    code = "no-deployments"
    path: str


class LockTimeout(_Typed):
    """Another process held a lock until the time was over.

    ``mode`` is ``shared`` or ``exclusive``; ``seconds`` what was waited; ``holders`` one dict for each process that has
    the lock, as far as the system shows them: ``pid`` (int), ``command`` (str), ``mode``.
    """

    code = "lock-timeout"
    status = 5
    path: str
    mode: str
    seconds: float
    holders: tuple[dict[str, Any], ...] = ()


class LockConflict(_Typed):
    """This process holds the lock itself, in a mode that excludes what was asked.  Waiting would never end."""

    code = "lock-conflict"
    path: str
    held: str
    wanted: str


class FormatError(DamagedError, _Typed):
    """Bytes that are not what they should be.

    ``structure`` names the format, ``offset`` the byte (0 where the whole is meant) within the structure, ``wanted`` and
    ``found`` say what stood there; ``path`` says which file, digest or entry it is about: see :func:`about`.
    """

    code: str = "malformed"
    structure: str
    offset: int
    wanted: str
    found: str
    path: str | None = None


class BadRefLink(DamagedError, _Typed):
    """A ref whose link leads somewhere that a ref may not lead: absolute, nested, looping, outside."""

    code = "bad-ref-link"
    path: str
    target: str
    reason: str


class NotALink(DamagedError, _Typed):
    """Something in a place where only links may be: it stops the collectors of cfsctl and bootc."""

    code = "not-a-link"
    path: str
    found: str


class BrokenRoots(DamagedError, _Typed):
    """Something that refs lead to cannot be followed, so that nothing can be said to be garbage.

    ``problems`` has what is wrong and the refs that need it, for each.
    """

    code = "broken-roots"
    problems: tuple[tuple[str, tuple[str, ...]], ...]


class MissingObject(DamagedError, _Typed):
    """An object that something names is not in the repository."""

    code = "missing-object"
    object: str
    needed_by: str


class SystemFailure(_Typed):
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


class OutputFailed(_Typed):
    """The result could not be written to standard output; what was to be done is done."""

    code = "output-failed"
    reason: str


@contextmanager
def about(path: object) -> Iterator[None]:
    """Let every :class:`FormatError` that passes say which file, digest or entry it is about, where it does not yet.

    The innermost name stays: it is the nearest to the bytes.
    """
    try:
        yield
    except FormatError as error:
        if error.path is None:
            error.path = str(path)
        raise
