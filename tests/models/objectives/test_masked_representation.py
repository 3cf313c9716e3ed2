"""Labels of an averaged teacher, asked of features of which a share was hidden and rebuilt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.encoder.chance import chance_of
from models.encoder.patches import Features, Patches
from models.encoder.tokenizers import Bands, Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.mask_loss import MaskLoss
from models.heads.segment_grid import SegmentHead, on_grid, resized
from models.heads.task_loss import TaskLoss
from models.heads.tuned import Tuned, build_head
from models.objectives.masked_representation import (
    MaskedRepresentation,
    MaskedRepresentations,
    Rebuilder,
    hidden_places,
    loss_of,
    without,
)

SMALL = {"width": 16, "depth": 1, "num_heads": 2}


class Fake(nn.Module):
    """A head of two classes that reads tokens alone: the first number of each says the second class."""

    taps: tuple[int, ...] = ()

    def forward(self, features: Features, patches: Patches, x: Tensor) -> Tensor:
        first = on_grid(features.tokens, patches, x.dim() - 2)[:, :1]
        return resized(torch.cat([-first, first], 1) * 5, x.shape[2:])


def model(kind: str = "grid", head: str = "fake") -> Tuned:
    torch.manual_seed(0)
    patch = (4, 4, 4) if kind == "volume" else (4, 4)
    tokenizer = Bands(patch=(4, 4)) if kind == "bands" else Grid(patch=patch)
    encoder = Encoder(EncoderSettings(tokenizer=tokenizer, size=Shape(16, 4, 2)), 2 if kind == "bands" else 1)
    if kind == "bands":
        encoder.tokenizer.read_channels((0, 1))  # type: ignore[union-attr]
    chosen = Fake() if head == "fake" else build_head(SegmentHead(design=head, width=8), 16, 1, encoder=encoder)  # type: ignore[arg-type]
    return Tuned(encoder, chosen, MaskLoss()).eval()  # type: ignore[arg-type]


def samples(kind: str = "grid", batch: int = 3) -> Tensor:
    shape = (1, 8, 8, 8) if kind == "volume" else (2 if kind == "bands" else 1, 16, 16)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


def chance(batch: int = 3, step: int = 0):  # type: ignore[no-untyped-def]
    return chance_of(0, step, 0, torch.arange(batch), torch.zeros(batch, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["grid", "bands", "volume"])
@pytest.mark.parametrize("head", ["fake", "linear", "pyramid"])
def test_features_at_places_that_are_not_hidden_stay_and_the_others_are_rebuilt_from_these(kind: str,
                                                                                          head: str) -> None:
    tuned, x = model(kind, head), samples(kind)
    rebuilder = Rebuilder(MaskedRepresentation(**SMALL), tuned.encoder, len(getattr(tuned.head, "taps", ())))  # type: ignore[arg-type]
    patches = tuned.encoder.tokenizer.patchify(x)
    features = tuned.encode(patches)
    hidden = hidden_places(patches, x.dim() - 2, 0.4, chance())
    out = rebuilder(features, patches, hidden)
    bands = patches.values.shape[1] // hidden.shape[1]
    gone = hidden.repeat(1, bands)
    assert torch.equal(out.tokens[~gone], features.tokens[~gone])
    assert (out.tokens[gone] != features.tokens[gone]).any(1).all()
    for before, after in zip(features.layers, out.layers, strict=True):
        first = before.shape[1] - gone.shape[1]
        assert torch.equal(after[:, :first], before[:, :first]) and torch.equal(after[:, first:][~gone],
                                                                                before[:, first:][~gone])
    changed = features._replace(tokens=torch.where(gone[..., None], 99.0, features.tokens))
    assert torch.equal(rebuilder(changed, patches, hidden).tokens[gone], out.tokens[gone]), "they are not looked at"


def test_a_share_of_places_is_hidden_in_all_bands_alike_and_in_the_sample_itself() -> None:
    tuned, x = model("bands"), samples("bands", 400)
    patches = tuned.encoder.tokenizer.patchify(x)
    hidden = hidden_places(patches, 2, 0.4, chance(400))
    assert hidden.shape == (400, 16) and abs(float(hidden.float().mean()) - 0.4) < 0.02
    seen = without(x, patches, hidden)
    blocks = seen.unflatten(2, (4, 4)).unflatten(4, (4, 4)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
    assert torch.equal((blocks == 0).all(2), hidden) and torch.equal((blocks != 0).all(2), ~hidden)
    assert not torch.equal(hidden, hidden_places(patches, 2, 0.4, chance(400, step=1)))


def test_the_loss_is_cross_entropy_with_what_the_teacher_is_sure_of_once_plain_and_once_rebuilt() -> None:
    tuned, x = model(), samples()
    settings = MaskedRepresentation(threshold=0.8, begins=0, weight=2.0, rebuild=0.5, **SMALL)  # type: ignore[arg-type]
    method = MaskedRepresentations(settings, tuned)
    with torch.no_grad():
        for weight in tuned.encoder.parameters():
            weight.add_(0.02)  # the student has moved on from its teacher
    teacher = method.teacher.model.predict(x).softmax(1)
    sure, labels = teacher.amax(1) >= 0.8, teacher.argmax(1)
    assert 0 < sure.float().mean() < 1
    patches = tuned.encoder.tokenizer.patchify(x)
    features = tuned.encode(patches)
    rebuilt = method.rebuilder(features, patches, hidden_places(patches, 2, 0.4, chance()))
    expected = 0.0
    for share, one in ((2.0, features), (0.5, rebuilt)):
        each = cross_entropy(tuned.head(one, patches, x), labels, reduction="none")
        expected += share * float(each[sure].sum() / sure.numel())
    assert float(method(tuned, x, None, chance())) == pytest.approx(expected, rel=1e-5)


def test_pixels_without_data_are_asked_for_nothing() -> None:
    tuned, x = model(), samples()
    method = MaskedRepresentations(MaskedRepresentation(threshold=0.5, begins=0, **SMALL), tuned)  # type: ignore[arg-type]
    known = torch.ones_like(x, dtype=torch.bool)
    known[:, :, :3] = False
    _, sure = method.labels(x * known, known)
    assert not sure[:, :3].any() and sure[:, 3:].all()


def test_gradients_reach_encoder_and_rebuilder_and_never_the_teacher() -> None:
    tuned, x = model(head="pyramid"), samples()
    method = MaskedRepresentations(MaskedRepresentation(threshold=0.5, begins=0, **SMALL), tuned)  # type: ignore[arg-type]
    method(tuned, x, None, chance()).backward()
    assert all(weight.grad is not None for weight in method.rebuilder.parameters())
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in tuned.encoder.parameters())
    assert all(weight.grad is None for weight in method.teacher.model.parameters())


def test_the_teachers_word_counts_from_its_share_of_the_steps_on() -> None:
    tuned, x = model(), samples()
    method = MaskedRepresentations(MaskedRepresentation(threshold=0.5, begins=0.5, **SMALL), tuned)  # type: ignore[arg-type]
    method.teacher.follow(tuned, 0.4)
    assert float(method(tuned, x, None, chance())) == 0
    method.teacher.follow(tuned, 0.5)
    assert float(method(tuned, x, None, chance())) > 0


def test_training_the_rebuilder_lowers_the_loss_through_it() -> None:
    tuned, x = model(), samples(batch=8)
    method = MaskedRepresentations(MaskedRepresentation(threshold=0.5, begins=0, weight=0, **SMALL), tuned)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(method.rebuilder.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = method(tuned, x, None, chance(8))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("changes", [{"ratio": 0.0}, {"ratio": 1.0}, {"momentum": 1.0}, {"begins": 1.0}, {"width": 30},
                                     {"depth": 0}, {"weight": 0.0, "rebuild": 0.0}, {"threshold": 0.0}])
def test_settings_that_mean_nothing_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="masked_representation: found"):
        MaskedRepresentation(**changes)  # type: ignore[arg-type]


def test_labels_of_whole_samples_are_refused() -> None:
    tuned = model()
    with pytest.raises(ValueError, match="expected segmentation with a transformer"):
        MaskedRepresentations(MaskedRepresentation(), Tuned(tuned.encoder, tuned.head, TaskLoss("single_label", 2)))


def test_a_loss_of_nothing_sure_is_nothing() -> None:
    assert float(loss_of(torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64),
                         torch.zeros(2, 4, 4, dtype=torch.bool))) == 0


def test_what_is_rebuilt_depends_on_where_it_was_hidden() -> None:
    tuned = model()
    rebuilder = Rebuilder(MaskedRepresentation(**SMALL), tuned.encoder, 0)  # type: ignore[arg-type]
    patches = tuned.encoder.tokenizer.patchify(samples())
    hidden = torch.zeros(3, 16, dtype=torch.bool)
    hidden[:, [2, 11]] = True
    out = rebuilder(tuned.encode(patches), patches, hidden).tokens
    assert float((out[:, 2] - out[:, 11]).detach().abs().amax(-1).min()) > 1e-3
