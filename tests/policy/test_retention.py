"""Retention by counts: what restic keeps of the same times, and the edges of its periods."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfs_tags.policy.retention import Counts, Dated, verdicts

RESTIC = json.loads((Path(__file__).parent.parent / "data/restic_retention.json").read_text())
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def counts(rule: dict[str, int]) -> Counts:
    hours = rule.get("within_hours")
    named: dict[str, Any] = {name: rule[name] for name in RULES if name in rule}
    return Counts(**named, within=None if hours is None else timedelta(hours=hours))


def kept(times: list[datetime], rule: Counts, now: datetime = NOW) -> list[datetime]:
    return [each.time for each in verdicts([Dated(None, time) for time in times], rule, now) if each.reasons]


def at(*text: str, zone: timezone | ZoneInfo = UTC) -> list[datetime]:
    return [datetime.fromisoformat(each).replace(tzinfo=zone) for each in text]


@pytest.mark.parametrize(
    "case", RESTIC["cases"], ids=lambda case: "-".join(f"{k}{v}" for k, v in case["rule"].items()) or "none"
)
def test_the_same_times_stay_as_with_restic(case: dict[str, Any]) -> None:
    times = [datetime.fromisoformat(text) for text in RESTIC["times"]]

    assert kept(times, counts(case["rule"])) == [datetime.fromisoformat(text) for text in case["keep"]]


@pytest.mark.parametrize(
    ("rule", "times", "stay"),
    [
        ("hourly", ("2024-03-01T00:59:59", "2024-03-01T01:00:00"), (1, 0)),
        ("daily", ("2024-02-28T23:59:59", "2024-02-29T00:00:00", "2024-02-29T23:59:59", "2024-03-01T00:00:00"), (3, 2)),
        ("daily", ("2023-02-28T12:00:00", "2023-03-01T12:00:00"), (1, 0)),
        ("weekly", ("2024-12-29T23:59:59", "2024-12-30T00:00:00", "2025-01-05T23:59:59", "2025-01-06T00:00:00"), (3, 2)),
        ("monthly", ("2024-01-31T23:59:59", "2024-02-01T00:00:00", "2024-02-29T00:00:00"), (2, 0)),
        ("yearly", ("2023-12-31T23:59:59", "2024-01-01T00:00:00", "2024-12-31T23:59:59"), (2, 0)),
    ],
)
def test_two_periods_keep_the_newest_of_each(rule: str, times: tuple[str, ...], stay: tuple[int, ...]) -> None:
    dates = at(*times)

    assert kept(dates, Counts(**{rule: 2})) == [dates[number] for number in stay]


def test_things_of_the_same_second_are_counted_each() -> None:
    things = [Dated(name, NOW) for name in ("a", "b", "c")]

    assert [each.thing for each in verdicts(things, Counts(last=2), NOW) if each.reasons] == ["a", "b"]
    assert [each.thing for each in verdicts(things, Counts(daily=1), NOW) if each.reasons] == ["a"]


def test_a_day_is_one_of_the_zone_that_a_time_is_given_in() -> None:
    """Two times on one day in UTC are on two days in Auckland, on both sides of the change to summer time, too."""
    for day in ("2024-06-10", "2024-12-10"):
        utc = at(f"{day}T10:00:00", f"{day}T13:00:00")
        auckland = [time.astimezone(ZoneInfo("Pacific/Auckland")) for time in utc]

        assert len(kept(utc, Counts(daily=1))) == 1
        assert len(kept(auckland, Counts(daily=2))) == 2
        assert [time.day for time in kept(auckland, Counts(daily=2))] == [11, 10]


def test_what_is_dated_in_the_future_stays_and_counts_for_no_rule() -> None:
    past, future = at("2025-01-01", "2025-01-02"), at("2036-01-01", "2036-01-02", "2036-01-03")

    assert kept([*past, *future], Counts(last=1)) == [*future[::-1], past[1]]
    assert kept([*past, *future], Counts(within=timedelta(hours=1))) == [*future[::-1], past[1]]


def test_a_rule_of_age_looks_back_from_the_newest_however_late_it_is() -> None:
    times = at("2020-01-01", "2020-01-20", "2020-01-31")

    assert kept(times, Counts(within=timedelta(days=30))) == [times[2], times[1]]


# -- properties --------------------------------------------------------------------------------------------------------

TIMES = st.lists(
    st.datetimes(datetime(2019, 1, 1), datetime(2027, 1, 1)).map(lambda time: time.replace(tzinfo=UTC)), max_size=40
)
RULE = st.tuples(*(st.integers(-1, 5) for _ in RULES), st.none() | st.timedeltas(timedelta(0), timedelta(900))).map(
    lambda values: Counts(*values)
)


@given(TIMES, RULE)
def test_what_stayed_stays_when_the_rules_are_applied_again(times: list[datetime], rule: Counts) -> None:
    once = kept(times, rule)

    assert kept(once, rule) == once


@given(TIMES, RULE, st.sampled_from(RULES))
def test_a_bigger_count_never_drops_more(times: list[datetime], rule: Counts, name: str) -> None:
    count = getattr(rule, name)
    for more in (count + 1, 100, -1) if count >= 0 else ():
        bigger = kept(times, rule._replace(**{name: more}))

        assert not set(kept(times, rule)) - set(bigger)


@given(TIMES, RULE, st.timedeltas(timedelta(0), timedelta(900)))
def test_a_longer_time_never_drops_more(times: list[datetime], rule: Counts, more: timedelta) -> None:
    if rule.within is not None:
        assert not set(kept(times, rule)) - set(kept(times, rule._replace(within=rule.within + more)))


@given(TIMES, RULE)
def test_rules_keep_what_each_of_them_keeps_alone(times: list[datetime], rule: Counts) -> None:
    alone = [Counts(**{name: getattr(rule, name)}) for name in RULES]
    alone.append(Counts(within=rule.within))

    assert set(kept(times, rule)) == {time for each in alone for time in kept(times, each)}
