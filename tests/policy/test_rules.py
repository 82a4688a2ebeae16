"""The text of a policy: strict, because a word that is misspelt would drop what it should keep."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfs_tags.errors import CfsTagsError, UsageError
from cfs_tags.policy.retention import ALL, Counts
from cfs_tags.policy.rules import Policy, Rule, fits, parse

RULE = '[[rule]]\ntags = ["a:*"]\n'


def test_all_that_a_rule_can_say() -> None:
    text = """
        [trash]
        keep-for = "1d12h"
        [[rule]]
        tags = ["quay.io/org/*", "*:nightly-*"]
        keep-last = 3
        keep-hourly = 1
        keep-daily = 7
        keep-weekly = 4
        keep-monthly = 12
        keep-yearly = "all"
        keep-within = "30d"
        keep-tags = "*:latest"
        group-by = "rule"
        time = "logged"
        [[rule]]
        tags = "x"
        keep-last = 1
    """
    found = parse(text.encode(), "p.toml")

    assert (found.kept_by_policy, found.kept_by_delete) == (36 * 3600, 36 * 3600)
    assert found.rules == (
        Rule(
            "p.toml", 1, ("quay.io/org/*", "*:nightly-*"),
            Counts(3, 1, 7, 4, 12, ALL, timedelta(days=30)), ("*:latest",), "rule", "logged",
        ),
        Rule("p.toml", 2, ("x",), Counts(1)),
    )  # fmt: skip


def test_a_policy_with_nothing_in_it_has_no_rule() -> None:
    assert parse(b"", "p").rules == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rule", "no TOML"),
        ("\0", "no TOML"),
        (f"{RULE}keep-last = {'9' * 5000}", "no TOML"),
        (f"{RULE}keep-last = {'[' * 100_000}", "no TOML"),
        ("x = 1", "'x'"),
        ("[rules]", "'rules'"),
        ("rule = 1", "[[rule]]"),
        ("rule = [1]", "rule 1 is no table"),
        ("[[rule]]\nkeep-last = 1", "for which tags"),
        ("[[rule]]\ntags = []\nkeep-last = 1", "tags is empty"),
        ("[[rule]]\ntags = [1]\nkeep-last = 1", "patterns"),
        ('[[rule]]\ntags = [""]\nkeep-last = 1', "patterns"),
        (f'[[rule]]\ntags = ["{"a" * 256}"]\nkeep-last = 1', "patterns"),
        (RULE, "keeps nothing"),
        (f"{RULE}keep-last = 0", "keeps nothing"),
        (f"{RULE}keep-lats = 3", "'keep-lats'"),
        (f"{RULE}keep-last = -1", "keep-last is no count"),
        (f"{RULE}keep-last = true", "keep-last is no count"),
        (f"{RULE}keep-last = 1.5", "keep-last is no count"),
        (f'{RULE}keep-last = "3"', "keep-last is no count"),
        (f"{RULE}keep-within = 30", "no duration"),
        (f'{RULE}keep-within = "30"', "no duration"),
        (f'{RULE}keep-within = "999999999w"', "no duration"),
        (f'{RULE}keep-last = 1\ngroup-by = "tag"', "group-by is none of"),
        (f'{RULE}keep-last = 1\ntime = "mtime"', "time is none of"),
        ('[trash]\nkeep-for = "soon"', "trash.keep-for is no duration"),
        ("[trash]\nkeep = 1", "'keep'"),
        (f"{RULE}keep-last = 1\n" * 1001, "at most 1000"),
        ("a." * 20000 + "b = 1", ""),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(CfsTagsError) as raised:
        parse(text.encode(), "some/policy.toml")

    assert raised.value.code == "invalid-policy"
    assert "some/policy.toml" in str(raised.value)
    assert says in str(raised.value)


@given(st.binary(max_size=200) | st.text(alphabet='[]{}=".,\n rulekp-1', max_size=200).map(str.encode))
def test_any_text_is_a_policy_or_an_error(text: bytes) -> None:
    with suppress(UsageError):
        parse(text, "p")


LONG = ".".join(["a"] * 50_000)


@pytest.mark.parametrize(
    "text",
    [
        *(f"{LONG} = 1", f"[{LONG}]", f"[[{LONG}]]", f"{RULE}{LONG} = 1", f'{RULE}"x" . {LONG} = "y" # z'),
        '"' + '"."'.join(["a/b,"] * 50_000) + '" = 1',
        "'" + "' . '".join(['"'] * 50_000) + "' = 1",
        '"' + '\\"' * 100_000 + "\\",
        "\n".join(f"{'.'.join('abcdefgh' * 2)}.{number} = 1" for number in range(4000)),
    ],
    ids=range(9),
)
def test_work_is_linear_in_the_text(text: str) -> None:
    started = time.process_time()

    with pytest.raises(UsageError):
        parse(text.encode(), "policy.toml")

    assert time.process_time() - started < 3


def test_dots_in_texts_and_comments_are_no_parts_of_a_key() -> None:
    names = ", ".join(f'"quay.io/{number}.x.y:1"' for number in range(200))
    dots = "." * 200
    text = f'# {dots}\n[[rule]] # {dots}\ntags = [{names}, \'{dots}\', "\\"{dots}"]\nkeep-last = 1\n'

    assert len(parse(text.encode(), "policy.toml").rules[0].tags) == 202


def test_the_first_rule_that_fits_decides() -> None:
    first, second = Rule("own", 1, ("a:1*",), Counts(1)), Rule("etc", 1, ("a:*", "b"), Counts(2))
    both = Policy([first], keep_for=5).before(Policy([second], keep_for=9))

    assert [both.rule_of(name) for name in ("a:1", "a:10", "a:2", "b", "bb")] == [first, first, second, second, None]
    assert both.keep_for == 5


def test_tags_are_counted_by_repository_or_by_rule() -> None:
    rule = Rule("p", 1, ("*",), Counts(1))

    assert rule.group("quay.io:5000/org/app:1") == "quay.io:5000/org/app"
    assert rule.group("app") == "app"
    assert len({rule._replace(group_by="rule").group(name) for name in ("a:1", "b:1")}) == 1
    assert fits("a:latest", ("*:latest",))
    assert not fits("a:latest", ())
