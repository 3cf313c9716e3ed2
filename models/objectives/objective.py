"""The objectives that can be pretrained with, and the one place that builds them.

An objective is a module whose forward is (x, known, chance) -> named losses. Its children are its parts: `encoder` is
kept, the others are thrown away after pretraining but saved with a checkpoint under their names, so that a picture can
be drawn or the training continued elsewhere.
"""

from __future__ import annotations

from typing import Any

from models.encoder.build import AnyEncoderSettings
from models.encoder.swin import SwinSettings
from models.objectives.distillation import Distillation, DistillationSettings
from models.objectives.drop_positions import DropPositions, DropPositionsSettings
from models.objectives.dual_masked_autoencoder import DualMaskedAutoencoder, DualMaskedAutoencoderSettings
from models.objectives.dynamic_head import DynamicHead, DynamicHeadSettings
from models.objectives.hard_patches import HardPatches, HardPatchesSettings
from models.objectives.latent_alignment import LatentAlignment, LatentAlignmentSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.multiscale import MultiScaleAutoencoder, MultiScaleSettings
from models.objectives.pcp_mae import PCPMAE, PCPMAESettings
from models.objectives.point_cmae import PointCMAE, PointCMAESettings
from models.objectives.simmim import SimMIM, SimMIMSettings
from models.objectives.swin_proxy_tasks import SwinProxyTasks, SwinProxyTasksSettings

ObjectiveSettings = (MaskedAutoencoderSettings | SwinProxyTasksSettings | MultiScaleSettings | PointCMAESettings
                     | SimMIMSettings | PCPMAESettings | HardPatchesSettings | DropPositionsSettings
                     | LatentAlignmentSettings | DistillationSettings
                     | DualMaskedAutoencoderSettings | DynamicHeadSettings)
"""Told apart by `kind`."""
Objective = (MaskedAutoencoder | SwinProxyTasks | MultiScaleAutoencoder | PointCMAE
             | SimMIM | PCPMAE | HardPatches | DropPositions | LatentAlignment | Distillation
             | DualMaskedAutoencoder | DynamicHead)


def check_fit(settings: ObjectiveSettings, encoder: AnyEncoderSettings) -> None:
    """Raises ValueError for an objective and an encoder that mean nothing together."""
    if isinstance(encoder, SwinSettings) and not isinstance(settings, SwinProxyTasksSettings):
        raise ValueError(f"objective {settings.kind} hides single patches, and a Swin encoder takes whole maps: found "
                         "encoder swin, expected kind: transformer, or objective swin_proxy_tasks.")
    settings.fits(encoder)  # type: ignore[arg-type]  # the others know transformers alone


def build_objective(settings: ObjectiveSettings, encoder: Any, teacher: Any = None) -> Objective:
    """The module that these settings describe, around this encoder. Raises ValueError where they do not fit.

    Args:
        teacher: the pretrained encoder that distillation learns from; others have none.
    """
    check_fit(settings, encoder.settings)
    if (teacher is None) == isinstance(settings, DistillationSettings):
        raise ValueError(f"objective {settings.kind}: found {'no' if teacher is None else 'a'} teacher, expected one "
                         "for distillation alone.")
    match settings:
        case SwinProxyTasksSettings():
            return SwinProxyTasks(settings, encoder)
        case MaskedAutoencoderSettings():
            return MaskedAutoencoder(settings, encoder)
        case MultiScaleSettings():
            return MultiScaleAutoencoder(settings, encoder)
        case PointCMAESettings():
            return PointCMAE(settings, encoder)
        case SimMIMSettings():
            return SimMIM(settings, encoder)
        case PCPMAESettings():
            return PCPMAE(settings, encoder)
        case HardPatchesSettings():
            return HardPatches(settings, encoder)
        case DropPositionsSettings():
            return DropPositions(settings, encoder)
        case LatentAlignmentSettings():
            return LatentAlignment(settings, encoder)
        case DistillationSettings():
            return Distillation(settings, encoder, teacher)
        case DualMaskedAutoencoderSettings():
            return DualMaskedAutoencoder(settings, encoder)
        case DynamicHeadSettings():
            return DynamicHead(settings, encoder)
