"""Hiding what is hard (Hard Patches Mining, Wang et al. 2023): a second decoder learns which hidden patches will be
restored badly; its averaged copy, which sees the whole sample, says what to hide next.

Legend: B batch, N patches, V visible, H hidden, D width of a decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from models.encoder.chance import Chance
from models.encoder.mask_lists import check_ratio, marks_of, split_by_score
from models.encoder.patches import Features, Mask, Patches, see_all
from models.encoder.transformer import Encoder, EncoderSettings
from models.objectives.averaged_teacher import AveragedTeacher
from models.objectives.decoders import DecoderSettings, TransformerDecoder
from models.objectives.masked_autoencoder import Reconstruction
from models.objectives.readouts import (
    ChamferReadout,
    GroupPixelReadout,
    PixelReadout,
    build_readout,
    check_readout,
)

_EASY = 36  # stream of chance


@dataclass(frozen=True)
class HardPatchesSettings:
    """Masked autoencoding with masks that the model proposes itself."""

    kind: Literal["hard_patches"] = "hard_patches"
    ratio: float = 0.75
    """Share of the patches with data that is hidden."""
    hard_share: float = 0.5
    """Share of the hidden patches that are those predicted to be hardest, at the end of the run; the rest is random. It
    begins at 0 and grows in a straight line."""
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    """What stands between features and prediction."""
    predictor: DecoderSettings | None = None
    """What stands between features and predicted difficulty; null: as `decoder`."""
    readout: PixelReadout | GroupPixelReadout | ChamferReadout = field(default_factory=PixelReadout)
    """What is predicted, and whose error is the difficulty: pixels, group_pixels or chamfer."""
    rate_at: Literal["asked", "seen"] = "asked"
    """Which tokens of the teacher's predictor are read, when it sees everything. seen: those of the patches, as in the
    release; training, which reads tokens of hidden patches alone, never touches them. asked: a mask token at every
    place, the kind that is trained; the teacher's predictor then has twice the tokens."""
    momentum: float = 0.999
    """Share of the old weights that the teacher keeps at a step, at the beginning."""
    last_momentum: float = 0.9999
    """The same after `momentum_rise`."""
    momentum_rise: float = 0.5
    """Share of the run over which the momentum grows. The paper's is 100 of its 200 passes."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if not 0 <= self.hard_share <= 1 or not 0 < self.momentum_rise <= 1:
            raise ValueError(f"hard_patches: found hard_share {self.hard_share} and momentum_rise "
                             f"{self.momentum_rise}, expected shares.")
        if not 0 <= self.momentum <= self.last_momentum < 1:
            raise ValueError(f"hard_patches: found momentum {self.momentum} to {self.last_momentum}, expected "
                             "0 <= momentum <= last_momentum < 1.")

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        check_readout(self.readout, encoder.tokenizer)


class HardPatches(nn.Module):
    """Patchify, ask the teacher what is hard, mask, encode, decode twice, read out errors and their order."""

    done: Tensor

    def __init__(self, settings: HardPatchesSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.settings = settings
        self.encoder = encoder
        self.decoder = TransformerDecoder(settings.decoder, encoder)
        self.readout = build_readout(settings.readout, settings.decoder.width, encoder)
        predictor = settings.predictor or settings.decoder
        self.predictor = TransformerDecoder(predictor, encoder)
        self.difficulty = nn.Linear(predictor.width, 1)
        self.teacher = AveragedTeacher(**self._students())
        self.register_buffer("done", torch.zeros((), dtype=torch.float64))  # share of the run, kept with its state

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W or B M 3, known likewise bool or None -> named losses, scalars."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.choose(patches, chance)
        features = self.encoder(patches, mask)
        decoded = self.decoder(features, patches, mask)
        guess = self.difficulty(self.predictor(features, patches, mask))[..., 0]                     # B H
        with torch.no_grad():
            errors, scored = self.readout.errors(decoded, patches, mask)     # B H
        return {"reconstruction": self.readout(decoded, x, patches, mask),
                "difficulty": order_loss(guess, errors, _valid(scored, mask.hidden_valid))}

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """The same road, up to the prediction itself."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.choose(patches, chance)
        decoded = self.decoder(self.encoder(patches, mask), patches, mask)
        return Reconstruction(patches, mask, self.readout.predict(decoded, patches, mask))

    def choose(self, patches: Patches, chance: Chance) -> Mask:
        """What is hidden: a share that the teacher finds hardest, and some of the rest."""
        share = self.settings.hard_share * self.done
        return hide_hardest(self.rate(patches), patches.usable(), self.settings.ratio, share, chance)

    @torch.no_grad()
    def rate(self, patches: Patches) -> Tensor:
        """-> B N: how hard the teacher, which sees everything, expects each patch to be; -inf without data."""
        everything = see_all(patches)
        encoder, predictor, difficulty = (self.teacher[name] for name in ("encoder", "predictor", "difficulty"))
        features: Features = encoder(patches, everything)
        asked = everything._replace(hidden=everything.visible, hidden_valid=everything.visible_valid)
        tokens = predictor(features, patches, everything if self.settings.rate_at == "seen" else asked, everything=True)
        tokens = tokens[:, -everything.visible.shape[1]:]
        rating = difficulty(tokens)[..., 0].float()                          # B V
        if everything.visible_valid is not None:
            rating = rating.masked_fill(~everything.visible_valid, float("-inf"))
        none = torch.full(patches.place.shape[:2], float("-inf"), device=rating.device)
        return none.scatter(1, everything.visible, rating)

    def after_step(self, done: float) -> None:
        """Let the teacher follow; remember the share of the run that is done."""
        self.done.fill_(done)
        along = min(done / self.settings.momentum_rise, 1.0)
        momentum = self.settings.momentum + (self.settings.last_momentum - self.settings.momentum) * along
        self.teacher.follow(momentum, **self._students())

    def _students(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "predictor": self.predictor, "difficulty": self.difficulty}


