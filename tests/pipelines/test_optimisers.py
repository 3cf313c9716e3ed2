import pytest
import torch
from torch import Tensor, nn

from domains.store import open_prepared
from models.encoder.transformer import Encoder
from models.objectives.masked_autoencoder import MaskedAutoencoder
from pipelines.pretrain import PretrainRun
from pipelines.settings import SettingsError, build
from pipelines.training import estimate
from pipelines.training.batches import Source, domain_code
from pipelines.training.optimisers import Adan, CautiousAdamW, keep_agreeing
from pipelines.training.schedule import make_optimiser
from pipelines.training.training import Job, Optimisation, fit
from pipelines.weights.checkpoints import state_hash
from tests.fabricate import prepare, pretrain_settings, train_directly

ADAN = (0.98, 0.92, 0.99)


def gradient_at(weight: Tensor, step: int) -> Tensor:
    """Of a bowl that is steeper along some axes, with noise, so that gradients change sign from step to step."""
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step), dtype=weight.dtype)
    return weight.detach() * torch.linspace(0.1, 3, weight.numel(), dtype=weight.dtype).reshape(weight.shape) + noise


def run(make, steps: int = 20, start: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    weight = nn.Parameter((torch.linspace(-1, 1, 12).reshape(3, 4) if start is None else start).to(dtype).clone())
    optimiser = make([weight])
    for step in range(steps):
        weight.grad = gradient_at(weight, step)
        optimiser.step()
    return weight.detach()


def adan_of_the_paper(steps: int, rate: float, decay: float) -> Tensor:
    """Algorithm 1 with its own betas (shares that come in: 1 minus ours), one equation per line, averages from 0 and
    corrected for it."""
    b1, b2, b3 = (1 - beta for beta in ADAN)
    theta = torch.linspace(-1, 1, 12).reshape(3, 4).double()
    m = v = n = torch.zeros_like(theta)
    before = None
    for k in range(1, steps + 1):
        g = gradient_at(theta, k - 1)
        d = g - (g if before is None else before)
        before = g
        m = (1 - b1) * m + b1 * g
        v = (1 - b2) * v + b2 * d
        n = (1 - b3) * n + b3 * (g + (1 - b2) * d) ** 2
        m_hat, v_hat, n_hat = m / (1 - (1 - b1) ** k), v / (1 - (1 - b2) ** k), n / (1 - (1 - b3) ** k)
        theta = (theta - rate / (n_hat.sqrt() + 1e-8) * (m_hat + (1 - b2) * v_hat)) / (1 + decay * rate)
    return theta


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_adan_is_the_algorithm_of_its_paper(decay):
    ours = run(lambda weights: Adan(weights, 0.03, ADAN, weight_decay=decay))
    torch.testing.assert_close(ours, adan_of_the_paper(20, 0.03, decay), rtol=1e-12, atol=1e-12)


def test_the_first_step_of_adan_is_one_rate_along_the_sign_of_the_gradient():
    start = torch.linspace(-1, 1, 12).reshape(3, 4).double()
    moved = run(lambda weights: Adan(weights, 0.03), steps=1) - start
    torch.testing.assert_close(moved, -0.03 * gradient_at(start, 0).sign(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [lambda weights: Adan(weights, 0.1, cautious=True),
                                  lambda weights: CautiousAdamW(weights, 0.1)], ids=["adan", "adamw"])
def test_a_cautious_update_never_opposes_the_gradient(make):
    weight = nn.Parameter(torch.linspace(-1, 1, 400).reshape(20, 20))
    optimiser = make([weight])
    left_out = 0
    for step in range(30):
        weight.grad = gradient_at(weight, step)
        before = weight.detach().clone()
        optimiser.step()
        moved = weight.detach() - before
        assert (moved * weight.grad <= 0).all()
        left_out += int((moved == 0).sum())
    assert left_out > 100, "nothing was masked, so nothing was shown"


def test_an_uncautious_update_does_oppose_the_gradient():
    weight = nn.Parameter(torch.linspace(-1, 1, 400).reshape(20, 20))
    optimiser = Adan([weight], 0.1)
    opposed = 0
    for step in range(30):
        weight.grad = gradient_at(weight, step)
        before = weight.detach().clone()
        optimiser.step()
        opposed += int(((weight.detach() - before) * weight.grad > 0).sum())
    assert opposed > 100


def test_what_agrees_is_enlarged_by_one_over_its_share_and_at_most_a_thousandfold():
    direction, gradient = torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    keep_agreeing([direction], [gradient])
    assert direction.tolist() == [2.0, 0.0, 6.0, 0.0]
    lonely = torch.cat([torch.ones(1), -torch.ones(9999)])
    keep_agreeing([lonely], [torch.ones(10000)])
    assert lonely[0] == pytest.approx(1000) and not lonely[1:].any()


def test_cautious_adamw_is_adamw_where_all_agrees():
    def steady(make) -> Tensor:
        weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).double())
        optimiser = make([weight])
        for _ in range(10):
            weight.grad = torch.linspace(0.1, 2, 12).reshape(3, 4).double()
            optimiser.step()
        return weight.detach()

    torch.testing.assert_close(
        steady(lambda weights: CautiousAdamW(weights, 0.01, (0.9, 0.95), weight_decay=0.1)),
        steady(lambda weights: torch.optim.AdamW(weights, 0.01, (0.9, 0.95), weight_decay=0.1)), rtol=1e-12, atol=1e-12)


