"""``cfs-tag``: the command line.

A command is one module and one line: ``cmd_NAME.py`` with a typer function ``command``, and its line in
:data:`COMMANDS`.  Only the module of the command that is called is imported; the help of the group is made from the
table.  Everything that goes wrong ends here, as an error in text or JSON and an exit status (see
``cfs_tags/errors.py``)."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from copy import copy
from typing import Annotated, Any, NamedTuple, cast, get_type_hints

import typer
from typer.core import TyperGroup

from cfs_tags.cli import output, view
from cfs_tags.cli.session import Session
from cfs_tags.errors import CfsTagsError
from cfs_tags.repo.lock import Lock

_PROGRAM = "cfs-tag"
_COMPLETION = "_CFS_TAG_COMPLETE"


class _CommandLine(NamedTuple):
    """A line of the table: the heading in the help, and the first line of the command's own help."""

    heading: str
    help: str


COMMANDS = {
    "status": _CommandLine("Tags", "Show deployments, tags, space and what is wrong, on one screen."),
    "create": _CommandLine("Tags", "Make a tag, or move one; or make the ref of a deployment."),
    "list": _CommandLine("Tags", "List tags and deployment refs."),
    "show": _CommandLine("Tags", "Show what a name stands for."),
    "resolve": _CommandLine("Tags", "Print the digest that a name stands for."),
    "diff": _CommandLine("Tags", "Show how two images differ: layers, config, packages and files."),
    "delete": _CommandLine("Tags", "Remove tags."),
    "rename": _CommandLine("Tags", "Give a tag another name."),
    "update": _CommandLine("Tags", "Make, move and delete many tags: all or nothing."),
    "hold": _CommandLine("Tags", "Keep content while a command runs."),
    "log": _CommandLine("History", "Show what was done: to a tag, or in the whole repository; newest first."),
    "restore": _CommandLine("History", "Bring back a deleted tag, or an earlier value."),
    "trash": _CommandLine("History", "List deleted tags that are being kept, or take them out of the trash for good."),
    "policy": _CommandLine("History", "Delete tags by rules of retention, or say which and why."),
    "deployments": _CommandLine("Deployments", "List every deployment: state, image, ref and health."),
    "lookup": _CommandLine("Deployments", "Say which manifest a deployment was made from, and how that is known."),
    "migrate": _CommandLine("Deployments", "Give every deployment of a host its ref, with a proof that nothing is lost."),
    "retire": _CommandLine("Deployments", "Remove the refs of deployments that are gone, after adopting those that have none."),
    "bind": _CommandLine("Deployments", "Keep the app images that a deployment is bound to as long as the deployment."),
    "pin": _CommandLine("Deployments", "Keep a deployment or an image, so that it can be brought back."),
    "unpin": _CommandLine("Deployments", "Remove pins."),
    "pins": _CommandLine("Deployments", "List pins: what each keeps, until when and why."),
    "revive": _CommandLine("Deployments", "Bring a deployment back: export its image, and have bootc deploy it."),
    "good-boot": _CommandLine("Deployments", "Record that a deployment was booted successfully."),
    "gc": _CommandLine("Space", "Collect what no ref leads to."),
    "maintain": _CommandLine("Space", "Adopt, apply the policy, collect and check a part: what a timer does."),
    "why": _CommandLine("Space", "Say why something is kept: every chain from a ref to it."),
    "df": _CommandLine("Space", "Show who takes how much: by tag, deployment and owner."),
    "metrics": _CommandLine("Space", "Print figures for Prometheus: refs, space, deployments, the last collection and check."),
    "report": _CommandLine("Space", "Write a page about space, sharing and deployments."),
    "fsck": _CommandLine("Space", "Check refs, links, streams, images and digests; repair what loses nothing."),
    "import": _CommandLine("App images", "Bring an app image into the repository, and give it a tag."),
    "export": _CommandLine("App images", "Take an image out of the repository."),
    "serve": _CommandLine("App images", "Serve tags as a read-only OCI registry."),
    "publish": _CommandLine("Fleet", "Tag what this host uses in its registry, and say there what runs here."),
    "fleet": _CommandLine("Fleet", "Show which host runs what, as hosts have published it."),
    "varlink": _CommandLine("Other programs", "Answer other programs by varlink: the interface org.cfstags."),
}
"""All commands, in the order of the help."""

