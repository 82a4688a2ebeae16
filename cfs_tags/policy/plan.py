"""What a policy says of each tag of a repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, NotALink, RefusedError
from cfs_tags.host.good import good_boots, images_of
from cfs_tags.host.lookup import Index
from cfs_tags.policy import rules
from cfs_tags.policy.retention import ALL, Dated, verdicts
from cfs_tags.policy.rules import Policy, Rule
from cfs_tags.repo import clock, images, layout, reflog, refs
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags import edit, pins
from cfs_tags.tags.edit import TagPlan
from cfs_tags.tags.instructions import Instruction
from cfs_tags.tags.rows import Tag, expiry_here, list_tags, natural
from cfs_tags.values import Digest, instant_of


class Row(NamedTuple):
    """What becomes of a tag.

    Attributes:
        tag: the tag.
        rule: the first rule that fits its name; None where none does, or where no rule is asked.
        reasons: why it stays: names of what keeps it; none where it goes.
        time: what counts as its time, where that was looked at and is known.
    """

    tag: Tag
    rule: Rule | None
    reasons: tuple[str, ...]
    time: datetime | None = None


@refs.at_once
def plan(repo: ReadRepo, policy: Policy, now: datetime, *, allow_empty_group: bool = False) -> list[Row]:
    """What a policy says of each tag, by name.

    Tags of bootc's, leases, tags that are broken, tags whose image is pinned, or a deployment uses or is bound to, and those of
    the image that was booted successfully last, are never dropped, and count for no rule.

    Args:
        repo: whose tags.
        policy: the rules.
        now: the time that it is, with its zone.
        allow_empty_group: whether all tags of a group may be dropped.

    Raises:
        RefusedError: ``empty-group``.
        FormatError: the record of good boots is damaged.
        SystemFailure: the ref of a deployment cannot be read: it may be to any image; or, where a boot was recorded, an image:
            it may be the one that was booted.
    """
    tags = list_tags(repo, owners=("app", "bootc"))
    used = _used(repo)
    good = _good_images(repo)
    named = {*used, *(tag.digest for tag in tags if tag.digest is not None)}
    used |= dict.fromkeys(_last_good(good, named) - used.keys(), "last-good")
    known: dict[Digest, datetime | None] = {}
    unread: set[Digest] = set()
    logged = _Logged(repo, tags, now)
    rows: list[Row] = []
    groups: dict[tuple[Rule, str], list[Dated[Tag]]] = {}
    for tag in tags:
        rule = policy.rule_of(tag.name)
        reason = _why_never(tag, used) or ("no-rule" if rule is None else None)
        if reason is not None or rule is None:
            rows.append(Row(tag, None, (reason or "no-rule",)))
            continue
        time = logged.time(tag) if rule.time == "logged" else _created(repo, tag, known, unread)
        if time is None:
            rows.append(Row(tag, rule, ("unread" if tag.digest in unread else "no-time",)))
            continue
        groups.setdefault((rule, rule.group(tag.name)), []).append(Dated(tag, time))
    for (rule, group), things in groups.items():
        made = _apply(rule, things, good, now)
        if not allow_empty_group and not any(row.reasons for row in made):
            raise RefusedError("empty-group", rule=str(rule), group=group, count=len(made))
        rows += made
    return sorted(rows, key=lambda row: row.tag.name)


def plan_drops(
    repo: ReadRepo,
    policy: Policy,
    *,
    allow_empty_group: bool = False,
    trust_clock: bool = False,
    warnings: list[CfsTagsError] | None = None,
) -> TagPlan:
    """The deletion of all tags that a policy does not keep.

    Args:
        repo: whose tags.
        policy: the rules.
        allow_empty_group: whether all tags of a group may be dropped.
        trust_clock: whether a clock that has jumped is believed.
        warnings: has afterwards what stays because no rule could be asked (tags-unread), and nothing else.

    Raises:
        RefusedError: ``empty-group``; ``clock-ahead`` or ``clock-set-back`` where there is something to drop.
        FormatError: the record of good boots is damaged.
    """
    known = clock.read(repo, trusted=trust_clock)
    now = datetime.fromtimestamp(known.now, UTC)
    rows = plan(repo, policy, now, allow_empty_group=allow_empty_group)
    dropped = [row.tag for row in rows if not row.reasons]
    if warnings is not None:
        stuck = [row.tag.name for row in rows if row.reasons in (("unread",), ("broken",))]
        unread = tuple(name for name in stuck if policy.rule_of(name) is not None)
        warnings[:] = [CfsTagsError("tags-unread", names=unread)] if unread else []
    if dropped and known.doubt is not None:
        raise known.doubt
    expires = expiry_here(repo, policy.kept_by_policy) if policy.kept_by_policy else None
    return edit.plan(repo, [Instruction("delete", tag.name, expected=tag.value, expires=expires) for tag in dropped])


def _apply(rule: Rule, things: list[Dated[Tag]], good: list[set[Digest]], now: datetime) -> list[Row]:
    rows = []
    here = {each.thing.digest for each in things if each.thing.digest is not None}
    counted = [images & here for images in good if images & here]
    well = set[Digest]().union(*(counted if rule.good == ALL else counted[: rule.good]))
    # images that can be built again have one time: of these the later version counts as the newer
    things.sort(key=lambda each: natural(each.thing.name), reverse=True)
    for each in verdicts(things, rule.counts, now):
        named = ("tags",) if rules.fits(each.thing.name, rule.keep_tags) else ()
        booted = ("good",) if each.thing.digest in well else ()
        rows.append(Row(each.thing, rule, (*named, *booted, *each.reasons), each.time))
    return rows


def _why_never(tag: Tag, used: Mapping[Digest, str]) -> str | None:
    """Why no rule is asked about a tag."""
    if tag.owner != "app":
        return "bootc"
    if tag.home == "lease":
        return "lease"
    if tag.digest is None or tag.problem is not None:
        return "broken"
    return used.get(tag.digest)


def _used(repo: ReadRepo) -> dict[Digest, str]:
    """Images that are pinned, or that deployments have refs to: ``deployed`` is their own, ``bound`` an app's."""
    found: dict[Digest, str] = {}
    for top, reason in ((layout.PINS, "pinned"), (layout.BOUND, "bound"), (layout.DEPLOYMENTS, "deployed")):
        for path, link in refs.walk(repo, top):
            if pins.has_ended(repo, path):
                continue
            if link is None:
                with suppress(NotALink):
                    link = repo.read_link(path)
            with suppress(CfsTagsError):
                digest = layout.ref_target(path, link or "").manifest_digest
                if digest is not None:
                    found[digest] = reason
    return found


