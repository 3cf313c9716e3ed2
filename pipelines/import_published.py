"""`lacuna import`: a published checkpoint becomes a Lacuna checkpoint folder, with a report of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domains.contract import Channel, Contract
from models.published.families import translate
from models.published.rebuild import Rebuilt, build, num_outputs, rebuild
from models.published.translation import CannotImport, Translation
from pipelines.checkpoints import RECORD, fill, part_weights, read_record, save, sha256
from pipelines.open_published import open_published
from pipelines.settings import plain

DOMAINS = {"image": "image", "xray": "medical", "ct": "medical", "multispectral": "satellite", "points": "pointcloud"}
"""Kind of data -> domain, for the contract."""


def import_file(path: Path, out: Path, family: str = "auto", given: Mapping[str, Any] | None = None,
                may_miss: tuple[str, ...] = (), may_drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read, check, rebuild, and publish the folder `out`. Returns its record.

    Args:
        given: what weights do not tell, such as num_heads.
        may_miss: our names of weights that may stay random.
        may_drop: their names of tensors that may be left behind.

    Raises:
        CannotImport: with found, expected, remedy; nothing is written.
    """
    file = open_published(path, given)
    found = translate(file, family)
    left = [name for name in file.tensors if name not in found.names and name not in found.dropped
            and name not in may_drop]
    if left:
        raise CannotImport(f"{path.name}, read as {found.family}: {len(left)} tensors have no place here: "
                           f"{', '.join(left[:8])}{' ...' if len(left) > 8 else ''}. Expected to know every one. Name "
                           "those that may be left behind with --drop, or give another --family.")
    made = rebuild(found, may_miss)
    record = {"kind": "imported", "family": found.family, "num_channels": found.num_channels,
              **{part: plain(settings) for part, settings in found.settings.items()},
              "num_outputs": num_outputs(found),
              "provenance": {"file": path.name, "file_sha256": sha256(path), "family": found.family,
                             "licence": found.licence, "wrappers": list(file.wrappers), "args": file.args,
                             "given": dict(given or {}), "notes": list(found.notes)},
              "report": report(found, may_miss, may_drop)}
    save(out, made.parts(), contract_of(found), record)
    return read_record(out)


def load_imported(folder: Path) -> tuple[Rebuilt, dict[str, Any]]:
    """The modules of an imported checkpoint, filled, in eval mode, and its record."""
    record = read_record(folder)
    made = build(settings_of(record, f"{folder}/{RECORD}"), record["num_channels"], record["num_outputs"])
    for part, module in made.parts().items():
        fill(module, part_weights(folder, part), f"{part} of {folder}")
        module.eval()
    return made, record


def settings_of(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings objects by part out of a record."""
    from models.encoder.transformer import EncoderSettings
    from models.heads.predict_sample import SampleHead
    from models.objectives.objective import ObjectiveSettings
    from pipelines.settings import build as from_plain
    classes = {"encoder": EncoderSettings, "objective": ObjectiveSettings, "head": SampleHead}
    return {part: from_plain(cls, record[part], f"{where}: {part}") for part, cls in classes.items() if part in record}


def contract_of(found: Translation) -> Contract:
    """What the weights expect of data, as far as the family fixes it."""
    about = found.channels
    count = len(about.names)
    waves, means, stds = (about.wavelengths_nm or (None,) * count, about.mean or (0.0,) * count,
                          about.std or (1.0,) * count)
    channels = tuple(Channel(name, about.unit, wave, mean=mean, std=std)
                     for name, wave, mean, std in zip(about.names, waves, means, stds, strict=True))
    return Contract(domain=DOMAINS[found.kind], kind=found.kind, channels=channels,  # type: ignore[arg-type]
                    dtype="float32", size=found.size)


def report(found: Translation, may_miss: tuple[str, ...], may_drop: tuple[str, ...]) -> dict[str, Any]:
    """What became of each tensor."""
    return {"mapped": found.names, "dropped": found.dropped | dict.fromkeys(may_drop, "named with --drop"),
            "missing": list(may_miss), "not_in_file": list(found.missing)}
