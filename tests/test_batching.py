"""Who goes together, and when: `Batcher` under a clock that the tests hold."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_tfpool.predictors.batching import Batcher, Part


def add(
    batcher: Batcher[str], request: str, rows: int = 1, key: str = "k", max_size: int = 8, now: float = 0.0
) -> None:
    batcher.add(request, rows=rows, key=key, max_size=max_size, now=now)


def test_nothing_waits() -> None:
    batcher: Batcher[str] = Batcher(max_wait=0.25)
    assert batcher.delay(now=100.0) is None
    assert [] == batcher.take(now=100.0)
    assert (0, 0, 0.0) == (batcher.requests, batcher.rows, batcher.batches)


def test_lonely_request() -> None:
    """A request that finds no company leaves after max_wait seconds."""
    batcher: Batcher[str] = Batcher(max_wait=0.25)
    add(batcher, "a", now=100.0)
    assert 0.125 == batcher.delay(now=100.125)
    assert [] == batcher.take(now=100.125)
    assert 0.0 == batcher.delay(now=100.25)
    assert [Part("a", 0, 1)] == batcher.take(now=100.25)


def test_full_batch_does_not_wait() -> None:
    batcher: Batcher[str] = Batcher(max_wait=60.0)
    for request in "abc":
        add(batcher, request, rows=4, now=100.0)
    assert 0.0 == batcher.delay(now=100.0)
    assert [Part("a", 0, 4), Part("b", 0, 4)] == batcher.take(now=100.0)
    assert [] == batcher.take(now=100.0)


def test_nobody_left_to_come() -> None:
    """When all who could ask wait, there is no company to wait for, also under another key."""
    batcher: Batcher[str] = Batcher(max_wait=60.0, callers=2)
    add(batcher, "a", key="x", now=100.0)
    assert [] == batcher.take(now=100.0)
    add(batcher, "b", key="y", now=100.5)
    assert 0.0 == batcher.delay(now=100.5)
    assert [Part("a", 0, 1)] == batcher.take(now=100.5)


def test_without_max_wait_it_goes_at_once() -> None:
    batcher: Batcher[str] = Batcher(max_wait=0.0)
    add(batcher, "a", now=100.0)
    assert [Part("a", 0, 1)] == batcher.take(now=100.0)


def test_larger_than_a_batch() -> None:
    """It is split, and takes turns with smaller ones, whose batches it fills."""
    batcher: Batcher[str] = Batcher(max_wait=0.0)
    add(batcher, "large", rows=19)
    add(batcher, "small", rows=2)
    assert [Part("small", 0, 2), Part("large", 0, 6)] == batcher.take(now=0.0)
    add(batcher, "full", rows=8)
    add(batcher, "next", rows=1)
    assert [Part("full", 0, 8)] == batcher.take(now=0.0)
    assert [Part("large", 6, 14)] == batcher.take(now=0.0)
    assert [Part("next", 0, 1), Part("large", 14, 19)] == batcher.take(now=0.0)
    assert [] == batcher.take(now=0.0)


def test_several_larger_than_a_batch() -> None:
    """They take turns with each other."""
    batcher: Batcher[str] = Batcher(max_wait=0.0)
    for request in "ab":
        add(batcher, request, rows=12)
    assert [
        [Part("a", 0, 8)],
        [Part("b", 0, 8)],
        [Part("a", 8, 12)],
        [Part("b", 8, 12)],
    ] == [batcher.take(now=0.0) for _ in range(4)]


@pytest.mark.parametrize("same_key", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_nobody_waits_for_a_large_one(same_key: bool, seconds: float) -> None:
    """While one of a million rows is computed, a request of one row leaves with one of the next two batches."""
    batcher: Batcher[str] = Batcher(max_wait=0.0)
    add(batcher, "large", rows=1_000_000, key="large")
    now = 0.0
    for _ in range(100):
        batcher.take(now)
        add(batcher, "small", key="large" if same_key else "small", now=now)
        now += seconds
        left = [part.request for _ in range(2) for part in batcher.take(now)]
        assert 1 == left.count("small")
    assert batcher.batches < 1.0  # others may come all the while


def test_small_requests_are_not_split() -> None:
    batcher: Batcher[str] = Batcher(max_wait=0.0)
    add(batcher, "a", rows=5)
    add(batcher, "b", rows=5)
    assert [Part("a", 0, 5)] == batcher.take(now=0.0)
    assert [Part("b", 0, 5)] == batcher.take(now=0.0)


def test_keys_are_not_mixed() -> None:
    """The oldest request goes first, whatever its key, once it is due."""
    batcher: Batcher[str] = Batcher(max_wait=1.0)
    add(batcher, "old", key="x", now=0.0)
    for number in range(8):
        add(batcher, str(number), key="y", now=0.5)
    assert [Part(str(number), 0, 1) for number in range(8)] == batcher.take(now=0.5)
    for number in range(8):
        add(batcher, str(number), key="y", now=1.0)
    assert [Part("old", 0, 1)] == batcher.take(now=1.0)


def test_next_to_others() -> None:
    """While batches are being computed only a full one leaves, and no more at a time than its key allows."""
    batcher: Batcher[str] = Batcher(max_wait=0.0)

    def come(request: str, key: str, now: float, parallel: int) -> None:
        batcher.add(request, rows=4, key=key, max_size=8, now=now, parallel=parallel)

    come("a", "x", now=0.0, parallel=2)
    assert [] == batcher.take(now=1.0, running=1)
    come("b", "x", now=1.0, parallel=2)
    assert not batcher.is_due(now=1.0, running=2)
    assert [] == batcher.take(now=1.0, running=2)
    assert batcher.is_due(now=1.0, running=1)
    assert [Part("a", 0, 4), Part("b", 0, 4)] == batcher.take(now=1.0, running=1)
    # Another key waits until nothing is computed, and whoever comes after it waits with it.
    come("c", "y", now=2.0, parallel=1)
    come("d", "y", now=2.0, parallel=1)
    come("e", "x", now=3.0, parallel=2)
    come("f", "x", now=3.0, parallel=2)
    assert [] == batcher.take(now=3.0, running=1)
    assert [Part("c", 0, 4), Part("d", 0, 4)] == batcher.take(now=3.0)
    assert [Part("e", 0, 4), Part("f", 0, 4)] == batcher.take(now=3.0, running=1)


def test_removed_request() -> None:
    """What nobody waits for is not computed; parts that have gone stay gone."""
    batcher: Batcher[str] = Batcher(max_wait=0.0)
    large = "large"
    add(batcher, large, rows=20)
    batcher.take(now=0.0)
    add(batcher, "small")
    batcher.remove(large)
    assert (1, 1, 0.125) == (batcher.requests, batcher.rows, batcher.batches)
    assert [Part("small", 0, 1)] == batcher.take(now=0.0)
    assert batcher.delay(now=0.0) is None


def test_weight() -> None:
    """How much of the bound of the queue a request takes can differ from its rows."""
    batcher: Batcher[str] = Batcher(max_wait=0.0)
    batcher.add("a", rows=1, key="a", max_size=1, now=0.0, weight=0.25)
    add(batcher, "b", rows=4)
    assert 0.75 == batcher.batches


# -- whatever comes -------------------------------------------------------------


@dataclass(eq=False)
class Request:
    number: int
    rows: int
    key: int


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 40), st.integers(0, 3)),
        st.tuples(st.just("take"), st.floats(0, 2), st.integers(0, 3)),
        st.tuples(st.just("remove"), st.integers(0, 50)),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(steps=steps, max_size=st.integers(1, 16), max_wait=st.sampled_from([0.0, 0.5, 3.0]))
def test_every_row_once(steps: list[tuple[object, ...]], max_size: int, max_wait: float) -> None:
    """Every row of every request leaves exactly once, in order, in a batch of its key that is not too large; and of two
    requests of one key that fit into a batch the earlier leaves first.
    """
    batcher: Batcher[Request] = Batcher(max_wait)
    now, requests, removed = 0.0, [], set()
    left: dict[Request, list[tuple[int, int]]] = defaultdict(list)
    order: dict[int, list[int]] = defaultdict(list)

    def take(running: int = 0) -> bool:
        delay, is_due = batcher.delay(now), batcher.is_due(now, running)
        parts = batcher.take(now, running)
        assert bool(parts) == is_due
        assert is_due <= (delay == 0.0)
        assert is_due or running or delay != 0.0
        assert sum(part.rows for part in parts) <= max_size
        assert len({part.request.key for part in parts}) <= 1
        for part in parts:
            assert part.request not in removed
            left[part.request].append((part.start, part.stop))
            if part.request.rows <= max_size:
                order[part.request.key].append(part.request.number)
        return bool(parts)

    for step in steps:
        match step:
            case ("add", int(rows), int(key)):
                requests.append(Request(len(requests), rows, key))
                batcher.add(requests[-1], rows=rows, key=key, max_size=max_size, now=now, parallel=1 + key)
            case ("take", float(seconds), int(running)):
                now += seconds
                take(running)
            case ("remove", int(number)) if number < len(requests):
                batcher.remove(requests[number])
                removed.add(requests[number])
    now += max_wait
    for _ in range(10_000):
        if not take():
            break
    assert (0, 0, None) == (batcher.requests, batcher.rows, batcher.delay(now))
    for request in requests:
        stops = [0, *(stop for _, stop in left[request])]
        assert [start for start, _ in left[request]] == stops[:-1]
        assert request in removed or stops[-1] == request.rows
    for numbers in order.values():
        assert numbers == sorted(numbers)


@settings(max_examples=100)
@given(others=st.lists(st.integers(1, 8), min_size=1, max_size=50))
def test_nobody_starves(others: list[int]) -> None:
    """However many full batches of another key come in between, a request leaves with the first batch taken after it
    has waited max_wait seconds.
    """
    batcher: Batcher[str] = Batcher(max_wait=10)
    batcher.add("lonely", rows=1, key="x", max_size=8, now=0)
    for now, rows in enumerate(others, start=1):
        for _ in range(9 - rows):
            batcher.add("other", rows=rows, key="y", max_size=8, now=now)
        is_lonely = [Part("lonely", 0, 1)] == batcher.take(now)
        assert is_lonely == (now == 10)
        if is_lonely:
            break
