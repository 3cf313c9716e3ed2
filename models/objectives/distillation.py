"""Learning from a larger encoder that is pretrained already, under a mask: DMAE (Bai et al. 2023) compares inner blocks
on what is seen; G2SD's generic part (Huang et al. 2023) has the decoder predict the teacher's features everywhere.

Legend: B batch, N patches, V visible, H hidden, E width of the student, T width of the teacher, D width of the decoder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, smooth_l1_loss

from models.encoder.chance import Chance
from models.encoder.masking import Masking, RandomMasking, check_masking, with_all_channels
from models.encoder.patches import Features, Mask, Patches, see_all, take
from models.encoder.tokenizers import Groups, TokenizerSettings
from models.encoder.transformer import Encoder, EncoderSettings, init_linear
from models.objectives.decoders import DecoderSettings, TransformerDecoder, both_valid
from models.objectives.masked_autoencoder import Reconstruction
from models.objectives.readouts import (
    ChamferReadout,
    GroupPixelReadout,
    PixelReadout,
    build_readout,
    check_readout,
    mean_over_samples,
)


@dataclass(frozen=True)
class MatchBlocks:
    """A student's inner block, projected, should say of each seen patch what a teacher's inner block does (DMAE)."""

    kind: Literal["blocks"] = "blocks"
    student_block: int | None = None
    """Which block of the student, counted from 0; null: three quarters up, block 8 of 12."""
    teacher_block: int | None = None
    """Which block of the teacher; null: three quarters up, block 17 of 24. Blocks behind it are not computed."""
    normalise: bool = True
    """Compare directions: scale each token's features to length 1."""


@dataclass(frozen=True)
class MatchDecoder:
    """The student's decoder should predict the teacher's features of all patches, seen and hidden (G2SD). The teacher
    sees everything."""

    kind: Literal["decoder"] = "decoder"
    beta: float = 2.0
    """Where the error turns from squared to absolute (smooth L1)."""


@dataclass(frozen=True)
class DistillationSettings:
    """Masked autoencoding beside a teacher. Which one, the run says: `teacher`, a checkpoint folder."""

    kind: Literal["distillation"] = "distillation"
    match: MatchBlocks | MatchDecoder = field(default_factory=MatchBlocks)
    """What is compared: blocks or decoder."""
    weight: float = 1.0
    """Weight of the comparison."""
    reconstruction_weight: float = 1.0
    """Weight of the restored patches beside it. 0: they are restored for the picture's sake, and the model does not
    learn from it (G2SD)."""
    masking: Masking = field(default_factory=RandomMasking)
    """Which patches are hidden."""
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    """What stands between features and prediction."""
    readout: PixelReadout | GroupPixelReadout | ChamferReadout = field(default_factory=PixelReadout)
    """What is restored: pixels, group_pixels or chamfer."""

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.reconstruction_weight < 0:
            raise ValueError(f"distillation: found weight {self.weight} and reconstruction_weight "
                             f"{self.reconstruction_weight}, expected more than 0 and at least 0.")
        if isinstance(self.match, MatchBlocks) and not self.reconstruction_weight:
            raise ValueError("distillation: found reconstruction_weight 0 with match blocks, expected more: nothing "
                             "would train the decoder and the student's later blocks. Take match decoder, or a weight.")

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        check_readout(self.readout, encoder.tokenizer)
        check_masking(self.masking, encoder.tokenizer)


