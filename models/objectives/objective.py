"""The objectives that can be pretrained with, and the one place that builds them.

An objective is a module whose forward is (x, known, chance) -> named losses. Its children are its parts: `encoder` is
kept, the others are thrown away after pretraining but saved with a checkpoint under their names, so that a picture can
be drawn or the training continued elsewhere.
"""

from __future__ import annotations

from typing import Any

from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings

ObjectiveSettings = MaskedAutoencoderSettings
"""A union, told apart by `kind`, when there are several."""
Objective = MaskedAutoencoder


def build_objective(settings: ObjectiveSettings, encoder: Any) -> Objective:
    """The module that these settings describe, around this encoder. Raises ValueError where they do not fit."""
    return MaskedAutoencoder(settings, encoder)
