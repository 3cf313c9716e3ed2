"""Hard Patches Mining: what is hidden is what the teacher finds hard, and the teacher is an average of the student."""

from dataclasses import replace

import pytest
import torch

from models.encoder.patches import Patches
from models.encoder.tokenizers import Groups
from models.encoder.transformer import EncoderSettings
from models.objectives.decoders import DecoderSettings
from models.objectives.hard_patches import HardPatches, HardPatchesSettings, hide_hardest, order_loss
from models.objectives.objective import build_objective
from models.objectives.readouts import ChamferReadout
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from tests.models.objectives.tiny import BATCH, chance, encoder, partly_known, samples, train, trainable

DECODER = DecoderSettings(width=16, depth=1, num_heads=2)
QUICK = {"decoder": DECODER, "momentum": 0.9, "last_momentum": 0.95}
SETTINGS = {"image": HardPatchesSettings(**QUICK), "volume": HardPatchesSettings(ratio=0.5, **QUICK),
            "bands": HardPatchesSettings(ratio=0.5, **QUICK),
            "points": HardPatchesSettings(ratio=0.6, readout=ChamferReadout(), **QUICK)}


def make(case: str) -> tuple[HardPatches, torch.Tensor]:
    model = build_objective(SETTINGS[case], encoder(case))
    assert isinstance(model, HardPatches)
    return model, samples(case)


@pytest.mark.parametrize("case", SETTINGS)
def test_the_loss_falls_on_one_batch_and_every_weight_but_the_teacher_s_gets_a_gradient(case):
    model, x = make(case)
    losses, touched = train(model, x)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert touched == trainable(model)
    assert all(name.startswith("teacher.") for name in {n for n, _ in model.named_parameters()} - touched)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_a_batch_is_masked_as_sample_by_sample(share, known):
    torch.manual_seed(0)
    rating, ratio = torch.randn(BATCH, 20), 0.75
    usable = torch.ones(BATCH, 20, dtype=torch.bool)
    if known:
        usable[0, :7], usable[1, 3:] = False, False
    mask = hide_hardest(rating, usable if known else None, ratio, torch.tensor(share), chance())
    draw = chance().uniform(20, 36)
    for i in range(BATCH):
        there = usable[i].nonzero()[:, 0].tolist()
        num_hidden = len(there) - max(int(len(there) * (1 - ratio)), 1)
        by_rating = sorted(there, key=lambda n, i=i: -float(rating[i, n]))
        hard = by_rating[:int(share * num_hidden)]
        rest = sorted((n for n in there if n not in hard), key=lambda n, i=i: -float(draw[i, n]))
        expected = hard + rest[:num_hidden - len(hard)]
        flags = mask.hidden_valid[i] if mask.hidden_valid is not None else slice(None)
        assert sorted(mask.hidden[i][flags].tolist()) == sorted(expected)
        flags = mask.visible_valid[i] if mask.visible_valid is not None else slice(None)
        assert sorted(mask.visible[i][flags].tolist()) == sorted(set(there) - set(expected))


def test_masks_are_random_at_first_and_grow_harder():
    model, x = make("image")
    patches = model.encoder.tokenizer.patchify(x)
    rating, mean = model.rate(patches), []
    for done in (0.0, 0.5, 1.0):
        model.done.fill_(done)
        hidden = torch.stack([model.choose(patches, chance(step)).hidden for step in range(20)])
        mean.append(float(rating.expand(20, -1, -1).gather(2, hidden).mean()))
    assert mean == sorted(mean) and mean[2] > mean[0]


def test_of_two_patches_the_one_with_the_larger_error_should_be_guessed_harder():
    errors = torch.tensor([[3.0, 1.0, 2.0, 9.0]])
    valid = torch.tensor([[True, True, True, False]])
    right, wrong = torch.tensor([[3.0, -3.0, 0.0, 0.0]]), torch.tensor([[-3.0, 3.0, 0.0, 0.0]])
    assert order_loss(right, errors, valid) < 0.1 < 2 < order_loss(wrong, errors, valid)
    torch.testing.assert_close(order_loss(right + 7, errors, valid), order_loss(right, errors, valid))
    by_hand = -torch.stack([torch.nn.functional.logsigmoid(right[0, a] - right[0, b])
                            for a, b in ((0, 1), (0, 2), (2, 1))]).mean()
    torch.testing.assert_close(order_loss(right, errors, valid), by_hand)
    assert order_loss(right, torch.ones(1, 4), None) == 0, "equal errors make no pair"


