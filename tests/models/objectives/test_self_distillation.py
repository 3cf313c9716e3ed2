"""Self-distillation: the distance is what the paper says, it reaches the student alone, and it has no filler in it."""

import copy

import pytest
import torch

from models.objectives.self_distillation import SelfDistillation, feature_distance
from tests.models.objectives.tiny import encoder, samples


def other(case: str) -> torch.nn.Module:
    """An encoder of the same shape with other weights."""
    one = encoder(case)
    torch.manual_seed(11)
    with torch.no_grad():
        for weight in one.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return one.requires_grad_(False).eval()


@pytest.mark.parametrize("case", ["image", "volume", "bands", "points"])
@torch.no_grad()
def test_the_distance_is_the_sum_over_the_width_averaged_over_samples_by_hand(case):
    student, teacher, x = encoder(case).eval(), other(case), samples(case)
    patches = student.tokenizer.patchify(x, None)
    own, told = student(patches), teacher(patches)
    by_hand = sum(float((a - b).square().sum()) for a, b in zip(own.summary, told.summary, strict=True)) / len(x)
    assert feature_distance(student, teacher, x, None, "summary").item() == pytest.approx(by_hand, rel=1e-5)
    by_hand = sum(float((a - b).square().sum()) / len(a)
                  for a, b in zip(own.tokens, told.tokens, strict=True)) / len(x)
    assert feature_distance(student, teacher, x, None, "tokens").item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("compare", ["summary", "tokens"])
def test_the_same_encoder_is_at_no_distance_and_the_gradient_reaches_the_student_alone(compare):
    student, teacher, x = encoder("image"), other("image").requires_grad_(True), samples("image")
    assert feature_distance(student.eval(), copy.deepcopy(student), x, None, compare) == 0
    feature_distance(student, teacher, x, None, compare).backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in student.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())


def test_patches_without_data_are_in_no_distance():
    student, teacher, x = encoder("bands").eval(), other("bands"), samples("bands")
    known = torch.ones_like(x, dtype=torch.bool)
    known[0, ..., 8:] = False  # whole patches; a band
    known[2, 1] = False
    first = feature_distance(student, teacher, x.masked_fill(~known, 0.0), known, "tokens")
    assert first == feature_distance(student, teacher, x.masked_fill(~known, 7.0), known, "tokens")


@pytest.mark.parametrize("change", [{"weight": 0.0}, {"teacher_steps": -1}])
def test_settings_that_mean_nothing_are_refused(change):
    with pytest.raises(ValueError, match="self_distillation: found"):
        SelfDistillation(**change)
