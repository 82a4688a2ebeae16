"""The checker of histories knows right ones from wrong ones."""

from __future__ import annotations

import math
import random

import pytest

from support.history import ABSENT, ANY, Kind, Operation, explain


def read(called: float, returned: float, value: str) -> Operation:
    return Operation(called, returned, Kind.READ, value)


def write(called: float, returned: float, value: str) -> Operation:
    return Operation(called, returned, Kind.WRITE, value)


def swap(called: float, returned: float, old: str, new: str) -> Operation:
    return Operation(called, returned, Kind.SWAP, new, old)


def test_what_happened_one_after_the_other_is_explained() -> None:
    assert explain([swap(0, 1, ABSENT, "a"), read(2, 3, "a"), write(4, 5, "b"), read(6, 7, "b")]) is None


def test_an_old_value_after_a_new_one_was_read_is_not() -> None:
    found = explain([write(0, 10, "a"), read(1, 2, "a"), read(3, 4, ABSENT)])

    assert found is not None
    assert (found.explained, found.value) == (2, "a")


def test_two_updates_of_the_same_value_are_a_lost_one() -> None:
    assert explain([write(0, 1, "a"), swap(2, 5, "a", "b"), swap(3, 6, "a", "c")]) is not None
    assert explain([write(0, 1, "a"), swap(2, 5, "a", "b"), swap(3, 6, "b", "c")]) is None


def test_one_that_was_killed_may_come_late_or_never_or_be_taken_back() -> None:
    killed = [Operation(0, math.inf, Kind.MAYBE, "a", mark=1), Operation(0, math.inf, Kind.BACK, of=1)]

    assert explain([*killed, read(5, 6, ABSENT)]) is None
    assert explain([*killed, read(5, 6, ABSENT), read(7, 8, "a"), read(9, 10, ABSENT)]) is None
    assert explain([*killed, read(7, 8, "a"), read(9, 10, ABSENT), read(11, 12, "a")]) is not None


def test_one_that_failed_may_be_seen_until_it_returns_and_not_after() -> None:
    failed = [Operation(0, 10, Kind.MAYBE, "a", mark=1), Operation(0, 10, Kind.BACK, of=1)]

    assert explain([*failed, read(5, 6, "a"), read(11, 12, ABSENT)]) is None
    assert explain([*failed, read(11, 12, "a")]) is not None


def test_one_that_failed_is_not_seen_by_who_waits_for_transactions() -> None:
    failed = [Operation(0, 10, Kind.MAYBE, "a", mark=1), Operation(0, 10, Kind.BACK, of=1)]
    killed = [Operation(0, math.inf, Kind.MAYBE, "a", mark=1), Operation(0, math.inf, Kind.BACK, of=1)]
    looks = [Operation(5, 6, Kind.LOOK, "a"), Operation(11, 12, Kind.LOOK, ABSENT)]

    assert explain([*failed, *looks]) is not None
    assert explain([*failed, *looks[1:]]) is None
    assert explain([*killed, *looks]) is None


def test_a_value_that_is_not_known_is_the_one_that_is_seen() -> None:
    failed = [Operation(0, 20, Kind.MAYBE, ANY, mark=1), Operation(0, 20, Kind.BACK, of=1)]

    assert explain([*failed, read(5, 6, "a"), read(7, 8, "a"), read(9, 10, ABSENT)]) is None
    assert explain([*failed, read(5, 6, "a"), read(7, 8, "b")]) is not None
    assert explain([*failed, read(9, 10, ABSENT), read(21, 22, "a")]) is not None


def test_removing_takes_a_value() -> None:
    assert explain([Operation(0, 1, Kind.REMOVE)]) is not None
    assert explain([write(0, 3, "a"), Operation(1, 4, Kind.REMOVE), read(5, 6, ABSENT)]) is None


@pytest.mark.parametrize("seed", range(20))
def test_histories_of_a_real_register_are_explained_and_are_not_with_one_wrong_answer(seed: int) -> None:
    chance = random.Random(seed)
    value, now, history = ABSENT, 0.0, []
    for number in range(300):
        now += 1
        called, returned = now - chance.uniform(0, 4), now + chance.uniform(0, 4)
        match chance.randrange(3):
            case 0:
                history.append(read(called, returned, value))
            case 1:
                history.append(write(called, returned, f"v{number}"))
                value = f"v{number}"
            case _:
                history.append(swap(called, returned, value, f"v{number}"))
                value = f"v{number}"
    assert explain(history) is None
    history[150] = read(history[150].called, history[150].returned, "never written")
    found = explain(history)
    assert found is not None
    assert 130 < found.explained < 170
