"""The notebook from photos to a bucket: what is stored of its run, and that it runs, with the shipped weights.

They get small images, on which they find less in a fraction of the time.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from documentation import EXAMPLE, copy_dataset

from querybox import Detector
from querybox.cli import main

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebooks" / "walk.ipynb"
COMMAND = re.compile(r"^( *)!querybox (.*)$", re.MULTILINE)
HAS_BUCKETS = all(map(find_spec, ("flask_cors", "moto", "ray", "s3fs"))) and sys.platform != "win32"
"""Whether the last step can run. The packages are not imported here: Ray reads its settings when it is."""
MACHINE = re.compile(r"(?<![\w.~:/-])/(?:tmp|work|root|home|opt|Users|var)/|127\.0\.0\.1|localhost")
MOMENT = re.compile(r"\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b")
MAX_PICTURES = 400_000
"""Maximum number of bytes of all pictures together."""


def code_cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_all_cells_have_been_run_in_order_and_without_errors() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert not any(output.get("name") == "stderr" for output in outputs)


def test_what_is_stored_names_no_machine_and_no_moment() -> None:
    texts = [text for cell in code_cells() for output in cell["outputs"] for text in texts_of(output)]
    assert texts
    found = [text for text in texts if MACHINE.search(text) or MOMENT.search(text)]
    assert not found


def texts_of(output: dict[str, Any]) -> list[str]:
    """Return all text of an output."""
    data = {"text/plain": output["text"]} if output["output_type"] == "stream" else output["data"]
    return ["".join(value) for kind, value in data.items() if kind.startswith("text/")]


def test_pictures_are_small() -> None:
    pictures = [
        base64.b64decode("".join(value))
        for cell in code_cells()
        for output in cell["outputs"]
        for kind, value in output.get("data", {}).items()
        if kind.startswith("image/")
    ]
    assert len(pictures) == 2
    assert sum(map(len, pictures)) < MAX_PICTURES


@pytest.mark.filterwarnings("ignore")  # of Ray and moto
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages for buckets all steps but the last one run."""
    folder = tmp_path / "docs" / "notebooks"
    folder.mkdir(parents=True)
    copy_dataset(tmp_path / "examples" / "blood_cells")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    detector = Detector.load(EXAMPLE / "weights.safetensors")
    detector.preprocessing = replace(detector.preprocessing, short_side=176, long_side=352)
    detector.save(tmp_path / "weights.safetensors")
    monkeypatch.setenv("QUERYBOX_WALK_MODEL", str(tmp_path / "weights.safetensors"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")  # so that what the notebook sets ends with the test
    sources = ["".join(cell["source"]) for cell in code_cells()]
    bucket = next(number for number, source in enumerate(sources) if "import s3fs" in source)
    names: dict[str, Any] = {"run": run}
    try:
        for number, source in enumerate(sources if HAS_BUCKETS else sources[:bucket], 1):
            source = COMMAND.sub(lambda found: f"{found[1]}run(f{found[2]!r})", source)
            exec(compile(source, f"cell {number}", "exec"), names)
    finally:
        if "server" in names:
            names["server"].kill()
    assert 'querybox_requests_total{status="200"} 1.0' in names["metrics"]
    assert len(names["frames"]) == names["FRAMES"]
    if HAS_BUCKETS:
        rows = names["rows"].to_pylist()
        assert [row["name"] for row in rows] == [f"s3://cells/photos/{path.name}" for path in names["test"]]
        assert not any(row["error"] for row in rows)


def run(line: str) -> None:
    """Run a command of querybox, which has to succeed."""
    assert main(shlex.split(line)) == 0, line
