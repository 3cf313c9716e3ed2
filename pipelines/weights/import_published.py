"""`lacuna import`: a published checkpoint becomes a Lacuna checkpoint folder, with a report of every tensor."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from domains.contract import Channel, Contract
from domains.publish import folder_in_the_making, write_text
from domains.seal import hash_file
from models.encoder.adapt_weights import resize_patch, set_channels
from models.published.families import FAMILIES, translate
from models.published.rebuild import Rebuilt, build, num_outputs, rebuild
from models.published.translation import CannotImport, Channels, Published, Translation
from pipelines.settings import plain
from pipelines.weights.checkpoints import RECORD, fill, part_weights, read_record, write_parts
from pipelines.weights.import_report import full
from pipelines.weights.open_published import Given, open_published, readings

IMPORTS = Path("artifacts/import")
"""Where imports lie unless somebody says otherwise."""
DOMAINS = {"image": "image", "xray": "medical", "ct": "medical", "multispectral": "satellite", "points": "pointcloud"}
"""Kind of data -> domain, for the contract."""


def import_weights(file: str | Path, out: str | Path | None = None, *, family: str = "auto",
                   given: Mapping[str, Any] | None = None, missing: Sequence[str] = (), drop: Sequence[str] = (),
                   patch: Sequence[int] = (), new_channels: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
    """A published file as a checkpoint folder, and its record (`report` says what became of each tensor).

    Args:
        out: artifacts/import/<name of the file> where it is left out.

    The others are as for import_file. Raises CannotImport.
    """
    place = IMPORTS / Path(file).stem if out is None else Path(out)
    return place, import_file(Path(file), place, family, given, missing, drop, patch, new_channels)


def import_file(path: Path, out: Path, family: str = "auto", given: Mapping[str, Any] | None = None,
                may_miss: Sequence[str] = (), may_drop: Sequence[str] = (), patch: Sequence[int] = (),
                new_channels: Sequence[str] = ()) -> dict[str, Any]:
    """Read, check, rebuild, and publish the folder `out`. Returns its record.

    Args:
        given: what weights do not tell, such as num_heads, or the names of their channels.
        may_miss: our names of weights that may stay random; `*` stands for anything.
        may_drop: their names of tensors that are left behind, likewise.
        patch: resize the patch kernels to this size; empty: leave them.
        new_channels: names of channels to add, whose kernels begin with zeros.

    Raises:
        CannotImport: with found, expected, remedy; nothing is written.
    """
    _check_place(out)
    file, dropped, family = _read_as(open_published(path, given), family, may_drop)
    try:
        found = _with_channels(translate(file, family), file.given)
        found = replace(found, settings=settings_of(plain(found.settings), path.name))  # 6.0 heads become 6
        made = rebuild(found, tuple(may_miss))
    except CannotImport as error:
        raise CannotImport(f"{path.name}: {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CannotImport(f"{path.name}: its tensors or what was said of them (--set {plain(dict(file.given))}) make "
                           f"no model of the family {family} ({error}). Expected the shapes and settings that the "
                           "family has. Give another --family, or mend --set.") from error
    _check(path, file, found, made, may_miss)
    notes = [*found.notes, *_said_in_vain(file.given)]
    resized = _edit(found, made, patch, new_channels)
    parts = {part: module for part, module in made.parts().items() if not resized or part in ("encoder", "head")}
    record = {"kind": "imported", "family": found.family,
              **{part: plain(settings) for part, settings in found.settings.items()
                 if part != "objective" or not resized},
              **({} if made.encoder is None else {"encoder": plain(made.encoder.settings)}),
              "num_channels": found.num_channels if made.encoder is None else made.encoder.num_channels,
              "num_outputs": num_outputs(found),
              "provenance": {"file": path.name, "file_sha256": hash_file(path), "family": found.family,
                             "licence": found.licence, "wrappers": list(file.wrappers), "args": file.args,
                             "given": dict(given or {}), "patch": list(patch), "new_channels": list(new_channels),
                             "notes": notes},
              "report": report(found, made, parts, dropped, resized)}
    with folder_in_the_making(out) as making:
        write_parts(making, parts, contract_of(found, new_channels), record)
        write_text(making / "report.txt", full(record))
    return read_record(out)


def load_imported(folder: Path) -> tuple[Rebuilt, dict[str, Any]]:
    """The modules of an imported or pretrained checkpoint, filled, in eval mode, and its record."""
    record = read_record(folder)
    made = build(settings_of(record, f"{folder}/{RECORD}"), record["num_channels"], record.get("num_outputs", 0))
    for part, module in made.parts().items():
        fill(module, part_weights(folder, part), f"{part} of {folder}")
        module.eval()
    return made, record


def settings_of(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings objects by part out of a record."""
    from models.adapters.adapter import AdapterSettings
    from models.adapters.loose import LooseSettings
    from models.encoder.build import AnyEncoderSettings
    from models.heads.predict_sample import SampleHead
    from models.objectives.objective import ObjectiveSettings
    from pipelines.settings import build as from_plain
    classes: dict[str, Any] = {"encoder": AnyEncoderSettings, "objective": ObjectiveSettings, "head": SampleHead,
                               "adapter": AdapterSettings, "loose": LooseSettings}
    first = {"encoder": {"kind": "transformer"}, "objective": {"kind": "masked_autoencoder"}}
    """What the first records held, which did not say it."""
    return {part: from_plain(cls, {**first.get(part, {}), **record[part]}, f"{where}: {part}")
            for part, cls in classes.items() if part in record}


