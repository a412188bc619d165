"""Read a dataset whose format is recognised from its path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import NoneType

from querybox.arguments import require_consent, require_dataset, require_number, require_type
from querybox.data.findings import FindingCollector
from querybox.data.formats import FORMATS
from querybox.data.formats.shard_urls import read_shard_urls, url_splits
from querybox.data.layout import inner_folder
from querybox.data.plausibility import with_annotation_findings, with_shared_images
from querybox.data.records import DetectionData, log_warnings, require_image_files, require_usable
from querybox.data.settings import MAX_CORRUPT, NO_VALIDATION, DataSettings
from querybox.data.splits import Reader, pick_split
from querybox.data.unsupported import describe_unsupported, require_whole_tars
from querybox.errors import ConfigError, DataError, QueryboxError
from querybox.runfile import RUN_FILE, is_run
from querybox.urls import public_name


def read_dataset(
    path: str | Path,
    split: str | None = None,
    *,
    max_corrupt: float = MAX_CORRUPT,
    allow_network: bool = False,
) -> DetectionData:
    """Read a dataset in any of `querybox.data.formats.FORMATS`, which is recognised.

    Args:
        path: A dataset folder; a file that describes a dataset, such as COCO JSON or a YOLO `data.yaml`; or the URL of
            a shard, or of a folder or pattern of shards.
        split: The split: `train`, `val`, `test`, or another name that the dataset uses. Required if it has several.
        max_corrupt: Fraction of the images (0-1) that may be missing. Image files are not opened here; see `validate`.
        allow_network: Whether URLs of shards are opened.

    Raises:
        ConfigError: `max_corrupt` is not within 0-1; or there are URLs, without `allow_network` or malformed.
        DataError: There is no dataset at `path`, or more than one; it has no such split, or several and `split` is
            None; its files are malformed; ids are repeated; a class is unknown; or too many images are missing.
    """
    path = require_dataset("read_dataset", path)
    require_type("read_dataset", split, (str, NoneType), "the name of a split")
    require_number("read_dataset", "max_corrupt", max_corrupt, 0, 1)
    data = require_image_files(
        require_usable(read_split(path, split, allow_network=allow_network)), max_corrupt
    )
    log_warnings(data)
    return data


def read_split(path: Path | str, split: str | None, *, allow_network: bool = False) -> DetectionData:
    """Read a dataset like `read_dataset`, but return errors among its findings instead of raising them."""
    with as_data_errors(path):
        return pick_split(find_splits(path, allow_network=allow_network), split, shown(path))()


def read_train_and_val(settings: DataSettings) -> tuple[DetectionData, DetectionData | None]:
    """Read the training and the validation dataset.

    Of a dataset with several splits, `train` and `val` are used unless the settings name others. If no validation
    dataset is set, the `val` split of the training dataset is used, or None if it has none or if validation is switched
    off. Errors in the data are returned as findings.

    Raises:
        ConfigError: No training dataset is set; or a dataset has URLs, without `allow_network` or malformed.
        DataError: There is no such dataset or split, or it cannot be parsed.
    """
    if settings.train is None:
        raise ConfigError("setting 'data.train' is not set; set it to a dataset to train on")
    train = require_dataset("setting 'data.train'", settings.train)
    with as_data_errors(train):
        splits = find_splits(train, allow_network=settings.allow_network)
    train_data = _read_part(train, splits, settings.train_split, "train")
    if settings.val == NO_VALIDATION:
        return train_data, None
    if settings.val is not None:
        val = require_dataset("setting 'data.val'", settings.val)
        with as_data_errors(val):
            splits = find_splits(val, allow_network=settings.allow_network)
        val_data = _read_part(val, splits, settings.val_split, "val")
    elif settings.val_split or (len(splits) > 1 and "val" in splits):
        val_data = _read_part(train, splits, settings.val_split, "val")
    else:
        return train_data, None
    return train_data, with_shared_images(val_data, {"train": {image.file for image in train_data.images}})


def _read_part(
    path: Path | str, splits: Mapping[str, Reader], split: str | None, default: str
) -> DetectionData:
    split = split or (default if len(splits) > 1 else None)
    with as_data_errors(path):
        return pick_split(splits, split, shown(path), setting=f"data.{default}_split")()


def shown(path: Path | str) -> Path | str:
    """Return the path of a dataset, or its URL without credentials."""
    return public_name(path) if isinstance(path, str) else path


@contextmanager
def as_data_errors(path: Path | str) -> Iterator[None]:
    """Convert file system errors, such as missing permissions, to `DataError`."""
    try:
        yield
    except QueryboxError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{error.filename or shown(path)}: {reason}; check its permissions and the disk"
        ) from None


def chosen_splits(path: Path | str, split: str | None, *, allow_network: bool = False) -> dict[str, Reader]:
    """Return a reader for a split of the dataset at `path`, or for every split if `split` is None."""
    readers = find_splits(path, allow_network=allow_network)
    return readers if split is None else {split: pick_split(readers, split, shown(path))}


def find_splits(path: Path | str, *, allow_network: bool = False) -> dict[str, Reader]:
    """Return a reader for every split of the dataset at `path`. At this point files are only recognised.

    Args:
        path: A dataset folder, a file that describes a dataset, or the URL of shards.
        allow_network: Whether URLs may be opened.

    Raises:
        ConfigError: It is or has URLs, without `allow_network`.
        DataError: There is no dataset at `path`, or its format is ambiguous.
        StorageError: The storage of a URL cannot be reached, or refuses.
    """
    if isinstance(path, str):
        require_consent(public_name(path), allow_network=allow_network)
        return {split: partial(_read_checked, read, []) for split, read in url_splits(path).items()}
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected a dataset: check the path")
    if is_run(path):
        raise DataError(
            f"{path}: is the folder of a run; expected a dataset: use that of the run, data.train in {path / RUN_FILE}"
        )
    path = inner_folder(path)
    if (shards := read_shard_urls(path)) is not None and shards.urls:
        require_consent(f"{public_name(shards.urls[0])} of {path}", allow_network=allow_network)
    found = {format_.name: splits for format_ in FORMATS if (splits := format_.splits(path))}
    if not found:
        require_whole_tars(path)
        problem = describe_unsupported(path) or (
            "contains no dataset" if path.is_dir() else "is not a dataset"
        )
        expected = "; ".join(format_.expected for format_ in FORMATS)
        raise DataError(f"{path}: {problem}; expected {expected}")
    copies = [format_.name for format_ in FORMATS if format_.name in found and format_.made_from in found]
    found = {name: splits for name, splits in found.items() if name not in copies}
    if len(found) > 1:
        choices = "; ".join(format_.expected for format_ in FORMATS if format_.name in found)
        raise DataError(
            f"{path}: could be {' or '.join(found)}; pass the path of the file or folder to read ({choices})"
        )
    ((name, splits),) = found.items()
    notes = [f"{copy} beside {name}" for copy in copies]
    return {split: partial(_read_checked, read, notes) for split, read in splits.items()}


def _read_checked(read: Reader, copies: Sequence[str]) -> DetectionData:
    data = with_annotation_findings(read())
    findings = FindingCollector(data.source, known=data.findings)
    for copy in copies:
        findings.add("copied_annotations", copy)
    return replace(data, findings=findings.by_kind())
