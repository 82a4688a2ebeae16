"""Random repositories, collected and opened again, against a slow model of what refs keep."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cfs_tags import Repository, df
from support.collecting import collect, plan
from support.garbage import add_stream, link_of, model, names, object_paths, settle, sizes
from support.peers import Cfsctl
from support.stock import refs

KEYS = st.sampled_from(["config:sha256:{}", "sha256:{}", "inner", "composefs.image", "composefs.image.boot.v1"])


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[str, list[bytes], list[tuple[str, int]]]]:
    """Splitstreams in an order in which each may name those before it: content id, objects, keys and numbers of others."""
    found = []
    for number in range(draw(st.integers(2, 9))):
        kind = draw(st.sampled_from(["oci-layer-sha256:{}", "oci-config-sha256:{}", "oci-manifest-sha256:{}", "other-{}"]))
        digits = f"{draw(st.integers(0, 3)):064x}" if kind != "other-{}" else str(number)
        objects = [b"%064d" % draw(st.integers(0, 12)) * 3 for _ in range(draw(st.integers(0, 3)))]
        named = [
            (draw(KEYS).format(f"{draw(st.integers(0, 3)):064x}"), draw(st.integers(0, number - 1)))
            for _ in range(draw(st.integers(0, 3)) if number else 0)
        ]
        found.append((kind.format(digits), objects, named))
    return found


def test_what_refs_lead_to_stays_and_nothing_else(new_repo: Callable[..., Path], ram: Path, cfsctl: Cfsctl) -> None:
    numbers = count()

    @settings(max_examples=40, phases=(Phase.explicit, Phase.generate))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path = new_repo(ram / f"model-{next(numbers)}" / "composefs", data.draw(st.sampled_from(["sha256", "sha512"])))
        made: list[str] = []
        for content_id, objects, named in data.draw(streams(), "streams"):
            targets = {key: made[number] for key, number in named}
            (path / "streams").mkdir(exist_ok=True)
            taken = path / "streams" / content_id
            if taken.is_symlink() and data.draw(st.booleans(), "written again"):
                taken.unlink()  # as cfsctl does when it writes a config again: the older object loses its link
            made.append(add_stream(path, content_id, inside=b"%d" % len(made), objects=objects, named=targets))
        links = sorted(names(path, "streams"))
        kept = data.draw(st.lists(st.sampled_from(links), max_size=3, unique=True), "refs")
        for number, name in enumerate(kept):
            link_of(path, f"streams/refs/{'deep/' * number}{number}", name)
        settle()
        here = set(object_paths(path))
        wanted = model(path, cfsctl)
        with Repository.open(path) as repo:
            measured = df.measure(repo)

        planned = plan(path)
        done = collect(path)

        assert planned.swept == done.swept
        assert measured.live.objects == len(wanted.objects)
        assert measured.dead.objects == len(here - wanted.objects) == done.swept.objects
        assert measured.dead.allocated == done.swept.allocated
        assert set(object_paths(path)) == wanted.objects
        assert names(path, "streams") == wanted.streams
        assert measured.live.allocated == sizes(path, wanted.objects)
        assert sorted(refs(path)) == sorted(f"streams/refs/{'deep/' * number}{number}" for number in range(len(kept)))
        shutil.rmtree(path.parent)

    check()
