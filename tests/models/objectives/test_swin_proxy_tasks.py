"""Inpainting, rotation and contrast: what is cut and turned, what is scored, and what it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.encoder.chance import Chance, chance_of
from models.encoder.swin import SwinEncoder, SwinSettings
from models.encoder.transformer import EncoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoderSettings
from models.objectives.objective import build_objective, check_fit
from models.objectives.swin_proxy_tasks import (
    SwinProxyTasks,
    SwinProxyTasksSettings,
    blocks,
    noise_like,
    nt_xent,
    turned,
)

SETTINGS = SwinProxyTasksSettings(code=16)
IMAGE = SwinSettings(patch=(2, 2), feature_size=4, num_heads=(1, 2, 2, 4), window=(3, 3), depths=(2, 1, 1, 1))
VOLUME = replace(IMAGE, patch=(2, 2, 2), window=(3, 3, 3))


def objective_of(encoder: SwinSettings = IMAGE, settings: SwinProxyTasksSettings = SETTINGS) -> SwinProxyTasks:
    torch.manual_seed(0)
    return build_objective(settings, SwinEncoder(encoder, 1))


def chance(count: int, step: int = 0) -> Chance:
    ids = torch.arange(count)
    return chance_of(0, step, 0, ids, 0 * ids)


@pytest.mark.parametrize(("encoder", "size", "restore"), [
    (IMAGE, (64, 64), "interpolated"), (VOLUME, (64, 32, 32), "transposed"), (IMAGE, (64, 64), "transposed"),
    (VOLUME, (64, 32, 32), "interpolated"), (replace(IMAGE, patch=(4, 4)), (128, 128), "interpolated")])
def test_every_weight_that_is_trained_gets_a_finite_gradient(encoder, size, restore):
    model = objective_of(encoder, replace(SETTINGS, restore=restore))
    losses = model(torch.randn(2, 1, *size), None, chance(2))
    assert set(losses) == {"inpainting", "rotation", "contrastive"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # a shift before an instance norm is taken out again, so that only rounding is left of these gradients
        if not (restore == "interpolated" and name.startswith("tasks.restore") and name.endswith("bias")):
            assert parameter.grad.abs().max() > 0, name


def test_the_losses_fall_on_one_batch():
    model = objective_of()
    axis = torch.linspace(-1, 1, 64)
    x = torch.stack([torch.outer(axis * (i + 1), (axis * 3).cos()) for i in range(4)])[:, None]
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    history = []
    for _ in range(30):
        losses = model(x, None, chance(4))
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert all(history[-1][name] < 0.8 * history[0][name] for name in history[0]), (history[0], history[-1])


def test_the_two_views_of_a_sample_are_turned_and_cut_by_chances_of_their_own(monkeypatch):
    model, x, seen = objective_of(), torch.randn(8, 1, 64, 64), []
    answer = model.answer
    monkeypatch.setattr(model, "answer", lambda both: (seen.append(both), answer(both))[1])
    model(x, None, chance(8))
    first, second = seen[0].chunk(2)
    assert all(not torch.equal(one, other) for one, other in zip(first, second, strict=True))
    turns = [model.view(x, None, chance(8).branch(number)).turns.tolist() for number in range(2)]
    assert turns[0] != turns[1]


def test_contrast_is_the_cross_entropy_of_finding_the_other_view_among_all_but_oneself():
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    codes = torch.cat([first, second]).double()
    total = 0.0
    for i in range(6):
        scores = [float(torch.cosine_similarity(codes[i], codes[k], dim=0) / 0.5) for k in range(6) if k != i]
        other = float(torch.cosine_similarity(codes[i], codes[(i + 3) % 6], dim=0) / 0.5)
        total += float(torch.tensor(scores, dtype=torch.float64).logsumexp(0)) - other
    assert float(nt_xent(first, second, 0.5)) == pytest.approx(total / 6, abs=1e-5)


@pytest.mark.parametrize("size", [(40, 60), (24, 40, 32)], ids=["image", "volume"])
def test_blocks_are_within_the_edges_and_add_up_to_no_much_more_than_what_is_cut(size):
    cut = blocks(size, chance(64), 0, SETTINGS)
    assert cut.shape == (64, 1, *size) and cut.dtype == torch.bool
    share = cut.flatten(1).float().mean(1)
    assert share.max() <= 0.3 + 0.25 ** len(size)  # the last block may go beyond
    assert 0.05 < share.mean() < 0.2 and share.std() > 0.03  # a uniform share of 0.3, less overlaps
    one = blocks(size, chance(64), 0, replace(SETTINGS, cut_share=1e-9))
    for sample in one[one.flatten(1).any(1), 0]:
        places = sample.nonzero()
        spread = places.max(0).values - places.min(0).values + 1
        assert int(spread.prod()) == len(places)  # a box
        assert all(1 <= edge <= 0.25 * n for edge, n in zip(spread.tolist(), size, strict=True))


def test_cutting_is_a_function_of_the_sample_and_the_step_alone():
    x = torch.randn(3, 1, 64, 64)
    model = objective_of()
    views = [model.view(x, None, chance(3, step).branch(branch)) for step, branch in [(0, 0), (0, 0), (1, 0), (0, 1)]]
    assert torch.equal(views[0].seen, views[1].seen)
    assert not torch.equal(views[0].seen, views[2].seen) and not torch.equal(views[0].seen, views[3].seen)
    alone = blocks((64, 64), Chance(chance(3).sample[1:2], 0), 0, SETTINGS)
    assert torch.equal(alone, blocks((64, 64), chance(3), 0, SETTINGS)[1:2])


def test_a_view_differs_from_its_target_within_the_holes_alone_and_the_unknown_stays_zero():
    x = torch.rand(8, 1, 64, 64)
    known = torch.rand(8, 1, 64, 64) > 0.1
    model = objective_of()
    seen, holes = model.cut(x * known, known, chance(8))
    changed = seen != x * known
    assert not (changed & ~holes).any() and not seen[~known].any()
    assert changed[(holes & known)].float().mean() > 0.95
    assert seen.min() >= 0 and seen.max() <= 1  # noise spans the range of the sample's own values
    borrowed = torch.stack([(seen[i] == x).flatten(1).sum(1) for i in range(8)])
    assert (borrowed.fill_diagonal_(0) > 20).any()  # pieces of another sample of the batch


def test_what_is_to_be_restored_is_the_turned_sample_without_holes():
    x, model = torch.rand(4, 1, 64, 64), objective_of()
    view = model.view(x, None, chance(4).branch(0))
    assert torch.equal(view.target, turned(x, view.turns, (-2, -1)))
    assert not torch.equal(view.seen, view.target)


def test_noise_reaches_from_the_smallest_to_the_largest_value():
    x = torch.tensor([[[-3.0, 5.0]], [[2.0, 2.5]]]).repeat(1, 1, 500)
    noise = noise_like(x, chance(2), 7)
    assert noise.amin((1, 2)).tolist() == pytest.approx([-3, 2]) and noise.amax((1, 2)).tolist() == pytest.approx(
        [5, 2.5])
    assert abs(float(noise[0].mean()) - 1) < 0.5


def test_each_sample_is_turned_by_its_own_number_of_quarter_turns():
    x = torch.randn(4, 2, 5, 6, 6)
    out = turned(x, torch.tensor([0, 1, 2, 3]), (-2, -1))
    for i in range(4):
        assert torch.equal(out[i], x[i].rot90(i, (2, 3)))


def test_all_four_turns_occur_and_known_values_turn_along():
    model = objective_of(settings=replace(SETTINGS, cut_share=1e-9))
    known = torch.zeros(64, 1, 32, 32, dtype=torch.bool)
    known[:, :, :16] = True
    x = torch.randn(64, 1, 32, 32) * known
    view = model.view(x, known, chance(64))
    assert view.turns.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(view.known, turned(known, view.turns, (-2, -1)))
    assert not view.seen[~view.known].any()


def test_unknown_values_are_not_scored():
    model = objective_of()
    answers = model.answer(torch.randn(4, 1, 64, 32))
    known = torch.zeros(4, 1, 64, 32, dtype=torch.bool)
    known[:, :, :32] = True
    target = torch.randn(4, 1, 64, 32)
    turns = torch.zeros(4, dtype=torch.long)
    expected = (answers.restored - target)[:, :, :32].abs().mean()
    torch.testing.assert_close(model.score(answers, target, turns, known)["inpainting"], expected)


def test_a_picture_asks_for_the_patches_with_holes_and_for_no_other():
    model = objective_of().eval()
    x = torch.randn(3, 1, 64, 64)
    result = model.reconstruct(x, None, chance(3))
    _, holes = model.cut(x, None, chance(3).branch(0))
    torn = model.encoder.tokenizer.patchify(holes.float()).values.any(-1)
    for i in range(3):
        valid = slice(None) if result.mask.hidden_valid is None else result.mask.hidden_valid[i]
        assert set(result.mask.hidden[i][valid].tolist()) == set(torn[i].nonzero()[:, 0].tolist())
    assert torch.equal(result.patches.values, model.encoder.tokenizer.patchify(x).values)
    assert result.predicted.shape == (*result.mask.hidden.shape, 4) and result.predicted.isfinite().all()


def test_sizes_that_the_last_map_does_not_fill_are_restored_to_their_own():
    model = objective_of()
    x = torch.randn(2, 1, 34, 34)
    assert model.answer(x).restored.shape == x.shape
    assert all(loss.isfinite() for loss in model(x, None, chance(2)).values())


def test_weights_of_tasks_scale_their_losses_and_without_rotation_nothing_is_turned():
    x = torch.randn(2, 1, 64, 32)
    model = objective_of(settings=replace(SETTINGS, rotation=0, inpainting=2))
    with torch.no_grad():
        losses = model(x, None, chance(2))
        once = objective_of(settings=replace(SETTINGS, rotation=0))(x, None, chance(2))
    assert losses["rotation"] == 0 and not model.view(x, None, chance(2)).turns.any()
    torch.testing.assert_close(losses["inpainting"], 2 * once["inpainting"])


@pytest.mark.parametrize(("size", "count", "said"), [
    ((32, 32), 2, "more than 32 along an axis"), ((64, 32), 2, "equal sizes along"),
    ((64, 64), 1, "one sample in a micro-batch")])
def test_samples_that_the_tasks_mean_nothing_for_are_refused(size, count, said):
    with pytest.raises(ValueError, match=said):
        objective_of()(torch.randn(count, 1, *size), None, chance(count))


def test_an_encoder_that_drops_no_patch_goes_with_no_objective_that_does_and_these_tasks_with_no_other():
    with pytest.raises(ValueError, match="takes whole maps"):
        check_fit(MaskedAutoencoderSettings(), IMAGE)
    with pytest.raises(ValueError, match="expected kind: swin"):
        check_fit(SETTINGS, EncoderSettings())
    with pytest.raises(ValueError, match="one power of 2"):
        check_fit(SETTINGS, replace(IMAGE, patch=(3, 3)))
    with pytest.raises(ValueError, match="axes of the 2"):
        check_fit(replace(SETTINGS, plane=(-3, -2)), IMAGE)


@pytest.mark.parametrize("changes", [{"cut_share": 0.0}, {"block_edge": (0.3, 0.2)}, {"plane": (-1, -1)},
                                     {"plane": (0, 1)}, {"rotation": -1.0},
                                     {"inpainting": 0.0, "rotation": 0.0, "contrastive": 0.0}])
def test_settings_that_mean_nothing_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        replace(SETTINGS, **changes)
