"""Statistics measured on the samples in question: exact, mixed as asked, independent of batches, and put back."""

from __future__ import annotations

import pytest
import torch

from models.test_time.statistics import Norm, batch_norms_of, measured_anew, standardised_anew
from tests.models.test_time.models import samples, tuned


@pytest.mark.parametrize("size", [40, 13, 7])
def test_every_batch_norm_gets_the_mean_and_variance_of_all_that_comes_to_it(size):
    model, x = tuned("points"), samples("points")
    norms = batch_norms_of(model)
    assert len(norms) >= 2
    came: dict[object, list[torch.Tensor]] = {}
    with torch.no_grad(), measured_anew(model, model.predict, lambda: ((part, None) for part in x.split(size)),
                                        Norm(source_weight=0)):
        hooks = [norm.register_forward_pre_hook(lambda one, given: came.setdefault(one, []).append(given[0]))
                 for norm in norms]
        model.predict(x)
        for norm, hook in zip(norms, hooks, strict=True):
            hook.remove()
            values = torch.cat(came[norm]).transpose(0, 1).flatten(1)
            torch.testing.assert_close(norm.running_mean, values.mean(1), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(norm.running_var, values.var(1, correction=0), atol=1e-5, rtol=1e-4)


def test_old_statistics_count_as_many_samples_as_was_asked_for():
    model, x = tuned("points"), samples("points")
    first = batch_norms_of(model)[0]
    old, whole = first.running_mean.clone(), None
    for weight in (0.0, 40.0):
        with measured_anew(model, model.predict, lambda: iter([(x, None)]), Norm(source_weight=weight)):
            whole = first.running_mean.clone() if whole is None else whole
            expected = whole if weight == 0 else (old + whole) / 2
            torch.testing.assert_close(first.running_mean, expected)
        assert torch.equal(first.running_mean, old), "put back"


def test_a_batch_norm_in_the_head_is_measured_too():
    model, x = tuned(batch_norm=True), samples()
    with torch.no_grad():
        plain = model.predict(x)
        with measured_anew(model, model.predict, lambda: iter([(x, None)]), Norm(source_weight=0)):
            features = model.features(x)
            assert not torch.allclose(model.predict(x), plain)
            torch.testing.assert_close(model.head.norm(features).mean(0), torch.zeros(24), atol=1e-4, rtol=0)
        assert torch.equal(model.predict(x), plain)


def test_channels_are_standardised_over_what_is_known_of_them():
    x = samples("multispectral")
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    x = x.masked_fill(~known, 0.0)
    parts = [(part, mask) for part, mask in zip(x.split(9), known.split(9), strict=True)]
    told = list(standardised_anew(lambda: iter(parts), Norm(source_weight=0)))
    after = torch.cat([part for part, _ in told])
    for channel in range(3):
        values = after[:, channel][known[:, channel]]
        assert values.mean().abs() < 1e-5 and (values.std() - 1).abs() < 1e-3
    assert (after[~known] == 0).all() and torch.equal(torch.cat([mask for _, mask in told]), known)


def test_with_no_weight_on_the_new_samples_nothing_changes():
    x = samples()
    told = torch.cat([part for part, _ in standardised_anew(lambda: iter([(x, None)]), Norm(source_weight=1e12))])
    torch.testing.assert_close(told, x)
