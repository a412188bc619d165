"""Find the files of a dataset: all of a folder, or the image that an annotation names."""

from __future__ import annotations

import ntpath
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

from querybox.data.findings import FindingCollector
from querybox.data.image import SUFFIXES
from querybox.errors import ImageError
from querybox.files import comparable
from querybox.text import listed

_MASKS = re.compile(r"segment|mask|panoptic", re.IGNORECASE)
"""Names of folders that may have segmentation masks, which have the names of the images."""
_MASKS_ALONE = re.compile(r"masks|segmentations?|segmentation_?(class|object).*|panoptic.*|stuffthingmaps.*")
"""Names of folders, folded, that have masks and no images."""
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
"""The prefix that Label Studio adds to the names of uploaded files."""


def find_files(folder: Path, suffixes: Container[str]) -> list[Path]:
    """Return the files in `folder` and its subfolders with one of the `suffixes` (lower case), in sorted order.

    Links to folders are followed. Hidden files and folders are left out, and what macOS adds to archives (`._*`,
    `__MACOSX`).
    """
    found = [path for path in iterate_files(folder) if os.path.splitext(path)[1].lower() in suffixes]  # noqa: PTH122 - faster
    return [Path(path) for path in sorted(found, key=_parts)]


def image_files(folder: Path) -> list[Path]:
    """Return the image files in `folder` and its subfolders, recognised by their extensions, in sorted order."""
    return find_files(folder, SUFFIXES)


def list_files(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files in `folder` itself with one of the `suffixes` (lower case), in sorted order.

    Those that `find_files` leaves out are left out here, too. A folder that does not exist has no files.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not is_junk(entry.name) and entry.is_file()]
    return [folder / name for name in sorted(names) if os.path.splitext(name)[1].lower() in suffixes]  # noqa: PTH122


class ImageLocator:
    """Finds the image files of a dataset by the names in its annotations.

    A name is tried as it is written, relative to each of the usual folders. Tools write the paths of another machine,
    URLs or other suffixes; if there is no such file, the images anywhere in the dataset's folder are searched for its
    base name. Only files in the dataset's folder are ever returned (links are followed).
    """

    def __init__(self, root: Path, folders: Iterable[Path] = (), *, masks: bool = False) -> None:
        """Create a locator; the files are listed when they are first needed.

        Args:
            root: The dataset's folder.
            folders: The usual folders of images in `root`, by precedence; those that do not exist are ignored.
                `root` itself is the last.
            masks: Whether PNGs in folders of masks are found, too.
        """
        self.root = root
        self.masks = masks
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self.folders += [] if root in self.folders else [root]
        self._stems: dict[str, list[str]] | None = None

    def find(self, name: str) -> Path | None:
        """Return the image file that `name` refers to, or None if there is none.

        If the name does not lead to a file, those with its base name are searched; case, percent-encoding, suffix and
        the Unicode normal form may differ. If there are several, those with the suffix of the name are preferred, then
        those that are not in a folder that may have masks, then those whose parent folders are those of the name, then
        those in the first of the usual folders. A PNG in a folder of masks is found only if `name` has this folder or
        masks are searched, so that the mask of a missing image is not taken for the image.

        Raises:
            ImageError: Several files remain; the error's kind is `ambiguous_image`.
        """
        if "\0" in name:
            return None
        decoded = _decoded(name)
        for spelling in dict.fromkeys((name.replace("\\", "/"), decoded)):
            for folder in self.folders:
                path = os.path.normpath(folder / spelling)
                if _is_inside(path, self.root, spelling) and os.path.isfile(path):  # noqa: PTH113 - faster
                    return Path(path)
        return self._by_base_name(name, decoded)

    def find_or_note(
        self, name: str, *, image_id: int, where: str, findings: FindingCollector
    ) -> Path | None:
        """Return the image file that `name` refers to; if it cannot be determined, add a finding and return None.

        For a missing file, the path where it is expected is returned.

        Args:
            name: The name in the annotations.
            image_id: The id of the image.
            where: The place of the name, for messages.
            findings: Collects problems.
        """
        try:
            path = self.find(name)
        except ImageError as error:
            findings.add(error.kind, f"{where}: {error}", image_id=image_id)
            return None
        if path is not None:
            return path
        if "\0" in name or _leads_out(name):
            what = f"{where}: {name!r} is outside the dataset's folder, and no such image is in {self.root}"
            findings.add("missing_image", what, image_id=image_id)
            return None
        return self.folders[0] / name.replace("\\", "/")

    def others(self, used: Iterable[Path]) -> list[str]:
        """Return the paths, relative to the dataset's folder, of all images that are not `used`, nor masks.

        On systems that ignore case, images are used by the names in the annotations, not by those in their folder.
        """
        names = {os.fspath(path) for path in used}
        spellings = {comparable(name): name for name in names}
        paths = (path for paths in self._paths_by_stem().values() for path in paths)
        return sorted(
            path
            for path in paths
            if not _MASKS.search(os.path.dirname(path))  # noqa: PTH120 - a string
            and (name := os.fspath(self.root / path)) not in names
            and not _is_same(name, spellings.get(comparable(name)))
        )

    def _paths_by_stem(self) -> dict[str, list[str]]:
        if self._stems is None:
            self._stems = _by_stem(self.root)
        return self._stems

    def _by_base_name(self, name: str, spelling: str) -> Path | None:
        folder, _, base = spelling.rpartition("/")
        stem, suffix = _split_suffix(_folded(base))
        stems = self._paths_by_stem()
        paths = stems.get(stem) or stems.get(_UPLOAD_PREFIX.sub("", stem, count=1), [])
        own_folder = _folded(folder).split("/")
        paths = [path for path in paths if self.masks or not _is_mask(path, own_folder)]
        preferences: tuple[Callable[[str], int], ...] = (
            lambda path: _folded(path).endswith(suffix),
            lambda path: not _MASKS.search(os.path.dirname(path)),  # noqa: PTH120 - a string
            lambda path: _num_shared_parents(path, own_folder),
            lambda path: len({*own_folder}.intersection(_parts(_folded(path)))),
            lambda path: -self._precedence(path),
            lambda path: path.rpartition(os.sep)[2] == base,
        )
        for preference in preferences:
            if len(paths) > 1:
                best = max(map(preference, paths))
                paths = [path for path in paths if preference(path) == best]
        if len(paths) > 1:
            raise ImageError(
                f"{name!r} could be {listed(paths, 3)}; write the folder into the name", "ambiguous_image"
            )
        return self.root / paths[0] if paths else None

    def _precedence(self, path: str) -> int:
        parent = (self.root / path).parent
        return self.folders.index(parent) if parent in self.folders else len(self.folders)