class Distillation(nn.Module):
    """Patchify, mask, encode, decode, read out; and compare with a teacher that is never trained."""

    borrowed = ("teacher",)
    """Parts that are another checkpoint's and not saved with this one."""

    def __init__(self, settings: DistillationSettings, encoder: Encoder, teacher: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        check_teacher(encoder, teacher)
        self.settings, self.encoder = settings, encoder
        self.masking, self.match = settings.masking, settings.match
        self.decoder = TransformerDecoder(settings.decoder, encoder)
        self.readout = build_readout(settings.readout, settings.decoder.width, encoder)
        student_width = settings.decoder.width
        if isinstance(settings.match, MatchBlocks):
            student_width = encoder.width
            self.student_block = _block(settings.match.student_block, encoder, "student_block")
            self.teacher_block = _block(settings.match.teacher_block, teacher, "teacher_block")
            teacher.blocks = nn.ModuleList(list(teacher.blocks)[:self.teacher_block + 1])
        self.project = nn.Linear(student_width, teacher.width)
        init_linear(self.project)
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Distillation:
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W or B M 3, known likewise bool or None -> named losses, scalars."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.masking(patches, chance)
        theirs = self.patches_of_teacher(patches, x, known)
        match self.match:
            case MatchBlocks():
                features, decoded = self.restore(patches, mask, (self.student_block,))
                told = self.compare_blocks(features, theirs, mask)
            case MatchDecoder():
                _, decoded = self.restore(patches, mask)
                told = self.compare_decoded(decoded, theirs, mask, self.match.beta)
        hidden = decoded[:, -mask.hidden.shape[1]:]
        if self.settings.reconstruction_weight:
            weight = self.settings.reconstruction_weight
        else:
            hidden, weight = hidden.detach(), 1.0
        return {"reconstruction": weight * self.readout(hidden, x, patches, mask),
                "distillation": self.settings.weight * told}

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """The student's road alone, up to the prediction itself; every channel is kept."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = with_all_channels(self.masking)(patches, chance)
        _, decoded = self.restore(patches, mask)
        return Reconstruction(patches, mask, self.readout.predict(decoded[:, -mask.hidden.shape[1]:], patches, mask))

    def patches_of_teacher(self, patches: Patches, x: Tensor, known: Tensor | None) -> Patches:
        """The same patches in the same order; a teacher of more bands has other numbers for them in its places."""
        own, theirs = (getattr(one.tokenizer, "channels", None) for one in (self.encoder, self.teacher))
        return patches if own == theirs else self.teacher.tokenizer.patchify(x, known)

    def restore(self, patches: Patches, mask: Mask, layers: tuple[int, ...] = ()) -> tuple[Features, Tensor]:
        """The student's features, and decoded tokens of seen and hidden patches, B V+H D."""
        features = self.encoder(patches, mask, layers)
        decoded = self.decoder(features, patches, mask, everything=True)
        return features, decoded[:, -(mask.visible.shape[1] + mask.hidden.shape[1]):]

    def compare_blocks(self, features: Features, theirs: Patches, mask: Mask) -> Tensor:
        """Scalar: mean absolute difference at the seen patches, which are all that the teacher sees too."""
        with torch.no_grad():
            told = self.teacher(theirs, mask, (self.teacher_block,)).layers[0]
        num_seen = mask.visible.shape[1]
        told, own = told[:, -num_seen:], self.project(features.layers[0][:, -num_seen:])              # B V T
        assert isinstance(self.match, MatchBlocks)
        if self.match.normalise:
            told, own = normalize(told.float(), dim=-1), normalize(own.float(), dim=-1)
        return mean_over_samples((own - told).abs(), None, mask.visible_valid)

    def compare_decoded(self, decoded: Tensor, theirs: Patches, mask: Mask, beta: float) -> Tensor:
        """Scalar: smooth L1 at seen and hidden patches. decoded B V+H D."""
        everything = see_all(theirs)
        with torch.no_grad():
            told = self.teacher(theirs, everything).tokens                   # B N T of those with data
        by_patch = told.new_zeros(*theirs.place.shape[:2], told.shape[-1])
        by_patch.scatter_(1, everything.visible[..., None].expand_as(told), told)
        target = take(by_patch, torch.cat([mask.visible, mask.hidden], 1))   # B V+H T
        error = smooth_l1_loss(self.project(decoded), target.to(decoded.dtype), reduction="none", beta=beta)
        return mean_over_samples(error, None, both_valid(mask))


def check_teacher(encoder: Encoder, teacher: nn.Module) -> None:
    """Raises ValueError for a teacher whose patches are not the student's."""
    if not isinstance(teacher, Encoder):
        raise ValueError(f"teacher: found {type(teacher).__name__}, expected a transformer: only that one has a token "
                         "per patch.")
    own, theirs = _as_cut(encoder.settings.tokenizer), _as_cut(teacher.settings.tokenizer)
    if own != theirs:
        raise ValueError(f"teacher: found tokenizer {theirs}, expected {own}: teacher and student must cut a sample "
                         "into the same patches. Give the encoder the teacher's tokenizer.")


def _as_cut(settings: TokenizerSettings) -> TokenizerSettings:
    """What decides which values are a patch; the network behind that may differ."""
    return dataclasses.replace(settings, widths=Groups().widths) if isinstance(settings, Groups) else settings


def _block(given: int | None, encoder: Encoder, name: str) -> int:
    depth = len(encoder.blocks)
    block = max(round(0.75 * depth) - 1, 0) if given is None else given
    if not 0 <= block < depth:
        raise ValueError(f"{name}: found {block}, expected 0 to {depth - 1}: the encoder has {depth} blocks.")
    return block
