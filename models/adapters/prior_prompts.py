"""Point-prior prompts (Tang et al. 2024, "Point-PEFT", section 3.2): prompts that are told what the frozen encoder
makes of this sample, and of the training samples that are most like it, out of a memory.

Nothing here is about points but the prompts' coordinates, which only an encoder of groups of points is given.

Legend: B batch, S sequence, V visible patches, X prompts, E width, R width of the bottleneck, M rows of the memory,
n samples, k neighbours.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.adapters.prompts import PromptedBlock, first_prompts, refuse_second_prompts
from models.adapters.seams import EVERY_LINEAR, Places, added, inner_blocks, merged, note_places, wrap_linear
from models.adapters.surroundings import Narrow
from models.encoder.patches import Patches, see_all
from models.encoder.tokenizers import GroupTokenizer
from models.encoder.transformer import Encoder, max_of_valid


@dataclass(frozen=True)
class PriorPrompts:
    """Prompts in front of each of the first blocks, moved by what a memory of training features says."""

    kind: Literal["prior_prompts"] = "prior_prompts"
    num_blocks: int = 6
    """Blocks, counted from the first, that get prompts of their own; later ones go on with what became of them. Of an
    encoder with fewer, all."""
    neighbours: int = 8
    """Rows of the memory that are looked up. There are two prompts more: for the sample's own feature, and for the mean
    of the rows by likeness."""
    width: int = 8
    """R, numbers in the middle between what was looked up and what is added to the prompts."""
    memory: int = 4096
    """Rows of the memory; of more training samples, evenly many are left out."""
    dropout: float = 0.1
    """Share of the prompts' numbers dropped while training."""

    def __post_init__(self) -> None:
        if min(self.num_blocks, self.neighbours, self.width) < 1 or self.memory < self.neighbours:
            raise ValueError(f"found num_blocks {self.num_blocks}, neighbours {self.neighbours}, width {self.width}, "
                             f"memory {self.memory}, expected at least 1 each, and a memory of at least `neighbours`.")

    @property
    def num_prompts(self) -> int:
        """X"""
        return self.neighbours + 2


