"""Numbers of a file become the same stored numbers whether they are looked up or computed one by one."""

import itertools

import numpy as np
import pytest

from domains.satellite.decode import Scaling, is_listed, reflectance, stored, stored_of_few


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_a_number_that_is_looked_up_is_the_one_that_is_computed(dtype: str) -> None:
    rng = np.random.default_rng(0)
    ends = np.iinfo(dtype)
    for low, high in ((ends.min, ends.max), (0, 60), (7, 7), (ends.max - 2, ends.max)):
        raw = rng.integers(low, high, (9, 11), endpoint=True).astype(dtype)
        assert is_listed(raw)
        for scale, offset, nodata, zeros, known in itertools.product(
                (1e-4, 2.75e-5, 1.0, 300.0), (0.0, -0.1), (None, 7.0, -9999.0), (False, True),
                (None, rng.random(raw.shape) > 0.3, np.zeros(raw.shape, bool))):
            how = Scaling(scale, offset, nodata, zeros)
            expected, found = stored(*reflectance(raw, known, how)), stored_of_few(raw, known, how)
            np.testing.assert_array_equal(found.stored, expected.stored)
            assert found.stored.dtype == np.uint16
            assert (found.total, found.negative, found.low, found.high) == (
                expected.total, expected.negative, expected.low, expected.high)