def hide_hardest(rating: Tensor, usable: Tensor | None, ratio: float, share: Tensor, chance: Chance) -> Mask:
    """Hide as many as random masking would: `share` of them the hardest of each sample, the others drawn from the rest.

    Args:
        rating: B N, larger is harder.
        usable: B N bool, or None when all are.
        share: scalar tensor.
    """
    hardest = split_by_score(rating, usable, ratio)                          # its hidden list ends with the hardest
    count = (torch.full_like(hardest.hidden[:, 0], hardest.hidden.shape[1]) if hardest.hidden_valid is None
             else hardest.hidden_valid.sum(1))                               # B
    first = count - (share * count).floor().long()
    at = torch.arange(hardest.hidden.shape[1], device=rating.device)
    hard = marks_of(torch.zeros_like(rating, dtype=torch.bool), hardest.hidden,
                    (at >= first[:, None]) & (at < count[:, None]))          # B N
    return split_by_score(chance.uniform(rating.shape[1], _EASY) + hard, usable, ratio)


def order_loss(guess: Tensor, errors: Tensor, valid: Tensor | None) -> Tensor:
    """Whether, of every two hidden patches, the one with the larger error is guessed to be harder (section 3.3): a
    cross-entropy of the difference of the two guesses. Their size is free, so an error's scale need not be learnt.

    Args:
        guess, errors: B H. valid: B H bool, which of them are scored; None when all are.

    Returns:
        Scalar: the mean over the pairs of a sample, then over samples; equal errors make no pair.
    """
    pairs = errors[:, :, None] != errors[:, None]                            # B H H
    if valid is not None:
        pairs = pairs & valid[:, :, None] & valid[:, None]
    harder = (errors[:, :, None] > errors[:, None]).to(guess.dtype)
    loss = binary_cross_entropy_with_logits(guess[:, :, None] - guess[:, None], harder, reduction="none")
    weight = pairs.to(loss.dtype)
    return ((loss * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)).mean()


def _valid(scored: Tensor | None, hidden_valid: Tensor | None) -> Tensor | None:
    if scored is None or hidden_valid is None:
        return hidden_valid if scored is None else scored
    return scored & hidden_valid
