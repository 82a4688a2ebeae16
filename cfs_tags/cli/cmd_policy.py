"""``cfs-tag policy``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, view
from cfs_tags.cli.options import Change
from cfs_tags.errors import CfsTagsError, UsageError

if TYPE_CHECKING:
    from cfs_tags.policy.plan import Row
    from cfs_tags.policy.rules import Policy
    from cfs_tags.repo.store import ReadRepo, WriteRepo
    from cfs_tags.tags.edit import TagPlan

_ACTIONS = ("check", "apply", "init")
_WHY = {
    "bootc": "bootc's",
    "lease": "a lease, which ends by itself",
    "broken": "broken",
    "bound": "bound to a deployment",
    "pinned": "pinned",
    "deployed": "deployed",
    "last-good": "booted well last",
    "no-rule": "no rule is for it",
    "unread": "its image cannot be read",
    "no-time": "its time is not known",
    "future": "its time is in the future",
    "tags": "keep-tags",
}

_TEMPLATE = """\
# Which tags stay when 'cfs-tag policy apply' runs; 'cfs-tag policy check' says what it would do.
# The first rule whose patterns fit a tag decides.  A tag that no rule fits stays.
# What one of the keep lines keeps stays.

# How long a tag that was deleted can be restored.  Not said: a week after 'policy apply', not at all after 'delete'
# without --keep-for.
# [trash]
# keep-for = "7d"

# How long 'cfs-tag gc' leaves entries in the log; the last of each tag that is there stays.
# [log]
# keep-for = "90d"

# [[rule]]
# tags = ["quay.io/org/app:*"]
# keep-last = 3             # the newest three
# keep-daily = 7            # the newest of each of seven days; also hourly, weekly, monthly, yearly; "all" for no end
# keep-within = "30d"       # what is not older than that, seen from the newest
# keep-good = 2             # images that were booted successfully, the last two of them
# keep-tags = ["*:latest"]  # whatever their time is
# group-by = "repository"   # count the tags of each repository (the default), or all that the rule fits: "rule"
# time = "created"          # when the image was made (the default), or when the tag last moved: "logged"
"""


def command(
    ctx: typer.Context,
    action: Annotated[
        str,
        typer.Argument(
            metavar="ACTION",
            autocompletion=complete.one_of(*_ACTIONS),
            show_default=False,
            help="check says what becomes of each tag, apply does it, init prints a policy to begin with.",
        ),
    ],
    file: Annotated[
        str | None,
        typer.Option(metavar="FILE", show_default=False, help="This policy, in place of the repository's and the system's."),
    ] = None,
    allow_empty_group: Annotated[
        bool, typer.Option("--allow-empty-group", help="A rule may delete all the tags that it counts together.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Believe a clock that was set back or far forward.")] = False,
    *,
    how: Change,
) -> None:
    """Delete tags by rules of retention, or say which and why.

    The rules are in cfs-tags/policy.toml of the repository, then in /etc/cfs-tags/policy.toml; the first that fits a tag
    decides.  Tags that no rule fits stay, and so do bootc's, leases, and images that are pinned or that a deployment uses.
    What is deleted stays in the trash for a while.

    \b
    Examples:
      cfs-tag policy init > /etc/cfs-tags/policy.toml
      cfs-tag policy check
      cfs-tag policy apply
    """
    if action not in _ACTIONS:
        raise UsageError("invalid-argument", argument="ACTION", value=action, reason=f"is none of {', '.join(_ACTIONS)}")
    if action == "init":
        output.lines(_TEMPLATE.rstrip().split("\n"))
        return
    if action == "check":
        _check(ctx, file, allow_empty_group, force, how.as_json)
        return
    _apply(ctx, file, allow_empty_group, force, how)


def _check(ctx: typer.Context, file: str | None, allow_empty_group: bool, force: bool, as_json: bool) -> None:
    from datetime import UTC, datetime

    from cfs_tags.policy import plan
    from cfs_tags.repo import clock

    with ctx.obj.open() as repo:
        known = clock.read(repo, trusted=force)
        now = datetime.fromtimestamp(known.now, UTC)
        rows = plan.plan(repo, _policy(repo, file), now, allow_empty_group=allow_empty_group)
    warnings = [] if known.doubt is None else [known.doubt]
    if as_json:
        output.document("policy", [_document(row) for row in rows], warnings)
        return
    output.warn(warnings)
    table = _on_terminal if view.on_terminal() else _in_full
    table(rows)
    dropped = sum(not row.reasons for row in rows)
    output.lines([f"{output.count(len(rows) - dropped, 'tag')} would stay, {dropped} would be deleted"])


def _in_full(rows: list[Row]) -> None:
    lines = [(row.tag.name, _is(row), _why(row), _time(row), _rule(row)) for row in rows]
    output.table(("NAME", "IS", "WHY", "TIME", "RULE"), lines)


def _on_terminal(rows: list[Row]) -> None:
    """A table for people: ages, and bootc's own tags in one line, because no rule is for them."""
    from cfs_tags.cli.rows import folded, is_bootcs_own

    shown = [row for row in rows if view.is_whole() or not is_bootcs_own(row.tag)]
    lines = [
        (row.tag.name, _is(row), output.age(row.time.isoformat()) if row.time else "", row.rule or "", _why(row))
        for row in shown
    ]
    if lines:
        output.table(("NAME", "IS", "AGE", "RULE", "WHY"), lines)
    if len(shown) < len(rows):
        output.lines([folded(len(rows) - len(shown), ", which stay; --no-trunc lists them")])


