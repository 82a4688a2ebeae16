"""``cfs-tag``: the command line.

A command is one module and one line: ``cmd_NAME.py`` with a typer function ``command``, and its line in
:data:`COMMANDS`.  Only the module of the command that is called is imported; the help of the group is made from the
table.  Everything that goes wrong ends here, as an error in text or JSON and an exit status (see
``cfs_tags/errors.py``)."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, cast, get_type_hints

import typer
from typer.core import TyperGroup

from cfs_tags.cli import output
from cfs_tags.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cfs_tags.errors import CfsTagsError

__all__ = ["COMMANDS", "PROGRAM", "main"]

PROGRAM = "cfs-tag"
_COMPLETION = "_CFS_TAG_COMPLETE"
_Function = TypeVar("_Function", bound="Callable[..., Any]")


class CommandLine(NamedTuple):
    """A line of the table: the heading in the help, and the first line of the command's own help."""

    heading: str
    help: str


COMMANDS = {
    "create": CommandLine("Tags", "Make a tag, or move one; or make the ref of a deployment."),
    "list": CommandLine("Tags", "List tags and deployment refs."),
    "show": CommandLine("Tags", "Show what a name stands for."),
    "resolve": CommandLine("Tags", "Print the digest that a name stands for."),
    "delete": CommandLine("Tags", "Remove tags."),
    "rename": CommandLine("Tags", "Give a tag another name."),
    "update": CommandLine("Tags", "Make, move and delete many tags: all or nothing."),
    "log": CommandLine("History", "Show what became of a tag, newest first."),
    "restore": CommandLine("History", "Bring back a deleted tag, or an earlier value."),
    "trash": CommandLine("History", "List deleted tags that are being kept."),
    "deployments": CommandLine("Deployments", "List every deployment: state, image, ref and health."),
    "lookup": CommandLine("Deployments", "Say which manifest a deployment was made from, and how that is known."),
    "migrate": CommandLine("Deployments", "Give every deployment of a host its ref, with a proof that nothing is lost."),
    "retire": CommandLine("Deployments", "Remove the refs of deployments that are gone, after adopting those that have none."),
    "bind": CommandLine("Deployments", "Keep the app images that a deployment is bound to as long as the deployment."),
    "gc": CommandLine("Space", "Collect what no ref leads to."),
    "why": CommandLine("Space", "Say why something is kept: every chain from a ref to it."),
    "df": CommandLine("Space", "Show who takes how much: by tag, deployment and owner."),
    "fsck": CommandLine("Space", "Check refs, links, streams, images and digests; repair what loses nothing."),
    "import": CommandLine("App images", "Bring an app image into the repository, and give it a tag."),
    "export": CommandLine("App images", "Take an image out of the repository."),
    "serve": CommandLine("App images", "Serve tags as a read-only OCI registry."),
}
"""All commands, in the order of the help."""

_BEFORE = {"--repo": True, "--sysroot": True, "--user": False, "--system": False}
_BEHIND = frozenset({"--json", "--jsonl", "--dry-run", "--reason", "--lock-timeout", "--owner", "--force"})

EXIT_STATUSES = (
    "Exit status: 0 done; 1 failed; 2 usage; 3 not found; 4 refused; 5 lock time-out; 6 damaged repository; "
    "7 unsupported format; 130 interrupted."
)


def _evaluated(function: _Function) -> _Function:
    """The function with annotations that are no text any more: typer would evaluate each of them three times."""
    function.__annotations__ = get_type_hints(function, include_extras=True)
    return function


class LazyGroup(TyperGroup):
    """The group of all commands; the module of one is imported when it is called, or its own help is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # typer looks for similar names among the keys when a command is not known
        self.commands = cast("dict[str, Any]", dict.fromkeys(COMMANDS))

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, from its module; None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        from importlib import import_module

        module = import_module(f"cfs_tags.cli.cmd_{cmd_name.replace('-', '_')}")
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cmd_name, epilog=EXIT_STATUSES)(_evaluated(module.command))
        return typer.main.get_command(app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands under their headings."""
        headings: dict[str, list[tuple[str, str]]] = {}
        for name, line in COMMANDS.items():
            headings.setdefault(line.heading, []).append((name, line.help))
        for heading, rows in headings.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=LazyGroup,
    name=PROGRAM,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    epilog=EXIT_STATUSES,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from cfs_tags import __version__

        output.emit(f"{PROGRAM} {__version__}\n")
        raise typer.Exit


