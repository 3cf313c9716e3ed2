"""A weight in the settings multiplies the loss that it is named after, and no other; defaults are the papers'."""

import dataclasses

import pytest
import torch

from models.encoder.positions import Waves
from models.objectives.decoders import DecoderSettings
from models.objectives.distillation import DistillationSettings
from models.objectives.dual_masked_autoencoder import DualMaskedAutoencoderSettings
from models.objectives.latent_alignment import LatentAlignmentSettings
from models.objectives.multiscale import MultiScaleSettings
from models.objectives.objective import ObjectiveSettings, build_objective
from models.objectives.pcp_mae import PCPMAESettings
from models.objectives.point_cmae import PointCMAESettings
from tests.models.objectives.tiny import chance, encoder, samples

DECODER = DecoderSettings(width=24, depth=1, num_heads=2)
POINTS = {"class_token": False, "positions": Waves()}


def losses(settings: ObjectiveSettings, case: str, changes: dict) -> dict[str, torch.Tensor]:
    one = encoder(case, **changes)
    teacher = encoder(case, **changes) if isinstance(settings, DistillationSettings) else None
    torch.manual_seed(5)
    return build_objective(settings, one, teacher).eval()(samples(case), None, chance())


@pytest.mark.parametrize(("settings", "field", "name", "case", "changes", "published"), [
    (LatentAlignmentSettings(regressor_depth=1, decoder_depth=1), "alignment_weight", "alignment", "image", {}, 2.0),
    (DualMaskedAutoencoderSettings(decoder=DECODER, second_decoder=DECODER), "second_weight", "second_reconstruction",
     "image", {}, 1.0),
    (PCPMAESettings(decoder=DECODER), "centre_weight", "centres", "points", POINTS, 0.1),
    (PointCMAESettings(decoder=DECODER), "agreement_weight", "agreement", "points", {"class_token": False}, 0.001),
    (DistillationSettings(decoder=DECODER), "weight", "distillation", "image", {}, 1.0),
    (DistillationSettings(decoder=DECODER), "reconstruction_weight", "reconstruction", "image", {}, 1.0),
    (MultiScaleSettings(decoder=DECODER, num_scales=1), "share", "finer_scales", "image", {}, 0.4),
], ids=lambda one: one if isinstance(one, str) else getattr(one, "kind", ""))
def test_a_weight_multiplies_its_loss_alone(settings, field, name, case, changes, published):
    assert getattr(settings, field) == published
    before = losses(settings, case, changes)
    after = losses(dataclasses.replace(settings, **{field: 2 * published}), case, changes)
    for key, value in before.items():
        factor = 2.0 if key == name else 1.0
        if field == "share" and key != name:
            factor = (1 - 2 * published) / (1 - published)                  # what is left for the small scale
        torch.testing.assert_close(after[key], factor * value)