def _good_images(repo: ReadRepo) -> list[set[Digest]]:
    """The images that were booted successfully, those of the last such boot first."""
    index = Index(repo)
    found = [images_of(boot, index) for boot in reversed(good_boots(repo))]
    if index.unread:  # it may be one of them
        raise index.unread[0]
    return found


def _last_good(good: list[set[Digest]], named: set[Digest]) -> set[Digest]:
    """Of the images that something names the one that was booted successfully last."""
    return next((images & named for images in good if images & named), set())


class _Logged:
    """When tags moved last, as the log says: one look at all of it, which is done at the first question."""

    def __init__(self, repo: ReadRepo, tags: Sequence[Tag], now: datetime) -> None:
        self._repo = repo
        self._tags = tags
        self._now = now

    @cached_property
    def _moves(self) -> dict[str, tuple[str, str | None]]:
        return reflog.last_moves(self._repo, [tag.path for tag in self._tags])

    def time(self, tag: Tag) -> datetime | None:
        """When a tag moved last; now where another program has moved it since."""
        time, link = self._moves.get(tag.path, ("", None))
        return _here(time) if link == tag.link else self._now.astimezone()


def _created(repo: ReadRepo, tag: Tag, known: dict[Digest, datetime | None], unread: set[Digest]) -> datetime | None:
    assert tag.digest is not None
    if tag.digest not in known:
        try:
            image = images.load(repo, tag.digest)
        except CfsTagsError:
            known[tag.digest] = None
            unread.add(tag.digest)
        else:
            known[tag.digest] = _here(image.config.created if image.config is not None else None)
    return known[tag.digest]


def _here(text: str | None) -> datetime | None:
    """An instant in the zone of this system, whose days count; None where it is none, or its year is none there."""
    found = instant_of(text)
    try:
        return found.astimezone() if found is not None else None
    except (OverflowError, ValueError):  # year 1 in UTC, which programs write that know no time, is year 0 in the west
        return None