def half_noise(batch: int = 48) -> torch.Tensor:
    """Half of each image can be restored, half cannot; which half differs."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 1, 24, 24, generator=generator)
    calm = torch.arange(24) < 12
    x[::2, :, calm] = 0
    x[1::2, :, ~calm] = 0
    return x


def ranked_right(rating: torch.Tensor, noisy: torch.Tensor) -> float:
    """Of a noisy and a calm patch of a sample, how often the noisy one is rated harder."""
    pairs = noisy[:, :, None] & ~noisy[:, None]
    return float((rating[:, :, None] > rating[:, None])[pairs].float().mean())


def trained(rate_at: str, depth: int = 1, seed: int = 0, steps: int = 240) -> tuple[HardPatches, torch.Tensor, float]:
    """A model trained on half-noisy images, others of the kind, and how well its teacher ranks their patches. A fifth
    of what is hidden while training are the hardest."""
    one = encoder("image")
    torch.manual_seed(seed)
    decoder = DecoderSettings(width=16, depth=depth, num_heads=2)
    model = HardPatches(HardPatchesSettings(decoder=decoder, hard_share=1.0, momentum=0.9, last_momentum=0.9,
                                            rate_at=rate_at), one)
    x, new = half_noise(), half_noise(60)[48:]
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for step in range(steps):
        loss = torch.stack(list(model(x, None, chance(step, 48)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(0.2)
    patches = one.tokenizer.patchify(new)
    return model.eval(), new, ranked_right(model.rate(patches), patches.values.abs().sum(-1) > 0)


def test_it_learns_which_patches_are_hard_and_hides_them():
    assert trained("asked", steps=0)[2] < 0.7
    model, new, right = trained("asked", steps=120)
    assert right > 0.9
    losses = []
    for done in (0.0, 1.0):
        model.done.fill_(done)
        losses.append(float(model(new, None, chance(0, 12))["reconstruction"].detach()))
    assert losses[1] > 1.1 * losses[0], "hard masks are harder than random ones"


@pytest.mark.parametrize(("done", "hardest"), [(0.5, 6), (1.0, 13)])
def test_the_share_of_the_hardest_grows_to_what_was_asked(done, hardest):
    """Of 36 patches 27 are hidden, a quarter of them by rating half way, half at the end; the others are anybody's."""
    model, x = make("image")
    model.after_step(done)
    patches = model.encoder.tokenizer.patchify(x)
    ranked = model.rate(patches).argsort(1, descending=True)
    masks = [model.choose(patches, chance(step)).hidden for step in range(20)]
    for sample in range(BATCH):
        always = set.intersection(*(set(hidden[sample].tolist()) for hidden in masks))
        assert always == set(ranked[sample, :hardest].tolist())


def test_the_teacher_reads_the_tokens_that_it_is_told_to_read():
    model, x = make("image")
    patches = model.encoder.tokenizer.patchify(x)
    ratings = {}
    for rate_at in ("asked", "seen"):
        model.settings = replace(model.settings, rate_at=rate_at)
        ratings[rate_at] = model.rate(patches)
        with torch.no_grad():
            model.teacher["predictor"].mask_token.add_(1.0)
        assert torch.equal(model.rate(patches), ratings[rate_at]) == (rate_at == "seen")
    assert ratings["asked"].shape == ratings["seen"].shape == (BATCH, 36)


def test_the_teacher_is_the_average_of_the_student_and_stays_in_eval_mode():
    model, x = make("points")
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    train(model, x, steps=1)
    for part in ("encoder", "predictor", "difficulty"):
        for name, student in getattr(model, part).named_parameters():
            old, own = before[f"parts.{part}.{name}"], model.teacher[part].state_dict()[name]
            torch.testing.assert_close(own, 0.95 * old + 0.05 * student.detach())
        for name, buffer in getattr(model, part).named_buffers():
            assert torch.equal(model.teacher[part].state_dict()[name], buffer)
    model.train()
    assert model.training and not any(module.training for module in model.teacher.modules())


def test_the_momentum_grows_over_its_share_of_the_run():
    model, _ = make("image")
    kept = []
    for done in (0.0, 0.25, 0.5, 1.0):
        student, own = model.difficulty.weight, model.teacher["difficulty"].weight
        with torch.no_grad():
            student.fill_(0.0)
            own.fill_(1.0)
        model.after_step(done)
        kept.append(float(own.detach().mean()))
    assert kept == pytest.approx([0.9, 0.925, 0.95, 0.95])


def test_the_teacher_s_opinion_is_part_of_the_state():
    model, x = make("image")
    train(model, x, steps=4)
    other, _ = make("image")
    other.load_state_dict(model.state_dict())
    patches = model.encoder.tokenizer.patchify(x)
    assert torch.equal(other.rate(patches), model.rate(patches)) and other.done == 1
    assert {"encoder", "decoder", "readout", "predictor", "difficulty", "teacher"} == dict(
        model.named_children()).keys()


@pytest.mark.parametrize("rate_at", ["asked", "seen"])
@pytest.mark.parametrize("case", ["image", "bands"])
def test_unknown_values_are_neither_rated_nor_scored(case, rate_at):
    model, x = make(case)
    model.settings = replace(model.settings, rate_at=rate_at)
    model.eval()
    model.done.fill_(1.0)
    known = partly_known(case, x)
    x = x.masked_fill(~known, 0.0)
    patches = model.encoder.tokenizer.patchify(x, known)
    rating = model.rate(patches)
    assert torch.equal(rating.isinf(), ~patches.usable())
    mask = model.choose(patches, chance())
    for index, valid in ((mask.visible, mask.visible_valid), (mask.hidden, mask.hidden_valid)):
        assert patches.usable().gather(1, index)[valid].all()
    decoded = model.decoder(model.encoder(patches, mask), patches, mask)
    garbage = Patches(patches.values.masked_fill(~patches.known, 1e6), patches.place, patches.known, patches.grid)
    for one, two in zip(model.readout.errors(decoded, patches, mask), model.readout.errors(decoded, garbage, mask),
                        strict=True):
        assert torch.equal(one, two)
    assert all(loss.isfinite() for loss in model(x, known, chance()).values())


@pytest.mark.parametrize("changes", [{"hard_share": 1.5}, {"momentum": 0.99, "last_momentum": 0.9}, {"ratio": 0},
                                     {"momentum_rise": 0}])
def test_settings_that_mean_nothing_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        HardPatchesSettings(**changes)


def test_points_take_a_distance_between_points():
    with pytest.raises(ValueError, match="groups of points take chamfer"):
        HardPatchesSettings().fits(EncoderSettings(tokenizer=Groups()))


def test_it_is_reached_by_a_paragraph_of_params():
    run = build(PretrainRun, {"domain": "medical", "data": "films", "objective": {
        "kind": "hard_patches", "hard_share": 0.4, "decoder": {"width": 64, "depth": 1, "num_heads": 4}}}, "test")
    assert isinstance(run.objective, HardPatchesSettings) and run.objective.hard_share == 0.4
