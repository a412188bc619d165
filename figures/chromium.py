"""Headless Chromium, driven over its DevTools protocol through a pipe: for pictures of pages, and for their tests."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

NEEDED = "needs Chromium, which is not installed: apt install chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it may run as root, and sees nothing but our own page
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
)
SECONDS = 120.0  # on a busy machine
LEFT = ("navigated or closed", "context was destroyed", "Cannot find context")  # the page, under a command


def find_program() -> str | None:
    """Return the browser's program; None if it is not installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class CommandError(Exception):
    """The browser did not carry out a command."""


class Page:
    """A tab, what it logged and what it asked of the network."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self.buffer = b""
        self.number = 0
        self.session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command and wait for its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        text = json.dumps(message).encode() + b"\0"
        while text:  # a signal ends the writing of a long one midway
            text = text[os.write(self.write, text) :]
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise CommandError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.note(answer)

    def receive(self) -> dict[str, Any]:
        """Return the next message."""
        while b"\0" not in self.buffer:
            part = os.read(self.read, 1 << 20)
            assert part, "Chromium went away"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(message))

    def note(self, event: dict[str, Any]) -> None:
        """Note what the page logged, or asked of the network."""
        values = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(values["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning"):
            self.errors.append(str(values["args"]))
        elif event["method"] == "Log.entryAdded":
            self.errors.append(str(values["entry"]))
        elif event["method"] == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])

    def size(self, width: int, height: int, **more: Any) -> None:
        """Set the window's size in CSS pixels."""
        values = {"deviceScaleFactor": 1, "mobile": False, **more}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **values)

    def scheme(self, name: str) -> None:
        """Prefer light or dark."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, path: Path, ready: str) -> None:
        """Open a file and wait until a JavaScript expression is true."""
        self.visit(path.resolve().as_uri(), ready)

    def visit(self, url: str, ready: str) -> None:
        """Open an address and wait until a JavaScript expression is true."""
        self.call("Page.navigate", url=url)
        self.wait(ready)

    def drop(self, selector: str, file: bytes, name: str) -> None:
        """Drop a file on an element, as the mouse does."""
        self.run(
            "(() => { const data = new DataTransfer();"
            f" const bytes = Uint8Array.from(atob('{base64.b64encode(file).decode()}'), (c) => c.charCodeAt(0));"
            f" data.items.add(new File([bytes], {json.dumps(name)}));"
            " const event = new DragEvent('drop', { dataTransfer: data, cancelable: true });"
            f" document.querySelector({json.dumps(selector)}).dispatchEvent(event) }})()"
        )

    def picture(self) -> Image.Image:
        """Return what is visible in the window."""
        shown = self.call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true, on this page or the one that it leads to."""
        end = time.monotonic() + SECONDS
        while not self.holds(condition):
            assert time.monotonic() < end, f"never came true: {condition}; errors: {self.errors}"
            time.sleep(0.02)

    def holds(self, condition: str) -> bool:
        """Whether a JavaScript expression is true; on a page that is being left, nothing is."""
        try:
            return bool(self.run(f"Boolean({condition})"))
        except CommandError as error:
            if any(words in str(error) for words in LEFT):
                return False
            raise

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, wherever the focus is."""
        for kind in ("rawKeyDown", "keyUp"):
            codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, " ": 32}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key]
            )

    def place(self, selector: str, x: float, y: float) -> dict[str, float]:
        """Return the point at a share (0-1) of an element's width and height."""
        return dict(
            self.run(
                f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                f" return {{ x: r.left + {x} * r.width, y: r.top + {y} * r.height }} }})()"
            )
        )

    def hover(self, selector: str, x: float, y: float) -> None:
        """Move the mouse over an element."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **self.place(selector, x, y))

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click on an element."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{ block: 'nearest' }})")
        point = self.place(selector, x, y)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)

    def tap(self, selector: str, x: float, y: float) -> None:
        """Touch an element with a finger."""
        point = self.place(selector, x, y)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Page]:
    """Run the browser, with everything that it keeps in `profile`."""
    ours_read, theirs_write = os.pipe()
    theirs_read, ours_write = os.pipe()
    # It reads commands from file 3 and writes answers to file 4.
    command = f'exec "$0" "$@" 3<&{theirs_read} 4>&{theirs_write}'
    words = [program, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        ["/bin/bash", "-c", command, *words],
        pass_fds=(theirs_read, theirs_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_read)
    os.close(theirs_write)
    try:
        page = Page(ours_read, ours_write)
        yield page
        page.session = None
        page.call("Browser.close")
        process.wait(SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(ours_read)
        os.close(ours_write)
