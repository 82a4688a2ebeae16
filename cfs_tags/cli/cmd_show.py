"""``cfs-tag show``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cfs_tags.cli import complete, output, view
from cfs_tags.cli.options import Json, LockTimeout, NameArgument, excluding
from cfs_tags.errors import UsageError, printable
from cfs_tags.repo.images import StoredLayer
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import Digest, ObjectId


def command(
    ctx: typer.Context,
    name: NameArgument,
    raw: Annotated[
        str | None,
        typer.Option(
            metavar="manifest|config",
            autocompletion=complete.one_of("manifest", "config"),
            help="Print these bytes, exactly as they are stored.",
            show_default=False,
        ),
    ] = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Show what a name stands for.

    Manifest, config, labels, layers, EROFS images, referrers, sizes, and who else points there.  NAME is a tag,
    @sha256:DIGITS (six or more), @deployment/ID, @trash/NAME, NAME@{N} for entry N of a
    tag's log, or NAME@{yesterday}, NAME@{2026-01-31} for a time.

    \b
    Examples:
      cfs-tag show quay.io/org/app:stable
      cfs-tag show @sha256:9e9675 --json
      cfs-tag show quay.io/org/app:stable --raw manifest | sha256sum
    """
    if raw not in (None, "manifest", "config"):
        raise UsageError("invalid-argument", argument="--raw", value=raw, reason="is neither manifest nor config")
    excluding(ctx, raw=raw, json=as_json)

    from cfs_tags.repo import images
    from cfs_tags.tags import names

    with ctx.obj.open() as repo, repo.locked("shared", lock_timeout):
        digest = names.resolve(repo, repo.deployments.meant(name), ended=True)
        if raw is not None:
            data = (images.raw_manifest if raw == "manifest" else images.raw_config)(repo, digest)
        else:
            shown = _describe(repo, name, digest)
    if raw is not None:
        output.emit_bytes(data)
    elif as_json:
        output.document("show", shown)
    else:
        _print(shown)


def _describe(repo: ReadRepo, name: str, digest: Digest) -> dict[str, Any]:
    from cfs_tags.repo import images
    from cfs_tags.tags.rows import referrers

    image = images.load(repo, digest)
    missing = [images.describe(repo, one) for one in images.missing_content(repo, digest)]
    manifest, config = image.manifest, image.config
    version = repo.meta.erofs_version if repo.meta is not None else 2
    suffix = "" if version == 2 else ".v1"
    raw = images.raw_manifest(repo, digest)
    named_by = _named_by(repo, digest)
    sizes = {
        "manifest": len(raw),
        "config": manifest.config.size,
        "layers": sum(layer.size for layer in manifest.layers),
    }
    return {
        **output.named(name),
        "digest": digest,
        "object": image.object,
        "media_type": manifest.media_type,
        "artifact_type": manifest.artifact_type,
        "is_container": manifest.is_container,
        "os": config.os if config is not None else "",
        "architecture": config.architecture if config is not None else "",
        "variant": config.variant if config is not None else None,
        "created": config.created if config is not None else None,
        "config_digest": manifest.config.digest,
        "config_media_type": manifest.config.media_type,
        "config_object": image.config_object,
        "annotations": dict(manifest.annotations),
        "labels": dict(config.labels) if config is not None else {},
        "subject": manifest.subject.digest if manifest.subject is not None else None,
        "layers": [_layer(layer) for layer in image.layers],
        "erofs": [_erofs(key, target) for key, target in sorted(image.erofs.items())],
        "erofs_version": version,
        "composefs_erofs": image.erofs.get(f"{images.EROFS_KEY}{suffix}"),
        "composefs_boot_erofs": image.erofs.get(f"{images.BOOT_KEY}{suffix}"),
        "referrers": referrers(repo, digest),
        "sizes": {**sizes, "total": sum(sizes.values())},
        "named_by": named_by,
        "bound": _bound(repo, named_by),
        "missing": missing,
        "manifest": _text(raw),
        "config": _text(images.raw_config(repo, digest)),
    }


def _layer(layer: StoredLayer) -> dict[str, Any]:
    return {
        "media_type": layer.descriptor.media_type,
        "digest": layer.descriptor.digest,
        "diff_id": layer.diff_id,
        "size": layer.descriptor.size,
        "object": layer.object,
    }


def _erofs(key: str, target: ObjectId) -> dict[str, Any]:
    """What the key of a named ref says of the EROFS image: composefs.image[.boot][.v1][.xattrs=MODE]."""
    words, _, xattrs = key.partition(".xattrs=")
    parts = words.split(".")[2:]
    return {
        "key": key,
        "kind": "boot" if "boot" in parts else "plain",
        "version": 1 if "v1" in parts else 2,
        "xattrs": xattrs or None,
        "id": target,
    }


