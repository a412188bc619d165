"""An option that has no effect is an error, for every command and before any file is read."""

from __future__ import annotations

from inspect import signature

import pytest

from querybox.cli.main import COMMANDS, main
from querybox.cli.needs import NEEDS, option_name

WORDS = {
    "evaluate": ["none", "none"],
    "predict": ["none", "none"],
    "serve": ["none"],
    "trace": ["none", "--model", "none"],
    "inspect": ["none", "--model", "none"],
    "export": ["none", "--to", "openvino"],
    "benchmark": ["none"],
    "info": [],
}
VALUES = {"--tile": "640", "--workers": "2", "--ray": "local", "--max-frames": "2", "--tracker": "sort"}
VALUES |= {"--max-batch=1": "1", "--queries": "2", "--batch-size": "2", "--token": "x" * 32, "TARGET": "none"}
FLAGS = ("--overwrite", "--tuned", "--track", "--allow-anonymous", "--json", "--tune", "--trust", "--models")


def given(option: str) -> list[str]:
    name, _, value = option.partition("=")
    if name == "TARGET":
        return ["none"]
    return [name] if name in FLAGS else [name, value or VALUES.get(name, "0.1")]


@pytest.mark.parametrize(
    ("command", "option", "need"), [(name, *pair) for name, pairs in NEEDS.items() for pair in pairs]
)
def test_options_have_an_effect(
    command: str, option: str, need: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = given(need.removeprefix("not ")) if need.startswith("not ") else []
    before = other if other == ["none"] else []
    code = main([command, *before, *WORDS[command], *given(option), *([] if before else other)])
    how = f"with {need.removeprefix('not ')}" if other else f"without {need}"
    assert (
        code,
        f"ConfigError: querybox {command}: {option} has no effect {how}: " in capsys.readouterr().err,
    ) == (
        2,
        True,
    )


def test_the_table_names_options() -> None:
    commands = {command.__name__: command for command in COMMANDS}
    for command, pairs in NEEDS.items():
        known = {option_name(name) for name in signature(commands[command]).parameters}
        assert {name.removeprefix("not ").partition("=")[0] for pair in pairs for name in pair} <= known
