"""The loss of masks, against its definition in float64 and against another library's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.heads.mask_loss import SMOOTH, UNKNOWN, MaskLoss


def drawn(shape: tuple[int, ...] = (5, 6), batch: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, classes, *shape, generator=generator)
    target = torch.randint(0, classes, (batch, *shape), generator=generator).to(torch.uint8)
    target[torch.rand(target.shape, generator=generator) < 0.2] = UNKNOWN
    return logits, target


def by_definition(logits: np.ndarray, target: np.ndarray, looked_for: np.ndarray, overlap: float) -> float:
    """Pixel by pixel, for one sample."""
    share = np.exp(logits - logits.max(0))
    share /= share.sum(0)
    background = share[0] + sum(share[k + 1] for k in range(len(looked_for)) if not looked_for[k])
    known = [place for place in np.ndindex(target.shape) if target[place] != UNKNOWN]
    if not known:
        return 0.0
    asked = [background[place] if target[place] == 0 else share[(int(target[place]), *place)] for place in known]
    gaps = []
    for k in np.flatnonzero(looked_for):
        hit = sum(share[(k + 1, *place)] for place in known if target[place] == k + 1)
        total = sum(share[(k + 1, *place)] + (target[place] == k + 1) for place in known)
        gaps.append(1 - (2 * hit + SMOOTH) / (total + SMOOTH))
    return float(-np.mean(np.log(asked)) + overlap * (np.mean(gaps) if gaps else 0.0))


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5), (17,)])
@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_the_loss_is_its_definition_also_where_classes_were_not_looked_for(shape, overlap):
    logits, target = drawn(shape)
    looked_for = torch.tensor([[1, 1], [1, torch.nan], [torch.nan, torch.nan], [1, 1]])
    for sample in (1, 2):  # what was not looked for is in no mask
        target[sample][(target[sample] != UNKNOWN) & (target[sample] > 2 - sample)] = 0
    target[3] = UNKNOWN
    found = MaskLoss(overlap).per_sample(logits.double(), target, looked_for)
    expected = [by_definition(logits[i].double().numpy(), target[i].numpy(), ~looked_for[i].isnan().numpy(), overlap)
                for i in range(len(logits))]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert found[3] == 0


def test_logits_of_half_precision_lose_no_digits_in_sums_over_pixels():
    logits, target = drawn((128, 128), batch=2)
    half, looked_for = logits.bfloat16(), torch.ones(2, 2)
    found, exact = (MaskLoss().per_sample(one, target, looked_for) for one in (half, half.double()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-4)


def test_its_gradient_is_finite_and_right():
    logits, target = drawn((3, 4), batch=2)
    looked_for = torch.tensor([[1, 1], [1, torch.nan]])
    target[1][target[1] == 2] = 0
    logits = logits.requires_grad_(True)
    loss = MaskLoss()
    loss(logits, target, looked_for).backward()
    step = 1e-2
    for place in ((0, 0, 1, 1), (1, 2, 0, 0), (1, 0, 2, 3)):
        ends = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[place] += sign * step
            ends.append(float(loss(moved, target, looked_for)))
        assert float(logits.grad[place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2, abs=1e-5)


def test_micro_batches_add_up_to_their_batch():
    logits, target = drawn()
    looked_for = torch.ones(4, 2)
    loss = MaskLoss()
    parts = [loss(logits[i:i + 2], target[i:i + 2], looked_for[i:i + 2]) for i in (0, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(logits, target, looked_for))


def test_an_absent_class_that_is_not_predicted_costs_nothing():
    logits = torch.full((1, 2, 8, 8), -20.0)
    logits[:, 0] = 20.0
    loss = MaskLoss()(logits, torch.zeros(1, 8, 8, dtype=torch.uint8), torch.ones(1, 1))
    assert float(loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(8, 9), (4, 5, 6)])
def test_where_all_is_known_it_is_monais_dice_and_cross_entropy(shape):
    losses = pytest.importorskip("monai.losses", reason="needs monai")
    logits, target = drawn(shape)
    target[target == UNKNOWN] = 0
    theirs = losses.DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=SMOOTH,
                               smooth_dr=SMOOTH)(logits, target[:, None].long())
    torch.testing.assert_close(MaskLoss()(logits, target, torch.ones(4, 2)), theirs)
