"""What is wrong, each with the command that mends it: as it is typed, with the values that are known and nothing to fill in."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.cli import output, view
from cfs_tags.cli.hints import advice
from cfs_tags.cli.sysroots import PLACE_ADVICE
from cfs_tags.errors import printable
from cfs_tags.tags.rows import ENDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cfs_tags.cli.session import Session
    from cfs_tags.cli.sysroots import Places
    from cfs_tags.fsck.findings import Finding as CheckFinding
    from cfs_tags.host.rows import Deployment
    from cfs_tags.host.sightings import Finding, Place
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.tags.rows import Tag

_DIGITS = 12
_SHOWN = 5
"""Problems of one kind that are shown one by one."""
_MIGRATE = ("no-ref", "ref-partial")
_CHECK = ("ref-broken", "manifest-damaged")
_UNREADABLE = ("origin-missing", "origin-unreadable")


class Problem(NamedTuple):
    """Something that is wrong.

    ``kind`` is ``deployment``, ``tag``, ``place``, ``sysroot``, ``repository`` or ``object``, and ``name`` which; ``advice``
    says in words what to do; ``command`` is a command line that does it, None where no command of cfs-tag does.
    """

    kind: str
    name: str
    code: str
    message: str
    advice: str
    command: str | None


class Remedies:
    """Makes problems of findings.

    Args:
        session: whose options every command repeats.
        places: the parts of a host that were given, for commands that look at it.
    """

    def __init__(self, session: Session, places: Places) -> None:
        self._program = ("cfs-tag", *session.options)
        self._places = tuple(
            word for name, value in places._asdict().items() if value is not None for word in (f"--{name}", value)
        )

    def typed(self, command: str, *words: str, host: bool = False) -> str:
        """A command line; with ``host`` for a command that looks at deployments."""
        return shlex.join([*self._program, command, *words, *(self._places if host else ())])

    def deployments(self, rows: Iterable[Deployment]) -> Iterator[Problem]:
        """What is wrong with deployments."""
        for row in rows:
            for one in row.health:
                command = self._of_deployment(row, one)
                yield Problem("deployment", row.id, one.code, one.message, advice(one.advice), command)

    def _of_deployment(self, row: Deployment, finding: Finding) -> str | None:
        code = finding.code
        if code in _MIGRATE or (code in _UNREADABLE and row.ref in ("none", "partial")):
            return self.typed("migrate", host=True)
        if code == "origin-without-digest":
            return self.typed("migrate", "--write-origin", host=True)
        if code == "deployment-gone" and finding.advice == "retire its ref":
            return self.typed("retire", row.id[:_DIGITS], host=True)
        if code in _CHECK:
            return self.typed("fsck")
        if code == "manifest-gone":
            return self.typed("lookup", row.id[:_DIGITS], host=True)
        if code == "content-missing" and row.image is not None and row.manifest is not None:
            name = row.image.partition("@")[0]
            last = name.rpartition("/")[2]
            source = f"docker://{name[: len(name) - len(last)]}{last.partition(':')[0]}@{row.manifest}"
            return self.typed("import", source, name)
        return None

    def tags(self, found: Iterable[Tag]) -> Iterator[Problem]:
        """What is wrong with tags, and with refs of others."""
        for tag in found:
            if tag.problem is None:
                continue
            if tag.problem == ENDED:
                yield Problem("tag", tag.name, "lease-ended", tag.problem, "cfs-tag gc removes it", self.typed("gc", host=True))
            elif tag.path.rpartition("/")[2].startswith(".symlink-"):
                words = "cfs-tag delete removes it, once no cfsctl is at work"
                yield Problem("tag", tag.name, "left-over-link", tag.problem, words, self.typed("delete", "--", tag.name))
            else:
                owner = () if tag.owner == "app" else ("--owner", tag.owner)
                words = "pull or import the image again, or take the ref out with a repair"
                yield Problem("tag", tag.name, "broken-ref", tag.problem, words, self.typed("fsck", "--repair", *owner))

    def sysroot(self, host: SysrootView, rows: Iterable[Deployment]) -> Iterator[Problem]:
        """What is wrong with the places of a host, on which the deployments of these rows are."""
        rows = list(rows)
        names = {place.name for place in host.unread}
        for place in host.unread:
            # those of another system are never seen: that matters where it keeps the ref of a deployment that is gone; and
            # what is said of the kernel command line helps both
            if place.name == "mounts" and ("kernel" in names or all(row.state != "gone" for row in rows)):
                continue
            yield Problem("place", place.name, "place-unread", _unread(place), PLACE_ADVICE.get(place.name, "mend it"), None)
        for one in host.findings:
            yield Problem("sysroot", host.sysroot.root, one.code, one.message, advice(one.advice), None)

    def state(self, journals: Sequence[str], left_over: Sequence[str]) -> Iterator[Problem]:
        """What a crash left."""
        repair = self.typed("fsck", "--repair")
        if journals:
            message = "a change of tags was interrupted"
            words = "the next command that writes, or --repair, finishes it or takes it back"
            yield Problem("repository", journals[0], "pending-transaction", message, words, repair)
        if left_over:
            message = "an interrupted writer left files"
            words = "the next command that writes, or --repair, removes them"
            yield Problem("repository", left_over[0], "left-over-file", message, words, repair)

    def objects(self, found: Iterable[CheckFinding]) -> Iterator[Problem]:
        """What is wrong with objects: a check says what needs them."""
        for one in found:
            yield Problem("object", one.path, one.code, one.message, advice(one.advice), self.typed("fsck", "--content"))


def facts(problem: Problem) -> dict[str, str | None]:
    """A problem as JSON shows it."""
    return {
        "kind": problem.kind,
        **output.named(problem.name),
        "code": problem.code,
        "message": problem.message,
        "advice": problem.advice,
        "command": problem.command,
    }


def show(problems: Sequence[Problem]) -> None:
    """The problems for people: those that one command mends together, and the command below them, in one line to copy."""
    together: dict[tuple[str | None, str], list[Problem]] = {}
    for problem in problems:
        together.setdefault((problem.command, "" if problem.command is not None else problem.advice), []).append(problem)
    for (command, words), those in together.items():
        for problem in those[:_SHOWN]:
            name = "" if problem.kind in ("place", "sysroot", "repository") else f"{_name(problem)}: "
            output.lines([f"! {name}{printable(problem.message)}"], 4, {"!": "problem"})
        if len(those) > _SHOWN:
            output.lines([f"! and {len(those) - _SHOWN} more"], 4, {"!": "problem"})
        if command is not None:
            show_command(command)
        else:
            output.lines([f"    {printable(words)}"], 4)


def show_command(command: str) -> None:
    """A command line to copy."""
    output.data([view.styled(f"    {printable(command)}", "hint", sys.stdout)])


def _name(problem: Problem) -> str:
    return problem.name[:_DIGITS] if problem.kind == "deployment" else printable(problem.name)


def _unread(place: Place) -> str:
    where = f" ({place.path})" if place.path else ""
    return f"not read: {place.name}{where}: {place.reason}"
