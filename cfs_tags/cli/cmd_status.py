"""``cfs-tag status``."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cfs_tags.cli import output, sysroots
from cfs_tags.cli.options import Json, LockTimeout
from cfs_tags.errors import LockConflict
from cfs_tags.errors import LockTimeout as LockTimedOut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags import Repository
    from cfs_tags.cli.remedies import Problem, Remedies
    from cfs_tags.df import Usage
    from cfs_tags.fsck.findings import Finding
    from cfs_tags.host.rows import Deployment
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.tags.rows import Tag

_CHEAP_OBJECTS = 50_000
_CHEAP_REFS = 2_000
"""Up to so many objects and refs space is measured without being asked for: half a second."""


class _Status(NamedTuple):
    """All that is shown: the host, or None; its deployments; tags, and those in the trash; space; and what is wrong."""

    host: SysrootView | None
    rows: Sequence[Deployment]
    tags: Sequence[Tag]
    kept: Sequence[Tag]
    space: _Space
    problems: Sequence[Problem]


class _Space(NamedTuple):
    """What takes how much, or why that was not measured."""

    usage: Usage | None
    why_not: str
    size: int
    free: int


def command(
    ctx: typer.Context,
    space: Annotated[
        bool, typer.Option("--space", help="Measure space however many objects there are; waits for the lock.")
    ] = False,
    *,
    places: sysroots.Places,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Show deployments, tags, space and what is wrong, on one screen.

    What is wrong is shown with the command that mends it.  Space is measured in repositories with up to 50,000 objects, and
    in larger ones with --space: every object is looked at.  What is wrong is no failure: the exit status is 0.

    \b
    Examples:
      cfs-tag status
      cfs-tag status --space --json
      cfs-tag --sysroot /mnt/sysroot status --run none --booted none --esp none
    """
    from cfs_tags.cli.remedies import Remedies
    from cfs_tags.fsck.state import left_by_a_crash
    from cfs_tags.host.rows import list_deployments
    from cfs_tags.repo import refs
    from cfs_tags.tags.rows import list_tags, trash
    from cfs_tags.values import OWNERS

    session = ctx.obj
    with session.open(places) as repo:
        host = repo.deployments.view() if sysroots.has_sysroot(ctx, repo, **places._asdict()) else None
        rows, tags, kept = refs.read_at_once(
            repo,
            lambda: (
                list_deployments(repo, host) if host is not None else [],
                list_tags(repo, owners=OWNERS),
                trash(repo),
            ),
        )
        journals, left_over = left_by_a_crash(repo, [])
        measured = _measure(repo, len(tags) + len(kept), space, lock_timeout)
        remedies = Remedies(session, places)
        problems = [
            *remedies.deployments(rows),
            *remedies.tags([*tags, *kept]),
            *(remedies.sysroot(host, rows) if host is not None else ()),
            *remedies.state(journals, left_over),
            *remedies.objects(_damaged(repo)),
        ]
    found = _Status(host, rows, tags, kept, measured, problems)
    if as_json:
        output.document("status", _facts(repo, found))
    else:
        _show(repo, found, remedies)


def _damaged(repo: Repository) -> tuple[Finding, ...]:
    """What is still wrong with the objects that maintenance found to be damaged: these alone are read."""
    from cfs_tags.fsck.objects import check_whole
    from cfs_tags.maintain import settled

    return check_whole(repo, settled.read(repo).wrong)


def _measure(repo: Repository, refs: int, asked: bool, lock_timeout: float) -> _Space:
    from cfs_tags.df import measure
    from cfs_tags.inventory import about

    disk = os.fstatvfs(repo.fd)
    size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    objects = about(repo)
    if not asked and (objects > _CHEAP_OBJECTS or refs > _CHEAP_REFS):
        return _Space(None, f"not measured: about {objects:,} objects; --space measures it", size, free)
    try:
        with repo.locked("shared", lock_timeout if asked else 0.0):
            return _Space(measure(repo, (), repo.deployments.planned_changes()[0]), "", size, free)
    except (LockTimedOut, LockConflict):
        if asked:
            raise
        return _Space(None, "not measured: another program collects; --space waits for it", size, free)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _facts(repo: Repository, found: _Status) -> dict[str, Any]:
    from cfs_tags.cli import remedies

    return {
        "repository": repo.path,
        "sysroot": found.host.sysroot.root if found.host is not None else None,
        "algorithm": repo.algorithm.name.lower(),
        "deployments": [sysroots.row_facts(row) for row in found.rows],
        "tags": {owner: {**homes, "broken": broken} for owner, homes, broken in _counted(found.tags)},
        "trash": len(found.kept),
        "space": _space_facts(found.space),
        "problems": [remedies.facts(problem) for problem in found.problems],
        "places": sysroots.place_facts(found.host) if found.host is not None else [],
    }


