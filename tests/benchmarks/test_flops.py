"""Operations by formula are those that torch counts, and those that were worked out by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks import flops
from benchmarks.mae_step import pair_of
from models.encoder.chance import chance_of
from models.encoder.masking import ChannelMasking, RandomMasking
from models.encoder.tokenizers import Bands, Groups
from models.encoder.transformer import SIZES, Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import ChamferReadout

SMALL, NARROW = Shape(64, 2, 4), DecoderSettings(width=32, depth=2, num_heads=4)


@pytest.mark.parametrize(("name", "ratio", "patches", "values", "giga"), [
    ("base", 0.75, 196, 768, 58.5), ("base", 0.9, 196, 768, 42.9), ("large", 0.75, 196, 768, 124.2),
    ("large", 0.9, 196, 768, 69.2), ("small", 0.75, 196, 256, 38), ("small", 0.75, 4 * 196, 256, 177),
    ("small", 0.75, 12 * 196, 256, 725), ("base", 0.75, 1728, 512, 657)])
def test_published_sizes_need_what_was_worked_out_by_hand(name, ratio, patches, values, giga):
    assert flops.mae(SIZES[name], patches, values, ratio).train / 1e9 == pytest.approx(giga, rel=0.02)


def test_point_mae_needs_what_was_worked_out_by_hand():
    assert flops.point_mae(SIZES["small"], 64, 32).train / 1e9 == pytest.approx(8.7, rel=0.02)


@pytest.mark.parametrize("ratio", [0.75, 0.9])
def test_a_step_on_images_counts_what_torch_counts(ratio):
    pair = pair_of(SMALL, (48, 48), (8, 8), 2, ratio=ratio, decoder=NARROW)
    expected = 2 * flops.mae(SMALL, 36, 192, ratio, NARROW).train
    assert flops.measured(lambda: pair.our_loss().backward()) == pytest.approx(expected, rel=0.02)


def test_a_step_on_bands_counts_what_torch_counts():
    torch.manual_seed(0)
    settings = MaskedAutoencoderSettings(masking=ChannelMasking(min_channels=3, max_channels=3), decoder=NARROW)
    model = MaskedAutoencoder(settings, Encoder(EncoderSettings(tokenizer=Bands(patch=(8, 8)), size=SMALL), 4))
    ids = torch.arange(2)
    x = torch.randn(2, 4, 32, 32)
    expected = 2 * flops.mae(SMALL, 4 * 16, 64, 0.75, NARROW, kept=0.75).train
    found = flops.measured(lambda: model(x, None, chance_of(0, 0, 0, ids, 0 * ids))["reconstruction"].backward())
    assert found == pytest.approx(expected, rel=0.02)


def test_a_step_on_points_counts_what_torch_counts_but_for_neighbours_and_distances():
    torch.manual_seed(0)
    shape = Shape(96, 3, 4)
    encoder = EncoderSettings(tokenizer=Groups(num_groups=16, group_size=16), size=shape, class_token=False)
    decoder = DecoderSettings(width=96, depth=2, num_heads=4, project=False)
    settings = MaskedAutoencoderSettings(masking=RandomMasking(ratio=0.6, round_hidden="down"), decoder=decoder,
                                         readout=ChamferReadout())
    model = MaskedAutoencoder(settings, Encoder(encoder, 3))
    ids = torch.arange(2)
    x = torch.randn(2, 128, 3)
    expected = 2 * flops.point_mae(shape, 16, 16, depth=2).train
    found = flops.measured(lambda: model(x, None, chance_of(0, 0, 0, ids, 0 * ids))["reconstruction"].backward())
    assert found == pytest.approx(expected, rel=0.03)
