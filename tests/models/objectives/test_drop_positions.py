"""DropPos: the position of a patch is learnt from what it holds and what is around it, and from nothing else."""

from dataclasses import replace

import pytest
import torch

from models.encoder.masking import ChannelMasking, RandomMasking
from models.encoder.patches import take
from models.encoder.positions import NoPositions
from models.encoder.tokenizers import Bands, Grid, Groups
from models.encoder.transformer import EncoderSettings
from models.objectives.drop_positions import DropPositions, DropPositionsSettings, soft_positions
from models.objectives.objective import build_objective
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from tests.models.objectives.tiny import BATCH, chance, encoder, partly_known, samples, train, trainable

HEAD = {"width": 16, "depth": 1, "num_heads": 2}
SETTINGS = {"image": DropPositionsSettings(grid=(6, 6), masking=RandomMasking(ratio=0.5), **HEAD),
            "volume": DropPositionsSettings(grid=(4, 2, 2), masking=RandomMasking(ratio=0.25), **HEAD)}


def make(case: str, **changes) -> tuple[DropPositions, torch.Tensor]:
    model = build_objective(replace(SETTINGS[case], **changes), encoder(case))
    assert isinstance(model, DropPositions)
    return model, samples(case)


@pytest.mark.parametrize("case", SETTINGS)
def test_the_loss_falls_on_one_batch_and_every_weight_gets_a_gradient(case):
    model, x = make(case, smoothing=0.0)
    losses, touched = train(model, x)
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    assert touched == trainable(model)


def landscapes(batch: int, seed: int) -> torch.Tensor:
    """Images that are darker towards the top and the left, each in its own way: a place can be told by its looks."""
    generator = torch.Generator().manual_seed(seed)
    along = torch.linspace(-1, 1, 24)
    slope = 1 + 0.2 * torch.randn(2, batch, 1, 1, 1, generator=generator)
    return (slope[0] * along[:, None] + slope[1] * (4 * along).sin()
            + 0.1 * torch.randn(batch, 1, 24, 24, generator=generator))


