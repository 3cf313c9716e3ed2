"""What a run begins with: random weights, a checkpoint of ours, or published weights that were imported.

Weights of ours were made for data like this, and data that differs is refused. Published weights were made for other
data, mostly photographs; they are fitted to this as far as that means something, and each step of it is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from domains.contract import Channel, Contract, ContractMismatch, adopt, enforce, to_agree_with
from models.encoder.adapt_weights import fit_channels, match_channels, resize_positions, strangers
from models.encoder.build import AnyEncoder, AnyEncoderSettings, build_encoder, holds_what_is_asked
from models.encoder.carry import carry_to_points
from models.encoder.cutting import grid_of
from models.encoder.grid_2d_3d import Grid2D3DTokenizer
from models.encoder.positions import Projections
from models.encoder.tokenizers import ByChannel, Groups, GroupTokenizer
from models.encoder.transformer import Encoder, EncoderSettings
from pipelines.settings import plain
from pipelines.weights import checkpoints


@dataclass(frozen=True)
class Start:
    """What an arm begins with."""

    encoder: AnyEncoderSettings
    num_channels: int
    channels: tuple[int, ...]
    """Which of the encoder's channels the data has, for encoders with tokens for single bands or groups of them."""
    weights: Mapping[str, torch.Tensor] | None
    """None: random."""
    contract: Contract
    """The data's, with the statistics to normalise by."""
    record: dict[str, Any]
    """Of the checkpoint; empty from scratch."""
    fixed: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Numbers of the weights that are never trained (fixed positions that a file brings as a table): part of the
    encoder's shape, so that an arm from scratch has them too."""
    said: tuple[str, ...] = ()
    """Sentences on what was mapped and fitted."""

    def random(self) -> Start:
        """The same encoder with random weights, for the arm that it is compared with."""
        return dataclasses.replace(self, weights=None, record={}, said=())

    def build(self) -> AnyEncoder:
        """The encoder, filled with the weights where there are some."""
        encoder = build_encoder(self.encoder, self.num_channels)
        if self.weights is not None:
            checkpoints.fill(encoder, self.weights, "encoder of the start")
        else:
            encoder.load_state_dict({**encoder.state_dict(), **self.fixed})
        if isinstance(encoder.tokenizer, ByChannel):
            encoder.tokenizer.read_channels(self.channels)
        return encoder

    def provenance(self) -> dict[str, Any]:
        """Where imported weights come from and how they were fitted, also when they were trained on since then: their
        licence goes with them. Empty for others."""
        origin = self.record.get("provenance", {})
        if self.record.get("kind") != "imported":
            return {key: origin[key] for key in ("imported", "fitted") if key in origin}
        return {"imported": {key: origin[key] for key in ("file", "file_sha256", "family", "licence")},
                "fitted": list(self.said)}


def resolve(start: str, asked: AnyEncoderSettings | None, data: Contract, root: Path) -> Start:
    """What `start` of a run stands for, fitted to the data.

    Args:
        start: a checkpoint folder within root, or `scratch`.
        asked: the encoder that the run describes; needed from scratch, and otherwise what the checkpoint must hold.
            What is random while training (drop_path, dropout) is taken from it.

    Raises:
        ContractMismatch: the weights mean nothing on this data.
        CheckpointError: no checkpoint there, or `asked` describes another encoder.
    """
    if checkpoints.is_scratch(start):
        if asked is None:
            raise checkpoints.CheckpointError("`start` is scratch and `encoder` is not given. Expected one of them: "
                                              "name a checkpoint, or describe the encoder.")
        return Start(asked, len(data.channels), tuple(range(len(data.channels))), None, data, {})
    loaded = checkpoints.load_encoder(root / start)
    encoder, held = loaded.encoder, loaded.encoder.settings
    if data.kind == "points" and not isinstance(encoder.tokenizer, GroupTokenizer):
        return _carry(loaded, asked, data)
    if asked is not None:
        if not holds_what_is_asked(held, asked):
            raise checkpoints.CheckpointError(
                f"`encoder` differs from what {start} holds: found {plain(asked)}, expected {plain(held)}. Leave "
                "`encoder` out to take the checkpoint's.")
        encoder.settings = dataclasses.replace(held, drop_path=asked.drop_path, dropout=asked.dropout)
    channels, contract, said = (_fit if loaded.record.get("kind") == "imported" else _agree)(loaded, data)
    weights = encoder.state_dict()
    fixed = {name: weights[name] for name, value in encoder.named_parameters() if not value.requires_grad}
    return Start(encoder.settings, encoder.num_channels, channels, weights, contract, loaded.record, fixed, tuple(said))


