"""The commit of the working directory, read from git's files.

The program ``git`` is not run: in a folder from a stranger its configuration can name programs that it would execute.
"""

from __future__ import annotations

import re
from pathlib import Path

from querybox.files import is_regular

MAX_BYTES = 1 << 24
"""Maximum number of bytes read from a file; ``packed-refs`` has about 60 for each branch and tag."""
COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""A SHA-1 or a SHA-256."""
REFERENCE = re.compile(r"ref: (refs(?:/[^/\0]+)+)")


def commit(folder: Path) -> str | None:
    """Return the commit that is checked out in a folder or in the nearest parent with a ``.git``; None without one.

    Whether files differ from the commit is not examined.
    """
    for parent in (folder, *folder.parents):
        if (entry := parent / ".git").exists():
            return read_commit(git_folder(entry))
    return None


def git_folder(entry: Path) -> Path:
    """Return the folder that a ``.git`` is, or refers to if it is the file of a worktree or a submodule."""
    if entry.is_dir():
        return entry
    return entry.parent / read(entry).removeprefix("gitdir: ").strip()


def read_commit(folder: Path) -> str | None:
    """Return the commit in the ``HEAD`` of a git folder, or of the branch that it names; None if there is none yet."""
    head = read(folder / "HEAD").strip()
    if not (reference := REFERENCE.fullmatch(head)) or ".." in head:
        return head if COMMIT.fullmatch(head) else None
    # The branches of a worktree are in the folder of its repository.
    common = folder / read(folder / "commondir").strip()
    for place in (folder, common):
        if COMMIT.fullmatch(found := read(place / reference[1]).strip()):
            return found
    packed = re.search(
        rf"^([0-9a-f]+) {re.escape(reference[1])}$", read(common / "packed-refs"), re.MULTILINE
    )
    return packed[1] if packed and COMMIT.fullmatch(packed[1]) else None


def read(file: Path) -> str:
    """Return the content of a small regular file; empty if there is none."""
    try:
        if not is_regular(file):
            return ""
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return ""
