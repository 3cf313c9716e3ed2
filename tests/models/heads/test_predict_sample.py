import pytest
import torch

from models.encoder.patches import Features, Patches
from models.heads.predict_sample import PredictSample, SampleHead

PATCHES = Patches(torch.zeros(6, 5, 3), torch.zeros(6, 5, 3))


def features(seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(6, 5, 8, generator=generator), torch.randn(6, 8, generator=generator))


def test_without_layers_the_head_is_as_it_was():
    torch.manual_seed(0)
    head = PredictSample(SampleHead(hidden=7), 8, 3)
    assert list(head.state_dict()) == ["norm.weight", "norm.bias", "before.0.weight", "before.0.bias", "output.weight",
                                       "output.bias"]


def test_layers_have_batch_norm_and_dropout_and_feed_the_output():
    torch.manual_seed(0)
    head = PredictSample(SampleHead(pool="summary_max", norm="none", layers=(12, 10)), 8, 3)
    assert [type(layer).__name__ for layer in head.before] == ["Linear", "SyncedBatchNorm1d", "ReLU", "Dropout"] * 2
    assert head.before[0].in_features == 16 and head.output.in_features == 10
    given = features()
    pooled = torch.cat([given.summary, given.tokens.amax(1)], 1)
    first, norm, _, drop, second, other, _, _ = head.eval().before
    assert drop.p == 0.5
    by_hand = other(second(norm(first(pooled)).relu())).relu()
    torch.testing.assert_close(head(given, PATCHES, torch.zeros(6, 1)), head.output(by_hand))
    head.train()(given, PATCHES, torch.zeros(6, 1)).sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_a_probe_sees_features_standardised_by_training_statistics_and_learns_no_scale_of_its_own():
    """Batch norm without parameters before the linear layer (MAE, appendix A.1, linear probing)."""
    torch.manual_seed(0)
    head, given = PredictSample(SampleHead(pool="summary", batch_norm=True), 8, 3), features()
    assert [name for name, _ in head.named_parameters()] == ["output.weight", "output.bias"]
    out = head.train()(given, PATCHES, torch.zeros(6, 1))
    mean, variance = given.summary.mean(0), given.summary.var(0, correction=0)
    torch.testing.assert_close(out, head.output((given.summary - mean) / (variance + 1e-6).sqrt()))
    head.norm.running_mean.fill_(2.0)
    head.norm.running_var.fill_(1e-6)
    out = head.eval()(given, PATCHES, torch.zeros(6, 1))
    torch.testing.assert_close(out, head.output((given.summary - 2) / 2e-6 ** 0.5))


@pytest.mark.parametrize(("settings", "said"), [
    ({"hidden": 4, "layers": (4,)}, r"found hidden 4 and layers \[4\], expected one of them"),
    ({"layers": (4, 0)}, "expected widths of at least 1"), ({"hidden": -1}, "expected widths of at least 1")])
def test_widths_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        SampleHead(**settings)
