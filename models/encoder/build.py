"""The encoders that there are, told apart by `kind`, and the one place that builds them."""

from __future__ import annotations

import dataclasses

from models.encoder.swin import SwinEncoder, SwinSettings
from models.encoder.transformer import Encoder, EncoderSettings

AnyEncoderSettings = EncoderSettings | SwinSettings
"""Without a `kind`, a transformer is meant."""
AnyEncoder = Encoder | SwinEncoder
"""Both have `tokenizer`, `blocks`, `width`, `num_channels`, `settings`, and (patches, mask, layers) -> Features."""


def build_encoder(settings: AnyEncoderSettings, num_channels: int) -> AnyEncoder:
    """The module that these settings describe, with random weights.

    Raises:
        ValueError: settings that mean nothing together.
        ImportError: `kind: swin` without MONAI.
    """
    match settings:
        case SwinSettings():
            return SwinEncoder(settings, num_channels)
        case EncoderSettings():
            return Encoder(settings, num_channels)


def holds_what_is_asked(held: AnyEncoderSettings, asked: AnyEncoderSettings) -> bool:
    """Whether a checkpoint's encoder is the one that was described. What is random while training may differ."""
    if isinstance(held, EncoderSettings) and isinstance(asked, EncoderSettings):
        return (asked.tokenizer, asked.shape) == (held.tokenizer, held.shape)
    return dataclasses.replace(asked, drop_path=held.drop_path, dropout=held.dropout) == held