def _space_facts(space: _Space) -> dict[str, Any]:
    def used(objects: int, allocated: int) -> dict[str, int]:
        return {"objects": objects, "bytes": allocated}

    parts = _parts(space.usage) if space.usage is not None else {}
    return {
        "measured": space.usage is not None,
        **{name: used(*parts[name]) if name in parts else None for name in _PARTS},
        "file_system": {"bytes": space.size, "free_bytes": space.free},
    }


_PARTS = ("live", "deployments_alone", "apps_alone", "shared", "garbage")


def _parts(usage: Usage) -> dict[str, Any]:
    """What is live in three parts that add up: what apps' tags alone keep, what they share with others, and the rest."""
    apps = usage.apps
    return dict(zip(_PARTS, (usage.live, usage.live.less(apps.total), apps.freed, apps.shared, usage.dead), strict=True))


def _counted(tags: Sequence[Tag]) -> list[tuple[str, dict[str, int], int]]:
    """Owners, with how many refs of each home they have, and how many of them are broken."""
    homes = Counter((tag.owner, tag.home) for tag in tags)
    broken = Counter(tag.owner for tag in tags if tag.problem is not None)
    owners = dict.fromkeys(owner for owner, _ in sorted(homes))
    return [
        (owner, {home: count for (one, home), count in sorted(homes.items()) if one == owner}, broken[owner])
        for owner in owners
    ]


# -- text --------------------------------------------------------------------------------------------------------------


def _show(repo: Repository, found: _Status, remedies: Remedies) -> None:
    from cfs_tags.cli.remedies import show, show_command

    if found.host is not None:
        sysroots.show_rows(found.rows)
        sysroots.show_pins(found.rows)
        output.lines([""])
    output.fields(
        [
            ("Repository", f"{repo.path} ({repo.algorithm.name.lower()}{', secure' if repo.is_secure else ''})"),
            ("Tags", _tags_said(found.tags, found.kept)),
            *_space_said(found.space),
        ]
    )
    if found.space.usage is not None and found.space.usage.dead.objects:
        show_command(remedies.typed("gc", host=True))
    output.lines([""])
    if found.problems:
        output.lines([f"{output.count(len(found.problems), 'problem')}:"], None, {str(len(found.problems)): "error"})
        show(found.problems)
    else:
        output.lines(["Nothing is wrong."], None, {"Nothing is wrong.": "ok"})


_NAMED = {
    "app": "of apps",
    "bootc": "of bootc's",
    "deployment": "of deployments",
    "pin": "of pins",
    "foreign": "of other software",
}


def _tags_said(tags: Sequence[Tag], kept: Sequence[Tag]) -> str:
    said = []
    for owner, homes, broken in _counted(tags):
        more = [
            output.count(homes[home], "lease") if home == "lease" else f"{homes[home]} private"
            for home in ("private", "lease")
            if home in homes
        ]
        more += [f"{broken} broken"] if broken else []
        said.append(f"{sum(homes.values())} {_NAMED[owner]}{' (' + ', '.join(more) + ')' if more else ''}")
    if kept:
        said.append(f"{len(kept)} in the trash")
    return ", ".join(said) or "none"


def _space_said(space: _Space) -> list[tuple[str, str | None]]:
    disk = ("Disk", f"{output.rounded(space.free)} of {output.rounded(space.size)} free")
    if space.usage is None:
        return [disk, ("Space", space.why_not)]
    parts = {name: output.size(used.allocated) for name, used in _parts(space.usage).items()}
    live = f"{parts['live']}: deployments {parts['deployments_alone']}, apps {parts['apps_alone']}, both {parts['shared']}"
    dead = space.usage.dead.objects
    return [disk, ("Live", live), ("Garbage", f"{parts['garbage']} in {output.count(dead, 'object')}" if dead else "none")]
