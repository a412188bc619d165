from __future__ import annotations

from pathlib import Path

import pytest

from querybox.errors import ConfigError
from querybox.runfile import merge, parse_yaml, read_overrides, read_run_file
from querybox.training import RunSettings


def test_yaml_is_read_as_version_1_2() -> None:
    text = (
        "{no: no, on: on, rate: 1e-4, half: .5, time: 1:30, date: 2024-01-01, seed: 010, yes: true, none: ~}"
    )
    assert parse_yaml(text, "") == {
        "no": "no",
        "on": "on",
        "rate": 0.0001,
        "half": 0.5,
        "time": "1:30",
        "date": "2024-01-01",
        "seed": 10.0,
        "yes": True,
        "none": None,
    }
    assert parse_yaml("[1, -2, 0, 1., 1_0, 'no', '', null, .inf]", "") == [
        1, -2, 0, 1.0, "1_0", "no", "", None, float("inf"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"run\.yaml, line 3, column 1: duplicate key 'a'"),
        ("a: {b: 1, b: 2}", r"line 1, column 11: duplicate key 'b'"),
        ("a: [1", r"line 1, column 6"),
        ("a: !!python/object/apply:os.getcwd []", r"line 1, column 4: could not determine a constructor"),
        ("a: !!timestamp noon", r"line 1, column 4: not a value of type tag:yaml\.org,2002:timestamp"),
        ("a: !!int ''", r"not a value of type tag:yaml\.org,2002:int"),
        ("a: !!bool maybe", r"not a value of type tag:yaml\.org,2002:bool"),
        ("a: &a [1]\nb: [" + "*a, " * 21 + "]", r"line 2, column 88: more than 20 aliases"),
        ("? [1]\n: 2", r"a key is not a scalar"),
        ("a: \0", r"special characters"),
        ("[" * 1000, r"nested too deeply"),
        ("- 1", r"got a list; expected settings"),
        ("train", r"got a str; expected settings"),
    ],
)
def test_bad_run_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_run_file(path)
    assert "\n" not in str(caught.value)


def test_unreadable_run_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read .* check the path"):
        read_run_file(tmp_path / "no.yaml")
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.yaml: cannot be read"):
        read_run_file(tmp_path / "run.yaml")


def test_paths_start_from_the_folder_of_the_run_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "{data: {train: photos, val: /photos/val.json, workers: 0}, output: ../out, weights: null, "
        "model: {backbone_weights: imagenet}, recipe: detr_r50}"
    )
    assert read_run_file(path) == {
        "data": {"train": str(tmp_path / "photos"), "val": "/photos/val.json", "workers": 0},
        "output": str(tmp_path / "../out"),
        "weights": None,
        "model": {"backbone_weights": "imagenet"},
        "recipe": "detr_r50",
    }
    path.write_text("model: {backbone_weights: resnet.safetensors}")
    assert read_run_file(path) == {"model": {"backbone_weights": str(tmp_path / "resnet.safetensors")}}


def test_an_empty_path_is_not_the_folder_of_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {train: '', val: ''}\noutput: ''\nweights: ''\n")
    values = read_run_file(tmp_path / "run.yaml")
    assert values == {"data": {"train": "", "val": ""}, "output": "", "weights": ""}
    with pytest.raises(ConfigError, match=r"'data\.train' got ''.*'data\.val'.*'weights'.*'output' got ''"):
        RunSettings.parse(values)


def test_empty_run_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert read_run_file(tmp_path / "run.yaml") == {}


def test_overrides() -> None:
    assert read_overrides(
        ["train.lr=2e-4", "train.freeze=[backbone]", "weights=null", "data.val=a=b", "train.lr=1"]
    ) == {
        "train.freeze": ["backbone"],
        "weights": None,
        "data.val": "a=b",
        "train.lr": 1,
    }


@pytest.mark.parametrize("override", ["train.lr", "=3", "train.=3", ".lr=3", "train..lr=3", "train.lr=[1"])
def test_bad_overrides(override: str) -> None:
    with pytest.raises(ConfigError, match="command line: "):
        read_overrides([override])


def test_merge_leaves_its_arguments_alone() -> None:
    base = {"train": {"lr": 1, "clip": 2}, "output": "a"}
    assert merge(base, {"train": {"lr": 3}, "recipe": "b"}) == {
        "train": {"lr": 3, "clip": 2},
        "output": "a",
        "recipe": "b",
    }
    assert base == {"train": {"lr": 1, "clip": 2}, "output": "a"}
    assert merge({"train": 1}, {"train": {"lr": 3}}) == {"train": {"lr": 3}}


@pytest.mark.parametrize("override", ["weights=", "data.train= "])
def test_an_override_without_a_value_is_refused(override: str) -> None:
    """As of `weights=$W` where W is not set, which would train from scratch."""
    with pytest.raises(ConfigError, match=f"got '{override}' without a value; expected one, such as .*=null"):
        read_overrides([override])
