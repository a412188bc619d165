"""No command runs a program, opens a connection, or writes outside of its output folder, as docs/security.md says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from squares import crossing, write
from streams import endless, serve
from tiny_models import save_detector

from querybox.cli.main import COMMANDS

SCRIPT = Path(__file__).parent / "audited.py"
PAGE = Path(__file__).parents[2] / "docs" / "security.md"


PROGRAMS = re.compile(r"subprocess\.Popen \('(?:/sbin/ldconfig', \['/sbin/ldconfig', '-p'\]|fc-list')")
"""Programs of the system that PyTorch and matplotlib run, as the page says."""


IPV6 = re.compile(r"--track: socket\.bind \(.*, \('::1', 0\)\)$")
"""With which urllib3, an import of the trackers, finds out whether this machine has IPv6, as the page says."""
SERVED = re.compile(
    r"serve \S+ --port 0: (?:http\.client\.|socket\.(?:bind|connect|getaddrinfo) [^\n]*'127\.0\.0\.1')"
)
"""The socket of `querybox serve`, and the requests of its client in `audited.py`."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with few layers: each operation takes long to be exported."""
    folder = tmp_path_factory.mktemp("model")
    return save_detector(folder / "model.safetensors", 32, 64, encoder_layers=0, decoder_layers=1)


def contents(*folders: Path) -> dict[str, str]:
    """Return the digest of every file."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command_lines(model: Path, photos: Path, stream: str) -> list[list[str]]:
    """Return a command line of every command, which writes into the folder `out`.

    Args:
        model: The weights.
        photos: The dataset.
        stream: Address of a stream.
    """
    image, weights, data = str(photos / "images" / "val1.jpg"), str(model), str(photos)
    training = ["train", data, "output=out/run", "data.workers=0", "epochs=1", "model.backbone=test_resnet"]
    training += [
        "recipe=detr_small",
        "backbone_weights=null",
        "image_size=32",
        "batch_size=2",
        "width=32",
        "heads=2",
        "encoder_layers=1",
        "decoder_layers=1",
    ]
    return [
        ["info", weights],
        ["info", data],
        ["validate", data, "--report", "out/problems.html"],
        ["split", data, "--of", "train", "--output", "out/split", "--val", "0.5"],
        training,
        ["diagnose", "out/run"],
        ["evaluate", weights, data, "--split", "val", "--output", "out/evaluation", "--inspect", "1"],
        ["predict", weights, image, "--output", "out/predictions", "--threshold", "0"],
        ["predict", weights, "clip.mkv", "--output", "out/tracked", "--threshold", "0", "--track"],
        ["predict", weights, stream, "--output", "out/live", "--allow-network", "--max-frames", "2"],
        ["predict", weights, stream, "--output", "out/refused"],
        ["trace", image, "--model", weights],
        ["inspect", image, "--model", weights, "-o", "out/page.html"],
        ["queries", weights, data, "--split", "val", "-o", "out/queries.png"],
        ["convert", weights, "out/model.safetensors", "--to", "querybox"],
        ["benchmark", weights, "--size", "32x64"],
        ["benchmark", weights, "--tune", "--size", "32x64"],
        ["predict", weights, image, "--output", "out/tuned", "--threshold", "0", "--tuned"],
        ["export", weights, "out/model.pt2", "--to", "torch"],
        ["export", weights, "out/model.xml", "--to", "openvino"],
        ["serve", weights, "--port", "0"],
    ]


def test_no_command_does_what_it_must_not(model: Path, photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "clip.mkv", crossing(4))
    with serve(endless) as server:
        told = run_audited(command_lines(model, photos, server.url), model, photos, tmp_path)
        assert server.connections == 1  # which Python does not see, as FFmpeg opens it
    refused = [f"{words} {message}" for words, message in told["failed"].items() if message]
    assert len(refused) == 1
    assert "out/refused 2 ConfigError" in refused[0]
    allowed = [PROGRAMS.search, SERVED.match, IPV6.search]
    assert not [line for line in told["violations"] if not any(matches(line) for matches in allowed)]


def run_audited(commands: list[list[str]], model: Path, photos: Path, tmp_path: Path) -> dict[str, Any]:
    """Run commands under the audit hook, check what they left in folders and caches, and return what was noted."""
    assert {words[0] for words in commands} == {command.__name__ for command in COMMANDS}
    (tmp_path / "out").mkdir()
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    before = contents(photos, model.parent)
    # Caches are in the output folder, too, so that what is in them can be named.
    places = dict.fromkeys(
        ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(tmp_path / "out" / "home")
    )
    (tmp_path / "out" / "home").mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MPL", "TORCH", "HF_", "XDG"))
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "out"), json.dumps(commands)],
        cwd=tmp_path,
        env=environment | places | {"PYTHONDONTWRITEBYTECODE": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert [line.partition("/")[0] for line in told["control"]] == ["control: open "]
    assert contents(photos, model.parent) == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "matplotlibrc", "control", "clip.mkv"}
    caches = {
        path.relative_to(tmp_path / "out" / "home").parts[0]
        for path in (tmp_path / "out" / "home").rglob("*")
    }
    page = PAGE.read_text(encoding="utf-8")
    assert not [name for name in caches if f"`{name.partition('_')[0]}" not in page]
    return dict(told)
