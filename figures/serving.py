"""The picture of docs/guides/serve.md: the page of `querybox serve`, with the detections in a photo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from figures.chromium import NEEDED, chromium, find_program
from figures.sheet import save_picture
from figures.specimen import DINO_WEIGHTS, EXAMPLE
from querybox.detector import Detector
from querybox.serving.access import Access
from querybox.serving.address import bind, url_of
from querybox.serving.server import Server
from querybox.serving.settings import ServingSettings
from querybox.serving.workers import open_engines

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
    """Run a server with the shipped weights in a thread, and yield its address."""
    bound, loopback = bind("127.0.0.1", 0, anonymous=False)
    engines = open_engines(partial(Detector.load, DINO_WEIGHTS), 1)
    access = Access(token=None, host="127.0.0.1", loopback=loopback)
    running = Server(DINO_WEIGHTS, engines, ServingSettings(), access)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(running.serve_at, bound)
        while not running.started and not ended.done():
            time.sleep(0.01)
        try:
            yield url_of(bound)
        finally:
            running.should_exit = True
            ended.result()


def main() -> None:
    """Write the picture; without Chromium it is left as it is."""
    program = find_program()
    if program is None:
        print(f"{PICTURE.name}: {NEEDED}; left as it is")
        return
    save_picture(page(program), PICTURE, "examples/blood_cells/weights.safetensors")
