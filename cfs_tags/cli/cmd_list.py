"""``cfs-tag list``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output
from cfs_tags.cli.options import OWNERS, Json, JsonLines, excluding, owners
from cfs_tags.errors import InvalidArgument, TargetNotFound, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfs_tags.cli.rows import Details
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.tags import Tag
    from cfs_tags.values import Digest

_PLAIN = {"name": 0, "digest": 1, "home": 2, "owner": 3, "ref": 4, "link": 5, "problem": 6, "expires": 7}
_LONG = ("is_container", "architecture", "os", "created", "layer_count", "referrer_count")
_KEYS = ("name", "digest", "owner", "created", "home")


def command(
    ctx: typer.Context,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN...]",
            autocompletion=complete.names,
            show_default=False,
            help="Only names that one of these fits; * stands for any text, ? for a character, [abc] for one of them.",
        ),
    ] = None,
    owner: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OWNER",
            autocompletion=complete.one_of(*OWNERS),
            help="Only of this owner: app, bootc, deployment or foreign.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Foreign refs, too.")] = False,
    points_at: Annotated[
        str | None,
        typer.Option(metavar="NAME", autocompletion=complete.names, help="Only what names the same as this."),
    ] = None,
    sort: Annotated[
        str, typer.Option(metavar="KEY", autocompletion=complete.sort_keys, help=f"By {', '.join(_KEYS)}; -KEY reverses.")
    ] = "name",
    template: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="TEXT",
            autocompletion=complete.one_of("podman", "podman-json", "crane"),
            help="A line each, such as '{name} {digest}'; or podman, podman-json, crane.",
        ),
    ] = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="With facts of the images.")] = False,
    as_json: Json = False,
    as_lines: JsonLines = False,
) -> None:
    """List tags and deployment refs.

    A tag that is broken is a row that says so.  Nothing found is no error.

    The fields of --format are those of --json: name, digest, home, owner, ref, link, problem, expires, and of the
    image is_container, architecture, os, created, layer_count, referrer_count.  What is absent is shown as -.

    --format podman and podman-json show container images as "podman images" does, --format crane the names alone.

    \b
    Examples:
      cfs-tag list 'quay.io/org/*' --long
      cfs-tag list --points-at @sha256:9e9675
      cfs-tag list --owner bootc --sort -created --format '{name} {digest}'
    """
    key = sort.removeprefix("-")
    if key not in _KEYS:
        raise InvalidArgument(argument="--sort", value=sort, reason=f"is none of {', '.join(_KEYS)}")
    wanted = owners(owner) or (("app", "bootc", "deployment", "foreign") if everything else None)
    preset = template if template in ("podman", "podman-json", "crane") else None
    used = None if template is None or preset is not None else _fields_of(template)
    excluding(ctx, format=template is not None, json=as_json, jsonl=as_lines)
    excluding(ctx, owner=owner, all=everything)
    needs_images = long or key == "created" or (used is not None and not _PLAIN.keys() >= set(used))

    from cfs_tags import tags

    with ctx.obj.open() as repo:
        found = tags.list_tags(repo) if wanted is None else tags.list_tags(repo, owners=wanted)
        if patterns:
            found = _matching(found, patterns)
        if points_at is not None:
            digest = _digest(repo, points_at)
            found = [tag for tag in found if tag.digest == digest]
        images = None
        if needs_images:
            from cfs_tags.cli import rows

            images = rows.details(repo, found)
        if key != "name" or sort != key:
            found.sort(key=_order(key, images), reverse=sort != key)
        if preset is not None:
            from cfs_tags.cli import presets

            presets.show(repo, found, preset)
            return
    if template is not None:
        _print_formatted(found, template, used or [], images)
    else:
        _print(found, images if long else None, as_json, as_lines)


def _matching(found: list[Tag], patterns: list[str]) -> list[Tag]:
    import re
    from fnmatch import translate

    fits = re.compile("|".join([translate(pattern) for pattern in patterns])).match
    return [tag for tag in found if fits(tag.name)]


def _digest(repo: ReadRepo, text: str) -> Digest:
    from cfs_tags import tags
    from cfs_tags.errors import InvalidDigest
    from cfs_tags.values import Digest

    try:
        return tags.resolve(repo, text)
    except TargetNotFound:
        # a tag may well name a manifest that is gone
        try:
            return Digest.parse(text.removeprefix("@"))
        except InvalidDigest:
            pass
        raise


def _order(key: str, images: dict[Digest | None, Details] | None) -> Callable[[Tag], tuple[str, str]]:
    if key == "created":
        known = {digest: more.facts.created or "" if more.facts else "" for digest, more in (images or {}).items()}
        return lambda tag: (known[tag.digest], tag.name)
    index = _PLAIN[key]
    return lambda tag: (tag[index] or "", tag.name)


# -- printing ----------------------------------------------------------------------------------------------------------


def _print(found: list[Tag], images: dict[Digest | None, Details] | None, as_json: bool, as_lines: bool) -> None:
    from cfs_tags.cli.rows import notes, to_json

    if as_json:
        output.document_of_rows("list", to_json(found, images))
    elif as_lines:
        output.lines(to_json(found, images))
    else:
        more = [None if images is None else images[tag.digest] for tag in found]
        heading = ["NAME", "DIGEST", "OWNER", "HOME", *(("CREATED", "PLATFORM", "LAYERS") if images else ()), "NOTES"]
        output.table(
            heading,
            [
                (tag.name, tag.digest or tag.link, tag.owner, tag.home, *_facts(image), notes(tag, image))
                for tag, image in zip(found, more, strict=True)
            ],
        )


def _facts(image: Details | None) -> tuple[object, ...]:
    if image is None:
        return ()
    if image.facts is None:
        return ("-", "-", "-")
    facts = image.facts
    platform = f"{facts.os}/{facts.architecture}" if facts.is_container else "artifact"
    return (facts.created or "-", platform, facts.layer_count)


def _fields_of(template: str) -> list[str]:
    """The fields of a template, in order.

    Raises:
        InvalidArgument: there is no such field, or the braces make no sense.
    """
    from string import Formatter

    try:
        pieces = [(field, spec, conversion) for _, field, spec, conversion in Formatter().parse(template)]
    except ValueError as error:
        raise InvalidArgument(argument="--format", value=template, reason=f"cannot be read: {error}") from None
    used = []
    for field, spec, conversion in pieces:
        if field is None:
            continue
        if field not in _PLAIN and field not in _LONG:
            raise InvalidArgument(
                argument="--format", value=template, reason=f"has no field {field!r}: {', '.join((*_PLAIN, *_LONG))}"
            )
        if spec or conversion:
            raise InvalidArgument(argument="--format", value=template, reason="has more than a name in its braces")
        used.append(field)
    return used


def _print_formatted(found: list[Tag], template: str, used: list[str], images: dict[Digest | None, Details] | None) -> None:
    """One line each.  Thousands of them are usual: the template is compiled, and escaping looks at all text at once."""
    from string import Formatter

    pieces = [
        literal.replace("%", "%%") + ("" if field is None else "%s")
        for literal, field, _, _ in Formatter().parse(template.replace("\\t", "\t").replace("\\n", "\n"))
    ]
    line = "".join(pieces) + "\n"
    columns: list[list[Any]] = [_column(field, found, images) for field in used]
    if columns:
        output.emit("".join([line % cells for cells in zip(*columns, strict=True)]))
    else:
        output.emit((line % ()) * len(found))


def _column(field: str, found: list[Tag], images: dict[Digest | None, Details] | None) -> list[Any]:
    if field in _LONG and images is not None:
        known = {digest: _shown(field, more) for digest, more in images.items()}
        return [known[tag.digest] for tag in found]
    index = _PLAIN[field]
    values = [tag[index] or "-" for tag in found]
    if field == "expires":
        return [output.instant(value) for value in values]
    if field == "problem" and images is not None:
        values = [tag.problem or images[tag.digest].problem or "-" for tag in found]
    joined = "".join(values)
    return values if joined.isascii() and joined.isprintable() else [printable(value) for value in values]


def _shown(field: str, more: Details) -> str:
    if field == "referrer_count":
        return str(more.referrers)
    value = None if more.facts is None else getattr(more.facts, field)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "-" if value is None or value == "" else printable(value)
