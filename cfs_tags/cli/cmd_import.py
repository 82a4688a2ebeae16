"""``cfs-tag import``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import output
from cfs_tags.cli.options import Change, Owners, amount, excluding, owners
from cfs_tags.errors import CfsTagsError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cfs_tags.apps.importing.choose import Options
    from cfs_tags.apps.importing.plan import Import, PlannedImage
    from cfs_tags.apps.importing.run import Imported
    from cfs_tags.apps.importing.source.http import Server
    from cfs_tags.cli.session import Session

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
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="URL",
            show_default=False,
            help="Another host's 'cfs-tag serve', which may have layers: http://HOST:PORT; may be given again.",
        ),
    ] = None,
    lan: Annotated[
        bool, typer.Option("--lan", help="The same for all hosts of the local network that 'serve --announce' there.")
    ] = False,
    owner: Owners = None,
    *,
    how: Change,
) -> None:
    """Bring an app image into the repository, and give it a tag.

    SOURCE is oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF] or dir:DIR; for anything else, docker://
    among it, skopeo must be installed.  Layers that are there already are not read again.  Every digest is checked.
    Nothing has a name before everything is on disk: what is left of an import that was stopped is collected by gc, or
    used by the next.

    --peer and --lan take layers from other hosts, and SOURCE gives those that none has; hosts that import the same image
    at the same time share the work.  What comes from another host is checked against the config that SOURCE gave.

    No EROFS image is made: cfsctl and bootc make it when they need it, and so does --mountable.  In a repository of
    bootc's the tag is private until there is one.

    \b
    Examples:
      cfs-tag import oci:/srv/layout:app quay.io/org/app:1
      cfs-tag import docker://quay.io/org/app:1 --all-platforms --keep-index
      cfs-tag import docker://quay.io/org/app:2 --lan
      podman save app | cfs-tag import docker-archive:/dev/stdin app
    """
    excluding(ctx, shared=shared, private=private)
    excluding(ctx, all_platforms=all_platforms, platform=platform)
    excluding(ctx, mountable=mountable, private=private)
    limit = amount(max_layer_size, "--max-layer-size", unit=_GIB)
    named = owners(owner)

    from cfs_tags.apps import platforms
    from cfs_tags.apps.importing.choose import Options

    options = Options(
        platform=platforms.parse(platform) if platform is not None else None,
        all_platforms=all_platforms,
        keep_index=keep_index,
        referrers=not no_referrers,
        force=force,
        home="shared" if shared else "private" if private else None,
        owners=named,
        limit=limit,
    )
    _import(ctx.obj, source, name, options, mountable, how, peer or (), lan)


def _import(
    session: Session,
    source: str,
    name: str | None,
    options: Options,
    mountable: bool,
    how: Change,
    peers: Sequence[str],
    lan: bool,
) -> None:
    from cfs_tags.apps.importing.mountable import make_mountable
    from cfs_tags.apps.importing.plan import plan_import
    from cfs_tags.apps.importing.run import run_import
    from cfs_tags.apps.importing.source import open_source
    from cfs_tags.cli.progress import Progress, stoppable
    from cfs_tags.cli.session import machine, note

    here = machine()
    left: list[CfsTagsError] = []
    output.watch(left)
    with stoppable(), session.open(write=True, dry_run=how.dry_run) as repo:
        if mountable:
            here.need_cfsctl("to make an EROFS image")
        hosts = _hosts(peers, lan) if peers or lan else []
        opened = open_source(source, here, options.limit)
        if hosts:
            from cfs_tags.apps.importing.source.shared import Shared

            opened = Shared(opened, repo, hosts)
            output.watch(opened.problems)
        try:
            if how.dry_run:
                plan = plan_import(repo, opened, name, options)
                _print(plan, None, how.as_json)
                return
            with Progress("Importing", not how.as_json, of_bytes=True) as progress:
                done = run_import(
                    repo,
                    opened,
                    lambda: plan_import(repo, opened, name, options),
                    note(how.reason),
                    how.lock_timeout,
                    progress=progress,
                    left=left,
                    prepare=(lambda wanted: make_mountable(repo, wanted, here)) if mountable else None,
                )
        finally:
            opened.close()
    _print(done.plan, done, how.as_json, done.fetched if hosts else None)


def _hosts(peers: Sequence[str], lan: bool) -> list[Server]:
    """The other hosts that may have layers."""
    from cfs_tags.apps.importing.source.http import Server

    found = list(peers)
    if lan:
        from cfs_tags.apps.lan import find

        found += find("import --lan")
    return [Server(address) for address in dict.fromkeys(found)]


# -- printing ----------------------------------------------------------------------------------------------------------


def _print(plan: Import, done: Imported | None, as_json: bool, fetched: Mapping[str, int] | None = None) -> None:
    """``fetched`` is given where other hosts were asked."""
    from cfs_tags.cli.changes import not_pullable

    results = {result.name: result for result in done.tags.results} if done is not None else {}
    new = [name for name, _ in plan.names if name not in results or results[name].done == "created"]
    warnings = [warning for name in new for warning in not_pullable(name)]
    if as_json:
        output.document("import", _to_json(plan, done, fetched), warnings)
        return
    from cfs_tags.apps import platforms

    output.warn(warnings)
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
        digest = plan.kept_index[1]
        made = "" if digest == plan.source_digest else f"; made from the Docker index {plan.source_digest}"
        output.lines([f"{'would keep' if done is None else 'kept'}: index {digest}{made}"])
    for digest, platform, kind in plan.left_out:
        what = f"another image for {platforms.shown(platform)}" if kind is None else f"no image: {kind}"
        output.lines([f"left out: {digest}, {printable(what)}"])
    if done is None:
        output.lines([f"to read: {output.size(plan.bytes_to_read)} of layers"])
    elif done.objects:
        output.lines([f"written: {output.count(done.objects, 'object')}, {output.size(done.object_bytes)}"])
    for place, count in (fetched or {}).items():
        output.lines([f"fetched: {output.size(count)} from {printable(place)}"])


def _more(image: PlannedImage) -> str:
    if image.source_digest != image.digest:
        return f"; made from the Docker manifest {image.source_digest}"
    return ""


def _to_json(plan: Import, done: Imported | None, fetched: Mapping[str, int] | None) -> dict[str, Any]:
    from cfs_tags.apps import platforms

    results = {result.name: result for result in done.tags.results} if done is not None else {}
    return {
        "dry_run": done is None,
        "source": plan.source,
        "source_digest": plan.source_digest,
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
        "left_out": [
            {
                "digest": digest,
                "platform": platforms.shown(platform) if platform is not None else None,
                **({"type": kind} if kind is not None else {}),
            }
            for digest, platform, kind in plan.left_out
        ],
        "objects_written": done.objects if done is not None else None,
        "bytes_written": done.object_bytes if done is not None else None,
        **({"fetched": [{"from": place, "bytes": count} for place, count in fetched.items()]} if fetched is not None else {}),
    }
