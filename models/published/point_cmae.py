"""Point-CMAE (Ren et al. 2024, Amazingren/Point-CMAE): pretraining with two decoders. Its authors have published no
weights; files are those that its trainer writes, laid out as Point-MAE's. Its classifiers have Point-MAE's names and
are read as such.
"""

from __future__ import annotations

from models.objectives.point_cmae import PointCMAESettings
from models.objectives.readouts import ChamferReadout
from models.published.point_mae import as_translation, move_decoder, move_encoder, move_points, published_masking
from models.published.translation import CannotImport, Published, Reader, Translation

FAMILY = "point_cmae"
LICENCE = "MIT (Amazingren/Point-CMAE; no weights were published)"
VIEWS = (("first", "1", ""), ("second", "2", "_"))
"""Our part, what their tokens' names end with, what their layers' names end with."""


def recognise(file: Published) -> bool:
    """Point-MAE's names with a second decoder."""
    return "MAE_decoder_.norm.weight" in file.tensors and "MAE_encoder.cls_token1" in file.tensors


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    read = Reader(file)
    encoder = move_encoder(read, "MAE_encoder.", own_class_token=False)
    decoders = []
    for part, token, layer in VIEWS:
        read.move(f"MAE_encoder.cls_token{token}", part, "class_token")
        read.move(f"MAE_encoder.cls_pos{token}", part, "class_position")
        decoders.append(move_decoder(read, f"MAE_decoder{layer}", f"decoder_pos_embed{token}", f"mask_token{token}",
                                     part, within="decoder."))
        move_points(read, f"increase_dim{layer}", part, within="readout.")
    if decoders[0] != decoders[1]:
        raise CannotImport(f"the two decoders differ: found {decoders[0]} and {decoders[1]}, expected two alike. The "
                           "file is cut short or was edited.")
    settings = PointCMAESettings(masking=published_masking(read), decoder=decoders[0], readout=ChamferReadout(),
                                 agreement="all_pairs", summary_widths=_summary_projection(read))
    return as_translation(read, FAMILY, LICENCE, {"encoder": encoder, "objective": settings})


def _summary_projection(read: Reader) -> tuple[int, ...]:
    """Linear, batch norm, ReLU, linear ... under their numbers, which ours has too."""
    widths, at = [], 0
    while read.has(f"MAE_encoder.proj_cls.{at}.weight"):
        widths.append(read.shape(f"MAE_encoder.proj_cls.{at}.weight")[0])
        read.move_layer(f"MAE_encoder.proj_cls.{at}", "project_summary", str(at))
        if read.has(f"MAE_encoder.proj_cls.{at + 1}.running_mean"):
            read.move_norm(f"MAE_encoder.proj_cls.{at + 1}", "project_summary", str(at + 1))
        at += 3
    return tuple(widths)
