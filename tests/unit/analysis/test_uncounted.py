"""If the requests that were counted speak for those that were not."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.analysis.heap_windows import HeapWindow
from tracer.analysis.kept import How, Kept
from tracer.analysis.uncounted import Charge, Mismatch, NetSum, mismatch

LEAK = 34_304
NOISE = 32


def charge(*nets: int) -> Charge:
    """Of a group of which requests were counted that kept so much."""
    found = NetSum()
    for net in nets:
        found.add(net)
    return found.charge()


# 600 requests of each, of which the leak's last 300 leak. Of 109 that were counted, 18 are among these.
LATE = {
    "late": charge(*[0] * 91, *[LEAK] * 18),
    "page": charge(*[-16, 0] * 54, 0),
    "hello": charge(*[0] * 109),
}
UNCOUNTED = dict.fromkeys(LATE, 491)
KEPT_UNCOUNTED = 282 * LEAK


def window(growth: int, uncounted: dict[str, int], *, began_ns: int = 1, counted: int = 0, **other: int) -> HeapWindow:
    """A window in which the requests that were not counted kept so much."""
    found = HeapWindow(began_ns, growth + counted, counted, sum(uncounted.values()), **other)
    found.uncounted.update(uncounted)
    return found


def found(growth: int, charges: dict[str, Charge], uncounted: dict[str, int] | None = None, **other: int) -> Mismatch:
    result = mismatch([window(growth, uncounted or UNCOUNTED, **other)], charges)
    assert result is not None
    return result


def kept(charge: Charge, complete: int = 600) -> Kept:
    return Kept(
        How.COUNTED, round(charge.mean * complete), charge.mean, charge.mean, charge.mean, counted=charge.counted
    )


def test_a_leak_that_began_later_is_charged_the_growth_of_the_workers():
    result = found(KEPT_UNCOUNTED, LATE, counted=18 * LEAK)

    figures = result.figures("late", kept(LATE["late"]), 600)
    assert (result.large, result.grew, result.charged) == (
        True,
        KEPT_UNCOUNTED,
        round(491 * (18 * LEAK / 109 - 864 / 109)),
    )
    assert figures.how is How.ESTIMATED
    assert figures.per_request == pytest.approx(300 * LEAK / 600, rel=0.001)
    assert figures.total == pytest.approx(300 * LEAK, rel=0.001)
    assert 300 * LEAK / 600 - 100 < figures.low < 300 * LEAK / 600 < figures.high < 300 * LEAK / 600 + 110


def test_groups_of_which_no_request_kept_anything_stay_as_they_are():
    result = found(KEPT_UNCOUNTED, LATE)

    assert set(result.corrections) == {"late"}
    assert result.figures("page", kept(LATE["page"]), 600) == kept(LATE["page"])


def test_a_leak_of_which_nothing_was_counted_may_be_of_any_group():
    never = {**LATE, "late": charge(*[0] * 109)}

    result = found(KEPT_UNCOUNTED, never)

    for key in never:
        figures = result.figures(key, kept(never[key]), 600)
        assert (figures.how, figures.total, figures.per_request, figures.low) == (How.ESTIMATED, None, None, 0.0)
        assert figures.high == pytest.approx((KEPT_UNCOUNTED + NOISE * 1473) / 600, rel=0.002)


def test_growth_that_ended_is_no_part_of_what_the_others_kept():
    once = {**LATE, "plateau": charge(*[LEAK] * 20, *[0] * 89)}

    result = found(-491 * 8, {key: once[key] for key in ("plateau", "page")}, {"plateau": 491, "page": 491})

    figures = result.figures("plateau", kept(once["plateau"]), 600)
    assert figures.total == pytest.approx(20 * LEAK, rel=0.01)
    assert figures.low <= 20 * LEAK / 600 <= figures.high


def test_differences_of_requests_of_one_group_are_no_mismatch():
    one_in_seven = {"seventh": charge(*[0, 0, 0, 0, 0, 0, 65_552] * 15)}

    for leaking in (54, 70, 86):
        assert mismatch([window(leaking * 65_552, {"seventh": 490})], one_in_seven) is None
    assert found(140 * 65_552, one_in_seven, {"seventh": 490}).large


def test_bytes_between_requests_are_no_mismatch():
    assert mismatch([window(1473 * NOISE - 491 * 8, UNCOUNTED)], {**LATE, "late": charge(0, 0)}) is None


def test_a_little_that_does_not_fit_only_widens_the_intervals():
    never = {**LATE, "late": charge(*[0] * 109)}
    result = found(12 * LEAK, never)

    figures = result.figures("late", kept(never["late"]), 600)

    assert not result.large
    assert (figures.how, figures.total, figures.per_request, figures.low) == (How.COUNTED, 0, 0.0, 0.0)
    assert figures.high == pytest.approx((12 * LEAK + NOISE * 1473) / 600, rel=0.02)


def test_caches_that_first_runs_fill_explain_growth():
    assert mismatch([window(3_000_000, UNCOUNTED, first_runs=3_000_000)], {**LATE, "late": charge(0, 0)}) is None
    assert found(4_200_000, {**LATE, "late": charge(0, 0)}, first_runs=3_000_000).large


def test_it_began_where_the_growth_rose_above_the_figures_for_the_last_time():
    never = {"late": charge(*[0] * 109)}
    growths = [(11, 3_100), (13, 400_000), (17, -400_000), (19, 2_000_000), (23, 3_000_000)]

    result = mismatch([window(growth, {"late": 100}, began_ns=at) for at, growth in growths], never)

    assert (result.since_ns, result.grew, result.charged) == (19, 5_003_100, 0)


def test_the_limits_of_a_group_of_which_few_were_counted_are_those_of_all_its_requests():
    result = found(97 * LEAK, {}, {"leak": 97, "many": 99, "hello": 99})

    figures = result.figures("leak", Kept(counted=3), 100)

    assert (figures.how, figures.total, figures.low) == (How.ESTIMATED, None, 0.0)
    assert figures.high == pytest.approx(LEAK + NOISE * 295 / 97)


def test_an_estimate_that_does_not_give_the_growth_is_not_sure():
    wrong = {"kinds": Charge(25_736.0, 18_069.0, 34_433.0), "page": Charge(10_526.0, 5_087.0, 16_052.0)}
    sure = Kept(How.ESTIMATED, 2_573_600, 25_736.0, 18_069.0, 34_433.0)

    result = found(6_840_000, wrong, {"kinds": 100, "page": 100})

    figures = result.figures("kinds", sure, 100)
    assert (figures.total, figures.per_request, figures.low) == (None, None, 0.0)
    assert figures.high == pytest.approx(68_400 + 64)


def test_an_estimate_that_gives_far_too_little_is_not_sure_however_wide_it_is():
    wide = {"kinds": Charge(22_484.0, 2_182.0, 36_430.0), "page": Charge(8_090.0, 0.0, 34_589.0)}

    result = found(6_840_080, wide, {"kinds": 100, "page": 200})

    assert result.large
    figures = result.figures("kinds", Kept(How.ESTIMATED, 2_248_400, 22_484.0, 2_182.0, 36_430.0), 100)
    assert (figures.total, figures.per_request, figures.low) == (None, None, 0.0)
    assert figures.high == pytest.approx(68_400, rel=0.01)
    assert mismatch([window(1_150 * 3_866, {"kinds": 115, "page": 230})], wide) is None


def test_an_estimate_that_gives_the_growth_stays_as_it_is():
    right = {"leak": Charge(33_900.0, 33_000.0, 35_000.0), "page": Charge(300.0, 0.0, 900.0)}

    assert mismatch([window(100 * LEAK, {"leak": 100, "page": 100})], right) is None


def test_an_estimate_stays_as_it_is_if_a_counted_group_explains_the_growth():
    charges = {"late": LATE["late"], "rare": Charge(800.0, 0.0, 5_000.0)}
    known: Iterable[str] = found(KEPT_UNCOUNTED, charges, {"late": 491, "rare": 3}).corrections

    assert set(known) == {"late"}


def test_a_group_without_any_figure_keeps_no_more_than_the_others_may():
    result = found(KEPT_UNCOUNTED, {"late": LATE["late"]}, {"late": 491, "new": 3})

    low = (KEPT_UNCOUNTED - NOISE * 494 - 3 * LEAK) / 491
    assert result.corrections["late"].low == pytest.approx(low - LATE["late"].mean)


SIZES = st.integers(-(1 << 63), 1 << 63) | st.integers(-70_000, 70_000)
KEYS = st.sampled_from(["a", "b", "c"])
CHARGES = st.dictionaries(
    KEYS,
    st.lists(SIZES, min_size=1, max_size=9).map(lambda nets: charge(*nets))
    | st.tuples(*[st.floats(0, 1e19)] * 3).map(sorted).map(lambda three: Charge(three[1], three[0], three[2])),
)
WINDOWS = st.lists(
    st.builds(
        HeapWindow,
        st.integers(0, 1 << 62),
        SIZES,
        SIZES,
        st.integers(1, 1 << 40),
        st.integers(0, 1 << 63),
        st.dictionaries(KEYS, st.integers(1, 1 << 40), min_size=1),
    ),
    min_size=1,
    max_size=5,
)


@PROPERTY
@given(WINDOWS, CHARGES)
def test_limits_are_finite_and_in_order_whatever_a_recording_has(windows, charges):
    result = mismatch(windows, charges)

    for key, (charged, more, low, high) in ({} if result is None else result.corrections).items():
        assert all(math.isfinite(value) for value in (charged, low, high))
        assert low <= high
        assert more is None or low - 1e-6 * abs(low) <= more <= high + 1e-6 * abs(high)
        known = result.figures(key, Kept(How.COUNTED, 1, 1.0, 0.0, 2.0, counted=3), 7)
        assert known.low <= known.high
