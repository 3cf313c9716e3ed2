import numpy as np
import pytest

from domains.medical import resample


@pytest.mark.parametrize("step", [0.3, 0.77, 1.0, 1.6, 3.4])
def test_a_ramp_keeps_its_values_at_their_places_whatever_the_step(step: float) -> None:
    num_in = 60
    centres = resample.centred(num_in, round(num_in / step), step)
    out = resample.linear_weights(num_in, centres, step) @ (7.0 * np.arange(num_in) - 100)
    half = max(step - 1, 0) / 2
    inner = (centres >= half) & (centres <= num_in - 1 - half)  # beyond, there is nothing to average
    assert inner.sum() > 0.8 * len(inner)
    np.testing.assert_allclose(out[inner], 7.0 * centres[inner] - 100, atol=1e-3)


def test_weights_are_a_mean() -> None:
    weights = resample.linear_weights(10, np.array([-0.5, 0.0, 4.3, 9.5]), 2.5)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_shrinking_averages_instead_of_picking() -> None:
    stripes = np.tile([0.0, 100.0], 32)
    out = resample.linear_weights(64, resample.centred(64, 16, 4.0), 4.0) @ stripes
    np.testing.assert_allclose(out, 50, atol=5)


def test_a_step_of_one_changes_nothing() -> None:
    np.testing.assert_array_equal(resample.linear_weights(9, resample.centred(9, 9, 1.0), 1.0), np.eye(9))


def test_refining_is_linear_interpolation() -> None:
    values = np.random.default_rng(0).normal(size=20)
    centres = np.linspace(0, 19, 77)
    out = resample.linear_weights(20, centres, 0.25) @ values
    np.testing.assert_allclose(out, np.interp(centres, np.arange(20), values), atol=1e-5)


def test_apply_equals_one_axis_after_the_other() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(5, 6, 7))
    weights = tuple(rng.random((m, n)).astype(np.float32) for m, n in ((3, 5), (8, 6), (7, 7)))
    np.testing.assert_allclose(resample.apply(values, weights), np.einsum("abc,ia,jb,kc->ijk", values, *weights),
                               rtol=1e-4)


def test_nearest_says_what_lies_outside() -> None:
    index, inside = resample.nearest_index(4, np.array([-0.6, -0.5, 0.49, 0.51, 3.4, 3.6]))
    assert index.tolist() == [0, 0, 0, 1, 3, 3]
    assert inside.tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize(("shape", "outs"), [((40, 33), (9, 33)), ((64, 300), (64, 7)), ((9, 12, 10), (14, 12, 5))])
def test_few_inputs_added_one_by_one_give_what_the_whole_matrices_give(
        shape: tuple[int, ...], outs: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    weights = tuple(resample.linear_weights(n, resample.centred(n, m, n / m), n / m)
                    for n, m in zip(shape, outs, strict=True))
    expected = values.astype(np.float64)
    for axis, matrix in enumerate(weights):
        expected = np.moveaxis(np.tensordot(expected, matrix.astype(np.float64), axes=(axis, 1)), -1, axis)
    assert resample.apply(values, weights) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("shape", "outs"), [((9, 12, 10), (14, 12, 25)), ((30, 12, 9), (4, 12, 20)),
                                             ((5, 6, 40), (9, 6, 7)), ((60, 5, 4), (2, 5, 4))])
def test_a_volume_made_slab_by_slab_has_the_bits_of_one_made_at_once(
        shape: tuple[int, ...], outs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "IN_BAND", 700)
    values = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    weights = tuple(resample.linear_weights(n, resample.centred(n, m, n / m), n / m)
                    for n, m in zip(shape, outs, strict=True))
    found = np.full(outs, np.nan, np.float32)
    for slab in resample.slabs(weights):
        found[slab.outputs] = resample.apply(values[slab.inputs], slab.weights, slab.order)
    np.testing.assert_array_equal(found, resample.apply(values, weights))