def _carry(loaded: checkpoints.Loaded, asked: AnyEncoderSettings | None, data: Contract) -> Start:
    """Weights of images as the trunk of an encoder of points, which is asked for by describing its groups."""
    theirs = loaded.contract
    if not (isinstance(asked, EncoderSettings) and isinstance(asked.tokenizer, Groups)
            and isinstance(loaded.encoder, Encoder)):
        raise ContractMismatch(f"kind of data: found points, expected {theirs.kind}, which the weights have seen. "
                               "Start from weights of points; or, to read points with an encoder of images, describe "
                               "the new tokenizer: encoder: {tokenizer: {kind: groups}, size: the start's}.")
    try:
        encoder = carry_to_points(loaded.encoder, asked, theirs.size, len(data.channels))
    except ValueError as error:
        raise ContractMismatch(str(error)) from None
    settings = dataclasses.replace(encoder.settings, drop_path=asked.drop_path, dropout=asked.dropout)
    weights = encoder.state_dict()
    fixed = {name: weights[name] for name, value in encoder.named_parameters() if not value.requires_grad}
    grid = settings.positions.grid if isinstance(settings.positions, Projections) else ()
    said = (f"the encoder has seen {theirs.kind}; its blocks are kept, its tokenizer is a new one for groups of "
            f"points, whose places are projected to {' x '.join(map(str, grid))} patches",)
    return Start(settings, len(data.channels), tuple(range(len(data.channels))), weights, data, loaded.record, fixed,
                 said)


def _agree(loaded: checkpoints.Loaded, data: Contract) -> tuple[tuple[int, ...], Contract, list[str]]:
    """Weights of ours: the data must be like what they were made for."""
    tokenizer = loaded.encoder.tokenizer
    both = isinstance(tokenizer, Grid2D3DTokenizer)
    expected, said = to_agree_with(data, loaded.contract, images_and_volumes=both)
    said = said + enforce(data, expected, subset_of_channels=isinstance(tokenizer, ByChannel))
    if hasattr(tokenizer, "patch") and not isinstance(tokenizer, ByChannel):
        fit_channels(loaded.encoder, expected.channels, data.channels)  # all channels in a token: turn its kernel
        return tuple(range(len(data.channels))), adopt(data, expected), said
    position = dict(zip(expected.names, getattr(tokenizer, "channels", range(len(expected.names))), strict=False))
    return tuple(position[name] for name in data.names), adopt(data, expected), said


def _fit(loaded: checkpoints.Loaded, data: Contract) -> tuple[tuple[int, ...], Contract, list[str]]:
    """Published weights: kernels for the data's channels, positions for its grid."""
    encoder, theirs, tokenizer = loaded.encoder, loaded.contract, loaded.encoder.tokenizer
    _check_kind(data, theirs, tokenizer)
    if isinstance(tokenizer, GroupTokenizer):
        said = enforce(data, dataclasses.replace(theirs, spacing=data.spacing, orientation=data.orientation))
        return tuple(range(len(data.channels))), adopt(data, theirs), said
    try:
        if isinstance(tokenizer, ByChannel):
            match = match_channels(theirs.channels, data.channels)
            unknown = [name for name, source in zip(data.names, match.sources, strict=True) if not source]
            if unknown:
                raise ValueError(strangers(unknown, theirs.channels))
            channels = tuple(source[0] for source in match.sources)
        else:
            match = fit_channels(encoder, theirs.channels, data.channels)
            channels = tuple(range(len(data.channels)))
    except ValueError as error:
        raise ContractMismatch(str(error)) from None
    contract, scale = _normalised_by(data, theirs, match.sources, match.by_name)
    said = [*match.said, scale, *_unknown_of(data, theirs)]
    return channels, contract, said + _positions(encoder, data)


