"""Completion of words in the shell.

Only names that mean themselves in every shell are offered: a name is foreign text, and what is completed is one key
from being run.  Nothing here fails loudly: where there is no repository, nothing is offered."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cfs_tags.cli.session import Session

_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_SAFE = r"[\w@][\w./:@%+,-]*"
_MANY = 2000
_STATES = ("@booted", "@staged", "@rollback")
_OPTION = r"(?:^|\s)(--[\w-]+=)\S*$"
_JOINTS = r"[:=]+|@"


def shell(option: str) -> str:
    """The shell that started this program, else the user's own: one that there is completion for.

    Raises:
        UsageError: neither is one; ``option`` is what asked for it.
    """
    import shellingham  # type: ignore[import-untyped]

    own = os.path.basename(os.environ.get("SHELL", ""))
    try:
        started_by, _ = shellingham.detect_shell()
    except shellingham.ShellDetectionFailure:
        started_by = ""
    for name in (started_by, own):
        if name in _SHELLS:
            return name
    from cfs_tags.errors import UsageError

    reason = f"is for {', '.join(_SHELLS)}: _CFS_TAG_COMPLETE=source_bash cfs-tag prints what one of them needs"
    raise UsageError("invalid-argument", argument=option, value=started_by or own, reason=reason)


def names(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Tags and deployment refs that start with what is there."""
    states = _STATES if incomplete.startswith("@") and _deployments(ctx) else ()
    return _safe(tag for tag in (*states, *_rows(ctx)) if tag.startswith(incomplete))


