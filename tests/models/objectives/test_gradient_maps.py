import pytest
import torch

from models.encoder.grid_2d_3d import Grid2D3D
from models.encoder.masking import ChannelMasking, RandomMasking
from models.encoder.patches import Mask
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.dual_masked_autoencoder import DualMaskedAutoencoder, DualMaskedAutoencoderSettings
from models.objectives.gradient_maps import gradient_map
from models.objectives.hierarchical_decoder import HierarchicalDecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import GradientReadout
from tests.models.objectives.tiny import BATCH, chance, train, trainable

DECODER = DecoderSettings(width=16, depth=1, num_heads=2)
CASES = {"film": (Grid(patch=(4, 4)), (BATCH, 1, 16, 16), RandomMasking(ratio=0.5)),
         "volume": (Grid(patch=(4, 4, 4)), (BATCH, 1, 8, 8, 8), RandomMasking(ratio=0.5)),
         "bands": (Bands(patch=(8, 8)), (BATCH, 3, 16, 16), ChannelMasking(ratio=0.5)),
         "either": (Grid2D3D(patch=(4, 4), cube=(4, 4, 4)), (BATCH, 1, 16, 16), RandomMasking(ratio=0.5))}


def encoder_of(case):
    torch.manual_seed(0)
    tokenizer, shape, _ = CASES[case]
    return Encoder(EncoderSettings(tokenizer=tokenizer, size=Shape(24, 2, 2)), shape[1]), torch.randn(shape)


def test_a_ramp_is_as_steep_as_it_rises_whatever_its_axis():
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(10.0), indexing="ij")
    steep, _ = gradient_map((2 * x - 3 * y)[None, None])
    torch.testing.assert_close(steep[0, 0, 4:8, 4:6], torch.full((4, 2), 2.5))
    volume = torch.arange(9.0)[None, None, :, None, None].expand(2, 3, -1, 8, 7)
    torch.testing.assert_close(gradient_map(volume)[0][:, :, 4, 4, 3], torch.full((2, 3), 1 / 3))


def test_it_is_sobels_kernel_of_size_five():
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4, 4] = 1.0
    along_x = torch.outer(torch.tensor([1.0, 4, 6, 4, 1]) / 16, torch.tensor([1.0, 2, 0, -2, -1]) / 8)
    torch.testing.assert_close(gradient_map(image)[0][0, 0, 2:7, 2:7], 0.5 * along_x.abs() + 0.5 * along_x.T.abs())


def test_the_map_is_known_where_all_that_went_into_it_is():
    known = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    known[0, 0, 8, 8] = False
    _, mapped = gradient_map(torch.randn(1, 1, 16, 16), known)
    expected = torch.ones(16, 16, dtype=torch.bool)
    expected[6:11, 6:11] = False
    assert torch.equal(mapped[0, 0], expected)


def test_unknown_values_of_the_image_are_not_scored_in_its_map():
    encoder, x = encoder_of("film")
    model = MaskedAutoencoder(MaskedAutoencoderSettings(decoder=DECODER, readout=GradientReadout()), encoder).eval()
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, 0, :8, :8] = False
    known[1, 0, 3, 5] = False
    patches = encoder.tokenizer.patchify(x.masked_fill(~known, 0), known)
    other = encoder.tokenizer.patchify(x.masked_fill(~known, 1e6), known)
    hidden = torch.arange(8, 16).expand(BATCH, -1)
    mask = Mask(torch.arange(8).expand(BATCH, -1), hidden)
    decoded = torch.randn(BATCH, 8, 16)
    assert torch.equal(model.readout(decoded, x, patches, mask), model.readout(decoded, x, other, mask))


@pytest.mark.parametrize("case", CASES)
def test_the_map_is_cut_as_the_image_is(case):
    encoder, x = encoder_of(case)
    model = MaskedAutoencoder(MaskedAutoencoderSettings(decoder=DECODER, readout=GradientReadout()), encoder)
    readout = model.readout.image if case == "either" else model.readout
    patches = encoder.tokenizer.patchify(x)
    back = encoder.tokenizer.unpatchify(readout.map_of(patches).values, x.shape[2:])
    torch.testing.assert_close(back, gradient_map(x)[0])


@pytest.mark.parametrize("case", CASES)
def test_two_decoders_learn_on_one_batch_and_every_weight_gets_a_gradient(case):
    encoder, x = encoder_of(case)
    second = HierarchicalDecoderSettings(width=16, depth=1, num_heads=2, taps=(1,))
    settings = DualMaskedAutoencoderSettings(masking=CASES[case][2], decoder=DECODER, second_decoder=second,
                                             second_weight=2.0)
    model = DualMaskedAutoencoder(settings, encoder)
    assert set(model(x, None, chance())) == {"reconstruction", "second_reconstruction"}
    losses, touched = train(model, x, steps=40, rate=5e-3)
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    assert touched == {name for name in trainable(model) if ".volume." not in name}
    result = model.reconstruct(x, None, chance())
    assert result.predicted.shape[:2] == result.mask.hidden.shape


def test_the_weights_of_the_tokenizer_are_not_kept_twice():
    encoder, _ = encoder_of("film")
    model = MaskedAutoencoder(MaskedAutoencoderSettings(decoder=DECODER, readout=GradientReadout()), encoder)
    assert set(model.readout.state_dict()) == {"pixels.project.weight", "pixels.project.bias"}


def test_points_have_no_gradient_map():
    with pytest.raises(ValueError, match="groups of points take chamfer"):
        MaskedAutoencoderSettings(readout=GradientReadout()).fits(EncoderSettings(tokenizer=Groups()))
    with pytest.raises(ValueError, match="groups of points take chamfer"):
        DualMaskedAutoencoderSettings().fits(EncoderSettings(tokenizer=Groups()))
    with pytest.raises(ValueError, match="second_weight"):
        DualMaskedAutoencoderSettings(second_weight=0.0)
