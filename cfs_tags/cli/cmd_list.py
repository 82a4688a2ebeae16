"""``cfs-tag list``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, view
from cfs_tags.cli.options import Json, JsonLines, excluding, owners
from cfs_tags.errors import UsageError, printable
from cfs_tags.values import OWNERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cfs_tags.cli.rows import Details
    from cfs_tags.tags.rows import Tag
    from cfs_tags.values import Digest

_PLAIN = {"name": 0, "digest": 1, "home": 2, "owner": 3, "ref": 4, "link": 5, "problem": 6, "expires": 7}
_LONG = ("is_container", "architecture", "os", "created", "layer_count", "referrer_count")
_READ_AT_ONCE = 200
"""Up to so many images are read for a table on a terminal."""
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
            help="Only of this owner: app, bootc, deployment, pin or foreign.",
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
        raise UsageError("invalid-argument", argument="--sort", value=sort, reason=f"is none of {', '.join(_KEYS)}")
    wanted = owners(owner) or (OWNERS if everything else ("app", "bootc", "deployment", "pin"))
    preset = template if template in ("podman", "podman-json", "crane") else None
    used = None if template is None or preset is not None else _fields_of(template)
    excluding(ctx, format=template is not None, json=as_json, jsonl=as_lines)
    excluding(ctx, owner=owner, all=everything)
    seen = view.on_terminal() and template is None and not (as_json or as_lines)
    needs_images = long or key == "created" or (used is not None and not _PLAIN.keys() >= set(used))

    from cfs_tags.tags.rows import list_tags, natural

    with ctx.obj.open() as repo:
        if patterns or points_at is not None:
            found = repo.tags.list(patterns or None, points_at=points_at, owners=wanted)
        else:  # half of that is not imported
            found = list_tags(repo, owners=wanted)
        images = None
        needs_images |= seen and len({tag.digest for tag in found}) <= _READ_AT_ONCE
        if needs_images:
            from cfs_tags.cli import rows

            images = rows.details(repo, found)
        if key != "name" or sort != key:
            found.sort(key=_order(key, images), reverse=sort != key)
        elif seen:
            found.sort(key=lambda tag: natural(tag.name))
        if preset is not None:
            from cfs_tags.cli import presets

            presets.show(repo, found, preset)
            return
    if template is not None:
        _print_formatted(found, template, used or [], images)
    elif seen:
        folds = not (long or everything or patterns or owner or points_at)
        _show(found, images, long, folds, patterns or ())
    else:
        _print(found, images if long else None, as_json, as_lines)


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
        output.data(to_json(found, images))
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


_BESIDE_NAMES = 68
"""Columns that the others of a listing take."""


def _show(
    found: list[Tag], images: dict[Digest | None, Details] | None, long: bool, folds: bool, patterns: Sequence[str]
) -> None:
    """A table for people: ages and sizes, bootc's own tags in one line, and how many there are."""
    from cfs_tags.cli.rows import folded, is_bootcs_own, notes

    shown = [tag for tag in found if not (folds and is_bootcs_own(tag))]
    more = [None if images is None else images[tag.digest] for tag in shown]
    # where there is little room, the owner is shown only if it is neither app nor deployment
    room = (view.columns(sys.stdout) or 0) - max([len(view.short_cell(tag.name)) for tag in shown], default=0)
    with_owner = long or room >= _BESIDE_NAMES or any(tag.owner not in ("app", "deployment") for tag in shown)
    columns: dict[str, list[object]] = {
        "NAME": [tag.name for tag in shown],
        "DIGEST": [tag.digest or tag.link for tag in shown],
        "AGE": [] if long else [output.age(image.facts.created) if image and image.facts else None for image in more],
        "SIZE": [output.compact(image.size) if image and image.size is not None else None for image in more],
        "OWNER": [tag.owner for tag in shown] if with_owner else [],
        "HOME": [tag.home for tag in shown],
    }
    if long:
        facts = [_facts(image) for image in more]
        columns |= {name: [row[at] for row in facts] for at, name in enumerate(("CREATED", "PLATFORM", "LAYERS"))}
    columns["NOTES"] = [notes(tag, image) for tag, image in zip(shown, more, strict=True)]
    used = {name: cells for name, cells in columns.items() if cells}
    if shown:
        output.table(list(used), list(zip(*used.values(), strict=True)))
    if len(shown) < len(found):
        output.lines([folded(len(found) - len(shown), "; --owner bootc lists them")])
    output.lines([_total(found, patterns)])


def _total(found: list[Tag], patterns: Sequence[str]) -> str:
    refs = sum(tag.home == "deployment" for tag in found)
    pins = sum(tag.owner == "pin" for tag in found)
    counted = ((len(found) - refs - pins, "tag"), (pins, "pin"), (refs, "deployment ref"))
    parts = [output.count(number, noun) for number, noun in counted if number]
    if parts:
        return ", ".join(parts)
    fitting = f" match {' or '.join(repr(printable(pattern)) for pattern in patterns)}" if patterns else ""
    return f"no tags{fitting}"


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
        UsageError: there is no such field, or the braces cannot be read.
    """
    from string import Formatter

    try:
        pieces = [(field, spec, conversion) for _, field, spec, conversion in Formatter().parse(template)]
    except ValueError as error:
        raise UsageError("invalid-argument", argument="--format", value=template, reason=f"cannot be read: {error}") from None
    used = []
    for field, spec, conversion in pieces:
        if field is None:
            continue
        if field not in _PLAIN and field not in _LONG:
            raise UsageError(
                "invalid-argument",
                argument="--format",
                value=template,
                reason=f"has no field {field!r}: {', '.join((*_PLAIN, *_LONG))}",
            )
        if spec or conversion:
            raise UsageError(
                "invalid-argument", argument="--format", value=template, reason="has more than a name in its braces"
            )
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
