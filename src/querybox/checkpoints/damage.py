"""What to do about a damaged file of weights, which depends on where it came from."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from querybox.checkpoints.find import BEST, CHECKPOINT, LAST
from querybox.files import restore
from querybox.runfile import RUN_FILE


def cure(path: Path) -> str:
    """Return what to do about a damaged file, in the imperative.

    Args:
        path: The file: of a run, or one of those of `querybox.files.restore`.
    """
    if path.name == CHECKPOINT:
        last = path.with_name(LAST)
        start = (
            f"from the last weights: --weights {quote(str(last))}" if last.is_file() else "in another folder"
        )
        return f"restore it from a copy, or start a new run {start}"
    if path.name in (BEST, LAST) and path.with_name(RUN_FILE).is_file():
        others = [path.with_name(name) for name in (BEST, LAST) if name != path.name]
        return "restore it from a copy" + "".join(f", or use {other}" for other in others if other.is_file())
    return restore(path)
