"""The sets of a collector: a mistake here is lost content."""

from __future__ import annotations

import hashlib

import pytest

from cfs_tags.inventory import Keys, key_of, keys_of_names


def ids(count: int, size: int) -> list[str]:
    return [hashlib.shake_256(str(number).encode()).hexdigest(size) for number in range(count)]


@pytest.mark.parametrize("size", [32, 64])
def test_what_was_added_is_in_the_set_and_nothing_else(size: int) -> None:
    some, others = ids(2000, size)[:1000], ids(2000, size)[1000:]
    keys = Keys(size)
    keys.update(bytes.fromhex("".join(some[:900])))
    for one in some[900:]:
        keys.add(one)
    keys.update(bytes.fromhex(some[0]))  # once more
    assert all(one in keys for one in some)
    assert not any(one in keys for one in others)
    assert len(keys) == len(some)
    assert {key_of(one) for one in some if one.startswith("7f")} == keys.of("7f")


@pytest.mark.parametrize("how", ["add", "update"])
def test_an_answer_is_never_older_than_the_set(how: str) -> None:
    first, second = f"ab{'0' * 126}", f"ab{'1' * 126}"
    keys = Keys(64)
    assert first not in keys
    keys.add(first)
    assert first in keys
    assert second not in keys
    if how == "add":
        keys.add(second)
    else:
        keys.update(bytes.fromhex(second))
    assert second in keys
    assert len(keys) == 2


def test_names_that_are_no_digests_give_no_keys() -> None:
    good = [one[2:] for one in ids(4, 32)]
    assert keys_of_names("ab", good, 64) is not None
    for odd in ([good[0][:-1], f"{good[1]}0", *good[2:]], [good[0][:-2] + "  ", *good[1:]], [good[0][:-1] + "x"], ["junk"]):
        assert keys_of_names("ab", odd, 64) is None
