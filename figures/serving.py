"""The picture of docs/guides/serve.md: the page of `querybox serve`, with the detections in a photo."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from figures.chromium import NEEDED, chromium, find_program
from figures.sheet import save_picture
from figures.specimen import DINO_WEIGHTS, EXAMPLE

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "serve.png"
PHOTO = EXAMPLE / "images" / "BloodImage_00038.jpg"
SIZE = (900, 970)
"""Width and height of the window in pixels."""


def page(program: str) -> Image.Image:
    """Drop a photo on the page of a server, and return what Chromium shows."""
    with (
        server() as url,
        TemporaryDirectory() as profile,
        chromium(program, Path(profile)) as browser,
    ):
        browser.size(*SIZE)
        browser.visit(url, "document.querySelector('#drop')")
        browser.drop("#drop", PHOTO.read_bytes(), PHOTO.name)
        browser.wait("/objects in/.test(document.querySelector('#message').textContent)")
        # The time differs from run to run.
        browser.run(
            "(m => { m.textContent = m.textContent.split(' in ')[0] })(document.querySelector('#message'))"
        )
        return browser.picture()


@contextmanager
def server() -> Iterator[str]:
    """Run `querybox serve` with the shipped weights, and yield its address."""
    command = [sys.executable, "-m", "querybox", "serve", str(DINO_WEIGHTS), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield next(line.split()[-1] for line in process.stderr if "ready at" in line)
        finally:
            process.terminate()


def main() -> None:
    """Write the picture; without Chromium it is left as it is."""
    program = find_program()
    if program is None:
        print(f"{PICTURE.name}: {NEEDED}; left as it is")
        return
    save_picture(page(program), PICTURE, "examples/blood_cells/weights.safetensors")
