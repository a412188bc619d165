"""Run docs/notebooks/walk.ipynb anew, and store what it shows: ``python -m figures.walk``.

It takes a few minutes longer than the training in the notebook. Nothing but the outputs of the notebook is changed.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebooks" / "walk.ipynb"
OF_MACHINE = re.compile(
    rf"{re.escape(tempfile.gettempdir())}/walk-\w+/|^\[\d{{4}}-.* logging\.cc:.*\n|\x1b\[\w+", re.MULTILINE
)
"""What differs from run to run: the folder in which the notebook works, the log of Ray; and control sequences."""


def main() -> None:
    """Run all cells in a kernel of this Python, and write the notebook."""
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError as error:
        sys.exit(
            f"{NOTEBOOK.name}: needs {error.name}, which is not installed: pip install '.[docs,s3-tests]'"
        )
    os.environ |= {"TTY_COMPATIBLE": "0", "COLUMNS": "100"}  # no progress bars
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    metadata = dict(notebook.metadata)
    client = NotebookClient(
        notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    notebook.metadata = metadata  # which does not name the version of this Python
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    nbformat.write(notebook, NOTEBOOK)


def tidy(outputs: list[Any]) -> list[Any]:
    """Return outputs in which neighbours of one stream are one, and of pictures, which Pillow shows twice, the JPEG."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = OF_MACHINE.sub("", output.text.replace("\r\n", "\n"))
        elif "image/jpeg" in output.data:
            output.data = {"image/jpeg": output.data["image/jpeg"]}
    return kept


if __name__ == "__main__":
    main()