def _named_by(repo: ReadRepo, digest: Digest) -> list[dict[str, Any]]:
    from cfs_tags.cli.rows import row
    from cfs_tags.host import bound
    from cfs_tags.repo import refs
    from cfs_tags.tags.rows import Tag, list_tags, trash
    from cfs_tags.values import OWNERS

    def read() -> list[Tag]:
        bound_to = [
            Tag(f"@deployment/{deployment}", digest, "bound", "deployment", path, link)
            for deployment, path, link in bound.deployments_of(repo, digest)
        ]
        return [*(tag for tag in (*list_tags(repo, owners=OWNERS), *trash(repo)) if tag.digest == digest), *bound_to]

    return [row(tag) for tag in refs.read_at_once(repo, read)]


def _bound(repo: ReadRepo, named_by: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The app images that are bound to the deployments that this is the manifest of."""
    from cfs_tags.host import bound

    found = []
    for one in named_by:
        if one["home"] == "deployment":
            deployment = one["ref"].rpartition("/")[2]
            for name, digest in bound.bound_images(repo, deployment):
                found.append({"deployment": deployment, **output.named(name), "manifest": digest})
    return found


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:  # the config of an artifact may be anything
        return None


# -- text --------------------------------------------------------------------------------------------------------------


def _print(shown: dict[str, Any]) -> None:
    platform = "/".join([part for part in (shown["os"], shown["architecture"], shown["variant"]) if part])
    sizes = shown["sizes"]
    output.fields(
        [
            ("Name", shown["name"]),
            ("Digest", shown["digest"]),
            ("Object", shown["object"]),
            ("Kind", "container image" if shown["is_container"] else shown["artifact_type"] or "artifact"),
            ("Platform", platform or None),
            ("Created", output.when(shown["created"])),
            ("Subject", shown["subject"]),
            ("Config", shown["config_digest"]),
            ("Config object", shown["config_object"]),
            ("Size", f"{output.size(sizes['total'])}: layers {output.size(sizes['layers'])}"),
        ]
    )
    _pairs("Annotations", shown["annotations"])
    _pairs("Labels", shown["labels"])
    _show_layers(shown["layers"])
    _erofs_lines(shown)
    _list("Referrers", shown["referrers"])
    _list(
        "Named by",
        [
            f"{tag['name']} ({tag['owner']}, {tag['home']}{', ' + output.ends(tag['expires']) if tag['expires'] else ''})"
            for tag in shown["named_by"]
        ],
    )
    if shown["missing"]:
        _list("Missing: not all of its content is in the repository", shown["missing"])
    if shown["bound"]:
        several = len({one["deployment"] for one in shown["bound"]}) > 1
        output.lines(["Bound app images:"])
        for one in shown["bound"]:
            where = f", deployment {one['deployment'][:12]}…" if several else ""
            output.lines([f"  {printable(one['name'])}  {printable(one['manifest'] or 'leads to no manifest')}{where}"])


def _show_layers(layers: list[dict[str, Any]]) -> None:
    output.lines([f"Layers: {len(layers)}"])
    unnamed = "no named ref leads to its stream"
    if view.on_terminal() and layers:
        rows = [
            (
                layer["digest"],
                layer["diff_id"],
                output.rounded(layer["size"]),
                layer["media_type"],
                "" if layer["object"] is not None else unnamed,
            )
            for layer in layers
        ]
        output.table(("DIGEST", "DIFF ID", "SIZE", "TYPE", "NOTES"), rows)
        return
    for layer in layers:
        output.lines([f"  {layer['digest']}  {output.size(layer['size'])}  {printable(layer['media_type'])}"])
        if layer["diff_id"] is not None:
            output.lines([f"    diff_id {layer['diff_id']}"])
        if layer["object"] is None:
            output.lines([f"    {unnamed}"])


def _erofs_lines(shown: dict[str, Any]) -> None:
    if not shown["erofs"]:
        output.lines(["EROFS images: none" + ("" if shown["is_container"] else ", as for every artifact")])
        return
    output.lines(["EROFS images:"])
    for image in shown["erofs"]:
        more = f", xattrs {image['xattrs']}" if image["xattrs"] else ""
        output.lines([printable(f"  {image['kind']}, version {image['version']}{more}: {image['id']}")])
    if shown["composefs_erofs"] is None and shown["is_container"]:
        output.lines([f"  none of version {shown['erofs_version']}, which this repository makes"])


def _pairs(heading: str, pairs: Mapping[str, str]) -> None:
    if pairs:
        output.lines([f"{heading}:", *(f"  {printable(key)}={printable(pairs[key])}" for key in sorted(pairs))])


def _list(heading: str, values: list[str]) -> None:
    if values:
        output.lines([f"{heading}:", *(f"  {printable(value)}" for value in values)])
    else:
        output.lines([f"{heading}: none"])
