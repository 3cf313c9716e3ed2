import numpy as np

from domains.sample import nearest_integer


def test_ties_and_what_rounding_moved_off_them_become_the_same_number():
    ties = np.array([0.5, 1.5, -2.5, 192.5])
    expected = np.array([1.0, 2.0, -2.0, 193.0])
    for noise in (0.0, 1e-12, -1e-12, -1e-5):
        assert np.array_equal(nearest_integer(ties + noise), expected)
    assert nearest_integer(np.array([0.49, 0.51])).tolist() == [0.0, 1.0]
