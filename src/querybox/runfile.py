"""Read run files and overrides: YAML to nested values for `Settings.parse`."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from querybox.errors import ConfigError
from querybox.files import require_regular

Values = dict[str, Any]

RUN_FILE = "run.yaml"
"""Name of the run file in the folder of a run, with all of its settings."""
ENVIRONMENT, REPORT = "environment.json", "report.html"
"""Names of the description of its environment and of its report there."""
PATHS = ("data.train", "data.val", "model.backbone_weights", "weights", "output")
"""Settings that are paths, which are relative to the run file."""
NOT_PATHS = ("imagenet", "none")
"""Values of these settings that are not paths; nor are those with ``://``."""

MAX_ALIASES = 20
"""Maximum number of aliases per file. Nested aliases can expand a small file beyond any memory."""


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, not one with a run file that a user has written."""
    return (folder / RUN_FILE).is_file() and (folder / ENVIRONMENT).is_file()


class Loader(yaml.SafeLoader):
    """Loader for YAML 1.2: ``no`` is a string, ``1e-4`` a number, and duplicate keys are errors.

    PyYAML implements version 1.1, in which ``name: no`` is False, ``lr: 1e-4`` a string and ``1:30`` is 90.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - declared by PyYAML
    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node; limit the number of aliases."""
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                mark = self.get_mark()
                raise yaml.MarkedYAMLError(problem=f"more than {MAX_ALIASES} aliases", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; PyYAML raises various errors for a value that does not match a tag such as ``!!int``."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise yaml.MarkedYAMLError(
                problem=f"not a value of type {node.tag}", problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping; duplicate keys are errors, of which PyYAML keeps the last."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not a scalar", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key '{key.value}'", problem_mark=key.start_mark
                )
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


def read_run_file(path: Path, names: Collection[str] = ()) -> Values:
    """Read the settings in a YAML file. Relative paths are resolved against the folder of the file.

    Args:
        path: The file.
        names: Names of weights, which are kept unless there is a file or folder of that name.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or is not a mapping of settings.
    """
    require_regular(path, ConfigError)
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
    resolved, name = resolve_paths(values, path.parent), values.get("weights")
    if isinstance(name, str) and name in names and not Path(resolved["weights"]).exists():
        resolved["weights"] = name
    return resolved


def resolve_paths(values: Values, folder: Path, prefix: str = "") -> Values:
    """Return `values` with the relative paths among them resolved against `folder`; see `PATHS`.

    An empty path is left unchanged, because resolved it would name the folder; `Settings` then rejects it.
    """
    result: Values = {}
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict):
            value = resolve_paths(value, folder, f"{dotted}.")
        elif (
            dotted in PATHS
            and isinstance(value, str)
            and value not in ("", *NOT_PATHS)
            and "://" not in value
        ):
            value = value if value.startswith("~") else str(folder / value)
        result[name] = value
    return result


def read_overrides(overrides: Iterable[str]) -> Values:
    """Convert ``["train.lr=2e-4", ...]`` to ``{"train.lr": 2e-4, ...}``; values are parsed as YAML.

    Raises:
        ConfigError: An override has no ``=``, no name or no value, or its value is not YAML.
    """
    values: Values = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(name.split(".")):
            raise ConfigError(f"command line: got '{override}'; expected a setting such as train.lr=2e-4")
        if not text.strip():
            raise ConfigError(
                f"command line: got '{override}' without a value; expected one, such as {name}=null"
            )
        values.pop(name, None)  # the last one of a name takes precedence over all others
        is_utf8 = text.isascii() or not re.search("[\ud800-\udfff]", text)  # YAML is
        values[name] = parse_yaml(text, f"command line: '{override}'") if is_utf8 else text
    return values


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Merge two nested mappings; the values of `over` take precedence."""
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML.

    Args:
        text: The YAML document.
        where: Its source, for messages.

    Raises:
        ConfigError: `text` is not valid YAML or has duplicate keys.
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