@app.callback()
@_evaluated
def _group(
    ctx: typer.Context,
    repo: Annotated[
        str | None, typer.Option(metavar="DIR", help="The repository.  [env: CFS_TAG_REPO]", show_default=False)
    ] = None,
    sysroot: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The physical root whose composefs/ it is.  [env: CFS_TAG_SYSROOT]"),
    ] = None,
    user: Annotated[bool, typer.Option("--user", help="The user's: ~/.var/lib/composefs.")] = False,
    system: Annotated[bool, typer.Option("--system", help="The system's: /sysroot/composefs.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Named refs for bootable deployments and app images in composefs repositories.

    Without an option the repository is the one that CFS_TAG_REPO or CFS_TAG_SYSROOT names, else the system's for root
    and the user's own for everybody else.

    \b
    Examples:
      cfs-tag list
      cfs-tag --repo /srv/composefs create quay.io/org/app:stable quay.io/org/app:1.2
      cfs-tag --sysroot /mnt show quay.io/org/app:stable --json
    """
    ctx.obj = Session.of(repo=repo, sysroot=sysroot, user=user, system=system)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cfs-tag`` with these arguments (default: those of the process) and return its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    output.start(words)
    if not gc.isenabled():  # since the package was imported; what is there now stays
        gc.freeze()
        gc.enable()
    if _COMPLETION in os.environ:
        from cfs_tags.cli import complete

        return complete.answer(typer.main.get_command(app), PROGRAM, _COMPLETION)
    try:
        status = _run(words)
        output.finish()
        return status
    except BaseException as error:
        return _end(error, words)


def _end(error: BaseException, words: list[str]) -> int:
    """Report what stopped a command; returns the exit status."""
    from cfs_tags.errors import OutputFailed

    if isinstance(error, BrokenPipeError):  # the reader had enough, as "head" has: what was to be done is done
        output.give_up()
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, OutputFailed):
        output.give_up()
    reported = _as_error(error, words)
    try:
        output.fail(reported)
        output.finish()
    except BrokenPipeError:
        output.give_up()
    except OutputFailed as failed:
        output.give_up()
        output.fail(failed)
        output.fail(reported)
    return reported.status


def _run(words: list[str]) -> int:
    from cfs_tags.cli.complete import near
    from cfs_tags.errors import TagNotFound

    group = typer.main.get_command(app)
    try:
        with group.make_context(PROGRAM, list(words)) as context:
            try:
                group.invoke(context)
            except TagNotFound as error:
                error.near = near(context.obj, error.name)
                raise
    except typer.Exit as stop:
        return stop.exit_code
    except OSError as error:
        if error.filename is None and {"--help", "-h"} & set(words) and not isinstance(error, BrokenPipeError):
            from cfs_tags.errors import OutputFailed

            raise OutputFailed(reason=error.strerror or str(error)) from error
        raise
    return 0


def _as_error(error: BaseException, words: list[str]) -> CfsTagsError:
    """The error that stands for an exception."""
    from cfs_tags.errors import CfsTagsError, CommandLineError, InternalError, Interrupted, SystemFailure

    if isinstance(error, CfsTagsError):
        return error
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Interrupted()
    usage = getattr(error, "format_message", None)
    if usage is not None:  # what the parser of the command line raises
        context = getattr(error, "ctx", None)
        # the parser does not always say of which command: the first word that is one
        command = next((f"{PROGRAM} {word}" for word in words if word in COMMANDS), PROGRAM)
        path = context.command_path if context is not None else command
        return CommandLineError(command=path, text=_misplaced(error, path) or usage())
    if os.environ.get("CFS_TAG_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError):
        return SystemFailure.of(error, "use", error.filename or "the repository")
    return InternalError(kind=type(error).__name__, text=str(error))


def _misplaced(error: BaseException, path: str) -> str | None:
    """Where an option belongs that is known, and stands on the wrong side of the command."""
    option = getattr(error, "option_name", None)
    if type(error).__name__ != "NoSuchOption":
        return None
    if path != PROGRAM and option in _BEFORE:
        value = " DIR" if _BEFORE[option] else ""
        return f"{option} stands before the command: {PROGRAM} {option}{value}{path.removeprefix(PROGRAM)}"
    if path == PROGRAM and option in _BEHIND:
        return f"{option} stands behind the command: {PROGRAM} COMMAND {option}"
    return None


if __name__ == "__main__":
    sys.exit(main())
