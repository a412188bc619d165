"""Runs whose folder is used twice, copied or moved, whose data are moved, and whose display is gone."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from querybox.runfile import read_run_file
from querybox.temporary import temporary_name
from querybox.training import RunSettings
from torture.case import Case, require
from torture.crashes import DEATH_SECONDS, go_on, reference
from torture.runs import (
    EVALUATES,
    VAL,
    Plan,
    end_of,
    finish,
    last_words,
    log_of,
    require_equal,
    settings_of,
    start,
)

STEP = 2
"""Update, the first of the second epoch, in which a run is asked to stop."""
STREAMS = ("pipe", "terminal", "full disk"), ("pipe",)
"""Where stderr goes that cannot be written to, in the long and in the short form."""


def stop(settings: RunSettings, number: signal.Signals = signal.SIGTERM) -> None:
    """Start a run and stop it in the middle."""
    code = end_of(start(settings, Plan(signal_in_step=(STEP, number))))
    require(code == 128 + number, f"{number.name} ended the run with {code}: {last_words(settings)}")


def settings_in(folder: Path) -> RunSettings:
    """Return the settings in the run file of a folder."""
    return RunSettings.parse(read_run_file(folder / "run.yaml"))


def start_twice(folder: Path, long: bool) -> str:
    """A second run, new or resumed, in the folder of one that is alive."""
    expected, _ = reference(long)
    settings, refused = settings_of(folder, "twice", long), folder / "refused"
    first, begun, log = start(settings, Plan(waits_for=refused)), time.monotonic(), log_of(settings)
    while not (log.exists() and EVALUATES in log.read_text()):
        require(time.monotonic() - begun < DEATH_SECONDS and first.is_alive(), "the first run has not begun")
        time.sleep(0.02)
    temporary = settings.folder / temporary_name(first.pid or 0)
    temporary.mkdir()
    for resume in (False, True):
        code = end_of(start(settings, resume=resume))
        words = next((line for line in reversed(log.read_text().splitlines()) if "Error" in line), "nothing")
        require(
            code == 2 and "another process is training" in words, f"the second ended with {code}: {words}"
        )
    require(temporary.exists(), "the second run removed a temporary folder of the first")
    temporary.rmdir()
    refused.touch()
    require(end_of(first) == 0, "the first run did not end well")
    require_equal(settings, expected, "started twice")
    return "a new and a resumed one refused; the first ends as if alone"


def copy_and_move(folder: Path, long: bool) -> str:
    """A folder that was copied, and then moved."""
    expected, _ = reference(long)
    settings = settings_of(folder, "original", long)
    stop(settings)
    before = {path.name: path.read_bytes() for path in settings.folder.iterdir()}
    copy = Path(shutil.copytree(settings.folder, folder / "copies" / "copy"))
    go_on(settings_in(copy), expected, "the copy")
    after = {path.name: path.read_bytes() for path in settings.folder.iterdir()}
    require(after == before, "resuming the copy changed the original")
    moved = settings.folder.rename(folder / "moved")
    go_on(settings_in(moved), expected, "moved")
    require(not settings.folder.exists(), "the old place was used again")
    return "the copy and the moved one resumed, equal; the original unchanged"


def move_data(folder: Path, long: bool) -> str:
    """A dataset that is in another place when the run is resumed."""
    expected, _ = reference(long)
    settings = settings_of(folder, "waiting", long)
    stop(settings)
    place = (folder / "boxes").rename(folder / "archive") / "boxes.json"
    (folder / "boxes").mkdir()  # for the log
    code = end_of(start(settings, resume=True))
    words = last_words(settings)
    require(code == 2 and "data.train=PLACE" in words, f"without its data the run ended with {code}: {words}")
    settings = settings.replace(
        data={**settings.data.model_dump(), "train": str(place), "val": str(place.with_name(VAL))}
    )
    go_on(settings, expected, "with data in another place")
    return "the error says how to name the new place; resumed, equal"


def lose_display(folder: Path, long: bool) -> str:
    """A pipe that nobody reads, a terminal that is gone, a full disk behind stderr."""
    expected, _ = reference(long)
    streams = STREAMS[not long]
    for number, stream in enumerate(streams):
        settings = settings_of(folder, f"display{number}", long)
        finish(settings, Plan(stderr=stream))
        require_equal(settings, expected, f"stderr is a {stream}")
    return f"{', '.join(streams)}: the run ends as if nothing had happened"


def hang_up(folder: Path, long: bool) -> str:
    """SIGHUP, which a terminal that is closed sends."""
    expected, _ = reference(long)
    settings = settings_of(folder, "hangup", long)
    stop(settings, signal.SIGHUP)
    go_on(settings, expected, "SIGHUP")
    return "checkpoint, exit code 129; resumed, equal"


CASES = (
    Case(
        name="two runs in one folder", required="the second is refused and changes nothing", run=start_twice
    ),
    Case(
        name="a run folder is copied, then moved",
        required="each is resumed in its place, the original unchanged",
        run=copy_and_move,
    ),
    Case(
        name="the dataset is moved",
        required="refused with the cure; resumed with its new place",
        run=move_data,
    ),
    Case(name="stderr cannot be written to", required="the run goes on", run=lose_display),
    Case(name="the terminal is closed", required="checkpoint, then exit", run=hang_up),
)