def contract_of(found: Translation, new_channels: Sequence[str] = ()) -> Contract:
    """What the weights expect of data, as far as the family fixes it."""
    about = found.channels
    count = len(about.names)
    zeros, ones = (0.0,) * count, (1.0,) * count
    channels = tuple(Channel(name, about.unit, *numbers) for name, *numbers in zip(
        about.names, about.wavelengths_nm or (None,) * count, about.low or zeros, about.high or ones,
        about.mean or zeros, about.std or ones, strict=True))
    channels += tuple(Channel(name, about.unit) for name in new_channels)
    return Contract(domain=DOMAINS[found.kind], kind=found.kind, channels=channels,  # type: ignore[arg-type]
                    dtype="float32", size=found.size,
                    normalisation="unit_sphere" if found.kind == "points" else "standardise")


def report(found: Translation, made: Rebuilt, parts: Mapping[str, Any], dropped: Mapping[str, str],
           resized: Sequence[str]) -> dict[str, Any]:
    """What became of each tensor, and what each part of the checkpoint has from the file."""
    own = {part: list(module.state_dict()) for part, module in parts.items()}
    mapped = {theirs: [name for name in ours if name.split(".")[0] in parts] for theirs, ours in found.names.items()}
    unused = {theirs: "belongs to a decoder for the patches or channels as they were"
              for theirs, ours in mapped.items() if not ours}
    return {"mapped": {theirs: ours for theirs, ours in mapped.items() if ours}, "resized": list(resized),
            "dropped": {**found.dropped, **dropped, **unused},
            "missing": [f"{part}.{name}" for part, names in own.items() for name in names
                        if name not in found.weights.get(part, {})],
            "not_in_file": list(found.missing),
            "coverage": {part: [sum(name in found.weights.get(part, {}) for name in names), len(names)]
                         for part, names in own.items()}}


