"""``cfs-tag lookup``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.options import Json
from cfs_tags.errors import UnresolvedDeployment, UsageError

if TYPE_CHECKING:
    from cfs_tags.host.lookup import Lookup
    from cfs_tags.repo.store import ReadRepo


def command(
    ctx: typer.Context,
    deployment: Annotated[
        str,
        typer.Argument(
            metavar="DEPLOYMENT",
            autocompletion=complete.deployments_and_states,
            help="An id or its prefix, booted, staged, rollback, or a boot entry file.",
        ),
    ],
    raw: Annotated[
        str | None,
        typer.Option(
            "--raw",
            metavar="manifest|config",
            autocompletion=complete.one_of("manifest", "config"),
            help="Print these bytes, exactly as they are stored.",
        ),
    ] = None,
    *,
    places: sysroots.Places,
    as_json: Json = False,
) -> None:
    """Say which manifest a deployment was made from, and how that is known.

    Sources, in this order: its deployment ref, its origin file, a manifest whose config names its EROFS image, and
    its .imginfo file.  No network is used.

    \b
    Examples:
      cfs-tag lookup booted
      cfs-tag lookup 6c19d984 --json
      cfs-tag lookup staged --raw manifest
    """
    from cfs_tags.host.lookup import look_up
    from cfs_tags.host.rows import list_deployments, select
    from cfs_tags.repo import images

    if raw not in (None, "manifest", "config"):
        raise UsageError("invalid-argument", argument="--raw", value=str(raw), reason="is neither manifest nor config")
    session = ctx.obj
    with session.open(places) as repo:
        view = repo.deployments.view()
        row = select(list_deployments(repo, view), deployment)
        found = look_up(repo, view, row.id)
        if raw is not None:
            if found.digest is None:
                raise _unresolved(found)
            data = (images.raw_manifest if raw == "manifest" else images.raw_config)(repo, found.digest)
            output.emit_bytes(data)
            return
        facts = _facts(repo, found)
    if as_json:
        output.document("lookup", {**sysroots.row_facts(row), **facts})
    else:
        _show(row.state, row.image, facts)
    if found.digest is None:
        raise typer.Exit(4) if as_json or found.imginfo is not None else _unresolved(found)


def _unresolved(found: Lookup) -> UnresolvedDeployment:
    candidates = tuple(str(one) for one in found.candidates) if found.ambiguous else ()
    return UnresolvedDeployment(deployment=found.id, notes=found.notes, candidates=candidates)


def _facts(repo: ReadRepo, found: Lookup) -> dict[str, Any]:
    from cfs_tags.errors import CfsTagsError
    from cfs_tags.host.lookup import version_of
    from cfs_tags.repo import images

    facts: dict[str, Any] = {
        "id": found.id,
        "manifest": found.digest,
        "source": found.source,
        "ambiguous": found.ambiguous,
        "candidates": found.candidates,
        "notes": found.notes,
    }
    if found.digest is None:
        if found.imginfo is not None:
            facts["imginfo"] = {"manifest": found.imginfo.manifest, "config": found.imginfo.config}
        return facts
    try:
        image = images.load(repo, found.digest)
    except CfsTagsError as error:
        facts["problem"] = error.message
        return facts
    config = image.config
    facts |= {
        "version": version_of(image),
        "config": image.manifest.config.digest,
        "layers": [
            {"digest": layer.descriptor.digest, "diff_id": layer.diff_id, "size": layer.descriptor.size}
            for layer in image.layers
        ],
        "labels": dict(config.labels) if config is not None else {},
        "annotations": dict(image.manifest.annotations),
        "created": config.created if config is not None else None,
        "architecture": config.architecture if config is not None else None,
        "os": config.os if config is not None else None,
    }
    return facts


def _show(state: str, image: str | None, facts: dict[str, Any]) -> None:
    layers = [("Layer", f"{one['diff_id'] or one['digest']}  {output.size(one['size'])}") for one in facts.get("layers", ())]
    labels = [("Label", f"{name}={value}") for name, value in sorted(facts.get("labels", {}).items())]
    candidates = [("Candidate", one) for one in facts["candidates"]] if facts["ambiguous"] else []
    output.fields(
        [
            ("Deployment", facts["id"]),
            ("State", state),
            ("Image", image),
            ("Version", facts.get("version")),
            ("Manifest", facts["manifest"]),
            ("Source", facts["source"]),
            ("Config", facts.get("config")),
            ("Created", output.when(facts.get("created"))),
            ("Architecture", facts.get("architecture")),
            ("Problem", facts.get("problem")),
            *layers,
            *labels,
            *candidates,
            *(("Note", note) for note in facts["notes"]),
        ]
    )
    if "imginfo" in facts:
        output.lines(["Its .imginfo file has a copy of manifest and config: --json shows it"])
