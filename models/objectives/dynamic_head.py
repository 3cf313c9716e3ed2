"""Masked autoencoding with Uni4Eye++'s dynamic head (Cai et al. 2024, "Uni4Eye++: A General Masked Image Modeling
Multi-modal Pre-training Framework for Ophthalmic Image Classification and Segmentation"): a small network looks at the
tokens and at which task they belong to, and makes weights by which the predictions of all places are mixed.

Legend: B batch, C channels, N patches, V visible, H hidden, P values per patch, D width of the decoder, A tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.encoder.chance import Chance
from models.encoder.grid_2d_3d import Grid2D3DTokenizer
from models.encoder.masking import Masking, RandomMasking, check_masking, with_all_channels
from models.encoder.patches import Features, Mask, Patches, take
from models.encoder.tokenizers import Groups
from models.encoder.transformer import Encoder, EncoderSettings
from models.objectives.decoders import DecoderSettings, TransformerDecoder, both_valid
from models.objectives.masked_autoencoder import Reconstruction
from models.objectives.readouts import PixelReadout, Pixels


@dataclass(frozen=True)
class DynamicHeadSettings:
    """Hide patches, predict all, and mix the predictions by weights that depend on tokens and task."""

    kind: Literal["dynamic_head"] = "dynamic_head"
    grid: tuple[int, ...] = (14, 14)
    """Patches along each axis of place, a band axis first where there is one. The head has weights for each pair of
    places, so it knows one size only, and about (product of these) cubed weights."""
    num_tasks: int = 7
    """Kinds of data that the head tells apart: Uni4Eye++ has seven modalities."""
    task: int = 0
    """Which of them this run's data is, counted from 0."""
    masking: Masking = field(default_factory=lambda: RandomMasking(ratio=0.5))
    """Which patches are hidden: random, block, channels and others. Uni4Eye++'s release hides half."""
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    """What stands between features and prediction."""
    readout: PixelReadout = field(default_factory=PixelReadout)
    """How predictions are compared with pixels."""
    released_relu: bool = False
    """Clamp what the decoder's blocks get at 0, as the release does: its head takes the ReLU of the tokens in place, so
    that the blocks get it too. For its published weights; in a new run it only throws signs away."""

    def __post_init__(self) -> None:
        if not self.grid or min(self.grid) < 1:
            raise ValueError(f"grid: found {list(self.grid)}, expected sizes of at least 1.")
        if not 0 <= self.task < self.num_tasks:
            raise ValueError(f"task: found {self.task}, expected 0 to {self.num_tasks - 1}, since num_tasks is "
                             f"{self.num_tasks}.")
        if self.decoder.place_every_block:
            raise ValueError("decoder.place_every_block: found true, expected false: the head looks at tokens with "
                             "their positions, which are then added once.")

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        check_masking(self.masking, encoder.tokenizer)
        if isinstance(encoder.tokenizer, Groups):
            raise ValueError("objective dynamic_head mixes the places of a grid; groups of points lie on none. Take "
                             "masked_autoencoder with readout chamfer.")


class Mixed(NamedTuple):
    """What the head is given and makes, in the order of the grid."""

    start: Tensor
    """B (1)+N D: what the decoder's blocks get, class token first; 0 where a patch was dropped."""
    single: Tensor
    """B N P: what the decoder predicts at each place by itself; 0 where a patch was dropped."""
    weights: Tensor
    """B N N: how much of the prediction at each place (last axis) goes into each."""
    bias: Tensor
    """B N: added to all values of a place."""

    def predicted(self) -> Tensor:
        """B N P: the mixed predictions."""
        return self.weights @ self.single + self.bias[..., None]


class DynamicHead(nn.Module):
    """Patchify, mask, encode, decode every token, mix."""

    def __init__(self, settings: DynamicHeadSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.settings, self.encoder, self.masking = settings, encoder, settings.masking
        self.count = math.prod(settings.grid)
        self.num_first = int(encoder.class_token is not None)
        self.decoder = TransformerDecoder(settings.decoder, encoder)
        tokenizer = encoder.tokenizer
        num_values = tokenizer.num_values_of(len(settings.grid)) if isinstance(tokenizer, Grid2D3DTokenizer) else None
        self.readout = Pixels(settings.readout, settings.decoder.width, encoder, num_values)
        self.controller = nn.Linear(self.num_first + self.count + settings.num_tasks, self.count * (self.count + 1))

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W, known likewise bool or None -> named losses, scalars. Raises ValueError when x makes another
        number of patches than the settings' grid has."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.masking(patches, chance)
        predicted = self.mix(self.encoder(patches, mask), patches, mask).predicted()
        return {"reconstruction": self.readout.score(take(predicted, mask.hidden), patches, mask)}

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """The same road, up to the prediction itself, with every channel kept."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = with_all_channels(self.masking)(patches, chance)
        predicted = take(self.mix(self.encoder(patches, mask), patches, mask).predicted(), mask.hidden)
        return Reconstruction(patches, mask, self.readout.in_input_units(predicted, patches, mask))

    def mix(self, features: Features, patches: Patches, mask: Mask, task: Tensor | None = None) -> Mixed:
        """Weights are made of each token's mean before the blocks, negative numbers as 0, beside the task.

        Args:
            task: B int64, whose data each sample is; None: the settings' task.
        """
        if patches.values.shape[1] != self.count:
            raise ValueError(f"found {patches.values.shape[1]} patches, expected {self.count}: the head is made for "
                             f"objective.grid {list(self.settings.grid)}. Set it to the data's.")
        x, code, valid = self.decoder.begin(features, patches, mask)
        x = x + code
        positive = x.relu()
        x = positive if self.settings.released_relu else x
        start = self.on_grid(x, mask)
        for block in self.decoder.blocks:
            x = block(x, valid)
        single = self.on_grid(self.readout.project(self.decoder.norm(x)), mask)[:, self.num_first:]
        if task is None:
            task = torch.full((len(x),), self.settings.task, device=x.device)
        which = nn.functional.one_hot(task, self.settings.num_tasks).to(x.dtype)                    # B A
        out = self.controller(torch.cat([self.on_grid(positive, mask).mean(-1), which], 1))         # B N*N+N
        return Mixed(start, single, out[:, :-self.count].unflatten(1, (self.count, self.count)), out[:, -self.count:])

    def on_grid(self, x: Tensor, mask: Mask) -> Tensor:
        """B (1)+V+H D, class token, visible, hidden -> B (1)+N D in the order of the grid, 0 for dropped patches."""
        first, rest = x[:, :self.num_first], x[:, self.num_first:]
        index = torch.cat([mask.visible, mask.hidden], 1)
        valid = both_valid(mask)
        if valid is not None:
            index = index.masked_fill(~valid, self.count)  # filler goes where it is cut off again
        out = rest.new_zeros(len(x), self.count + 1, x.shape[-1])
        out = out.scatter(1, index[..., None].expand_as(rest), rest)
        return torch.cat([first, out[:, :-1]], 1)
