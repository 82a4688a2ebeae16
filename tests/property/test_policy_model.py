"""Any policy over any tags: what ``check`` says is what ``apply`` does, twice is as once, and more to keep never drops more."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfs_tags import Repository, WriteRepository
from cfs_tags.host import good
from cfs_tags.policy import plan
from cfs_tags.policy.retention import ALL, Counts
from cfs_tags.policy.rules import Policy, Rule
from cfs_tags.repo.transaction import run
from cfs_tags.values import DeploymentId, Digest
from support.peers import Cfsctl
from support.stock import IMAGES, digest_of

DAY = 86400.0
NOON = 1_790_000_000.0
COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


class Made(NamedTuple):
    """A tag: where it stands, what it names, and how many hours before NOON it was made."""

    group: str
    number: int
    image: str
    hours: int
    lease: bool


TAGS = st.lists(
    st.builds(
        Made,
        st.sampled_from(("a", "b")),
        st.integers(0, 6),
        st.sampled_from(IMAGES),
        st.integers(-48, 900),
        st.sampled_from((False, False, False, True)),
    ),
    max_size=10,
    unique_by=lambda made: made[:2],
)
RULES = st.lists(
    st.builds(
        Rule,
        st.just("p"),
        st.just(1),
        st.sampled_from((("a:*",), ("b:*",), ("*:[0-3]",), ("[ab]:*",))),
        st.builds(Counts, *(st.integers(-1, 3) for _ in COUNTS)),
        st.sampled_from(((), ("*:0",))),
        st.sampled_from(("repository", "rule")),
        st.just("logged"),
        st.integers(-1, 3),
    ),
    min_size=1,
    max_size=3,
)
GOOD = st.lists(st.sampled_from(IMAGES), max_size=4, unique=True)
slowly = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fill(repo: WriteRepository, where: Path, tags: list[Made], booted: list[str]) -> None:
    """Take away what is there, and make these tags, each at its time."""
    for tag in repo.tags.list(["a:*", "b:*"]):
        repo.tags.delete(tag.name)
    repo.tags.empty_trash()
    for path in (where / "cfs-tags").rglob("*"):
        if path.is_file() and path.name != "refs.lock":
            path.unlink()
    for made in sorted(tags, key=lambda each: -each.hours):
        with patch("time.time", lambda made=made: NOON - made.hours * 3600.0):
            name, target = f"{made.group}:{made.number}", f"@{digest_of(where, made.image)}"
            repo.tags.create(name, target, home="private")
            if made.lease:
                repo.tags.create(name, target, force=True, expires=plan.datetime(2100, 1, 1, tzinfo=plan.UTC))
    boots = tuple(
        good.GoodBoot(DeploymentId(f"{number:0128x}"), Digest(digest_of(where, image)), "then", "then", 1)
        for number, image in enumerate(booted)
    )
    run.transact(repo, lambda: good.GoodPlan(boots), prepare=lambda made: good._write(repo, made.good))


def dropped(repo: Repository, rules: list[Rule]) -> set[str]:
    now = plan.datetime.fromtimestamp(NOON, plan.UTC)
    rows = plan.plan(repo, Policy(rules), now, allow_empty_group=True)
    return {row.tag.name for row in rows if not row.reasons}


@slowly
@given(TAGS, RULES, GOOD)
def test_apply_does_what_check_says_and_once_more_changes_nothing(
    stocked: Path, cfsctl: Cfsctl, tags: list[Made], rules: list[Rule], booted: list[str]
) -> None:
    with Repository.open(stocked, write=True) as repo, patch("time.time", lambda: NOON):
        fill(repo, stocked, tags, booted)
        before = {tag.name: tag.digest for tag in repo.tags.list()}
        said = dropped(repo, rules)

        def apply() -> set[str]:
            made = run.transact(repo, lambda: plan.plan_drops(repo, Policy(rules), allow_empty_group=True, trust_clock=True))
            return {result.name for result in made.results}

        assert apply() == said
        assert {tag.name: tag.digest for tag in repo.tags.list()} == {
            name: digest for name, digest in before.items() if name not in said
        }
        assert {tag.name.removeprefix("@trash/") for tag in repo.tags.trash()} == said
        assert apply() == set()
        for made in tags:
            assert not (made.lease and f"{made.group}:{made.number}" in said)
        assert not any([made.image] == booted[-1:] and f"{made.group}:{made.number}" in said for made in tags)


@slowly
@given(TAGS, RULES, GOOD, st.sampled_from((*COUNTS, "good")), st.integers(0, 2))
def test_a_bigger_count_never_drops_more(
    stocked: Path, tags: list[Made], rules: list[Rule], booted: list[str], name: str, which: int
) -> None:
    rule = rules[which % len(rules)]
    count = rule.good if name == "good" else getattr(rule.counts, name)
    with Repository.open(stocked, write=True) as repo, patch("time.time", lambda: NOON):
        fill(repo, stocked, tags, booted)
        few = dropped(repo, rules)
        for more in () if count == ALL else (count + 1, 100, ALL):
            bigger = rule._replace(good=more) if name == "good" else rule._replace(counts=rule.counts._replace(**{name: more}))
            changed = [bigger if each is rule else each for each in rules]
            assert dropped(repo, changed) <= few
