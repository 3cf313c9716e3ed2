"""Point-CMAE: both views through the shared encoder and their own decoders, both reconstruction distances, the
agreement as released and as the paper has it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.encoder.point_ops import nearest_neighbours
from models.objectives.point_cmae import decoded_of, disagreement
from models.objectives.readouts import Chamfer, ChamferReadout
from tests.parity.compare import Case, Taps
from tests.parity.point_mae import load_pretrained, mask_of

EXEMPT: dict[str, str] = {}


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    made = load_pretrained(case, case.meta["constructor"])
    encoder, objective, points = made.encoder, made.objective, case.given["points"]
    patches = encoder.tokenizer.patchify(points)
    count = patches.place.shape[1]
    yield "fps_idx", encoder.tokenizer.sample(points, count)
    yield from case.beginnings("knn_idx", nearest_neighbours(patches.place, points, encoder.tokenizer.group_size))
    embedded = objective.embed(patches)
    yield "group_tokens", embedded
    masks = mask_of(case.given["mask1"]), mask_of(case.given["mask2"])
    sequences, losses = [], {"l1": torch.zeros(()), "l2": torch.zeros(())}
    for number, view, mask in zip((1, 2), (objective.first, objective.second), masks, strict=True):
        with Taps(encoder.blocks) as taps:
            features = objective.encode(view, embedded, patches, mask)
        for i, out in taps.items():
            yield f"block{i}_view{number}", out
        yield f"latent_with_cls_view{number}", torch.cat([features.summary[:, None], features.tokens], 1)
        yield f"proj_cls_view{number}", objective.project_summary(features.summary)
        sequence = view.decoder.sequence(features, patches, mask)
        sequences.append(sequence)
        yield f"dec_features_view{number}", sequence
        decoded = decoded_of(view, sequence, mask)
        yield f"dec_normed_view{number}", decoded
        yield f"rebuild_points_view{number}", view.readout.predict(decoded, patches, mask).unflatten(-1, (-1, 3))
        for distance in losses:
            scored = Chamfer(ChamferReadout(distance=distance), decoded.shape[-1], encoder)  # type: ignore[arg-type]
            scored.project = view.readout.project
            losses[distance] = losses[distance] + scored(decoded, points, patches, mask)
    for distance, loss in losses.items():
        yield f"loss_recon_cd{distance}", loss
    yield "loss_contras", disagreement(sequences[0], sequences[1], masks, count, "all_pairs")
    yield "derived_diagonal_contras", per_token(case, sequences, masks, count)


def per_token(case: Case, sequences: list[Tensor], masks: tuple, count: int) -> Tensor:
    """The recorded value is a mean over all tokens hidden in both views; ours is a mean per sample first. Samples one
    by one, weighted by their number of such tokens, give the former by our own function."""
    total, tokens = torch.zeros(()), 0
    for i in range(len(sequences[0])):
        one = tuple(type(mask)(mask.visible[i:i + 1], mask.hidden[i:i + 1]) for mask in masks)
        both = int((case.given["mask1"][i] & case.given["mask2"][i]).sum())
        first, second = (sequence[i:i + 1] for sequence in sequences)
        total = total + both * disagreement(first, second, one, count, "same_patch")
        tokens += both
    return total / tokens