def _check_kind(data: Contract, theirs: Contract, tokenizer: Any) -> None:
    """Photographs may be a start for any image; all else only for its own kind. Raises ContractMismatch."""
    points = isinstance(tokenizer, GroupTokenizer)
    if (data.kind == "points") != points or not (theirs.kind == data.kind or theirs.kind == "image"):
        raise ContractMismatch(f"kind of data: found {data.kind}, expected {theirs.kind}, which the imported weights "
                               "have seen. They mean nothing on it. Start from weights of the same kind, or of images.")
    axes = {2, 3} if isinstance(tokenizer, Grid2D3DTokenizer) else {len(tokenizer.patch)} if not points else {1}
    if len(data.size) not in axes:
        raise ContractMismatch(f"kind of data: found {data.kind} of the size {list(data.size)}, expected "
                               f"{' or '.join(map(str, sorted(axes)))} axes, as the imported weights' patches have. "
                               "Start from weights of volumes for volumes, of images for images.")


def _normalised_by(data: Contract, theirs: Contract, sources: Sequence[Sequence[int]],
                   by_name: bool) -> tuple[Contract, str]:
    """The data's contract with the weights' own scale where it is the scale of the same thing: the same kind, the same
    channels, the same unit, and numbers that the file's family states. Else with the data's, and a sentence."""
    stated = all((channel.low, channel.high, channel.mean, channel.std) != (0.0, 1.0, 0.0, 1.0)
                 for channel in theirs.channels)
    units = all(ours.unit == theirs.channels[several[0]].unit
                for ours, several in zip(data.channels, sources, strict=True))
    if theirs.kind == data.kind and by_name and units and stated:
        channels = tuple(_scaled(ours, theirs.channels[several[0]])
                         for ours, several in zip(data.channels, sources, strict=True))
        return dataclasses.replace(data, channels=channels, statistics_of=theirs.statistics_of), (
            "values are clipped and standardised as the published weights had them")
    return data, "values are standardised with the data's own mean and deviation"


def _scaled(ours: Channel, theirs: Channel) -> Channel:
    return dataclasses.replace(ours, low=theirs.low, high=theirs.high, mean=theirs.mean, std=theirs.std)


def _unknown_of(data: Contract, theirs: Contract) -> list[str]:
    """Sentences on what the data says and published weights do not."""
    said = []
    if theirs.spacing is None and data.spacing is not None:
        said.append(f"the weights do not say for which spacing they were made; the data has {list(data.spacing)}")
    if theirs.orientation is None and data.orientation is not None:
        said.append(f"the weights take axes in the order that they were trained with, whatever it was; the data has "
                    f"{data.orientation}")
    return said


def _positions(encoder: AnyEncoder, data: Contract) -> list[str]:
    """Tables of positions at the data's grid. Raises ContractMismatch when the patch does not divide the size."""
    tokenizer: Any = encoder.tokenizer
    patch = tokenizer.patch_of(len(data.size)) if isinstance(tokenizer, Grid2D3DTokenizer) else tokenizer.patch
    try:
        grid = grid_of(data.size, patch)
    except ValueError as error:
        raise ContractMismatch(f"{error} The patch of published weights is chosen when they are imported (lacuna "
                               "import --patch), the size when data is ingested.") from None
    return resize_positions(encoder, grid) + [f"{' x '.join(map(str, grid))} patches of {' x '.join(map(str, patch))}"]
