"""From plain settings (YAML, ``key=value`` words) to checked records, and back.

Knows nothing of what the keys mean: types come from the record's annotations.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar

import yaml

from coke.errors import ConfigError, did_you_mean

Record = TypeVar("Record")


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """``key=value`` words of the command line, values in YAML, as a mapping of dotted keys.

    >>> parse_overrides(["epochs=20", "n_clusters=[10, 20]", "objective.temperature=0.2", "init=null"])
    {'epochs': 20, 'n_clusters': [10, 20], 'objective.temperature': 0.2, 'init': None}
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if separator and not key.strip():
            raise ConfigError(f"expected key=value, got {assignment!r}: the key is missing")
        if not separator:
            raise ConfigError(f"expected key=value, got {assignment!r}")
        try:
            overrides[key.strip()] = _number(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}: {text!r} is not a value in YAML ({error})") from error
    return overrides


def override(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys changed: ``objective.temperature``, ``views.0.crop``; ``views.crop`` means all."""
    result: dict[str, Any] = plain(dict(settings))
    for dotted, value in overrides.items():
        _assign(result, dotted.split("."), plain(value), dotted)
    return result


def build(record: type[Record], settings: Mapping[str, Any]) -> Record:
    """A dataclass from plain settings. Raises `ConfigError` for unknown keys and values of the wrong type."""
    return typing.cast(Record, _convert(record, dict(settings), ""))


def check(record: type, settings: Mapping[str, Any], later: tuple[str, ...] = ()) -> None:
    """Raise `ConfigError` for unknown keys and wrong types; keys of ``later`` may still be "auto"."""
    _check_keys(record, settings, "")
    for key, value in settings.items():
        if not (key in later and value == "auto"):
            convert(record, key, value)


def convert(record: type, key: str, value: Any) -> Any:
    """A value as the type of one of the record's fields. Raises `ConfigError`."""
    return _convert(typing.get_type_hints(record)[key], value, key)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and NumPy's values as mappings, lists and numbers, for YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if type(value).__module__ == "numpy" else value  # arrays and scalars alike


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values.

    >>> differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    {'b.c': (2, 3)}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found.update(differences(before, after, f"{prefix}{key}."))
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


def _assign(node: Any, path: list[str], value: Any, dotted: str) -> None:
    head, rest = path[0], path[1:]
    key: Any = head
    if isinstance(node, list):
        if not head.isdigit():  # every entry
            for entry in node:
                _assign(entry, path, value, dotted)
            return
        key = int(head)
        if key >= len(node):
            raise ConfigError(f"{dotted}: there are {len(node)} entries, counted from 0")
    elif not isinstance(node, dict):
        raise ConfigError(f"{dotted}: {node!r} is a value, it has no {head!r}")
    if rest:
        if isinstance(node, dict):
            node.setdefault(key, {})
        _assign(node[key], rest, value, dotted)
    else:
        node[key] = plain(value)  # a copy for each entry, or changing one later would change all


def _convert(wanted: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``wanted``, or a `ConfigError` that says what was expected."""
    if dataclasses.is_dataclass(wanted):
        return _convert_record(typing.cast(type, wanted), value, where)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        for option in sorted(arguments, key=lambda option: option is not type(value)):
            try:
                return _convert(option, value, where)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and arguments[-1] is Ellipsis:
            value = [value]  # n_clusters=30 is one head
        if isinstance(value, (list, tuple)) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            types_ = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            return tuple(
                _convert(t, v, f"{where}.{i}") for i, (t, v) in enumerate(zip(types_, value, strict=True))
            )
    elif wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif (
        isinstance(wanted, type) and isinstance(value, wanted) and (wanted is bool) == isinstance(value, bool)
    ):
        return value
    raise ConfigError(f"{where} must be {_describe(wanted)}, got {value!r}")


def _convert_record(wanted: type, value: Any, where: str) -> Any:
    if isinstance(value, wanted):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of keys, got {value!r}")
    prefix = f"{where}." if where else ""
    _check_keys(wanted, value, prefix)
    hints = typing.get_type_hints(wanted)
    return wanted(**{key: _convert(hints[key], item, f"{prefix}{key}") for key, item in value.items()})


def _check_keys(record: type, settings: Mapping[str, Any], prefix: str) -> None:
    names, fixed = [field.name for field in fields(record)], getattr(record, "FIXED", {})
    for key in settings:
        if key in fixed:
            value = yaml.safe_dump(fixed[key]).partition("\n")[0]
            raise ConfigError(
                f"unknown key {prefix}{key}: no longer a setting, it is {value} in every run: leave it out"
            )
        if key not in names:
            hint = did_you_mean(str(key), names)
            raise ConfigError(f"unknown key {prefix}{key}{hint}; known: {', '.join(names)}")


def _describe(wanted: Any) -> str:
    arguments = typing.get_args(wanted)
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin is tuple:
        inner = _describe(arguments[0])
        return (
            f"a list of {inner}" if arguments[-1] is Ellipsis else f"[{', '.join(map(_describe, arguments))}]"
        )
    return {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }.get(wanted, getattr(wanted, "__name__", str(wanted)))


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; a person means the number."""
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return [_number(item) for item in value] if isinstance(value, list) else value
