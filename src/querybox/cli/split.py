"""``querybox split``."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from querybox.cli.streams import print_text
from querybox.errors import ConfigError
from querybox.text import counted


def split(
    data: str,
    /,
    *,
    output: Path | None = None,
    val: float = 0.2,
    test: float = 0.0,
    of: str | None = None,
    shards: int | None = None,
    allow_network: bool = False,
) -> None:
    """Split a dataset into training, validation and test images.

    Writes a new folder with `train`, `val` and, if asked for, `test`, each with its images and a COCO file, which for
    panoptic datasets is in the panoptic format, or with shards for an object storage. It has everything that querybox
    reads: classes, boxes, masks, crowd regions; and the licences and URLs of COCO files; but no attributes (in Pascal
    VOC `pose`, `truncated`, `occluded`, `difficult`), keypoints, supercategories, and ids of annotations. The dataset
    is not changed.

    The same images are chosen every time. Images that show the same thing stay together: copies that
    Roboflow made of one image, and the frames of a video, recognised by names that differ in the last number alone.

    `querybox train` holds out validation images by itself; use this command to keep test images that no training sees.

    ```
    querybox split photos/                                # photos-split/train and /val
    querybox split photos/ --val 0.2 --test 0.1           # and /test
    querybox split photos/ --of train --output divided/   # divide the training split of a dataset
    querybox split photos/ --shards 1000                  # tars of 1,000 images: train-000000.tar ...
    querybox split 's3://bucket/*.parquet' --shards 1000 --allow-network   # Parquet files in a storage as tars
    ```

    Args:
        data: A dataset in any format that querybox reads, recognised from the path; or the URL of shards.
        output: Folder to write to, which must be new; by default the dataset's name followed by `-split`, beside it, or
            in the current folder for a URL.
        val: Fraction of the images for validation, 0-1.
        test: Fraction of the images for testing, 0-1; 0 for no test images.
        of: Split of the dataset to divide; required if it has several.
        shards: Write shards of WebDataset with this number of images each, in place of folders of images.
        allow_network: Open the URLs of shards that the dataset is, or that its file has.
    """
    from querybox.arguments import require_dataset
    from querybox.data import read_dataset
    from querybox.data.findings import KINDS
    from querybox.data.read import as_data_errors, find_splits, shown
    from querybox.data.write import NOT_READ, split_dataset

    source = require_dataset("querybox split", data)
    if of is None:
        with as_data_errors(source):
            names = list(find_splits(source, allow_network=allow_network))
        if len(names) > 1:
            one = "train" if "train" in names else names[0]
            raise ConfigError(
                f"{shown(source)}: has several splits ({', '.join(names)}); name the one to divide: "
                f"--of {quote(one)}"
            )
    folder = output or beside(source)
    whole = read_dataset(source, of, allow_network=allow_network)
    parts = split_dataset(whole, folder, val=val, test=test, shards=shards)
    for name, part in parts.items():
        print_text(f"{name}: {counted(len(part.images), 'image')}, {counted(part.num_objects, 'object')}")
    for finding in whole.findings:
        if finding.kind in NOT_READ:
            print_text(f"not written, because not read: {KINDS[finding.kind].meaning} ({finding.count:,})")
        if finding.kind == "difficult_object":
            print_text(
                f"not written: that {counted(finding.count, 'object is', 'objects are')} marked as difficult"
            )
    print_text(f"written to {folder}; train with: querybox train {quote(str(folder))}")


def beside(source: Path | str) -> Path:
    """Return the folder beside a dataset that its parts are written to; in the current one for a URL."""
    if isinstance(source, str):
        from querybox.data.storage import stem

        return Path(f"{stem(source)}-split")
    source = source.resolve()
    return source.parent / f"{source.stem if source.is_file() else source.name}-split"
