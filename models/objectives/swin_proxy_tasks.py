"""Three proxy tasks on whole images and volumes (Tang et al. 2022, "Self-supervised pre-training of Swin transformers
for 3D medical image analysis", section 3.2): fill in what was cut out, say how a view was turned, and tell views of one
sample from views of others.

Legend: B samples, C channels, K axes, R blocks, V cells of the last map, E width of the encoder, O numbers per code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder.build import AnyEncoderSettings
from models.encoder.chance import Chance
from models.encoder.mask_lists import lists_of
from models.encoder.patches import take
from models.encoder.swin import STAGES, SwinEncoder, SwinSettings, stage_grid
from models.objectives.masked_autoencoder import Reconstruction
from models.objectives.readouts import mean_over_samples

TURNS = 4
"""Quarter turns that are told apart."""
MOST_BLOCKS = 256
"""Blocks drawn in one pass; 0.3 of a volume is full after about 100 of them."""
_TURN, _PARTNER, _FIRST, _NOISE, _SECOND = 61, 62, 63, 64, 65  # streams: each use of chance has its own numbers


@dataclass(frozen=True)
class SwinProxyTasksSettings:
    """Inpainting, rotation and contrast, on two views of each sample."""

    kind: Literal["swin_proxy_tasks"] = "swin_proxy_tasks"
    inpainting: float = 1.0
    """Weight of the mean absolute error of the restored view, cut out or not."""
    rotation: float = 1.0
    """Weight of the cross-entropy of the quarter turns, told from the first token."""
    contrastive: float = 1.0
    """Weight of the contrast between samples, told from the second token; needs two samples per device."""
    cut_share: float = 0.3
    """Most of a view that one pass cuts out; how much is drawn from 0 to this. There are two passes: noise, then
    pieces of another sample."""
    block_edge: tuple[float, float] = (0.05, 0.25)
    """Shortest and longest edge of a block that is cut out, as shares of the axis."""
    plane: tuple[int, int] = (-2, -1)
    """The two axes that a turn mixes; they must be equally long. Counted from the end: -1 is x, -2 y, -3 z."""
    temperature: float = 0.5
    """Of the contrast (NT-Xent, Chen et al. 2020)."""
    code: int = 512
    """Numbers in which samples are compared."""
    restore: Literal["interpolated", "transposed"] = "interpolated"
    """How a restored view is made of the last map. interpolated: convolutions of 3, instance norms, and linear
    interpolation to twice the size. transposed: transposed convolutions of 2 alone."""

    def __post_init__(self) -> None:
        if min(self.inpainting, self.rotation, self.contrastive) < 0 or not (
                self.inpainting or self.rotation or self.contrastive):
            raise ValueError(f"weights of inpainting, rotation and contrastive: found {self.inpainting}, "
                             f"{self.rotation} and {self.contrastive}, expected none below 0 and one above.")
        shortest, longest = self.block_edge
        if not 0 < self.cut_share < 1 or not 0 < shortest <= longest < 1:
            raise ValueError(f"cut_share {self.cut_share} and block_edge {list(self.block_edge)}: expected shares "
                             "between 0 and 1, the shortest edge first.")
        if len({*self.plane}) != 2 or not all(-3 <= axis < 0 for axis in self.plane):
            raise ValueError(f"plane: found {list(self.plane)}, expected two of -3 (z), -2 (y) and -1 (x).")

    def fits(self, encoder: AnyEncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        if not isinstance(encoder, SwinSettings):
            raise ValueError(f"objective {self.kind} restores from a map that shrinks: found encoder {encoder.kind}, "
                             "expected kind: swin.")
        edge = encoder.patch[0]
        if set(encoder.patch) != {edge} or edge & (edge - 1):
            raise ValueError(f"objective {self.kind} restores by doubling sizes: found patch {list(encoder.patch)}, "
                             "expected one power of 2 for all axes.")
        if min(self.plane) < -len(encoder.patch):
            raise ValueError(f"plane: found {list(self.plane)}, expected axes of the {len(encoder.patch)} that `patch` "
                             "has.")


class View(NamedTuple):
    """What one look at the samples gives."""

    seen: Tensor
    """B C *size: turned, with holes: what the encoder gets."""
    target: Tensor
    """B C *size: turned."""
    turns: Tensor
    """B int64: quarter turns, 0 to 3."""
    known: Tensor | None
    """B C *size bool: turned likewise; None when all values are known."""


class Answers(NamedTuple):
    """What the three heads say of some views."""

    turns: Tensor
    """B 4: logits."""
    codes: Tensor
    """B O"""
    restored: Tensor
    """B C *size"""


class Tasks(nn.Module):
    """The three heads. A cell of the last map sees much of the volume, so single cells serve as summaries."""

    def __init__(self, settings: SwinProxyTasksSettings, encoder: SwinEncoder) -> None:
        super().__init__()
        self.rotation = nn.Linear(encoder.width, TURNS)
        self.contrastive = nn.Linear(encoder.width, settings.code)
        doublings = STAGES + int(math.log2(encoder.settings.patch[0]))
        self.restore = _restoring(settings.restore, encoder, doublings)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Answers:
        """tokens B V E, grid of V cells -> Answers"""
        last = tokens.transpose(1, 2).unflatten(2, tuple(grid))              # B E *grid
        return Answers(self.rotation(tokens[:, 0]), self.contrastive(tokens[:, 1]), self.restore(last))


class SwinProxyTasks(nn.Module):
    """Turn and cut two views, encode, answer, score."""

    def __init__(self, settings: SwinProxyTasksSettings, encoder: SwinEncoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.settings, self.encoder = settings, encoder
        self.tasks = Tasks(settings, encoder)

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W, known likewise bool or None -> named losses, scalars.

        Raises:
            ValueError: sizes that cannot be restored or turned, or one sample where several are contrasted.
        """
        self._check_size(x)
        self._check_tasks(x)
        views = [self.view(x, known, chance.branch(number)) for number in range(2)]
        seen, target, turns = (torch.cat(pair) for pair in zip(*(view[:3] for view in views), strict=True))  # 2B each
        all_known = [view.known for view in views if view.known is not None]
        return self.score(self.answer(seen), target, turns, torch.cat(all_known) if all_known else None)

    def answer(self, x: Tensor) -> Answers:
        """x B C *size -> what the heads say of it. Stages fill odd maps up at their end, so what is restored is cut
        there to the size of x."""
        patches = self.encoder.tokenizer.patchify(x)
        assert patches.grid is not None, "patches of a grid tokenizer have one"
        answers = self.tasks(self.encoder(patches).tokens, stage_grid(patches.grid, STAGES - 1))
        return answers._replace(restored=answers.restored[(..., *map(slice, x.shape[2:]))])

    def score(self, answers: Answers, target: Tensor, turns: Tensor, known: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of 2B views, the first of every sample before the second of every sample."""
        first, second = answers.codes.chunk(2)
        error = (answers.restored - target).abs().flatten(2)                 # 2B C values
        losses = {"inpainting": mean_over_samples(error, None if known is None else known.flatten(2), None),
                  "rotation": functional.cross_entropy(answers.turns, turns),
                  "contrastive": nt_xent(first, second, self.settings.temperature)}
        return {name: getattr(self.settings, name) * loss for name, loss in losses.items()}

    @torch.no_grad()
    def view(self, x: Tensor, known: Tensor | None, chance: Chance) -> View:
        """One of the two looks at every sample. Nothing is turned where nobody asks how far."""
        turns = (chance.uniform(1, _TURN)[:, 0] * (TURNS if self.settings.rotation else 1)).long()  # B
        if self.settings.rotation:
            x = turned(x, turns, self.settings.plane)
            known = None if known is None else turned(known, turns, self.settings.plane)
        seen, _ = self.cut(x, known, chance)
        return View(seen, x, turns, known)

    def cut(self, x: Tensor, known: Tensor | None, chance: Chance) -> tuple[Tensor, Tensor]:
        """Blocks of noise, then blocks of another sample of the batch -> x with them, and where: B 1 *size bool. What
        is unknown stays 0. A sample that draws itself gets no second pass."""
        first = blocks(x.shape[2:], chance, _FIRST, self.settings)
        seen = torch.where(first, noise_like(x, chance, _NOISE), x)
        partner = (chance.uniform(1, _PARTNER)[:, 0] * len(x)).long()
        other = (partner != torch.arange(len(x), device=x.device)).reshape(-1, *[1] * (x.dim() - 1))
        second = blocks(x.shape[2:], chance, _SECOND, self.settings) & other
        seen = torch.where(second, x[partner], seen)
        return seen if known is None else seen * known, first | second

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """The first view, not turned: patches with a hole are asked for, the others are seen."""
        self._check_size(x)
        seen, holes = self.cut(x, known, chance.branch(0))
        tokenizer = self.encoder.tokenizer
        patches = tokenizer.patchify(x, known)
        usable = patches.usable()
        asked = tokenizer.patchify(holes.expand_as(x).to(x.dtype)).values.any(-1)                   # B N
        whole = ~asked
        mask = lists_of(whole, asked) if usable is None else lists_of(whole & usable, asked & usable)
        return Reconstruction(patches, mask, take(tokenizer.patchify(self.answer(seen).restored).values, mask.hidden))

    def _check_size(self, x: Tensor) -> None:
        size, cell = list(x.shape[2:]), self.encoder.settings.patch[0] * 2 ** STAGES
        if max(size) <= cell:
            raise ValueError(f"objective swin_proxy_tasks: found samples of the size {size}, expected more than {cell} "
                             "along an axis, since two tasks read two cells of the last map. Ingest larger ones, or "
                             "halve `patch`.")

    def _check_tasks(self, x: Tensor) -> None:
        size = list(x.shape[2:])
        if self.settings.rotation and size[self.settings.plane[0]] != size[self.settings.plane[1]]:
            raise ValueError(f"objective swin_proxy_tasks: found samples of the size {size}, expected equal sizes "
                             f"along the axes {list(self.settings.plane)} that are turned. Choose another `plane`, or "
                             "crop to equal sizes.")
        if self.settings.contrastive and len(x) < 2:
            raise ValueError("objective swin_proxy_tasks: found one sample in a micro-batch, expected at least two, "
                             "since samples are contrasted. Raise batch_size, lower accumulate, or set contrastive: 0.")


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding the other view of a sample among all views of the batch, by cosine (Chen et al. 2020,
    section 2.1). first, second B O -> scalar."""
    with torch.autocast(first.device.type, enabled=False):  # cosines of half precision cannot tell close views apart
        codes = functional.normalize(torch.cat([first, second]).float(), dim=1)
        likeness = (codes @ codes.T / temperature).fill_diagonal_(-torch.inf)                       # 2B 2B
        return functional.cross_entropy(likeness, torch.arange(len(codes), device=codes.device).roll(len(first)))


def turned(x: Tensor, turns: Tensor, plane: tuple[int, int]) -> Tensor:
    """x B C *size, each sample turned by its number of quarter turns, B."""
    wide = turns.reshape(-1, *[1] * (x.dim() - 1))
    out = x
    for number in range(1, TURNS):
        out = torch.where(wide == number, x.rot90(number, plane), out)
    return out


def blocks(size: Sequence[int], chance: Chance, stream: int, settings: SwinProxyTasksSettings) -> Tensor:
    """B 1 *size bool: random blocks, as many as it takes until their sizes (overlaps count twice) reach a share that
    is drawn from 0 to `cut_share`."""
    draws = chance.uniform(1 + 2 * len(size) * MOST_BLOCKS, stream)
    wanted = draws[:, :1] * settings.cut_share * math.prod(size)             # B 1
    starts, edges = draws[:, 1:].unflatten(1, (2, len(size), MOST_BLOCKS)).unbind(1)                # B K R each
    inside, volume = [], torch.ones_like(starts[:, 0])
    for axis, length in enumerate(size):
        shortest, longest = (share * length for share in settings.block_edge)
        edge = (shortest + edges[:, axis] * (longest - shortest)).long().clamp(min=1)
        start = (starts[:, axis] * (length - int(shortest))).long()          # B R
        end = (start + edge).clamp(max=length)
        at = torch.arange(length, device=draws.device)
        inside.append((at >= start[..., None]) & (at < end[..., None]))      # B R length
        volume = volume * (end - start)
    kept = volume.cumsum(1) - volume < wanted                               # B R: what lies before is not enough
    painted = (inside[0] & kept[..., None]).float()
    for along in inside[1:-1]:
        painted = (painted[..., None] * along[:, :, None]).flatten(2)        # B R cells of all axes but the last
    count = torch.einsum("brp,brn->bpn", painted, inside[-1].float())
    return (count > 0).reshape(-1, 1, *size)


def noise_like(x: Tensor, chance: Chance, stream: int) -> Tensor:
    """Normal noise of the shape of x, stretched so that each sample's extremes are those of its values."""
    most = 1 - 2.0**-23
    noise = torch.erfinv((2 * chance.uniform(x[0].numel(), stream) - 1).clamp(-most, most))        # B values
    low, high = (value[:, None] for value in noise.aminmax(dim=1))
    floor, ceiling = (value[:, None] for value in x.flatten(1).aminmax(dim=1))
    return (floor + (noise - low) / (high - low) * (ceiling - floor)).reshape(x.shape)


def _restoring(kind: str, encoder: SwinEncoder, doublings: int) -> nn.Sequential:
    """From the last map to the size of the input: half the channels at each doubling, until those of the first map."""
    axes = len(encoder.settings.patch)
    widths = [encoder.width >> min(i, STAGES) for i in range(doublings + 1)]
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    if kind == "transposed":
        up = nn.ConvTranspose2d if axes == 2 else nn.ConvTranspose3d
        pairs[-1] = (pairs[-1][0], encoder.num_channels)
        return nn.Sequential(*(up(before, after, 2, stride=2) for before, after in pairs))
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if axes == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    mode = "bilinear" if axes == 2 else "trilinear"
    layers = [layer for before, after in pairs for layer in (
        conv(before, after, 3, padding=1), norm(after), nn.LeakyReLU(), nn.Upsample(scale_factor=2, mode=mode))]
    return nn.Sequential(*layers, conv(widths[-1], encoder.num_channels, 1))