_GLOBAL = ("repo", "sysroot", "user", "system", "color", "width", "no_trunc", "log_format")
"""Options of the program that may stand behind the command, too."""
SYNONYMS = {
    "add": "create",
    "check": "fsck",
    "cp": "create",
    "du": "df",
    "history": "log",
    "images": "list",
    "inspect": "show",
    "load": "import",
    "ls": "list",
    "mv": "rename",
    "prune": "gc",
    "pull": "import",
    "push": "export",
    "remove": "delete",
    "rm": "delete",
    "rmi": "delete",
    "save": "export",
    "st": "status",
    "tag": "create",
    "tags": "list",
    "undelete": "restore",
    "untag": "delete",
}
"""Words of other programs, and the command here that does the same."""
_ELSEWHERE = {
    "rollback": "'bootc rollback' goes back to the deployment before; cfs-tag revive brings an older one back.",
    "switch": "'bootc switch' changes the image that the host follows.",
    "undo": "Did you mean 'migrate --undo', or 'restore'?",
    "upgrade": "'bootc upgrade' fetches a newer image of the host.",
}
"""Words that are no command here, and what does it."""
_BEHIND = frozenset({"--json", "--jsonl", "--dry-run", "--reason", "--lock-timeout", "--owner", "--force"})

_EXIT_STATUSES = (
    "Exit status: 0 done; 1 failed; 2 usage; 3 not found; 4 refused; 5 lock time-out; 6 damaged repository; "
    "7 unsupported format; 130 interrupted."
)


def _evaluated(function: Callable[..., None]) -> Callable[..., None]:
    """The function as typer reads it: annotations are no text, which typer would evaluate three times each, and a parameter
    that is a group of options is one parameter for each of them."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    groups = {name: kind for name, kind in hints.items() if hasattr(kind, "_fields")}
    if not groups:
        function.__annotations__ = hints
        return function
    flat = []
    for name, parameter in parameters.items():
        if name in groups:
            own = get_type_hints(groups[name], include_extras=True)
            usual = groups[name]() if parameter.default is inspect.Parameter.empty else parameter.default
            flat += [
                inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=own[option])
                for option, value in usual._asdict().items()
            ]
        else:
            flat.append(parameter.replace(annotation=hints[name]))

    def called(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{option: given.pop(option) for option in group._fields})
        function(**given)

    called.__doc__ = function.__doc__
    called.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return called


def _session(color: str | None, width: int | None, no_trunc: bool, log_format: str | None, **places: Any) -> Session:
    """The session that the options of the group ask for."""
    view.want(color, width, no_trunc)
    output.want(log_format)
    session = Session.of(**places)
    view.options = session.options
    return session


def _behind(param: Any) -> Any:
    """An option of the group for use behind a command: it does there what it does before it."""
    option = copy(param)
    option.expose_value, option.hidden = False, True

    def given(ctx: typer.Context, param: Any, value: Any) -> None:
        if value:
            root = ctx.find_root()
            root.params[option.name] = value
            root.obj = ctx.obj = _session(**{name: root.params[name] for name in _GLOBAL})

    option.callback = given
    return option


def _for_a_shell(option: Any) -> None:
    """Have an option of typer's told for which shell it is meant: it finds none where none started the program."""
    does = option.callback

    def given(ctx: typer.Context, param: Any, value: Any) -> Any:
        if not value or ctx.resilient_parsing:
            return value
        from cfs_tags.cli.complete import shell

        return does(ctx, param, shell(param.opts[0]))

    option.callback = given