def _check_place(out: Path) -> None:
    """An import may replace an import, and nothing else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    kind = read_record(out).get("kind") if (out / RECORD).is_file() else "something else"
    if kind != "imported":
        raise CannotImport(f"--out {out}: found {kind} there, expected a new folder or an earlier import. Name another "
                           "folder.")


def _read_as(file: Published, family: str, may_drop: Sequence[str]) -> tuple[Published, dict[str, str], str]:
    """The first reading of the file's names that the family, or any, recognises, without what is to be dropped; what
    that is; and the family. Nobody recognises it: the file as it is, so that the family says what it misses."""
    modules = {family: FAMILIES[family]} if family in FAMILIES else FAMILIES
    for reading in readings(file):
        dropped = {name: "named with --drop" for name in reading.tensors
                   if any(fnmatchcase(name, pattern) for pattern in may_drop)}
        kept = replace(reading, tensors={name: value for name, value in reading.tensors.items() if name not in dropped})
        recognised = next((name for name, module in modules.items() if module.recognise(kept)), None)
        if recognised is not None and family in ("auto", recognised):
            _refuse_unknown("--drop", may_drop, reading.tensors)
            return kept, dropped, recognised
    return file, {}, family


def _refuse_unknown(option: str, patterns: Sequence[str], names: Sequence[str] | Mapping[str, Any]) -> None:
    strange = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if strange:
        raise CannotImport(f"{option} {strange[0]}: found no tensor of this name, expected one of "
                           f"{', '.join(list(names)[:8])} ...")


def _with_channels(found: Translation, given: Mapping[str, Any]) -> Translation:
    """The names of the channels as the user gives them; numbers where there are others than the family's."""
    count = found.num_channels
    if "channels" in given:
        names = given["channels"]
        if not isinstance(names, list | tuple) or len(names) != count:
            raise CannotImport(f"--set channels: found {names}, expected {count} names, one for each channel that the "
                               "weights take, in their order: --set channels=[B4,B3,B2].")
        if tuple(names) != found.channels.names:
            own = tuple(map(str, names))
            known = len(found.channels.names) == count                      # else the family's numbers are of others
            return replace(found, channels=replace(found.channels, names=own, wavelengths_nm=()) if known
                           else Channels(own))
    elif count and len(found.channels.names) != count:
        return replace(found, channels=Channels(tuple(f"channel {i}" for i in range(count))), notes=(
            *found.notes, f"what the {count} channels are is not known; they are called by number. Name them with "
            "--set channels=[...], in the order of the weights."))
    return found


def _check(path: Path, file: Published, found: Translation, made: Rebuilt, may_miss: Sequence[str]) -> None:
    """Nothing unknown in the file, no tensor named that is not there, no number that is none."""
    left = [name for name in file.tensors if name not in found.names and name not in found.dropped]
    if left:
        raise CannotImport(f"{path.name}, read as {found.family}: {len(left)} tensors have no place here: "
                           f"{', '.join(left[:8])}{' ...' if len(left) > 8 else ''}. Expected to know every one. Name "
                           "those that may be left behind with --drop, or give another --family.")
    _refuse_unknown("--missing", may_miss,
                    [f"{part}.{name}" for part, module in made.parts().items() for name in module.state_dict()])
    broken = [f"{part}.{name}" for part, weights in found.weights.items() for name, value in weights.items()
              if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise CannotImport(f"{path.name}: found numbers that are not finite in {', '.join(broken[:4])}, expected "
                           "weights that can be used. The file is damaged, or the run that wrote it had failed.")


def _said_in_vain(given: Mapping[str, Any]) -> list[str]:
    """Sentences about settings that nothing has asked for. Raises CannotImport where one looks like another's name."""
    unused = given.unused() if isinstance(given, Given) else []
    asked = given.asked - set(unused) if isinstance(given, Given) else set()
    for key in unused:
        meant = difflib.get_close_matches(key, asked, n=1, cutoff=0.8)
        if meant:
            raise CannotImport(f"--set {key}: found no setting of this name, expected one of "
                               f"{', '.join(sorted(asked))}. Did you mean {meant[0]}?")
    return [f"--set {key} was not needed: nothing in this file asks for it." for key in unused]


def _edit(found: Translation, made: Rebuilt, patch: Sequence[int], new_channels: Sequence[str]) -> list[str]:
    """Resize the patch and add channels, where that is asked for; returns sentences."""
    if not patch and not new_channels:
        return []
    if made.encoder is None:
        raise CannotImport(f"--patch and --new-channels: found weights of the family {found.family} without an "
                           "encoder, expected one. Leave them out.")
    twice = set(new_channels) & set(found.channels.names)
    if twice:
        raise CannotImport(f"--new-channels: found {', '.join(sorted(twice))}, which the weights know; expected "
                           "others. Leave it out.")
    try:
        said = resize_patch(made.encoder, patch) if patch else []
        if new_channels:
            set_channels(made.encoder, [*((i,) for i in range(found.num_channels)), *(() for _ in new_channels)])
            said.append(f"kernels of {', '.join(new_channels)} added; they begin with zeros")
    except ValueError as error:
        raise CannotImport(f"--patch and --new-channels: {error}") from None
    return said
