"""The reversed gradient, its schedule, and the loss that it is for, against numbers worked out by hand."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from models.objectives.domain_adversarial import DomainAdversarial, DomainAdversary, reverse_gradient, strength_at


def test_a_reversed_gradient_is_the_true_one_times_minus_the_strength():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(x.sin().sum(), x)
    back = reverse_gradient(x, torch.tensor(0.3, dtype=torch.float64))
    assert torch.equal(back, x), "forward it changes nothing"
    (reversed_,) = torch.autograd.grad(back.sin().sum(), x)
    assert torch.allclose(reversed_, -0.3 * plain, rtol=1e-12)


@pytest.mark.parametrize(("share", "expected"), [
    (0.0, 0.0), (0.1, 0.46211715726), (0.5, 0.98661429815), (1.0, 0.9999092)])
def test_the_strength_grows_as_in_the_paper(share, expected):
    assert strength_at(share, 10.0) == pytest.approx(expected, rel=1e-6)
    assert strength_at(share, 10.0) == pytest.approx(math.tanh(5 * share), abs=1e-12), "the same curve, said otherwise"


def test_the_loss_is_the_cross_entropy_of_the_domains_and_teaches_the_two_sides_opposite_things():
    torch.manual_seed(0)
    adversary = DomainAdversary(DomainAdversarial(weight=0.5, hidden=7), 4)
    adversary.after_step(0.4)
    strength = 0.5 * strength_at(0.4, 10.0)
    assert float(adversary.strength) == pytest.approx(strength)
    source, target = (torch.randn(n, 4, requires_grad=True) for n in (3, 2))
    loss = adversary(source, target)
    guess = adversary.layers(torch.cat([source, target]))[:, 0]
    by_hand = -(logsigmoid(-guess[:3]).sum() + logsigmoid(guess[3:]).sum()) / 5
    assert torch.allclose(loss, by_hand)
    weights = list(adversary.layers.parameters())
    own, theirs = (torch.autograd.grad(one, [source, target, *weights]) for one in (loss, by_hand))
    assert all(torch.allclose(a, -strength * b, atol=1e-7) for a, b in zip(own[:2], theirs[:2], strict=True))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(own[2:], theirs[2:], strict=True)), "the judge learns on"


def test_before_the_first_step_nothing_reaches_the_encoder():
    adversary = DomainAdversary(DomainAdversarial(), 4)
    source, target = (torch.randn(2, 4, requires_grad=True) for _ in range(2))
    adversary(source, target).backward()
    assert not source.grad.any() and not target.grad.any()


@pytest.mark.parametrize("change", [{"weight": 0.0}, {"sharpness": 0.0}, {"hidden": 0}])
def test_settings_that_mean_nothing_are_refused(change):
    with pytest.raises(ValueError, match="domain_adversarial: found"):
        DomainAdversarial(**change)


def test_curves_show_which_share_of_domains_is_told_right():
    adversary = DomainAdversary(DomainAdversarial(hidden=7), 4)
    for layer in adversary.layers[::2]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.ones_(layer.bias)
    adversary(torch.randn(3, 4), torch.randn(1, 4))  # all are taken for the target: one in four is told right
    adversary.after_step(0.1)
    assert adversary.shown() == {"domains_told": pytest.approx(0.95 * 0.5 + 0.05 * 0.25)}
