"""A rolling window's arithmetic: never more than the limit within any window, nothing held for longer than it says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from aima_lib.services.window import SLOTS, Window

SECONDS = 60.0
WIDTH = SECONDS / SLOTS
# A gap before each attempt, and its amount.
STEPS = some.lists(some.tuples(some.floats(0, 2 * SECONDS), some.integers(1, 7)), max_size=120)
SMALL = some.lists(some.tuples(some.floats(0, 2.0), some.floats(0.001, 3)), max_size=300)


@given(steps=STEPS, limit=some.integers(1, 20))
def test_no_window_holds_more_than_the_limit(steps: list[tuple[float, int]], limit: int) -> None:
    window, at, let_in = Window(SECONDS), 1000.0, list[tuple[float, int]]()
    for gap, amount in steps:
        at += gap
        if window.used(at) + amount <= limit:
            window.add(amount, at)
            let_in.append((at, amount))
        within = sum(held for moment, held in let_in if at - moment <= SECONDS)
        late = sum(held for moment, held in let_in if at - moment < SECONDS + WIDTH + 1e-6)
        assert within <= window.used(at) <= late, "never let go early, and at most a slot late"
        assert within <= limit


@given(steps=SMALL, limit=some.floats(0.5, 40), amount=some.floats(0.001, 60))
def test_the_wait_is_the_truth(steps: list[tuple[float, float]], limit: float, amount: float) -> None:
    window, at = Window(SECONDS), 0.0
    for gap, held in steps:
        at += gap
        window.add(held, at)
    wait = window.wait(amount, limit, at)
    if amount > limit:
        assert wait is None
        return
    assert wait is not None and 0 <= wait <= SECONDS + WIDTH + 1e-6
    if wait > 1e-3:
        assert Window.used(window, at + wait - 1e-3) + amount > limit - 1e-6
    assert window.used(at + wait + 1e-6) + amount <= limit + 1e-6
    assert window.used(at + SECONDS + WIDTH + 1) == 0, "no crumb is left of fractions"


@given(steps=some.lists(some.tuples(some.floats(0, 3), some.integers(1, 3)), max_size=1000))
def test_a_busy_window_stays_small(steps: list[tuple[float, int]]) -> None:
    window, at = Window(SECONDS), 0.0
    for gap, amount in steps:
        at += gap
        window.add(amount, at)
        assert len(window.slots(at)) <= SLOTS + 2


@given(steps=SMALL, away=some.floats(-100_000, 2 * SECONDS), again=some.floats(0, 1_000_000))
def test_a_window_outlives_its_process(steps: list[tuple[float, float]], away: float, again: float) -> None:
    """`away` is how long the wall's clock says nobody was there: less than nothing when it was set back."""
    window, at = Window(SECONDS), 0.0
    for gap, amount in steps:
        at += gap
        window.add(amount, at)
    kept, used = window.slots(at), window.used(at + max(0.0, away))
    restored = Window(SECONDS)
    restored.restore([(ago + away, amount) for ago, amount in kept], again)
    assert abs(restored.used(again) - used) < 1e-6, "nothing is freed by a restart, and nothing added"
    assert restored.used(again + SECONDS + WIDTH + 1) == 0, "and nobody is locked out for longer than a window"
