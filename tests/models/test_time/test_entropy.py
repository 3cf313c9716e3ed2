"""Tent trains the norms' scales and shifts, makes answers surer, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.test_time.entropy import Tent, entropy, minimise_entropy, norms_of
from tests.models.test_time.models import samples, tuned

KINDS = [("xray", "single_label"), ("xray", "multi_label"), ("points", "single_label")]


def halves(x: torch.Tensor) -> list[tuple[torch.Tensor, None]]:
    return [(part, None) for part in x.chunk(2)]


@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_answers_are_surer_afterwards_and_the_model_is_what_it_was_to_the_bit(kind, task):
    model, x = tuned(kind, task), samples(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        plain = model.predict(x)
    told = torch.cat(minimise_entropy(model, model.predict, halves(x), task, Tent(steps=5)))
    assert entropy(told, task).mean() < entropy(plain, task).mean() - 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_nothing_but_scales_and_shifts_of_norms_is_trained(kind, task):
    model = tuned(kind, task)
    norms = {name for name, module in model.named_modules()
             if isinstance(module, nn.LayerNorm | nn.modules.batchnorm._BatchNorm)}
    seen: list[dict[str, torch.Tensor]] = []

    def watched(x: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        seen.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return model.predict(x, known)

    minimise_entropy(model, watched, halves(samples(kind)), task, Tent(steps=3))
    moved = {name for name, weight in seen[-1].items() if not torch.equal(weight, seen[0][name])}
    assert moved and {name.rsplit(".", 1)[0] for name in moved} <= norms
    assert len(norms_of(model)) >= 6


def test_one_step_is_the_gradient_step_that_the_paper_writes():
    model, x = tuned(), samples(count=12)
    told = minimise_entropy(model, model.predict, [(x, None)], "single_label", Tent(learning_rate=1e-2))[0]
    own = tuned()
    weights = [weight for module in own.modules() if isinstance(module, nn.LayerNorm) for weight in module.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    p = own.predict(x).softmax(-1)
    gradients = torch.autograd.grad(-(p * p.log()).sum(-1).mean(), weights)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= 1e-2 * gradient / (gradient.abs() + 1e-8)  # the first step of Adam
        torch.testing.assert_close(told, own.predict(x), atol=2e-5, rtol=1e-4)


def test_episodes_do_not_see_each_other_and_going_on_does():
    model, x = tuned(), samples()
    alone = minimise_entropy(model, model.predict, halves(x)[1:], "single_label", Tent(episodic=True))[0]
    for episodic in (True, False):
        second = minimise_entropy(model, model.predict, halves(x), "single_label", Tent(episodic=episodic))[1]
        assert torch.equal(second, alone) == episodic


def test_the_same_samples_give_the_same_answers():
    model, x = tuned(), samples()
    first, again = (torch.cat(minimise_entropy(model, model.predict, halves(x), "single_label", Tent()))
                    for _ in range(2))
    assert torch.equal(first, again)


def test_the_model_is_put_back_when_something_fails_too():
    model, x = tuned("points"), samples("points")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fails(part: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        if part is not x:
            raise KeyboardInterrupt
        return model.predict(part, known)

    with pytest.raises(KeyboardInterrupt):
        minimise_entropy(model, fails, [(x, None), (x.clone(), None)], "single_label", Tent())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_a_regression_is_refused_in_a_sentence():
    model = tuned(task="regression", outputs=1)
    with pytest.raises(ValueError, match="a number has no entropy"):
        minimise_entropy(model, model.predict, [(samples(), None)], "regression", Tent())


def test_a_model_without_norms_is_refused_in_a_sentence():
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    with pytest.raises(ValueError, match="found no norm"):
        minimise_entropy(model, lambda x, known: model(x), [(samples(), None)], "single_label", Tent())
    with_unused = nn.ModuleDict({"norm": nn.LayerNorm(2), "asked": model})
    with pytest.raises(ValueError, match="found no norm that the answers depend on"):
        minimise_entropy(with_unused, lambda x, known: model(x), [(samples(), None)], "single_label", Tent())
