"""The averaged teacher and its labels, against numbers worked out by hand."""

import copy
import math

import pytest
import torch

from models.encoder.transformer import Encoder
from models.heads.predict_sample import SampleHead
from models.heads.task_loss import TaskLoss
from models.heads.tuned import Tuned, build_head
from models.objectives.self_training import PseudoLabels, SelfTraining, loss_of, pseudo_labels
from tests.models.objectives.tiny import encoder, samples


def tuned(kind: str = "single_label", outputs: int = 3) -> Tuned:
    one = encoder("image")
    assert isinstance(one, Encoder)
    torch.manual_seed(5)
    return Tuned(one, build_head(SampleHead(), one.width, outputs), TaskLoss(kind, outputs))


def moved(model: Tuned, by: float) -> Tuned:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(by)
    return model


def test_the_teacher_is_an_average_that_is_quicker_at_first():
    student = tuned()
    labels = PseudoLabels(SelfTraining(momentum=0.75), student)
    expected = [copy.deepcopy(weight) for weight in student.parameters()]
    for update in range(1, 7):
        moved(student, 0.1 * update)
        labels.teacher.follow(student, update / 6)
        momentum = min(0.75, 1 - 1 / (1 + update))  # 1/2, 2/3, 3/4, 3/4 ...
        expected = [momentum * old + (1 - momentum) * new
                    for old, new in zip(expected, student.parameters(), strict=True)]
    for own, by_hand in zip(labels.teacher.model.parameters(), expected, strict=True):
        assert torch.allclose(own, by_hand, atol=1e-6) and not own.requires_grad
    assert not labels.train().teacher.model.training, "always in eval mode"


def test_only_what_the_teacher_is_sure_of_is_a_label_by_hand():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.1, 0.0, 0.2], [0.0, 0.0, 5.0]])
    labels, sure = pseudo_labels(logits, "single_label", 0.75)  # e^2 / (e^2 + 2) = 0.787; 0.367; 0.987
    assert labels.tolist() == [0, 2, 2] and sure.tolist() == [True, False, True]
    said = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    by_hand = (math.log(3) + math.log(math.e + 2)) / 3  # the third label was never sure; three there could have been
    assert loss_of(said, labels, sure, "single_label").item() == pytest.approx(by_hand, rel=1e-6)


def test_findings_are_sure_one_by_one_by_hand():
    logits = torch.tensor([[3.0, -3.0], [0.5, -0.1]])  # 0.953, 0.047; 0.622, 0.475
    labels, sure = pseudo_labels(logits, "multi_label", 0.9)
    assert labels.tolist() == [[1, 0], [1, 0]] and sure.tolist() == [[True, True], [False, False]]
    said = torch.tensor([[0.0, 1.0], [5.0, 5.0]])
    by_hand = (math.log(2) + math.log(1 + math.e)) / 4
    assert loss_of(said, labels, sure, "multi_label").item() == pytest.approx(by_hand, rel=1e-6)


def test_the_teacher_s_word_counts_from_its_time_on_and_no_gradient_reaches_it():
    student = tuned()
    labels, x = PseudoLabels(SelfTraining(threshold=0.5, begins=0.5, weight=2.0), student), samples("image")
    with torch.no_grad():
        labels.teacher.model.head.output.bias += torch.tensor([9.0, 0.0, 0.0])
    assert labels(student.predict(x), x, None) == 0
    labels.teacher.follow(moved(student, 0.0), 0.5)
    said = student.predict(x)
    told, sure = pseudo_labels(labels.teacher.model.predict(x), "single_label", 0.5)
    loss = labels(said, x, None)
    assert loss.item() == pytest.approx(2.0 * loss_of(said, told, sure, "single_label").item(), rel=1e-6)
    loss.backward()
    assert all(weight.grad is None for weight in labels.teacher.model.parameters())
    assert any(weight.grad is not None and weight.grad.any() for weight in student.parameters())


def test_numbers_have_no_probability_and_are_refused():
    with pytest.raises(ValueError, match="averaged_teacher: found a regression"):
        PseudoLabels(SelfTraining(), tuned("regression", 1))


@pytest.mark.parametrize("change", [{"momentum": 1.0}, {"threshold": 0.4}, {"weight": 0.0}, {"begins": 1.0}])
def test_settings_that_mean_nothing_are_refused(change):
    with pytest.raises(ValueError, match="averaged_teacher: found"):
        SelfTraining(**change)
