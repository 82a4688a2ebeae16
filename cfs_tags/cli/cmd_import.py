"""``cfs-tag import``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import output
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Owners, Reason, amount, excluding, owners, seconds
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from cfs_tags.apps.importing import Import, Imported, PlannedImage
    from cfs_tags.errors import CfsTagsError

_GIB = 1 << 30


def command(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False, help="Where from, as for skopeo.")],
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", show_default=False, help="Of the tag; else what the source calls the image."),
    ] = None,
    platform: Annotated[
        str | None, typer.Option(metavar="OS/ARCH[/VARIANT]", help="Which image of an index; else the one for this machine.")
    ] = None,
    all_platforms: Annotated[
        bool, typer.Option("--all-platforms", help="All images of an index: NAME, and NAME-OS-ARCH[-VARIANT] each.")
    ] = False,
    keep_index: Annotated[bool, typer.Option("--keep-index", help="Keep the index, too: it is served again.")] = False,
    no_referrers: Annotated[
        bool, typer.Option("--no-referrers", help="Leave signatures, SBOMs and the like where they are.")
    ] = False,
    mountable: Annotated[
        bool, typer.Option("--mountable", help="Have cfsctl make the EROFS image that mounting takes.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Move a tag that names something else.")] = False,
    shared: Annotated[bool, typer.Option("--shared", help="A tag that cfsctl and bootc see, whatever the image.")] = False,
    private: Annotated[bool, typer.Option("--private", help="A tag that cfs-tag alone sees.")] = False,
    max_layer_size: Annotated[
        str, typer.Option(metavar="GIB", help="Longest layer, uncompressed, that is taken; or 500M, 2T.")
    ] = "64",
    owner: Owners = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Bring an app image into the repository, and give it a tag.

    SOURCE is oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF] or dir:DIR; for anything else, docker://
    among it, skopeo must be installed.  Layers that are there already are not read again.  Every digest is checked.
    Nothing has a name before everything is on disk: what is left of an import that was stopped is collected by gc, or
    used by the next.

    No EROFS image is made: cfsctl and bootc make it when they need it, and so does --mountable.  In a repository of
    bootc's the tag is private until there is one.

    \b
    Examples:
      cfs-tag import oci:/srv/layout:app quay.io/org/app:1
      cfs-tag import docker://quay.io/org/app:1 --all-platforms --keep-index
      podman save app | cfs-tag import docker-archive:/dev/stdin app
    """
    excluding(ctx, shared=shared, private=private)
    excluding(ctx, all_platforms=all_platforms, platform=platform)
    excluding(ctx, mountable=mountable, private=private)
    limit = amount(max_layer_size, "--max-layer-size", unit=_GIB)
    timeout, named = seconds(lock_timeout), owners(owner)

    from cfs_tags.apps import importing, platforms, sources
    from cfs_tags.apps.importing import mounting
    from cfs_tags.cli.machine import machine
    from cfs_tags.cli.progress import Progress
    from cfs_tags.cli.session import note
    from cfs_tags.cli.stopping import stoppable

    options = importing.Options(
        platform=platforms.parse(platform) if platform is not None else None,
        all_platforms=all_platforms,
        keep_index=keep_index,
        referrers=not no_referrers,
        force=force,
        home="shared" if shared else "private" if private else None,
        owners=named,
        limit=limit,
    )
    here = machine()
    with stoppable(), ctx.obj.open(write=True) as repo:
        if mountable:
            here.need_cfsctl("to make an EROFS image")
        opened = sources.open_source(source, here, options.limit)
        try:
            if dry_run:
                plan = importing.plan(repo, opened, name, options)
                _print(plan, None, as_json)
                return
            with Progress("Importing", not as_json, of_bytes=True) as progress:
                done = importing.execute(
                    repo,
                    opened,
                    lambda: importing.plan(repo, opened, name, options),
                    note(reason),
                    timeout,
                    progress=progress,
                    prepare=(lambda wanted: mounting.make_mountable(repo, wanted, here)) if mountable else None,
                )
        finally:
            opened.close()
    output.warn(done.outcome.abandoned)
    _print(done.plan, done, as_json)


# -- printing ----------------------------------------------------------------------------------------------------------


def _print(plan: Import, done: Imported | None, as_json: bool) -> None:
    if as_json:
        output.document("import", _to_json(plan, done), _warnings(done))
        return
    results = {result.name: result for result in done.tags.results} if done is not None else {}
    by_digest = {image.digest: image for image in plan.images}
    for name, digest in plan.names:
        image = by_digest[digest]
        result = results.get(name)
        said = "would be imported" if result is None else "unchanged" if result.done == "unchanged" else "imported"
        home = f" ({result.home})" if result is not None and result.home not in ("shared", "") else ""
        output.lines([f"{said}: {printable(name)} -> {digest}{home}{_more(image)}"])
    tagged = {digest for _, digest in plan.names}
    for subject, artifact in plan.referrers:
        if artifact not in tagged:
            output.lines([f"{'would take' if done is None else 'taken'}: {artifact}, about {subject}"])
    if plan.kept_index is not None:
        output.lines([f"{'would keep' if done is None else 'kept'}: index {plan.kept_index[1]}"])
    if done is None:
        output.lines([f"to read: {output.size(plan.bytes_to_read)} of layers"])
    elif done.objects:
        output.lines([f"written: {output.count(done.objects, 'object')}, {output.size(done.object_bytes)}"])


def _more(image: PlannedImage) -> str:
    if image.source_digest != image.digest:
        return f"; made from the Docker manifest {image.source_digest}"
    return ""


def _warnings(done: Imported | None) -> tuple[CfsTagsError, ...]:
    return () if done is None else done.outcome.abandoned


def _to_json(plan: Import, done: Imported | None) -> dict[str, Any]:
    from cfs_tags.apps import platforms

    results = {result.name: result for result in done.tags.results} if done is not None else {}
    return {
        "dry_run": done is None,
        "source": plan.source,
        "tags": [
            {
                **output.named(name),
                "digest": digest,
                "done": results[name].done if name in results else None,
                "home": results[name].home if name in results else None,
            }
            for name, digest in plan.names
        ],
        "images": [
            {
                "digest": image.digest,
                "source_digest": image.source_digest,
                "config_digest": image.manifest.config.digest,
                "platform": platforms.shown(image.platform) if image.platform is not None else None,
                "layers": [
                    {
                        "key": layer.key,
                        "digest": layer.descriptor.digest,
                        "size": layer.descriptor.size,
                        "read": layer in missing,
                    }
                    for layer in image.layers
                ],
            }
            for image, missing in ((image, image.missing) for image in plan.images)
        ],
        "referrers": [{"subject": subject, "artifact": artifact} for subject, artifact in plan.referrers],
        "index": plan.kept_index[1] if plan.kept_index is not None else None,
        "objects_written": done.objects if done is not None else None,
        "bytes_written": done.object_bytes if done is not None else None,
    }