def names_and_deployments(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Tags, states and ids of deployments."""
    return [*deployments_and_states(ctx, args, incomplete), *names(ctx, args, incomplete)]


def pins(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Pins, without their prefix."""
    found = (name.removeprefix("@pin/") for name in _rows(ctx) if name.startswith("@pin/"))
    return _safe(name for name in found if name.startswith(incomplete))


def pins_and_deployments(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Pins and ids of deployments."""
    return [*pins(ctx, args, incomplete), *deployments(ctx, args, incomplete)]


def tags_and_trash(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Tags and, without their prefix, deleted tags."""
    rows = {*_rows(ctx), *(name.removeprefix("@trash/") for name in _rows(ctx, trash=True))}
    return _safe(name for name in rows if name.startswith(incomplete))


def sort_keys(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """What a list can be sorted by."""
    keys = ("name", "digest", "owner", "created", "home")
    return [key for key in (*keys, *(f"-{key}" for key in keys)) if key.startswith(incomplete)]


def near(session: Session, name: str) -> tuple[str, ...]:
    """Up to three tags with names like one that does not exist, or what it named until it was deleted, as an entry of its log;
    for the hint of an error."""
    from difflib import get_close_matches

    if not name:
        return ()
    if before := _before(session, name):
        return before
    known = [tag for tag in _listed(session) if tag.isprintable()]
    longer = sorted(tag for tag in known if tag.startswith((name, f"@trash/{name}")) or tag.endswith(f"/{name}"))
    if longer or len(known) > _MANY:
        return tuple(longer[:3])
    return tuple(get_close_matches(name, known, 3, 0.8))


def _before(session: Session, name: str) -> tuple[str, ...]:
    from cfs_tags.errors import CfsTagsError
    from cfs_tags.tags.history import log

    with suppress(CfsTagsError, OSError), session.open() as repo:
        return tuple(f"{name}@{{{line.number}}}" for line in log(repo, name) if line.new is not None)[:1]
    return ()


def one_of(*values: str) -> Callable[[Any, list[str], str], list[str]]:
    """Completes one of these words."""

    def complete(ctx: Any, args: list[str], incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def deployments(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Ids of deployments: directories below ``state/deploy`` and refs."""
    return _safe(name for name in _deployments(ctx) if name.startswith(incomplete))


def deployments_and_states(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """What a deployment is called on a command line."""
    return [*one_of("booted", "staged", "rollback")(ctx, args, incomplete), *deployments(ctx, args, incomplete)]


def _deployments(ctx: Any) -> list[str]:
    from cfs_tags.formats.boot.paths import STATE_DEPLOY

    names = {name.removeprefix("@deployment/") for name in _rows(ctx) if name.startswith("@deployment/")}
    session = _session(ctx)
    if session is not None:
        root = session.sysroot or os.path.dirname(os.path.abspath(session.path))
        with suppress(OSError):
            names.update(os.listdir(f"{root}/{STATE_DEPLOY}"))
    return [name for name in names if re.fullmatch("[0-9a-f]{64}|[0-9a-f]{128}", name)]


def _session(ctx: Any) -> Session | None:
    from cfs_tags.cli.session import Session
    from cfs_tags.errors import CfsTagsError

    options = ctx.find_root().params
    try:
        return Session.of(
            repo=options.get("repo"),
            sysroot=options.get("sysroot"),
            user=bool(options.get("user")),
            system=bool(options.get("system")),
        )
    except CfsTagsError:
        return None


def _rows(ctx: Any, *, trash: bool = False) -> list[str]:
    session = _session(ctx)
    if session is None:
        return []
    return [name for name in _listed(session) if name.startswith("@trash/") == trash]


def _listed(session: Session) -> list[str]:
    """All tags, deployment refs and deleted tags."""
    from cfs_tags.errors import CfsTagsError
    from cfs_tags.tags.rows import list_tags, trash

    try:
        with session.open() as repo:
            return [tag.name for tag in (*list_tags(repo), *trash(repo))]
    except (CfsTagsError, OSError):
        return []


def _safe(found: Iterable[str]) -> list[str]:
    return sorted({name for name in found if name.isprintable() and re.fullmatch(_SAFE, name)})


def answer(group: Any, program: str, variable: str) -> int:
    """Answer the shell that asks in the variable; returns the exit status."""
    # bash cuts words at : and =, and wants back only what stands behind the last cut
    cut = _join_words() if os.environ[variable] == "complete_bash" else 0
    from contextlib import redirect_stdout
    from io import StringIO

    said = StringIO()
    try:
        with redirect_stdout(said):
            group.main([], prog_name=program)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    text = said.getvalue()
    if cut:
        text = "".join(f"{line[cut:]}\n" for line in text.splitlines())
    sys.stdout.write(_behind_option(text, os.environ[variable]))
    sys.stdout.flush()
    return status


def _behind_option(text: str, shell: str) -> str:
    """The answer for a word ``--option=value``: zsh and fish are given values, and take them for the whole word."""
    option = re.search(_OPTION, os.environ.get("_TYPER_COMPLETE_ARGS", ""))
    if option is None:
        return text
    if shell == "complete_zsh":
        return f"compset -P '*='; {text}"
    return "".join(f"{option[1]}{line}\n" for line in text.splitlines()) if shell == "complete_fish" else text


def _join_words() -> int:
    """Put the words that bash cut together again; returns how much of the last one bash has cut off already."""
    try:
        words = os.environ["COMP_WORDS"].split("\n")
        at = int(os.environ["COMP_CWORD"])
    except (KeyError, ValueError):
        return 0
    if len(words) == 1:  # joined with blanks by another script than typer's
        words = words[0].split(" ")
    joined: list[str] = []
    glue = False
    cut = 0
    for index, word in enumerate(words[: at + 1]):
        joint = re.fullmatch(_JOINTS, word) is not None
        # "@" begins a name as often as it stands inside one, so it holds on to what follows only
        if joined and (glue or (joint and word != "@" and index > 1)):
            cut = len(joined[-1]) + (len(word) if joint else 0)
            joined[-1] += word
        else:
            cut = len(word) if joint else 0
            joined.append(word)
        cut -= joined[-1][:cut].endswith("@")  # readline cuts before an @ and behind the others
        glue = joint
    if at >= len(words):
        joined.append("")
        cut = 0
    if joined[-1].startswith("--") and "=" in joined[-1]:
        # typer answers with the value of the option alone
        cut = max(0, cut - joined[-1].index("=") - 1)
    os.environ["COMP_WORDS"] = " ".join(_quoted(word) for word in joined)
    os.environ["COMP_CWORD"] = str(len(joined) - 1)
    return cut


def _quoted(word: str) -> str:
    # an unfinished quotation of the user's stays as it is
    return word if word and not re.search(r"\s", word) else f"'{word}'" if "'" not in word else word
