"""Measures of one category, with numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.quality_measures import (
    Agreement,
    Lrp,
    agreement,
    average_precision,
    calibration_errors,
    lrp_errors,
    mean_of_measured,
)

NOTHING = np.zeros(0)


def ap(hits, num_objects):
    """AP of detections that are right or wrong, at one threshold."""
    hit = np.array(hits, bool)[:, None]
    return average_precision(hit, ~hit, num_objects)


def test_average_precision():
    # Precision 1 up to a recall of 0.5 (51 of the 101 recalls), then 2 / 3.
    assert ap([1, 0, 1], 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert ap([1, 1], 4) == pytest.approx(51 / 101)
    assert ap([0, 1], 1) == pytest.approx(0.5)
    assert ap([0, 0], 1) == ap([], 3) == 0
    # The second threshold has one hit less.
    hit = np.array([[1, 1], [1, 0]], bool)
    assert average_precision(hit, ~hit, 2) == pytest.approx((1 + 51 / 101) / 2)
    # An ignored detection is neither right nor wrong.
    hit, false = np.array([[0], [1]], bool), np.zeros((2, 1), bool)
    assert average_precision(hit, false, 1) == pytest.approx(1)


def test_lrp():
    scores, hit = np.array([0.9, 0.8, 0.3]), np.array([True, False, True])
    everything, optimal = lrp_errors(scores, hit, np.array([0.8, 0.0, 0.6]), 3)
    # From 0.9: (0.4 + 2) / 3 = 0.8; from 0.8: (0.4 + 1 + 2) / 4 = 0.85; all:
    # (0.4 + 0.8 + 1 + 1) / 4 = 0.8. Of equal errors, the one with the higher threshold is taken.
    assert everything == pytest.approx(Lrp(0.8, 0.3, 1 / 3, 1 / 3, 0.3))
    assert optimal == pytest.approx(Lrp(0.8, 0.2, 0, 2 / 3, 0.9))


def test_lrp_without_true_detections():
    nothing = Lrp(1, -1, -1, 1, -1)
    assert lrp_errors(NOTHING, NOTHING.astype(bool), NOTHING, 2) == (nothing, nothing)
    scores, wrong = np.array([0.9, 0.4]), np.zeros(2, bool)
    everything, optimal = lrp_errors(scores, wrong, np.zeros(2), 2)
    assert everything == Lrp(1, -1, 1, 1, 0.4)
    assert optimal == nothing


def test_a_match_at_the_threshold_is_as_bad_as_none():
    everything, _ = lrp_errors(np.array([0.9]), np.array([True]), np.array([0.5]), 1)
    assert everything.total == 1


@pytest.mark.parametrize(
    ("scores", "ious", "laece", "laace"),
    [
        ([0.9], [0.9], 0, 0),
        ([1.0, 0.0], [1.0, 0.0], 0, 0),
        ([0.5], [0.0], 0.5, 0.5),
        # 0.04 belongs to the first bin, from 0 to 0.04, and 0.041 to the next one.
        ([0.0, 0.04], [0.02, 0.02], 0, 0.02),
        ([0.03, 0.041], [0.05, 0.021], 0.02, 0.02),
        # 0.96 and 1 do not share a bin; 0.97 and 1 do.
        ([0.96, 1.0], [0.98, 0.98], 0.02, 0.02),
        ([0.97, 1.0], [0.985, 0.985], 0, 0.015),
    ],
)
def test_calibration_errors(scores, ious, laece, laace):
    found = calibration_errors(np.array(scores), np.array(ious))
    assert found == pytest.approx((laece, laace), abs=1e-12)


def test_calibration_without_detections():
    assert calibration_errors(NOTHING, NOTHING) == (-1, -1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1))
def test_laece_is_at_most_laace(pairs):
    laece, laace = calibration_errors(*np.array(pairs).T)
    assert 0 <= laece <= laace + 1e-12 and laace <= 1


def test_agreement():
    scores, ious = np.array([0.5, 0.7, 0.9]), np.array([0.6, 0.9, 0.9])
    found = agreement(scores, ious)
    # Deviations -0.2, 0, 0.2 and -0.2, 0.1, 0.1: covariance 0.06, variances 0.08 and 0.06.
    assert found == pytest.approx(Agreement(3, 0.06 / np.sqrt(0.08 * 0.06), 0.1, np.sqrt(0.02)))
    assert agreement(NOTHING, NOTHING) == Agreement(0, None, -1, -1)
    assert agreement(scores[:1], ious[:1]) == pytest.approx(Agreement(1, None, 0.1, 0))
    assert agreement(scores, np.full(3, 0.8)).correlation is None


def test_mean_of_measured():
    assert mean_of_measured([0.0, -1, 0.5]) == 0.25
    assert mean_of_measured([-1, -1]) == mean_of_measured([]) == -1