def test_a_weight_without_a_gradient_stays_and_counts_its_own_steps():
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimiser = Adan([one, other], 0.1, weight_decay=0.1)
    one.grad = torch.ones(3)
    optimiser.step()
    assert other.tolist() == [1, 1, 1] and other not in optimiser.state
    other.grad = torch.ones(3)
    optimiser.step()
    assert optimiser.state[one]["step"] == 2 and optimiser.state[other]["step"] == 1


def test_adamw_is_torchs_own_unless_it_is_to_be_cautious():
    def made(**changes: object) -> torch.optim.Optimizer:
        groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": 1e-4, "weight_decay": 0.0}]
        return make_optimiser(groups, Optimisation(steps=4, **changes))

    plain, cautious = made(), made(cautious=True)
    assert type(plain) is torch.optim.AdamW and type(cautious) is CautiousAdamW
    adan = made(optimiser="adan", betas=ADAN, cautious=True)
    assert type(adan) is Adan and adan.cautious
    for optimiser, betas in ((plain, (0.9, 0.95)), (cautious, (0.9, 0.95)), (adan, ADAN)):
        assert optimiser.param_groups[0]["betas"] == betas
        assert optimiser.param_groups[0]["lr"] == 1e-4 and optimiser.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize(("optimiser", "betas", "told"), [
    ("adan", [0.9, 0.95], r"found \[0.9, 0.95\], expected 3 shares below 1 for adan, such as \[0.98, 0.92, 0.99\]"),
    ("adamw", [0.98, 0.92, 0.99], "expected 2 shares below 1 for adamw"), ("adamw", [0.9, 1.0], "below 1")])
def test_betas_that_are_another_optimisers_are_refused(optimiser, betas, told):
    with pytest.raises(SettingsError, match=told):
        build(Optimisation, {"steps": 10, "optimiser": optimiser, "betas": betas}, "optimisation")


def job(folder, optimisation: dict[str, object], resume=None, stop: int | None = None) -> Job:
    paragraph = pretrain_settings("xray", 8)
    settings = build(PretrainRun, {**paragraph, "optimisation": {**paragraph["optimisation"], **optimisation}}, "test")
    data = open_prepared(folder)
    torch.manual_seed(0)
    model = MaskedAutoencoder(settings.objective, Encoder(settings.encoder, len(data.contract.channels)))

    def log(step: int, numbers: dict[str, float]) -> None:
        if step == stop:
            raise RuntimeError("stopped")

    return Job(model=model, losses=lambda batch, chance: model(batch.x, batch.known, chance), augment=None,
               source=Source(data, data.contract, domain_code(settings.domain), data.pool()), log=log, seed=5,
               optimisation=settings.optimisation, machine=settings.machine, num_blocks=2, resume=resume)


@pytest.mark.parametrize("optimisation", [
    {"optimiser": "adan", "betas": [0.98, 0.92, 0.99]}, {"cautious": True},
    {"optimiser": "adan", "betas": [0.98, 0.92, 0.99], "cautious": True, "clip": 0.1}],
    ids=["adan", "cautious adamw", "cautious adan, clipped"])
def test_a_run_that_stops_and_resumes_ends_with_the_weights_of_one_that_did_not(tmp_path, optimisation):
    folder = prepare(tmp_path / "data")
    whole = job(folder, optimisation)
    fit(whole)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(job(folder, optimisation, tmp_path / "resume.pt", stop=6))
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == 4
    resumed = job(folder, optimisation, tmp_path / "resume.pt")
    fit(resumed)
    assert state_hash(resumed.model) == state_hash(whole.model)
    assert state_hash(whole.model) != train_directly(folder, "xray", 8, 1, None, None), "the setting changes something"


@pytest.mark.parametrize(("optimisation", "kept"), [({}, 2), ({"cautious": True}, 2),
                                                    ({"optimiser": "adan", "betas": [0.98, 0.92, 0.99]}, 4)])
def test_the_estimate_counts_the_numbers_that_an_optimiser_keeps(tmp_path, monkeypatch, optimisation, kept):
    one = job(prepare(tmp_path / "data"), optimisation)
    monkeypatch.setattr(estimate, "measure", lambda *of: (0.1, 0))
    cost = estimate.announce("trial", one, num_samples=8)
    weights = sum(weight.numel() for weight in one.model.parameters())
    good = 4 * (1 + kept) * weights  # the state to go back to lies on the host as well
    assert cost is not None and cost.memory == 4 * kept * weights + good
    optimiser = make_optimiser([{"params": list(one.model.parameters())}], one.optimisation)
    sum(weight.square().sum() for weight in one.model.parameters()).backward()
    optimiser.step()
    held = sum(value.numel() for state in optimiser.state.values() for value in state.values()
               if isinstance(value, Tensor) and value.dim())
    assert 4 * held == cost.memory - good