class FrozenTrunk(nn.Module):
    """The encoder's blocks and last norm as they were when the adapter was added: what the memory is made with, and
    what asks it. Its weights are buffers: nothing trains them, and they count as no weights of the model."""

    class_code: Tensor | None

    def __init__(self, encoder: Encoder, places: Places) -> None:
        super().__init__()
        self.every_block, self.places = encoder.settings.place_every_block, places
        self.blocks = nn.ModuleList(copy.deepcopy(block) for block in inner_blocks(encoder))
        self.norm = copy.deepcopy(encoder.norm)
        for block in self.blocks:
            for name in EVERY_LINEAR:  # an adapter that was added before does nothing yet: what is left is plain
                wrap_linear(block, name, merged, outside=True)
        code = None
        if encoder.class_token is not None:
            given = encoder.class_position
            code = torch.zeros_like(encoder.class_token) if given is None else given.detach().clone()
        self.register_buffer("class_code", code)
        _weights_to_buffers(self)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTrunk:
        """Never: nothing is dropped."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """What the first block is given, x B S E and valid B S -> B E: the maximum over patches after the last norm."""
        code = self.places.code
        if self.class_code is not None:
            code = torch.cat([self.class_code.expand(len(x), -1, -1).to(code.dtype), code], 1)
        for i, block in enumerate(self.blocks):
            x = block(x + code if self.every_block and i else x, valid)
        count = self.places.place.shape[1]
        return max_of_valid(self.norm(x)[:, -count:], None if valid is None else valid[:, -count:])


class Memory(nn.Module):
    """Features of training samples, and the little network through which they reach the prompts. It adds nothing at the
    start: then these are plain prompts."""

    ADDED = ("coordinates",)
    KEPT = ("bank", "filled", "digest")
    bank: Tensor
    filled: Tensor
    digest: Tensor

    def __init__(self, encoder: Encoder, settings: PriorPrompts, places: Places, num_blocks: int) -> None:
        super().__init__()
        self.settings, self.places, self.last = settings, places, num_blocks - 1
        self.trunk = FrozenTrunk(encoder, places)
        self.held: Tensor | None = None
        like, width = next(encoder.blocks.parameters()), encoder.width
        self.narrow = Narrow(like, width, settings.width)
        points = isinstance(encoder.tokenizer, GroupTokenizer)
        self.coordinates = nn.Parameter(like.new_empty(settings.num_prompts, 3).uniform_(-0.5, 0.5)) if points else None
        self.register_buffer("bank", torch.zeros(settings.memory, width, device=like.device))
        self.register_buffer("filled", torch.zeros(1, dtype=torch.int64, device=like.device))
        self.register_buffer("digest", torch.zeros(32, dtype=torch.uint8, device=like.device))

    def remember(self, features: Tensor) -> None:
        """Fill the memory. features n E float32: what `prior_query` says of training samples, and of no other.

        Raises:
            ValueError: fewer samples than neighbours.
        """
        check_neighbours(len(features), self.settings.neighbours)
        count = min(len(features), len(self.bank))
        chosen = torch.arange(count, device=features.device) * len(features) // count
        self.bank.zero_()
        self.bank[:count] = features[chosen]
        self.filled.fill_(count)
        self.digest.copy_(self._hash())

    def check(self) -> None:
        """Raises ValueError when the memory is not what `remember` has left."""
        if not torch.equal(self.digest.cpu(), self._hash()):
            raise ValueError("prior_prompts: the memory of training features has another hash than was noted when it "
                             "was filled, expected the same. The file was damaged or changed; copy or train it again.")

    def vectors(self, x: Tensor, valid: Tensor | None, block: int) -> Tensor:
        """What is added to the prompts of block number `block`, the first of which looks it up. x, valid: what the
        block is given -> B X E"""
        if block == 0 or self.held is None:
            self.held = self._told(x, valid)
        out, self.held = self.held, None if block == self.last else self.held
        return out if self.coordinates is None else out + self.places.code_of(self.coordinates[None])

    def look_up(self, query: Tensor) -> Tensor:
        """query B E -> B X E: itself, the mean of the likest rows by likeness, these rows, the likest first.

        Raises:
            ValueError: the memory is empty.
        """
        count = int(self.filled)
        if not count:
            raise ValueError("prior_prompts: found an empty memory, expected one with features of training samples. "
                             "Fill it after adding the adapter, as `lacuna finetune` does.")
        bank = self.bank[:count]
        likeness = normalize(query.float(), dim=-1) @ normalize(bank, dim=-1).T               # B M
        best = likeness.topk(self.settings.neighbours, dim=-1)
        rows = bank[best.indices]                                                             # B k E
        blend = (best.values.softmax(-1)[..., None] * rows).sum(1, keepdim=True)
        return torch.cat([query.float()[:, None], blend, rows], 1)

    def _told(self, x: Tensor, valid: Tensor | None) -> Tensor:
        out: Tensor = self.narrow(self.look_up(self.trunk(x, valid)).to(self.narrow.down.dtype))
        return out

    def _hash(self) -> Tensor:
        """32 uint8"""
        rows = self.bank[:int(self.filled)].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return torch.tensor(list(hashlib.sha256(rows.numpy().tobytes()).digest() if len(rows) else bytes(32)),
                            dtype=torch.uint8)


def add_prior_prompts(encoder: Encoder, settings: PriorPrompts) -> list[nn.Parameter]:
    """Put prompts with an empty memory into an encoder; nothing is frozen.

    Returns:
        The parameters that were added.

    Raises:
        ValueError: the encoder has prompts already.
    """
    refuse_second_prompts(encoder)
    places, started = note_places(encoder), int(encoder.class_token is not None)
    count = min(settings.num_blocks, len(encoder.blocks))
    memory = Memory(encoder, settings, places, count)
    new = []
    for i, block in enumerate(encoder.blocks):
        own = i < count
        wrapper = PromptedBlock(block, started, settings.num_prompts, first=i == 0, dropout=settings.dropout,
                                prompts=first_prompts(encoder, settings.num_prompts) if own else None,
                                more=partial(memory.vectors, block=i) if own else None).train(block.training)
        encoder.blocks[i] = wrapper
        new += [] if wrapper.prompts is None else [wrapper.prompts]
    encoder.blocks[0].add_module("memory", memory)
    return [*new, *(value for _, value in added(memory))]


def check_neighbours(num_samples: int, neighbours: int) -> None:
    """Raises ValueError for fewer training samples than are looked up."""
    if num_samples < neighbours:
        raise ValueError(f"prior_prompts: found {num_samples} training samples, expected at least as many as "
                         f"neighbours, {neighbours}. Ask for fewer neighbours.")


def memories(encoder: nn.Module) -> Iterator[Memory]:
    """Those that adapters have put into an encoder."""
    return (module for module in encoder.modules() if isinstance(module, Memory))


def check_memories(encoder: nn.Module) -> None:
    """Raises ValueError when a memory is not what it was filled with."""
    for memory in memories(encoder):
        memory.check()


@torch.no_grad()
def prior_query(encoder: Encoder, memory: Memory, patches: Patches) -> Tensor:
    """What the frozen trunk makes of samples, B E: what a memory is filled with and asked for."""
    mask = see_all(patches)
    x, code, valid = encoder.with_class_token(*encoder.embed(patches, mask.visible), mask.visible_valid)
    query: Tensor = memory.trunk(x + code, valid)
    return query


def _weights_to_buffers(module: nn.Module) -> None:
    for child in module.modules():
        for name, value in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, value.detach())