def test_positions_are_found_far_more_often_than_by_chance():
    model, _ = make("image")
    x, new = landscapes(32, 0), landscapes(32, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        loss = model(x, None, chance(step, 32))["position"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step((step + 1) / 120)
    model.eval()
    patches = model.encoder.tokenizer.patchify(new)
    shown = model.choose(patches, chance(0, 32))
    right = (model.classify(patches, shown).argmax(-1) == model.index(patches, shown)).float().mean()
    assert right > 5 / 36
    result = model.reconstruct(new, None, chance(0, 32))
    true = take(patches.values, result.mask.hidden)
    assert (result.predicted - true).square().mean() < 0.5 * (true.flip(1) - true).square().mean()


@pytest.mark.parametrize(("drop", "dropped"), [(0.75, 14), (0.25, 5)])
def test_a_share_of_the_shown_patches_loses_its_position(drop, dropped):
    model, x = make("image", drop=drop)
    shown = model.choose(model.encoder.tokenizer.patchify(x), chance())
    assert shown.seen.visible.shape == (BATCH, 18) and shown.split.hidden.shape == (BATCH, dropped)


def test_a_dropped_position_reaches_nothing_but_its_target():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    shown = model.choose(patches, chance())
    place = patches.place.clone()
    lost = take(shown.seen.visible, shown.split.hidden)
    place.scatter_(1, lost[..., None].expand(-1, -1, 2), take(place, lost).flip(1))
    moved = patches._replace(place=place)
    assert torch.equal(model.classify(patches, shown), model.classify(moved, shown))
    assert torch.equal(model.index(patches, shown).flip(1), model.index(moved, shown))


def test_a_kept_position_does_reach_the_model():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    shown = model.choose(patches, chance())
    place = patches.place.clone()
    kept = take(shown.seen.visible, shown.split.visible)
    place.scatter_(1, kept[..., None].expand(-1, -1, 2), take(place, kept).flip(1))
    assert not torch.equal(model.classify(patches, shown), model.classify(patches._replace(place=place), shown))


def test_patches_that_are_not_shown_reach_nothing():
    model, x = make("image", temperature=0.0)
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    shown = model.choose(patches, chance())
    values = patches.values.scatter(1, shown.seen.hidden[..., None].expand(-1, -1, 16), 99.0)
    assert torch.equal(model.classify(patches, shown), model.classify(patches._replace(values=values), shown))


def test_targets_forgive_near_misses_and_sharpen_to_the_position_alone():
    index = torch.tensor([[7]])                                              # (1, 1) on a grid of (4, 6)
    soft = soft_positions(index, (4, 6), torch.tensor(1.0, dtype=torch.float64))[0, 0].reshape(4, 6)
    torch.testing.assert_close(soft.sum(), torch.ones((), dtype=torch.float64))
    assert soft[1, 1] > soft[0, 1] == soft[1, 2] > soft[0, 0] > soft[3, 3]
    torch.testing.assert_close(soft[0, 0] / soft[1, 1], torch.exp(torch.tensor(-2.0, dtype=torch.float64)))
    sharp = soft_positions(index, (4, 6), torch.tensor(0.0, dtype=torch.float64))[0, 0]
    assert torch.equal(sharp, torch.nn.functional.one_hot(torch.tensor(7), 24).double())
    wide = soft_positions(torch.tensor([[[13]]])[0], (2, 3, 4), torch.tensor(0.0, dtype=torch.float64))
    assert wide[0, 0].argmax() == 13


def test_the_loss_is_the_cross_entropy_when_nothing_is_smoothed_or_weighed():
    model, x = make("image", smoothing=0.0, temperature=0.0)
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    shown = model.choose(patches, chance())
    wanted = torch.nn.functional.cross_entropy(model.classify(patches, shown).flatten(0, 1),
                                               model.index(patches, shown).flatten())
    torch.testing.assert_close(model(x, None, chance())["position"], wanted)


def test_patches_that_look_like_the_whole_count_more_and_each_sample_counts_the_same():
    model, x = make("image")
    model.eval()
    patches = model.encoder.tokenizer.patchify(x)
    shown = model.choose(patches, chance())
    weight = model.weigh(patches, shown)
    torch.testing.assert_close(weight.sum(1), torch.ones(BATCH))
    features = model.encoder(patches)
    alike = torch.cosine_similarity(features.tokens, features.summary[:, None], dim=-1)
    alike = take(take(alike, shown.seen.visible), shown.split.hidden)
    torch.testing.assert_close(weight, (alike / 0.1).softmax(1))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_patches_without_data_are_neither_shown_nor_asked_for(temperature):
    model, x = make("image", temperature=temperature)
    known = partly_known("image", x)
    known[2] = False
    known[2, :, :4, :4] = True  # one patch is left: it is shown, and nothing can be asked
    x = x.masked_fill(~known, 0.0)
    loss = model(x, known, chance())["position"]
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    patches = model.encoder.tokenizer.patchify(x, known)
    shown = model.choose(patches, chance())
    lost = take(shown.seen.visible, shown.split.hidden)
    assert patches.usable().gather(1, lost)[shown.split.hidden_valid].all()
    assert not shown.split.hidden_valid[2].any() and model.weigh(patches, shown)[2].sum() == 0
    filler = ~shown.split.hidden_valid
    assert filler.any() and (model.weigh(patches, shown)[filler] == 0).all()
    assert model.reconstruct(x, known, chance()).predicted.isfinite().all()


def test_the_smoothing_shrinks_with_the_run_and_is_part_of_its_state():
    model, x = make("image")
    losses = []
    for done in (0.0, 0.5, 1.0):
        model.after_step(done)
        losses.append(float(model.eval()(x, None, chance())["position"].detach()))
    assert len(set(losses)) == 3
    other, _ = make("image")
    other.load_state_dict(model.state_dict())
    assert other.done == 1


@pytest.mark.parametrize(("tokenizer", "changes", "said"), [
    (Groups(), {}, "centres of points are no list but coordinates.*Take pcp_mae"),
    (Bands(), {}, "another band of the same place would give it away"),
    (Grid(patch=(4, 4, 4)), {}, "expected as many sizes"),
    (Grid(), {"masking": ChannelMasking()}, "needs one token per band")])
def test_what_it_cannot_work_on_is_refused_with_the_reason(tokenizer, changes, said):
    with pytest.raises(ValueError, match=said):
        DropPositionsSettings(**changes).fits(EncoderSettings(tokenizer=tokenizer))


def test_another_grid_and_an_encoder_without_positions_are_refused():
    model, x = make("image", grid=(5, 5))
    with pytest.raises(ValueError, match=r"found \[6, 6\] patches, expected grid \[5, 5\]. Set objective.grid"):
        model(x, None, chance())
    with pytest.raises(ValueError, match="an encoder that has positions"):
        DropPositionsSettings().fits(EncoderSettings(positions=NoPositions()))


def test_it_is_reached_by_a_paragraph_of_params():
    run = build(PretrainRun, {"domain": "medical", "data": "films", "objective": {
        "kind": "drop_positions", "grid": [8, 8], "drop": 0.5}}, "test")
    assert isinstance(run.objective, DropPositionsSettings) and run.objective.grid == (8, 8)
