"""What the commands about deployments share: finding the sysroot, and showing rows."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output
from cfs_tags.errors import AmbiguousName, CommandLineError, InvalidArgument, SysrootNotFound, printable

if TYPE_CHECKING:
    from cfs_tags.cli.session import Session
    from cfs_tags.deployments import Deployment
    from cfs_tags.repo.refs import RefChange
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.sysroot import Finding, SysrootView

__all__ = [
    "Boot",
    "Booted",
    "Esp",
    "Run",
    "finding_facts",
    "has_sysroot",
    "place_facts",
    "planned_changes",
    "row_facts",
    "show_findings",
    "view_of",
]

_ADVICE = {
    "uki": "--esp DIR says where it is, --esp none that there is none",
    "boot-entry": "--boot DIR says where it is, --boot none that there is none",
    "staged-file": "--run DIR says where that is, --run none that the system does not run",
    "kernel": "--booted ID says which deployment is booted, --booted none that the system does not run",
}

Boot = Annotated[
    str | None, typer.Option("--boot", metavar="DIR", help="The boot directory, 'none' if there is none.", show_default=False)
]
Esp = Annotated[
    str | None,
    typer.Option(
        "--esp", metavar="DIR", help="Where the EFI system partition is mounted, 'none' if there is none.", show_default=False
    ),
]
Run = Annotated[
    str | None, typer.Option("--run", metavar="DIR", help="The system's /run, 'none' if it is not running.", show_default=False)
]
Booted = Annotated[
    str | None,
    typer.Option(
        "--booted",
        metavar="ID",
        autocompletion=complete.deployments,
        help="The booted deployment of another system, by its id or prefix; 'none' if it is not running.",
        show_default=False,
    ),
]


def view_of(
    session: Session, repo: ReadRepo, boot: str | None, esp: str | None, run: str | None, booted: str | None
) -> SysrootView:
    """Read the sysroot of the repository.

    Raises:
        SysrootNotFound: the repository is no bootc repository, and no sysroot was named.
        InvalidArgument: ``--booted`` is neither an id nor the start of one.
        AmbiguousName: it is the start of several.
    """
    from cfs_tags.sysroot import Sysroot, SysrootView

    root = session.sysroot or repo.sysroot
    if root is None:
        raise SysrootNotFound(path=repo.path)
    without = {part for part, value in (("boot", boot), ("esp", esp), ("run", run), ("kernel", booted)) if value == "none"}
    cmdline = None
    if booted is not None and booted != "none":
        cmdline = f"composefs={_whole_id(repo, root, booted)}"
    sysroot = Sysroot.find(
        os.path.normpath(root),
        boot=None if boot == "none" else boot,
        esp=None if esp == "none" else esp,
        run=None if run == "none" else run,
        cmdline=cmdline,
        without=without,
    )
    return SysrootView.read(sysroot, repo.algorithm)


def has_sysroot(ctx: typer.Context, repo: ReadRepo, *, ignored: bool = False, **options: str | bool | None) -> bool:
    """Whether there is a sysroot with the repository; ``options`` are those that mean nothing without one.

    ``ignored`` is ``--no-sysroot``: then there is none, whatever is there.

    Raises:
        CommandLineError: one of them is given, and there is none.
    """
    if not ignored and (ctx.obj.sysroot is not None or repo.sysroot is not None):
        return True
    for name, value in options.items():
        if value:
            option = "--" + name.replace("_", "-")
            text = f"{option} is for a repository with a sysroot: name it with --sysroot"
            if ignored:
                text = f"{option} and --no-sysroot exclude each other"
            raise CommandLineError(command=ctx.command_path, text=text)
    return False


def planned_changes(
    session: Session,
    repo: ReadRepo,
    boot: str | None = None,
    esp: str | None = None,
    run: str | None = None,
    booted: str | None = None,
) -> tuple[tuple[RefChange, ...], tuple[str, ...]]:
    """The changes of refs that a collection would make first, and why it would stop, where it would."""
    from cfs_tags import gc
    from cfs_tags.errors import PlaceUnread, SysrootUnseen, UnresolvedDeployment

    view = None
    problems: tuple[str, ...] = ()
    if session.sysroot is not None or repo.sysroot is not None:
        view = view_of(session, repo, boot, esp, run, booted)
    elif repo.is_bootc:
        problems = (SysrootUnseen(path=repo.path).message,)
    for image_only in (False, True):
        try:
            return gc.plan_refs(repo, view, image_only=image_only).changes, problems
        except (PlaceUnread, UnresolvedDeployment) as error:
            problems = problems or (error.message,)
    return gc.plan_refs(repo, None).changes, problems


def row_facts(row: Deployment) -> dict[str, Any]:
    """A deployment as JSON shows it."""
    return {
        "id": row.id,
        "state": row.state,
        "image": row.image,
        "version": row.version,
        "created": row.created,
        "manifest": row.manifest,
        "ref": row.ref,
        "places": row.places,
        "bound": row.bound,
        "entries": [
            {
                "path": entry.path,
                "kind": entry.kind,
                "staged": entry.staged,
                "title": entry.title,
                "version": entry.version,
                "problem": entry.problem,
            }
            for entry in row.entries
        ],
        "health": [finding_facts(finding) for finding in row.health],
    }


def finding_facts(finding: Finding) -> dict[str, str]:
    """A finding as JSON shows it."""
    return {"code": finding.code, "message": finding.message, "advice": finding.advice}


def place_facts(view: SysrootView) -> list[dict[str, str | None]]:
    """Places as JSON shows them."""
    return [{"place": place.name, "path": place.path or None, "not_read": place.reason} for place in view.places]


def show_findings(view: SysrootView) -> None:
    """What was found wrong with the sysroot itself, and what could not be read, below a table."""
    for place in view.unread:
        where = f" ({printable(place.path)})" if place.path else ""
        output.lines([f"not read: {place.name}{where}: {printable(place.reason)}"])
        if place.name in _ADVICE:
            output.lines([f"  {_ADVICE[place.name]}"])
    for finding in view.findings:
        output.lines([f"{finding.code}: {printable(finding.message)}: {finding.advice}"])


def _whole_id(repo: ReadRepo, root: str, text: str) -> str:
    """The id that an option names, whole or by the start of one that has a state directory."""
    digits = repo.algorithm.hex_length
    if not text or len(text) > digits or not set(text) <= set("0123456789abcdef"):
        raise InvalidArgument(
            argument="--booted", value=text, reason=f"is no deployment id: those have {digits} digits of 0-9 and a-f"
        )
    if len(text) == digits:
        return text
    found: list[str] = []
    with suppress(OSError):
        found = sorted(name for name in os.listdir(f"{root}/state/deploy") if name.startswith(text) and len(name) == digits)
    if not found:
        raise InvalidArgument(
            argument="--booted",
            value=text,
            reason=f"is the start of no deployment that is there; whole ids have {digits} digits",
        )
    if len(found) > 1:
        raise AmbiguousName(name=text, candidates=tuple(found))
    return found[0]
