"""Plain settings: words of the command line as values, dotted keys, and what is wrong with them in a sentence.

Knows nothing of what the keys mean: a mistake is put into words by the JSON schema of the record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from coke.errors import ConfigError, did_you_mean

Json = dict[str, Any]
WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping of keys",
}


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
        except (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError) as error:
            # beside its own: no such date or tag, digits by the thousand, brackets without an end
            raise ConfigError(f"{key}: {text[:80]!r} is not a value in YAML ({error})") from error
    return overrides


def override(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys changed: ``objective.temperature``, ``views.0.crop``; ``views.crop`` means all."""
    result: dict[str, Any] = plain(dict(settings))
    for dotted, value in overrides.items():
        _assign(result, dotted.split("."), value, dotted)
    return result


def places(settings: Any, dotted: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Each mapping in which a dotted key stands, with its last part there; lists are entered.

    >>> list(places({"views": [{"size": 3}, {}]}, "views.size"))
    [({'size': 3}, 'size')]
    """
    head, _, rest = dotted.partition(".")
    for node in settings if isinstance(settings, list) else [settings]:
        if isinstance(node, dict) and head in node:
            yield from places(node[head], rest) if rest else [(node, head)]


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


def part(schema: Json, path: Iterable[str | int]) -> Json:
    """What a JSON schema says of the key at a path; lists are entered, by a number or without, and are of one kind."""
    node = schema
    for step in path:
        node = _referred(schema, node.get("items", node.get("prefixItems", [node])[0]))
        node = node.get("properties", {}).get(step, node)
    return _referred(schema, node)


def mistake(errors: Sequence[Mapping[str, Any]], schema: Json, fixed: Mapping[str, Any]) -> str:
    """The first of pydantic's errors in a sentence: what was asked for, what came; unknown keys come first."""
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    error = next((error for error in errors if error["type"] in unknown), errors[0])
    kind, value = error["type"], error["input"]
    path = [step for step in error["loc"] if step not in ("int", "str")]  # a union's types
    if kind == "missing" and isinstance(path[-1], int):  # the end of a list
        kind, path = "too_short", path[:-1]
    where, key, said = ".".join(map(str, path)), path[0] if path else "", part(schema, path)
    if kind in unknown:
        dotted = ".".join(step for step in path if isinstance(step, str))
        if dotted in fixed:
            now = yaml.safe_dump(fixed[dotted]).partition("\n")[0]
            return f"unknown key {where}: no longer a setting, it is {now} in every run: leave it out"
        known = list(part(schema, path[:-1])["properties"])
        return f"unknown key {where}{did_you_mean(str(path[-1]), known)}; known: {', '.join(known)}"
    if kind == "json_invalid":  # bytes that os.fsdecode could not read
        return "text in the settings is not UTF-8, perhaps a file's name: rename it"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "missing":
        return f"{where} is missing"
    if kind == "too_short" and value == []:
        return f"{where} must name at least one head"
    if kind == "greater_than":
        return f"{key} must be positive, got {value:g}"
    if kind in ("greater_than_equal", "less_than_equal"):
        said = said.get("anyOf", [said])[0]  # beside null
        low, high = said.get("minimum", float("-inf")), said.get("maximum", float("inf"))
        return f"{key} must lie in {low:g} ... {high:g}, got {value:g}"
    return f"{where} must be {_described(schema, said)}, got {value!r}"


def _described(schema: Json, node: Json) -> str:
    node = _referred(schema, node)
    if "anyOf" in node:
        return " or ".join(_described(schema, option) for option in node["anyOf"])
    if "enum" in node:
        return " or ".join(map(repr, node["enum"]))
    if "prefixItems" in node:
        return f"[{', '.join(_described(schema, item) for item in node['prefixItems'])}]"
    if "items" in node:
        return f"a list of {_described(schema, node['items'])}"
    return WORDS[node["type"]]


def _referred(schema: Json, node: Json) -> Json:
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


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


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; a person means the number."""
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return [_number(item) for item in value] if isinstance(value, list) else value
