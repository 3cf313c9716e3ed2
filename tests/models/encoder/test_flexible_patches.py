import pytest
import torch

from models.encoder.chance import chance_of
from models.encoder.flexible_patches import check_sizes, cut_at, drawn_size, patches_of
from models.encoder.patch_resize import resize_matrix
from models.encoder.positions import NoPositions, Table
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape

SMALL = Shape(24, 2, 2)


def encoder(tokenizer=None, channels: int = 2, **changes: object) -> Encoder:
    torch.manual_seed(0)
    tokenizer = tokenizer or Grid(patch=(4, 4))
    return Encoder(EncoderSettings(tokenizer=tokenizer, size=SMALL, **changes), channels).eval()


def tokens(made: Encoder, x: torch.Tensor) -> torch.Tensor:
    return made(made.tokenizer.patchify(x)).tokens


@torch.no_grad()
@pytest.mark.parametrize(("tokenizer", "shape", "patch"), [
    (Grid(patch=(4, 4)), (2, 16, 24), (8, 4)), (Grid(patch=(4, 4)), (2, 16, 24), (2, 2)),
    (Grid(patch=(2, 4, 4)), (2, 4, 8, 8), (4, 2, 8)), (Bands(patch=(4, 4)), (3, 16, 16), (8, 8))])
def test_an_encoder_cuts_at_another_size_and_back(tokenizer, shape, patch):
    made = encoder(tokenizer, channels=shape[0])
    x = torch.randn(2, *shape)
    before = tokens(made, x)
    with patches_of(made, patch):
        patches = made.tokenizer.patchify(x)
        assert torch.equal(made.tokenizer.unpatchify(patches.values, shape[1:]), x)
        assert torch.isfinite(made(patches).tokens).all() and patches.grid[-1] == shape[-1] // patch[-1]
    assert torch.equal(tokens(made, x), before)


@torch.no_grad()
def test_patches_that_are_enlarged_and_cut_larger_give_the_same_tokens():
    made = encoder(positions=NoPositions())
    x = torch.randn(1, 2, 8, 8)
    grow = resize_matrix(4, 8).float()
    block = torch.block_diag(grow, grow)                                    # each patch for itself
    larger = block @ x @ block.T
    before = tokens(made, x)
    with patches_of(made, (8, 8)):
        torch.testing.assert_close(tokens(made, larger), before, rtol=1e-4, atol=1e-5)


def test_a_spot_has_the_same_position_whatever_the_patch_size():
    made = encoder()
    x = torch.zeros(1, 2, 16, 16)
    centres = {}
    for size in (2, 4, 8):
        with patches_of(made, (size, size)):
            patches = made.tokenizer.patchify(x)
            centres[size] = made.place_code(patches.place, patches.grid)[0].reshape(16 // size, 16 // size, -1)
    # one patch of 8 x 8 lies where four of 4 x 4 do: its centre is between theirs
    torch.testing.assert_close(centres[8][0, 0], made.place_code(torch.tensor([[[0.5, 0.5]]]))[0, 0])
    torch.testing.assert_close(centres[2][0, 0], made.place_code(torch.tensor([[[-0.25, -0.25]]]))[0, 0])
    assert torch.equal(centres[4][2, 3], made.place_code(torch.tensor([[[2.0, 3.0]]]))[0, 0])


@torch.no_grad()
def test_a_table_of_positions_is_resized_to_the_grid():
    made = encoder(positions=Table(grid=(4, 4)))
    made.place_code.rows.copy_(torch.arange(16.0)[:, None].expand(16, 24))
    with patches_of(made, (8, 8)):
        patches = made.tokenizer.patchify(torch.zeros(1, 2, 16, 16))
        code = made.place_code(patches.place, patches.grid)[0, :, 0]
    assert len(code) == 4 and code.tolist() == sorted(code.tolist()) and float(code.mean()) == pytest.approx(7.5)


def test_every_weight_is_trained_at_every_size():
    made = encoder(Bands(patch=(4, 4)), channels=3).train()
    for patch in ((2, 2), (4, 4), (8, 8)):
        made.zero_grad()
        with patches_of(made, patch):
            out = made(made.tokenizer.patchify(torch.randn(2, 3, 16, 16)))
        (out.tokens.square().mean() + out.summary.square().mean() + out.tokens[:, 0].sum()).backward()
        still = [name for name, weight in made.named_parameters() if weight.grad is None]
        assert not still and bool(made.tokenizer.project.weight.grad.any())


def test_unknown_values_stay_unknown_at_another_size():
    made = encoder(Bands(patch=(4, 4)), channels=3)
    known = torch.ones(1, 3, 16, 16, dtype=torch.bool)
    known[:, 1, :8, :8] = False
    with patches_of(made, (8, 8)):
        usable = made.tokenizer.patchify(torch.randn(1, 3, 16, 16) * known, known).usable()
    assert usable is not None and usable.sum() == 11 and not usable[0, 4]


def test_a_step_draws_one_size_for_all_ranks_and_micro_batches_and_each_as_often():
    sizes = ((4, 4), (8, 8), (16, 16))
    drawn = []
    for step in range(300):
        here = {drawn_size(sizes, chance_of(0, step, micro, torch.arange(4) + 4 * rank, torch.zeros(4).long()))
                for micro in (0, 1) for rank in (0, 1)}
        assert len(here) == 1
        drawn += here
    assert all(70 < drawn.count(size) < 130 for size in sizes)


@pytest.mark.parametrize(("sizes", "settings", "told"), [
    (((4, 4),), EncoderSettings(tokenizer=Groups()), "found groups, expected a transformer on grid or bands"),
    (((4, 4), (5, 5)), EncoderSettings(), r"found \[5, 5\], expected 2 sizes that divide the samples' \[16, 16\]"),
    (((2, 4, 4),), EncoderSettings(), "expected 2 sizes")])
def test_sizes_that_mean_nothing_are_refused(sizes, settings, told):
    with pytest.raises(ValueError, match=told):
        check_sizes(sizes, settings, (16, 16))


def test_an_encoder_that_has_no_kernel_to_resize_is_refused():
    with pytest.raises(ValueError, match="only these have a kernel"):
        cut_at(encoder(Groups(num_groups=4, group_size=4), channels=3), (4, 4))
    with pytest.raises(ValueError, match=r"expected 2 sizes, as the encoder's \[4, 4\] has"):
        cut_at(encoder(), (4, 4, 4))
