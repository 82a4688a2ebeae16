"""``cfs-tag publish``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import output, registries, sysroots
from cfs_tags.cli.hints import typed
from cfs_tags.cli.options import DryRun, Json, LockTimeout, duration, excluding
from cfs_tags.cli.registries import PlaceArgument
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.fleet.publish import Plan, Published, Row


def command(
    ctx: typer.Context,
    place: PlaceArgument,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="Of this host; else a hash of its machine-id.")
    ] = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Upload images that the registry has lost, from the repository.")
    ] = False,
    retract: Annotated[bool, typer.Option("--retract", help="Delete all tags of this host instead.")] = False,
    refresh: Annotated[
        str, typer.Option(metavar="DURATION", help="Publish again after that time though nothing has changed.")
    ] = "1d",
    *,
    reach: registries.Reach,
    places: sysroots.Places,
    dry_run: DryRun = False,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Tag what this host uses in its registry, and say there what runs here.

    With a tag, nothing in the registry deletes it.

    Tags deployed-HOST-booted, -staged, -rollback and so on are put on the manifests that the deployments of this host and
    their bound images use, in the repository that each image came from, else in REGISTRY/REPO.  One small artifact says what
    the host runs: 'cfs-tag fleet' reads it.  Only manifests and that artifact are uploaded, unless --restore is given.
    Where nothing has changed, that takes one request.  The repository is only read.

    Exit status 4: the registry has lost something that this host uses.

    \b
    Examples:
      cfs-tag publish quay.io/org/os
      cfs-tag publish registry.example/os --name web-1 --restore
      cfs-tag publish quay.io/org/os --retract
    """
    excluding(ctx, retract=retract, restore=restore)
    wait = timedelta(seconds=lock_timeout)
    access = registries.access(reach)
    if retract:
        from cfs_tags.api.fleet import retract as take_back

        rows = take_back(place, access, name=name, state=registries.state_directory(), timeout=wait, dry_run=dry_run)
        _show_rows(rows, as_json, dry_run)
        return
    from cfs_tags.api.fleet import publish
    from cfs_tags.cli.progress import Progress, stoppable

    with stoppable(), ctx.obj.open(places) as repo, Progress("Restoring", restore and not as_json, of_bytes=True) as progress:
        read = 0

        def tell(count: int) -> None:
            nonlocal read
            read += count
            if progress is not None:
                progress(read, read)

        made = publish(
            repo,
            repo.deployments,
            place,
            access,
            name=name,
            refresh=timedelta(seconds=duration(refresh, "--refresh")),
            restore=restore,
            state=registries.state_directory(),
            timeout=wait,
            dry_run=dry_run,
            progress=tell,
        )
    named = () if name is None else ("--name", name)
    _show(made, dry_run, as_json, () if restore else ("publish", str(place), *named, "--restore"))


def _show(made: Published, dry_run: bool, as_json: bool, restoring: Sequence[str]) -> None:
    from cfs_tags.fleet import hosts

    plan = made.plan
    rows = _planned(plan) if dry_run else [_facts(row) for row in made.rows]
    if as_json:
        document = hosts.to_json(plan.host)
        facts = {
            "dry_run": dry_run,
            "place": str(plan.place),
            "host": plan.host.name,
            "unchanged": plan.is_unchanged,
            "tags": rows,
            "artifact": made.artifact,
            "document": None if plan.is_unchanged else document,
        }
        output.document("publish", facts, made.warnings)
    else:
        output.warn(made.warnings)
        output.table(
            ("RESULT", "TAG", "MANIFEST", "REPOSITORY"),
            [(row["done"], row["tag"], row["digest"] or row["manifest"], row["repository"]) for row in rows],
        )
        said = "unchanged" if plan.is_unchanged else "would be published" if dry_run else "published"
        output.lines([f"{printable(plan.host.name)} at {plan.place}: {said}"])
    if made.lost:
        if restoring and not as_json:
            images = output.count(len({row.manifest or row.digest for row in made.rows if row.done == "lost"}), "image")
            output.lines([f"the registry has lost {images}: {printable(typed(*restoring))} uploads what it lacks"])
        raise typer.Exit(4)


def _planned(plan: Plan) -> list[dict[str, Any]]:
    """What would become of each tag, as far as comparing tells it."""
    rows: list[dict[str, Any]] = []
    for key, use in plan.wanted.items():
        found = plan.now.get(key)
        done = "unchanged" if found == use.digest else "create" if found is None else "move"
        rows.append(
            {
                "tag": key.tag,
                "repository": key.repository,
                "slot": use.slot,
                "done": done,
                "digest": use.digest,
                "manifest": use.manifest,
            }
        )
    for key, digest in plan.now.items():
        if key not in plan.wanted:
            slot = key.tag.rpartition("-")[2]
            rows.append(
                {
                    "tag": key.tag,
                    "repository": key.repository,
                    "slot": slot,
                    "done": "delete",
                    "digest": digest,
                    "manifest": None,
                }
            )
    return rows


def _facts(row: Row) -> dict[str, Any]:
    return {
        "tag": row.key.tag,
        "repository": row.key.repository,
        "slot": row.slot,
        "done": row.done,
        "digest": row.digest,
        "manifest": row.manifest or row.digest,
    }


def _show_rows(rows: Sequence[Row], as_json: bool, dry_run: bool) -> None:
    if as_json:
        output.document("publish", {"dry_run": dry_run, "retracted": [_facts(row) for row in rows]})
        return
    said = "would be deleted" if dry_run else "deleted"
    output.table(("RESULT", "TAG", "REPOSITORY"), [(said, row.key.tag, row.key.repository) for row in rows])