class _LazyGroup(TyperGroup):
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
        app.command(cmd_name, epilog=_EXIT_STATUSES)(_evaluated(module.command))
        command = typer.main.get_command(app)
        command.params += [_behind(param) for param in self.params if param.name in _GLOBAL]
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word; ``help`` is the help of the one behind it."""
        if args[0] == "help":
            args = [*(args[1:2] or ()), "--help"]
        if args[0] == "--help":
            output.emit(ctx.get_help() + "\n")
            raise typer.Exit
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            meant = SYNONYMS.get(args[0])
            if meant is not None and getattr(error, "message", None) is not None:
                error.__dict__["message"] = f"No such command {args[0]!r}. Did you mean {meant!r}?"
            elif args[0] in _ELSEWHERE and getattr(error, "message", None) is not None:
                error.__dict__["message"] = f"No such command {args[0]!r}. {_ELSEWHERE[args[0]]}"
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands under their headings."""
        headings: dict[str, list[tuple[str, str]]] = {}
        for name, line in COMMANDS.items():
            headings.setdefault(line.heading, []).append((name, line.help))
        for heading, rows in headings.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=_LazyGroup,
    name=_PROGRAM,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    epilog=_EXIT_STATUSES,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from cfs_tags import __version__

        output.emit(f"{_PROGRAM} {__version__}\n")
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
    color: Annotated[
        str | None,
        typer.Option(
            metavar="auto|always|never",
            show_default=False,
            help="Tables and colours as on a terminal: always, or never colours.",
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            metavar="N", show_default=False, help="Lay tables and lines out in N columns, in a pipe as well.  [env: COLUMNS]"
        ),
    ] = None,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Digests and ids in full, on a terminal as well.")] = False,
    log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format",
            metavar="text|json",
            show_default=False,
            help="Errors, warnings and notes on standard error as text, or as one JSON object a line, for the journal.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
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
    ctx.obj = _session(color, width, no_trunc, log_format, repo=repo, sysroot=sysroot, user=user, system=system)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cfs-tag`` with these arguments (default: those of the process) and return its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    output.start(words)
    Lock.on_wait = output.waits
    if not gc.isenabled():  # since the package was imported; what is there now stays
        gc.freeze()
        gc.enable()
    if _COMPLETION in os.environ:
        from cfs_tags.cli import complete

        return complete.answer(typer.main.get_command(app), _PROGRAM, _COMPLETION)
    try:
        status = _run(words)
        output.finish()
    except BaseException as error:
        status = _end(error, words)
    output.warn_of_watched()
    return status


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
    from cfs_tags.errors import TagNotFound

    group = typer.main.get_command(app)
    for param in group.params:
        if param.name in ("install_completion", "show_completion"):
            _for_a_shell(param)
    try:
        with group.make_context(_PROGRAM, list(words)) as context:
            try:
                group.invoke(context)
            except TagNotFound as error:
                from cfs_tags.cli.complete import near

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
    from cfs_tags.errors import CfsTagsError, Interrupted, SystemFailure, UsageError

    if isinstance(error, CfsTagsError):
        from cfs_tags.cli.hints import as_typed

        return as_typed(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Interrupted()
    usage = getattr(error, "format_message", None)
    if usage is not None:  # what the parser of the command line raises
        context = getattr(error, "ctx", None)
        # the parser does not always say of which command: the first word that is one
        command = next((f"{_PROGRAM} {word}" for word in words if word in COMMANDS), _PROGRAM)
        path = context.command_path if context is not None else command
        text = usage().replace("is not a valid int range", "is no whole number")
        return UsageError("command-line", command=path, text=_misplaced(error, path) or text)
    if os.environ.get("CFS_TAG_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError):
        return SystemFailure.of(error, "use", error.filename if isinstance(error.filename, str) else "the repository")
    return CfsTagsError("internal", kind=type(error).__name__, text=str(error))


def _misplaced(error: BaseException, path: str) -> str | None:
    """Where an option belongs that is known, and stands on the wrong side of the command."""
    option = getattr(error, "option_name", None)
    if type(error).__name__ != "NoSuchOption":
        return None
    if path == _PROGRAM and option in _BEHIND:
        return f"{option} stands behind the command: {_PROGRAM} COMMAND {option}"
    return None
