from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

SETTINGS: dict[str, Any] = {
    "recipe": "detr_r18",
    "model": {
        "backbone": "test_efficientnet",
        "backbone_weights": None,
        "width": 16,
        "heads": 2,
        "feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "queries": 8,
    },
    "data": {"train": "photos", "image_size": 32, "workers": 0},
    "train": {"epochs": 1, "batch_size": 2, "lr": 0.5},
    "output": "run",
}


@pytest.fixture
def project(photos: Path, tmp_path: Path) -> Path:
    """A folder with a run file beside its dataset."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "photos").symlink_to(photos)
    (folder / "run.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def test_trains_repeats_and_resumes(run: Any, project: Path, tmp_path: Path) -> None:
    code, out, _ = run("train", project / "run.yaml", "train.lr=1e-4", "--max-time", "1h")
    assert code == 0
    assert out.startswith(f"Results are in {project / 'run'} (AP 0.")
    resolved = yaml.safe_load((project / "run" / "run.yaml").read_text())
    assert resolved["train"]["lr"] == 1e-4  # the command line overrules the file
    assert resolved["train"]["max_time"] == 3600
    assert resolved["train"]["batch_size"] == 2  # the file overrules the defaults
    assert resolved["model"]["width"] == 16  # and the recipe
    assert resolved["model"]["dropout"] == 0.1  # which only the recipe says

    code, _, err = run("train", project / "run.yaml")
    assert code == 2
    assert "the run folder is not empty" in err.splitlines()[-1]

    assert run("train", project / "run" / "run.yaml", "--output", "again")[0] == 0
    again = yaml.safe_load((tmp_path / "again" / "run.yaml").read_text())
    assert {**again, "output": resolved["output"]} == resolved

    code, _, _ = run("train", project / "run" / "run.yaml", "train.epochs=2", "--resume")
    assert code == 0

    assert run("info", "again")[0] == 0
    assert run("evaluate", "again", project / "photos", "--split", "val")[0] == 0
    assert run("predict", "again", project / "photos" / "images", "--format", "csv")[0] == 0


def test_a_dataset_trains_with_the_defaults(
    run: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def train(given: Any, *, resume: bool) -> None:
        seen.append((given.settings, resume))
        raise KeyboardInterrupt

    monkeypatch.setattr("querybox.training.run.train_given", train)
    assert run("train", photos)[0] == 130
    assert (
        run("train", f"data.train={photos}", "recipe=detr_small", "--resume", "--weights", "w: 1")[0] == 130
    )
    (tmp_path / "data.yaml").write_text("{path: ., train: images, names: [cat]}")
    assert run("train", "data.yaml", "--output", "a b")[0] == 130
    (first, _), (second, resume), (third, _) = seen
    assert (first.data.train, first.recipe) == (str(photos), None)
    assert (second.data.train, second.recipe, second.weights, resume) == (
        str(photos),
        "detr_small",
        "w: 1",
        True,
    )
    assert (third.data.train, third.output) == ("data.yaml", "a b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ConfigError: command line: got no dataset; expected the path of a dataset or of a run file"),
        (["train.lr=1"], "ConfigError: command line: got no dataset"),
        (["nothing.yaml"], "ConfigError: nothing.yaml: names no dataset; expected one: data: {train: PATH}"),
        (["missing.yaml"], "ConfigError: missing.yaml: cannot be read"),
        (["missing"], "missing: no such file or folder"),
        (["RUN", "train.epohcs=1"], "unknown setting 'train.epohcs'. Did you mean 'train.epochs'?"),
        (["RUN", "train.lr=fast"], "setting 'train.lr' got 'fast'"),
        (
            ["RUN", "train.lr"],
            "ConfigError: command line: got 'train.lr'; expected a setting such as train.lr=2e-4",
        ),
        (["RUN", "epohcs=1"], "command line: unknown setting 'epohcs'. Did you mean 'train.epochs'?"),
        (["RUN", "model.widht=3"], "model: unknown setting 'widht'. Did you mean 'width'?"),
        (["RUN", "recipe=detr_r5"], "unknown recipe 'detr_r5'. Did you mean 'detr_r50'?"),
        (["RUN", "--max-time", "soon"], "setting 'train.max_time' got 'soon'"),
        (["RUN", "--weights", "missing.safetensors"], "missing.safetensors: no such weights file"),
        (["RUN", "--resume"], "there is no run to resume"),
        (["RUN", "data.train=empty.json"], "no objects to train on"),
        (["typo.yaml"], "typo.yaml: unknown setting 'trian'. Did you mean 'train'?"),
    ],
)
def test_bad_input_is_told_in_one_line(
    run: Any, project: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "typo.yaml").write_text("{data: {train: photos}, trian: {lr: 1}}")
    empty = json.loads((project / "photos" / "annotations" / "val.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**empty, "annotations": []}))
    (tmp_path / "images").symlink_to(project / "photos" / "images")
    (tmp_path / "nothing.yaml").write_text("# no settings\n")
    code, out, err = run("train", *(project / "run.yaml" if word == "RUN" else word for word in words))
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]  # warnings about the data may come before it
    assert message in last
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--epochs", "5"],
            "Unknown option: --epochs. Cure: settings are written without dashes: train.epochs=5; see",
        ),
        (["--epochs=5"], "settings are written without dashes: train.epochs=5; see querybox train --help.\n"),
        (["--train.epochs", "5"], "without dashes: train.epochs=5; see"),
        (["--batch-size", "4", "--lr=1e-4", "--output", "x"], ": train.batch_size=4 train.lr=1e-4; see"),
        (["--recipe", "dino_small", "--queries", "50"], ": recipe=dino_small model.queries=50; see"),
        (["--cache", "--resume"], ": data.cache=...; see"),
        (
            ["--outptu", "x"],
            "Unknown option: --outptu. Did you mean --output? Cure: see querybox train --help.\n",
        ),
    ],
)
def test_an_option_that_is_a_setting_is_recognised(run: Any, words: list[str], message: str) -> None:
    code, out, err = run("train", "photos", *words)
    assert (code, out) == (2, "")
    assert message in err


def test_only_train_has_settings(run: Any) -> None:
    assert "train.epochs" not in run("evaluate", "run", "photos", "--epochs", "5")[2]


def test_the_folder_of_a_run_is_no_dataset(run: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run.yaml", "environment.json"):
        (tmp_path / "run" / name).write_text("{}")
    code, _, err = run("train", "run", "--resume")
    assert code == 2
    assert (
        "run: is the folder of a run; expected a dataset or a run file: use run/run.yaml, with --resume"
        in err
    )
    code, _, err = run("split", "run")
    assert code == 2
    assert "run: is the folder of a run; expected a dataset: use that of the run, data.train in" in err


@pytest.mark.parametrize("model", ["model.safetensors", "hf://facebook/detr-resnet-50"])
def test_a_model_is_no_dataset(run: Any, model: str) -> None:
    code, _, err = run("train", model, "photos")
    assert code == 2
    assert f"to fine-tune it: querybox train photos --weights {model}\n" in err
    _, _, err = run("train", "my model.safetensors", "my photos")
    assert "to fine-tune it: querybox train 'my photos' --weights 'my model.safetensors'\n" in err
