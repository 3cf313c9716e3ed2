"""Masked representation modelling for masks of another domain (Zhou et al. 2026, "MRM"): what an averaged teacher is
sure of in target samples is a label there, asked for twice: of the features as they are, and of features of which a
share was hidden and rebuilt. What rebuilds them is thrown away after training.

Legend: B batch, C channels, D H W voxels (D is absent for images), n pixels, N patches, p of them at different places,
V visible, E width of the encoder, R width of the rebuilder, K classes without the background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder.chance import Chance
from models.encoder.patches import Features, Patches, see_all, take
from models.encoder.transformer import Block, Encoder, init_linear
from models.heads.tuned import Tuned
from models.objectives.labelling_teacher import LabellingTeacher

_HIDE = 3  # stream of chance


@dataclass(frozen=True)
class MaskedRepresentation:
    """Masks of the source, and of the target those pixels that the teacher is sure of."""

    kind: Literal["masked_representation"] = "masked_representation"
    ratio: float = 0.4
    """Share of places whose features are hidden."""
    rebuild: float = 1.0
    """Weight of the loss through rebuilt features; 0: self-training with an averaged teacher alone."""
    weight: float = 1.0
    """Weight of the loss through the features as they are."""
    momentum: float = 0.99
    """Share of the teacher's old weights in an update; smaller at first, so that it does not hold on to random ones."""
    threshold: float = 0.9
    """Least probability of the likeliest class for it to count as a label of its pixel."""
    begins: float = 0.2
    """Share of the steps before which the teacher's word does not count."""
    width: int = 128
    """Numbers per token in the rebuilder."""
    depth: int = 2
    """Blocks of the rebuilder."""
    num_heads: int = 4
    """Attention heads of the rebuilder."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or not 0 < self.threshold < 1 or not 0 <= self.begins < 1:
            raise ValueError(f"masked_representation: found momentum {self.momentum}, threshold {self.threshold} and "
                             f"begins {self.begins}, expected shares below 1, and a threshold above 0.")
        if not 0 < self.ratio < 1 or self.rebuild < 0 or self.weight < 0 or self.rebuild + self.weight == 0:
            raise ValueError(f"masked_representation: found ratio {self.ratio}, rebuild {self.rebuild} and weight "
                             f"{self.weight}, expected a share in (0, 1), and weights of which one is above 0.")
        if self.depth < 1 or self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"masked_representation: found depth {self.depth} and width {self.width} with "
                             f"{self.num_heads} heads, expected at least 1, and a width that the heads divide.")


class MaskedRepresentations(nn.Module):
    """A teacher that follows, a rebuilder, and what both ask of the target."""

    def __init__(self, settings: MaskedRepresentation, tuned: Tuned) -> None:
        super().__init__()
        if tuned.loss.kind != "segmentation" or not isinstance(tuned.encoder, Encoder):
            raise ValueError(f"masked_representation: found a {tuned.loss.kind} task with "
                             f"{type(tuned.encoder).__name__}, expected segmentation with a transformer. Take method "
                             "averaged_teacher.")
        self.settings = settings
        self.teacher = LabellingTeacher(tuned, settings.momentum, settings.begins)
        self.rebuilder = Rebuilder(settings, tuned.encoder, len(getattr(tuned.head, "taps", ())))

    def forward(self, tuned: Tuned, x: Tensor, known: Tensor | None, chance: Chance) -> Tensor:
        """Scalar: how far the student is from the teacher's labels, by its features and by rebuilt ones.

        Args:
            x, known: target samples, B C (D) H W, which student and teacher see alike.
        """
        labels, sure = self.labels(x, known)
        patches = tuned.encoder.tokenizer.patchify(x, known)
        features = tuned.encode(patches)
        loss = x.new_zeros(())
        if self.settings.weight:
            loss = loss + self.settings.weight * loss_of(tuned.head(features, patches, x), labels, sure)
        if self.settings.rebuild:
            hidden = hidden_places(patches, x.dim() - 2, self.settings.ratio, chance)                # B p
            rebuilt = self.rebuilder(features, patches, hidden)
            told = tuned.head(rebuilt, patches, without(x, patches, hidden))
            loss = loss + self.settings.rebuild * loss_of(told, labels, sure)
        return self.teacher.counts * loss

    @torch.no_grad()
    def labels(self, x: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        """The teacher's class of every pixel B (D) H W, and where it is sure of one and the sample holds data."""
        highest, labels = self.teacher.model.predict(x, known).float().softmax(1).max(1)
        sure = highest >= self.settings.threshold
        if known is not None:
            sure = sure & known.any(1)
        self.teacher.sure.note(sure)
        return labels, sure

    def shown(self) -> dict[str, float]:
        """For curves: the share of the target's pixels that the teacher is sure of."""
        return self.teacher.shown()


class Rebuilder(nn.Module):
    """(Features, Patches, hidden B p) -> Features: tokens at hidden places are put together again from the others, by a
    few blocks; those that a head taps from earlier blocks as well, by a layer of their own on the same blocks."""

    def __init__(self, settings: MaskedRepresentation, encoder: Encoder, num_taps: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.width, settings.width)
        self.place_code = encoder.tokenizer.place_code(settings.width, None)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, settings.width))
        self.blocks = nn.ModuleList(Block(settings.width, settings.num_heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width, eps=1e-6)
        self.outputs = nn.ModuleList(nn.Linear(settings.width, encoder.width) for _ in range(1 + num_taps))
        for part in (self.embed, self.blocks, self.outputs):
            part.apply(init_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, patches: Patches, hidden: Tensor) -> Features:
        """Tokens at places that are not hidden stay as they are."""
        seen = see_all(patches).visible                                     # B V
        gone = hidden.repeat(1, patches.values.shape[1] // hidden.shape[1]).gather(1, seen)[..., None]     # B V 1
        y = torch.where(gone, self.mask_token, self.embed(features.tokens))
        y = y + self.place_code(take(patches.place, seen), patches.grid)
        for block in self.blocks:
            y = block(y, features.valid)
        y = self.norm(y)                                                    # B V R
        layers = []
        for layer, output in zip(features.layers, self.outputs[1:], strict=True):
            before, own = layer.split([layer.shape[1] - seen.shape[1], seen.shape[1]], 1)
            layers.append(torch.cat([before, torch.where(gone, output(y), own)], 1))
        return features._replace(tokens=torch.where(gone, self.outputs[0](y), features.tokens), layers=tuple(layers))


def hidden_places(patches: Patches, dims: int, ratio: float, chance: Chance) -> Tensor:
    """B p bool: each place is hidden with probability `ratio`, in all bands alike."""
    assert patches.grid is not None, "a task of masks has patches of a grid"
    return chance.uniform(math.prod(patches.grid[-dims:]), _HIDE) < ratio


def without(x: Tensor, patches: Patches, hidden: Tensor) -> Tensor:
    """x with 0 where patches are hidden: a head that reads the sample itself must not find there what it lacks."""
    assert patches.grid is not None
    places = patches.grid[2 - x.dim():]
    gone = functional.interpolate(hidden.unflatten(1, places).to(x.dtype)[:, None], list(x.shape[2:]),
                                  mode="nearest-exact")                     # B 1 (D) H W
    return x * (1 - gone)


def loss_of(said: Tensor, labels: Tensor, sure: Tensor) -> Tensor:
    """Cross-entropy of logits B K+1 (D) H W with the labels that are sure, divided by how many pixels there are: few
    sure ones pull little."""
    return (functional.cross_entropy(said.float(), labels, reduction="none") * sure).mean()
