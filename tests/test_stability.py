"""The order of methods over calibration draws, and tests of two networks on the same images, against cases counted by hand."""

import numpy as np
import pandas as pd
import pytest

from lowrank_utils.workbook import paired_tests, stability


def ordered(*draws):
    each = {"dataset": "d", "network": "n", "budget": 0.5, "factors": "svd", "stored_as": "low rank"}
    return pd.DataFrame(
        [
            each | {"draw": draw, "chooser": "abcd"[i], "accuracy": accuracy}
            for draw, accuracies in enumerate(draws)
            for i, accuracy in enumerate(accuracies)
        ]
    )


def test_kendalls_tau_over_draws():
    same, reverse = ordered((1, 2, 3, 4), (2, 4, 6, 8)), ordered((1, 2, 3, 4), (4, 3, 2, 1))
    assert stability.kendall_tau(same)["tau_mean"].tolist() == [1.0]
    assert stability.kendall_tau(reverse)["tau_mean"].tolist() == [-1.0]
    three = stability.kendall_tau(ordered((1, 2, 3, 4), (1, 2, 4, 3), (2, 1, 3, 4))).iloc[0]
    assert three["tau_mean"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3) and three["tau_least"] == pytest.approx(
        1 / 3
    )
    lacking = stability.kendall_tau(pd.concat([same, same[:1].assign(chooser="e")])).iloc[0]
    assert (lacking["methods"], lacking["left_out"]) == (4, 1)
    assert np.isnan(stability.kendall_tau(ordered((1, 2, 3)))["tau_mean"][0])
    with pytest.raises(ValueError, match="two rows claim 'a' in svd factors, draw 0"):
        stability.kendall_tau(pd.concat([same, same[:1]]))


def test_the_exact_test_and_its_correction():
    assert paired_tests.mcnemar_of_counts(5, 5) == 1.0 and paired_tests.mcnemar_of_counts(0, 6) == pytest.approx(2 / 64)
    assert paired_tests.holm([0.04]).tolist() == [0.04] and paired_tests.holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert len(paired_tests.holm([])) == 0
