"""Run files and overrides: YAML in, plain nested values out, ready for `Settings.parse`."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from querybox.errors import ConfigError

Values = dict[str, Any]

PATHS = ("data.train", "data.val", "model.backbone_weights", "weights", "output")
"""Settings that are paths; in a run file they are relative to it."""


MOST_ALIASES = 20
"""Of one file. A few levels of aliases to aliases make a small file mean more values than any memory holds."""


class Loader(yaml.SafeLoader):
    """YAML as version 1.2 has it: ``no`` is a word, ``1e-4`` a number, and a key stands only once.

    PyYAML follows version 1.1, where ``precision: no`` is False, ``lr: 1e-4`` a string and ``1:30`` ninety.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own
    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node, unless it is one alias too many."""
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                mark = self.get_mark()
                raise yaml.MarkedYAMLError(problem=f"more than {MOST_ALIASES} aliases", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value; PyYAML raises nearly anything where a tag such as ``!!int`` stands before what is none."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise yaml.MarkedYAMLError(
                problem=f"no value of the type {node.tag}", problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; a key that stands twice is an error, where PyYAML keeps the last."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no plain word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for kind, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"), first)


def read_run_file(path: Path) -> Values:
    """Read the settings of a YAML file. Relative paths in it start from the file's own folder.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or is not a mapping of settings.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); expected a YAML run file: check the path"
        ) from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: got a {type(values).__name__}; expected settings such as 'train: {{lr: 1e-4}}'"
        )
    return anchored(values, path.parent)


def anchored(values: Values, folder: Path, prefix: str = "") -> Values:
    """Return `values` with the relative ones of `PATHS` put below `folder`."""
    result: Values = {}
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict):
            value = anchored(value, folder, f"{dotted}.")
        elif (
            dotted in PATHS and isinstance(value, str) and value != "imagenet" and "://" not in value
        ):  # by name
            value = str(folder / value)
        result[name] = value
    return result


def read_overrides(overrides: Iterable[str]) -> Values:
    """Turn ``["train.lr=2e-4", ...]`` into ``{"train": {"lr": 2e-4}, ...}``; values are read as YAML.

    Raises:
        ConfigError: An override has no ``=`` or no name, or its value is not YAML.
    """
    values: Values = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(name.split(".")):
            raise ConfigError(f"command line: got '{override}'; expected a setting such as train.lr=2e-4")
        value = parse_yaml(text, f"command line: '{override}'")
        for part in reversed(name.split(".")):
            value = {part: value}
        values = merge(values, value)
    return values


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Return `base` with the values of `over` in place of its own, mapping by mapping."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def parse_yaml(text: str, where: str) -> Any:
    """Return the plain values that `text` says.

    Raises:
        ConfigError: `text` is not YAML, or holds a key twice; `where` is named in the message.
    """
    try:
        return yaml.load(text, Loader)  # noqa: S506 - Loader is a SafeLoader
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply; expected settings") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise ConfigError(f"{where}{place}: {problem}; expected YAML") from None
