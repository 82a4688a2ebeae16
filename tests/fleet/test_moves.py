"""In which order tags move: whatever is wanted before and after keeps a tag in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cfs_tags.fleet.moves import Key, next_move
from cfs_tags.values import Digest

KEYS = st.builds(Key, st.sampled_from(["os", "apps"]), st.sampled_from(["booted", "staged", "rollback", "other", "pin"]))
DIGESTS = st.sampled_from([Digest.of(bytes([number])) for number in range(5)])
TAGS = st.dictionaries(KEYS, DIGESTS, max_size=8)


@given(TAGS, TAGS)
def test_what_stays_wanted_is_never_without_a_tag(before: dict[Key, Digest], wanted: dict[Key, Digest]) -> None:
    now = dict(before)
    held = {(key.repository, digest) for key, digest in before.items()}
    stay = {(key.repository, digest) for key, digest in wanted.items()} & held
    steps = 0
    while (move := next_move(now, wanted, "moving")) is not None:
        if move.digest is None:
            del now[move.key]
        else:
            now[move.key] = move.digest
        assert stay <= {(key.repository, digest) for key, digest in now.items()}, move
        steps += 1
        assert steps < 40
    assert now == wanted
    changed = sum(before.get(key) != digest for key, digest in wanted.items()) + len(before.keys() - wanted.keys())
    assert steps <= changed + 2 * len(wanted) // 2 + 2