def _apply(ctx: typer.Context, file: str | None, allow_empty_group: bool, force: bool, how: Change) -> None:
    from cfs_tags.cli.changes import change
    from cfs_tags.policy import plan
    from cfs_tags.repo import clock
    from cfs_tags.tags import edit

    warnings: list[CfsTagsError] = []
    output.watch(warnings)

    def planned(repo: WriteRepo) -> TagPlan:
        policy = _policy(repo, file)
        options = {"allow_empty_group": allow_empty_group, "trust_clock": force}
        made = plan.plan_drops(repo, policy, **options, warnings=warnings)
        if force and not how.dry_run:
            clock.believe(repo)
        return made

    command = edit.asked("policy apply", file, allow_empty_group, once=True)
    made = change(ctx, planned, command, how, nothing="every tag stays")
    deleted = [tag.name for tag in made.results if tag.done == "deleted"]
    if deleted and view.on_terminal() and not how.as_json:
        output.lines([_where_they_are(made, deleted, how.dry_run)])


def _where_they_are(made: TagPlan, deleted: list[str], dry_run: bool) -> str:
    from cfs_tags.cli.hints import typed
    from cfs_tags.repo import layout

    top = f"{layout.TRASH}/"
    kept = [change.path[len(top) :].partition("/")[0] for change in made.changes if change.new and change.path.startswith(top)]
    ends = layout.expiry_of(kept[0]) if kept else None
    if ends is None:
        return "not kept in the trash: the policy says so"
    be = ("would be kept" if dry_run else "kept") + f" in the trash, with what they lead to ({output.ends(ends)})"
    return f"{be}: {typed('restore', deleted[0])} brings the first one back"


def _policy(repo: ReadRepo, file: str | None) -> Policy:
    from cfs_tags.policy import files, rules

    return (files.read(repo) or rules.Policy()) if file is None else files.read_alone(file)


def _is(row: Row) -> str:
    return "kept" if row.reasons else "dropped"


def _why(row: Row) -> str:
    if not row.reasons:
        return "no line of this rule keeps it"
    return ", ".join(_WHY.get(reason, f"keep-{reason}") for reason in row.reasons)


def _time(row: Row) -> str:
    return row.time.isoformat(timespec="seconds") if row.time is not None else "-"


def _rule(row: Row) -> str:
    return str(row.rule) if row.rule is not None else "-"


def _document(row: Row) -> dict[str, Any]:
    return {
        **output.named(row.tag.name),
        "digest": row.tag.digest,
        "kept": bool(row.reasons),
        "reasons": list(row.reasons),
        "time": row.time.isoformat() if row.time is not None else None,
        "rule": str(row.rule) if row.rule is not None else None,
    }