def _parts(path: str) -> list[str]:
    return path.split(os.sep)  # noqa: PTH206 - a string


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def iterate_files(folder: Path, on_error: Callable[[OSError], object] | None = None) -> Iterator[str]:
    """Yield the paths of all files in `folder` and its subfolders, each of which is listed once.

    Args:
        folder: The folder.
        on_error: Called with the error of each folder that cannot be listed, which is skipped; None to raise it.
    """
    pending = [os.fspath(folder)]
    seen = set()
    while pending:
        current = pending.pop()
        try:
            status = os.stat(current)  # noqa: PTH116 - a string
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder that has been listed
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if is_junk(entry.name):
                        continue
                    if entry.is_dir():
                        pending.append(entry.path)
                    else:
                        yield entry.path
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)


def _by_stem(root: Path) -> dict[str, list[str]]:
    """Return the paths, relative to `root`, of all images in it by their folded names without suffix."""
    stems: defaultdict[str, list[str]] = defaultdict(list)
    start = len(os.path.join(root, ""))  # noqa: PTH118 - with its trailing separator
    for path in iterate_files(root):
        stem, suffix = _split_suffix(_folded(path.rpartition(os.sep)[2]))
        if suffix:
            stems[stem].append(path[start:])
    return dict(stems)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unquote(text)).casefold()


def _split_suffix(base: str) -> tuple[str, str]:
    """Split a folded name into its stem and its suffix, which is empty if it is not that of an image."""
    stem, dot, suffix = base.rpartition(".")
    return (stem, dot + suffix) if stem and dot + suffix in SUFFIXES else (base, "")


def _decoded(name: str) -> str:
    """Return the path in `name`, which may be a URL: with forward slashes and without percent-encoding."""
    path = name.replace("\\", "/")
    if "?d=" in path:  # Label Studio's local files
        path = path.partition("?d=")[2]
    elif "://" in path:
        path = path.partition("?")[0]
    return unquote(path).replace("\\", "/")


def _leads_out(name: str) -> bool:
    """Return whether a name, joined to a folder, can lead out of it."""
    path = name.replace("\\", "/")
    return path.startswith("/") or bool(ntpath.splitdrive(path)[0]) or ".." in path.split("/")


def _is_inside(path: str, root: Path, name: str) -> bool:
    if not _leads_out(name):
        return True
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))  # noqa: PTH100 - does not resolve links


def _is_same(path: str, other: str | None) -> bool:
    return other is not None and os.path.exists(other) and os.path.samefile(path, other)  # noqa: PTH110, PTH121 - strings


def _is_mask(path: str, folder: list[str]) -> bool:
    """Return whether `path` is a PNG in a folder of masks that is not in `folder` (folded names)."""
    *parents, name = _parts(_folded(path))
    return name.endswith(".png") and any(
        _MASKS_ALONE.fullmatch(part) and part not in folder for part in parents
    )


def _num_shared_parents(path: str, folder: list[str]) -> int:
    """Return how many folders, counted from the file, `path` has in common with `folder` (folded names)."""
    *parents, _ = _parts(_folded(path))
    pairs = zip(reversed(parents), reversed(folder), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
