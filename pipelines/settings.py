"""params.yaml -> typed settings. Every setting is a field of a frozen dataclass that lies beside what it builds; this
module joins them to YAML, refuses what no field takes, and says where it stood.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

T = TypeVar("T")

PARAMS = "params.yaml"


class SettingsError(ValueError):
    """Something in params.yaml or on the command line cannot be used. The text says where, what, and what would do."""


def build(cls: type[T], raw: Any, where: str) -> T:
    """Make `cls` (a dataclass, or a union of dataclasses told apart by their `kind`) out of plain YAML values.

    Dataclasses are walked here, so that a message has the dotted path as the file has it, and so that nested unknown
    keys are refused (pydantic drops them silently on standard dataclasses); pydantic checks and converts the leaves.

    Args:
        where: dotted path of `raw` in its file, for messages ("pretrain.xray").

    Raises:
        SettingsError: one line per fault, each with its dotted path; unknown keys are faults.
    """
    faults: list[str] = []
    value = _value(cls, raw, where, faults)
    if faults:
        raise SettingsError("\n".join(faults))
    return typing.cast(T, value)


def load_params(root: Path) -> dict[str, Any]:
    """The whole of params.yaml as plain values. Raises SettingsError where it is missing or is not a mapping."""
    path = root / PARAMS
    if not path.is_file():
        raise SettingsError(f"no {PARAMS} in {root.resolve()}. Expected to be run where {PARAMS} lies; "
                            "go there, or let `lacuna init DIR` write one for your files.")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"{path}: found {type(raw).__name__}, expected a mapping of stages to named runs.")
    return raw


def load_run(stage: str, name: str, cls: type[T], root: Path) -> T:
    """The settings of one named run: params.yaml -> `stage` -> `name`."""
    runs = load_params(root).get(stage) or {}
    if name not in runs:
        near = difflib.get_close_matches(name, runs, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SettingsError(f"{PARAMS} has no {stage} run named {name!r}. It has: {', '.join(runs) or 'none'}.{hint}")
    return build(cls, runs[name], f"{stage}.{name}")


def changes_of(given: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE, as --set takes them, to values by key. Raises SettingsError."""
    changes = {}
    for change in given:
        key, equals, value = change.partition("=")
        if not equals:
            raise SettingsError(f"--set {change}: found no '=', expected KEY=VALUE, such as batch_size=16.")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SettingsError(f"--set {change}: found {value!r}, which is not YAML, expected a value such as 16, "
                                "[8, 8] or mean.") from None
    return changes


def plain(settings: Any) -> Any:
    """Settings as values that JSON and YAML can hold; `build` takes them back."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, dict):
        return {str(key): plain(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [plain(value) for value in settings]
    if isinstance(settings, Path):
        return str(settings)
    return settings


def fingerprint(*parts: Any) -> str:
    """A short hash of settings and digests: equal parts, equal fingerprint, in any process."""
    text = json.dumps([plain(part) for part in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _value(hint: Any, raw: Any, where: str, faults: list[str], default: type | None = None) -> Any:
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast(type, hint), raw, where, faults)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _member(hint, raw, where, faults, default)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments[-1:] == (...,):
        if not isinstance(raw, list | tuple):
            faults.append(f"{where}: found {raw!r}, expected a list.")
            return ()
        return tuple(_value(arguments[0], item, f"{where}.{i}", faults) for i, item in enumerate(raw))
    if typing.get_origin(hint) is dict:
        if not isinstance(raw, dict):
            faults.append(f"{where}: found {raw!r}, expected a mapping.")
            return {}
        return {str(key): _value(arguments[1], item, f"{where}.{key}", faults) for key, item in raw.items()}
    return _leaf(hint, raw, where, faults)


def _dataclass(cls: type, raw: Any, where: str, faults: list[str]) -> Any:
    if isinstance(raw, cls):
        return raw
    if not isinstance(raw, dict):
        faults.append(f"{where}: found {raw!r}, expected a mapping with {', '.join(typing.get_type_hints(cls))}.")
        return None
    before = len(faults)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    for key in raw:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            faults.append(f"unknown key: {where}.{key}.{hint} Allowed here: {', '.join(fields)}.")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in raw:
            faults.append(f"missing key: {where}.{name}. Give it a value.")
    values = {name: _value(hints[name], raw[name], f"{where}.{name}", faults, _default_class(field))
              for name, field in fields.items() if name in raw}
    if len(faults) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:  # a combination that the settings themselves refuse
        faults.append(f"{where}: {error}")
        return None


def _member(union: Any, raw: Any, where: str, faults: list[str], default: type | None = None) -> Any:
    """Which member of a union is meant: None, a plain value, or the dataclass with this `kind`. Without a `kind` it is
    the class of the field's default, so that a union may get members without a change to anybody's params.yaml; unless
    a key belongs to another member, which is then what was meant."""
    members = typing.get_args(union)
    classes = [m for m in members if dataclasses.is_dataclass(m)]
    if not classes or not isinstance(raw, dict):
        plain_members = tuple(m for m in members if m not in classes)
        if classes and not (raw is None and type(None) in members) and set(plain_members) <= {type(None)}:
            kinds = ", ".join(kind for c in classes for kind in _kinds(c))
            faults.append(f"{where}: found {raw!r}, expected a mapping" + (f" with kind: {kinds}." if kinds else "."))
            return None
        return _leaf(typing.Union[plain_members], raw, where, faults)  # noqa: UP007 - members are known at run time only
    if len(classes) == 1:
        return _dataclass(typing.cast(type, classes[0]), raw, where, faults)
    by_kind = {kind: c for c in classes for kind in _kinds(c)}
    if "kind" not in raw:
        if default in classes and not _foreign(raw, typing.cast(type, default), classes):
            return _dataclass(typing.cast(type, default), raw, where, faults)
        faults.append(f"missing key: {where}.kind. Expected one of {', '.join(by_kind)}.")
        return None
    if raw["kind"] not in by_kind:
        faults.append(f"{where}.kind: found {raw['kind']!r}, expected one of {', '.join(by_kind)}.")
        return None
    return _dataclass(typing.cast(type, by_kind[raw["kind"]]), raw, where, faults)


def _foreign(raw: dict[Any, Any], default: type, classes: list[Any]) -> bool:
    """Whether a key is no field of the default but one of another member."""
    own = {f.name for f in dataclasses.fields(default)}
    others = {f.name for c in classes for f in dataclasses.fields(c)}
    return any(key in others - own for key in raw)


def _default_class(field: dataclasses.Field[Any]) -> type | None:
    """The dataclass that a field has by default, or names for values without a `kind`; None where it does neither."""
    if "without_kind" in field.metadata:
        return typing.cast(type, field.metadata["without_kind"])
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return type(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else None


def _leaf(hint: Any, raw: Any, where: str, faults: list[str]) -> Any:
    try:
        return pydantic.TypeAdapter(hint).validate_python(raw)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        expected = fault.get("ctx", {}).get("expected")
        faults.append(f"{where}: found {raw!r}, expected {expected}." if expected
                      else f"{where}: found {raw!r}. {fault['msg']}.")
        return None


def _kinds(cls: Any) -> tuple[Any, ...]:
    return typing.get_args(typing.get_type_hints(cls).get("kind"))
