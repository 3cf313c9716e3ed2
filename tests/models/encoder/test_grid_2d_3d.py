import pytest
import torch

from models.encoder.chance import chance_of
from models.encoder.grid_2d_3d import Grid2D3D
from models.encoder.positions import ImageAndVolume, NoPositions, Table
from models.encoder.tokenizers import Grid, build_tokenizer
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings

TOKENIZER = Grid2D3D(patch=(4, 4), cube=(4, 4, 2))


@pytest.mark.parametrize("size", [(8, 12), (8, 4, 6)])
def test_images_and_volumes_are_cut_as_a_grid_of_their_own_would_cut_them(size):
    x = torch.randn(2, 3, *size)
    alone = build_tokenizer(Grid(patch=(4, 4) if len(size) == 2 else (4, 4, 2)), 3, 24)
    both = build_tokenizer(TOKENIZER, 3, 24)
    ours, theirs = both.patchify(x), alone.patchify(x)
    assert torch.equal(ours.values, theirs.values) and torch.equal(ours.place, theirs.place)
    assert ours.grid == theirs.grid
    assert torch.equal(both.unpatchify(ours.values, size), x)
    assert both.embed(ours.values, ours.place).shape == (2, theirs.values.shape[1], 24)


def test_the_place_decides_where_the_number_of_values_cannot():
    tokenizer = build_tokenizer(Grid2D3D(patch=(8, 8), cube=(4, 4, 4)), 1, 24)
    values = torch.randn(1, 5, 64)
    image, volume = (tokenizer.embed(values, torch.zeros(1, 5, axes)) for axes in (2, 3))
    assert not torch.allclose(image, volume)


def test_a_volume_may_have_no_positions_while_images_have_a_table():
    positions = ImageAndVolume(image=Table(grid=(2, 3)), volume=NoPositions())
    code = build_tokenizer(TOKENIZER, 1, 24).place_code(24, positions)
    tokenizer = build_tokenizer(TOKENIZER, 1, 24)
    image, volume = tokenizer.patchify(torch.zeros(1, 1, 8, 12)), tokenizer.patchify(torch.zeros(1, 1, 8, 4, 6))
    assert torch.equal(code(image.place, image.grid)[0], code.image.rows)
    assert not code(volume.place, volume.grid).any()


def test_one_kind_of_positions_is_meant_for_both():
    code = build_tokenizer(TOKENIZER, 1, 24).place_code(24, NoPositions())
    assert not code(torch.ones(1, 2, 2)).any() and not code(torch.ones(1, 2, 3)).any()
    code = build_tokenizer(TOKENIZER, 1, 24).place_code(24)
    assert code(torch.ones(1, 2, 2)).any() and code(torch.ones(1, 2, 3)).any()


def test_one_table_for_both_is_refused():
    with pytest.raises(ValueError, match="Expected kind: image_and_volume"):
        build_tokenizer(TOKENIZER, 1, 24).place_code(24, Table(grid=(2, 2)))
    with pytest.raises(ValueError, match="image_and_volume are for tokenizer grid_2d_3d"):
        build_tokenizer(Grid(patch=(4, 4)), 1, 24).place_code(24, ImageAndVolume())


def test_one_model_learns_from_images_and_volumes_by_turns():
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(tokenizer=TOKENIZER, size=Shape(24, 2, 2)), 1)
    decoder = DecoderSettings(width=16, depth=1, num_heads=2)
    model = MaskedAutoencoder(MaskedAutoencoderSettings(decoder=decoder), encoder)
    batches = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    chance = chance_of(0, 0, 0, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    losses, touched = ([], []), set()
    for step in range(60):
        loss = model(batches[step % 2], None, chance)["reconstruction"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        touched |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
        losses[step % 2].append(loss.item())
    assert all(curve[-1] < 0.9 * curve[0] for curve in losses)
    assert touched == {name for name, _ in model.named_parameters()}
    for x in batches:
        assert model.reconstruct(x, None, chance).predicted.isfinite().all()
