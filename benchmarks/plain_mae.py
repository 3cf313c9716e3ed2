"""The opponent: masked autoencoding as the paper's figure 1 draws it, step by step (He et al. 2022).

All patches are embedded, shuffled by sorted noise, and the first are kept; the decoder gets mask tokens, puts all
tokens back in their places, predicts every patch, and the loss is masked afterwards. `how` chooses between the
textbook's two products with a softmax between them and torch's fused attention: the second is the strongest baseline.

Legend: B batch, N patches, V visible, E width, h heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.encoder.positions import GridPositions
from models.objectives.masked_autoencoder import MaskedAutoencoder

How = Literal["naive", "sdpa"]


class PlainBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, how: How) -> Tensor:
        """B N E -> B N E"""
        x = x + self.attend(self.norm1(x), how)
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))

    def attend(self, x: Tensor, how: How) -> Tensor:
        """B N E -> B N E"""
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)                                             # B h N E/h
        if how == "sdpa":
            y = scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, count, width))


class PlainMAE(nn.Module):
    """Embed all, shuffle, keep, encode, decode in place, score what was hidden. Images and volumes."""

    def __init__(self, size: tuple[int, ...], patch: tuple[int, ...], channels: int, width: int, depth: int, heads: int,
                 decoder_width: int = 512, decoder_depth: int = 8, decoder_heads: int = 16) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.shape_of_ours = size if patch[0] == 1 else (channels, *size)
        conv = nn.Conv2d if len(size) == 2 else nn.Conv3d
        self.patch_embed = conv(channels, width, patch, patch)
        grid = [s // p for s, p in zip(size, patch, strict=True)]
        place = torch.stack([a.flatten() for a in torch.meshgrid(*map(torch.arange, grid), indexing="ij")], -1)[None]
        self.num_patches = place.shape[1]
        self.positions = nn.Parameter(GridPositions(width, len(size))(place.float()), requires_grad=False)
        self.decoder_positions = nn.Parameter(GridPositions(decoder_width, len(size))(place.float()),
                                              requires_grad=False)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.blocks = nn.ModuleList(PlainBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_blocks = nn.ModuleList(PlainBlock(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.predict = nn.Linear(decoder_width, self.patch_embed.weight[0].numel())

    def forward(self, x: Tensor, noise: Tensor, ratio: float, how: How) -> Tensor:
        """x B C (D) H W, noise B N -> the loss, on patches normalised by their own mean and variance."""
        latent, hidden, back = self.encode(x, noise, ratio, how)
        predicted = self.decode(latent, back, how)
        target = self.patchify(x)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        loss = ((predicted - target) ** 2).mean(-1)                         # B N
        return (loss * hidden).sum() / hidden.sum()

    def patchify(self, x: Tensor) -> Tensor:
        """x B C (D) H W -> B N P, channels last within a patch"""
        batch, axes = len(x), len(self.patch)
        split = x.reshape(batch, self.channels, *(n for s, p in zip(x.shape[2:], self.patch, strict=True)
                                                  for n in (s // p, p)))
        order = [0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1]
        return split.permute(order).reshape(batch, self.num_patches, -1)

    def encode(self, x: Tensor, noise: Tensor, ratio: float, how: How) -> tuple[Tensor, Tensor, Tensor]:
        """Latent B 1+V E, hidden B N of 0 and 1, and for each place where its token stands, B N."""
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2) + self.positions
        order = noise.argsort(dim=1)
        back = order.argsort(dim=1)
        seen = int(self.num_patches * (1 - ratio))
        tokens = tokens.gather(1, order[:, :seen, None].repeat(1, 1, tokens.shape[2]))
        hidden = torch.ones_like(noise)
        hidden[:, :seen] = 0
        hidden = hidden.gather(1, back)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens, how)
        return self.norm(tokens), hidden, back

    def decode(self, latent: Tensor, back: Tensor, how: How) -> Tensor:
        """latent B 1+V E -> predictions of every patch, B N P"""
        tokens = self.decoder_embed(latent)
        missing = self.num_patches + 1 - tokens.shape[1]
        body = torch.cat([tokens[:, 1:], self.mask_token.repeat(len(tokens), missing, 1)], 1)
        body = body.gather(1, back[:, :, None].repeat(1, 1, tokens.shape[2])) + self.decoder_positions
        tokens = torch.cat([tokens[:, :1], body], 1)
        for block in self.decoder_blocks:
            tokens = block(tokens, how)
        return self.predict(self.decoder_norm(tokens))[:, 1:]


def counterparts(ours: MaskedAutoencoder, plain: PlainMAE) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Each of our weights and the opponent's that means the same. All have one shape but the patches' projection."""
    encoder, decoder = ours.encoder, ours.decoder
    yield encoder.tokenizer.project.weight, plain.patch_embed.weight
    yield encoder.tokenizer.project.bias, plain.patch_embed.bias
    assert encoder.class_token is not None
    yield encoder.class_token, plain.class_token
    yield decoder.mask_token, plain.mask_token
    layers = [(encoder.norm, plain.norm), (decoder.norm, plain.decoder_norm), (decoder.embed, plain.decoder_embed),
              (ours.readout.project, plain.predict)]
    for mine, theirs in zip([*encoder.blocks, *decoder.blocks], [*plain.blocks, *plain.decoder_blocks], strict=True):
        layers += [(mine.norm1, theirs.norm1), (mine.norm2, theirs.norm2), (mine.attention.qkv, theirs.qkv),
                   (mine.attention.proj, theirs.proj), (mine.mlp[0], theirs.fc1), (mine.mlp[3], theirs.fc2)]
    for mine, theirs in layers:
        yield from zip(mine.parameters(), theirs.parameters(), strict=True)


def as_theirs(mine: Tensor, theirs: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Our projection of a patch holds its values with the channel last, a convolution's kernel has it first."""
    return mine if mine.shape == theirs.shape else mine.reshape(len(mine), *patch, -1).movedim(-1, 1)


@torch.no_grad()
def copy_weights(ours: MaskedAutoencoder, plain: PlainMAE) -> None:
    """Give the opponent our weights, and our codes of places, which are not learnt there."""
    patches = ours.encoder.tokenizer.patchify(torch.zeros(1, *plain.shape_of_ours))
    plain.positions.copy_(ours.encoder.place_code(patches.place, patches.grid))
    plain.decoder_positions.copy_(ours.decoder.place_code(patches.place, patches.grid))
    for mine, theirs in counterparts(ours, plain):
        theirs.copy_(as_theirs(mine, theirs, plain.patch))


def compare_gradients(ours: MaskedAutoencoder, plain: PlainMAE) -> tuple[float, float, float]:
    """Norms of the opponent's gradient and of ours, over the weights that both have, and the norm of their difference
    over ours."""
    difference = theirs_squared = ours_squared = 0.0
    for mine, theirs in counterparts(ours, plain):
        assert mine.grad is not None and theirs.grad is not None
        gradient = as_theirs(mine.grad, theirs, plain.patch)
        difference += float((gradient - theirs.grad).square().sum())
        theirs_squared += float(theirs.grad.square().sum())
        ours_squared += float(gradient.square().sum())
    return theirs_squared**0.5, ours_squared**0.5, (difference / ours_squared) ** 0.5
