"""``querybox info``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querybox.checkpoints.find import find_public, find_weights, is_exported, is_model, nearest_public
from querybox.cli.streams import print_text
from querybox.cli.tables import table
from querybox.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from querybox.checkpoints.read import Checkpoint
    from querybox.data import DetectionData
    from querybox.exporting.card import Card
    from querybox.models import PublicWeights
    from querybox.structures import Category, Preprocessing


def info(
    target: str | None = None,
    /,
    *,
    split: str | None = None,
    allow_network: bool = False,
    trust: bool = False,
    models: bool = False,
) -> None:
    """Describe a model, a run or a dataset; without an argument, the installation.

    ```
    querybox info                    # versions, environment, recipes by purpose
    querybox info model.safetensors  # classes, sizes, settings; also detr-r50.pth and other public checkpoints
    querybox info run                # the same for a run's best model
    querybox info photos/            # images, objects of each class, invalid boxes
    querybox info --models           # public weights that have a short name: AP, sizes, licences
    ```

    Args:
        target: A checkpoint of any layout, a run folder, an exported model, a dataset in any format, or the URL of
            shards.
        split: Split of the dataset, such as val; all of them by default.
        allow_network: Open the URLs of shards that the dataset is, or that its file has.
        trust: Trust the source of a .pt2 or .pte file, which may execute code.
        models: List the public weights that have a short name, which all commands take instead of a path.
    """
    from querybox.terminal import Console

    if models:
        print_public_weights()
        return
    if target is None:
        tables = [installed(), *recipes()]
    elif not is_any_model(path := Path(target)):
        tables = describe_data(target, split, allow_network=allow_network)
    elif split is not None:
        raise ConfigError(f"querybox info: --split has no effect for a model, which {target} is: omit it")
    elif is_exported(path):
        from querybox.exporting import load_exported

        tables = [describe_exported(path, load_exported(path, trusted=trust).card)]
    else:
        from querybox.checkpoints.read import read_checkpoint

        weights = find_weights(path)
        tables = [describe_model(weights, read_checkpoint(weights), find_public(path))]
    Console().print(*tables)


def is_any_model(path: Path) -> bool:
    """Return whether a path is that of a model, or a name that may be meant as one of public weights."""
    return is_exported(path) or is_model(path) or bool(nearest_public(path))


def pairs(title: str, values: Mapping[str, object]) -> Table:
    """Show names and values."""
    return table(title, ["", ""], [(name, str(value)) for name, value in values.items()])


def installed() -> Table:
    """Show the versions of querybox and its dependencies, and the environment."""
    from querybox.training.environment import describe_environment

    environment = describe_environment(processes=1)
    packages = {name: version for name, version in environment["packages"].items() if version}
    gpus = ", ".join(environment["gpus"]) or "none"
    rest = {name: environment[name] for name in ("python", "platform", "cpus", "threads")}
    return pairs("Installed", {**packages, **rest, "gpus": gpus})


def recipes() -> list[Table]:
    """Show every recipe by purpose, with the settings in which it differs from the first of its kind."""
    from querybox.models import RECIPES, recipes_by_purpose

    first: dict[str, str] = {}
    lines = {}
    for name, recipe in RECIPES.items():
        settings, parent = recipe.model_dump(), first.setdefault(recipe.kind, name)
        base = {} if parent == name else RECIPES[parent].model_dump()
        values = [
            f"{key}={value}" for key, value in settings.items() if key not in base or base[key] != value
        ]
        lines[name] = ("" if parent == name else f"{parent} with ") + ", ".join(values)
    return [
        pairs(f"Recipes for {purpose}", {name: lines[name] for name in names})
        for purpose, names in recipes_by_purpose().items()
    ]


def print_public_weights() -> None:
    """Print the public weights that have a short name, by licence and training data.

    A line each, which terminals may wrap: in a table the addresses would leave no space for the names.
    """
    from querybox.models import PUBLIC_WEIGHTS

    groups: dict[tuple[str, str], list[str]] = {}
    width = max(map(len, PUBLIC_WEIGHTS))
    for name, each in PUBLIC_WEIGHTS.items():
        quality = "" if each.PQ is None else f"  mask AP {each.AP_masks}, PQ {each.PQ}"
        gflops = each.gflops or "-"
        line = f"  {name:{width}}  {each.AP:4.1f}  {each.parameters:3} M  {gflops:>6}  {each.source}{quality}"
        groups.setdefault((each.trained_on, each.license), []).append(line)
    for (trained_on, license_name), lines in groups.items():
        print_text(f"Trained on {trained_on}. Licence: {license_name}")
        print_text(f"  {'name':{width}}  {'AP':>4}  {'params':>5}  {'GFLOPs'}  from")
        print_text("\n".join([*lines, ""]))
    print_text(
        "GFLOPs of RT-DETR and its relatives count a multiplication and an addition as two, those of the others as one."
    )


def describe_model(path: Path, checkpoint: Checkpoint, public: PublicWeights | None) -> Table:
    """Show the properties of the detector in a file, how the file was interpreted, and what its authors say."""
    from querybox.checkpoints.read import build_detector

    detector = build_detector(checkpoint, path)
    numbers = [parameter.numel() for parameter in detector.parameters()]
    settings = detector.recipe.model_dump() if detector.recipe else {}
    return pairs(
        str(path),
        {
            "file": f"{path.stat().st_size / 1e6:.1f} MB",
            "layout": checkpoint.layout,
            "assumed": "; ".join(checkpoint.assumptions) or "nothing",
            **({"licence": public.license, "trained on": public.trained_on} if public else {}),
            "parameters": f"{sum(numbers) / 1e6:.2f} M",
            **describe_use(detector.categories, detector.preprocessing),
            "recipe": ", ".join(f"{key}={value}" for key, value in settings.items()),
        },
    )


def describe_exported(path: Path, card: Card) -> Table:
    """Show the properties of an exported model."""
    return pairs(
        str(path),
        {
            "file": f"{path.stat().st_size / 1e6:.1f} MB",
            "format": "an exported model",
            "precision": card.precision,
            "input size": "any" if card.size is None else "{}x{}, one image at a time".format(*card.size),
            **describe_use(card.categories, card.preprocessing),
        },
    )


def describe_use(categories: Sequence[Category], preprocessing: Preprocessing) -> dict[str, str]:
    """Return the classes and the preprocessing of a model in words."""
    return {
        "classes": f"{len(categories)}: {', '.join(each.name for each in categories)}",
        **describe_size(preprocessing),
        **describe_depth(preprocessing),
        **describe_object_sides(preprocessing),
        "boxes": "clipped to the image" if preprocessing.clip_boxes else "not clipped to the image",
        "mean": ", ".join(f"{value:g}" for value in preprocessing.mean),
        "std": ", ".join(f"{value:g}" for value in preprocessing.std),
    }


def describe_size(preprocessing: Preprocessing) -> dict[str, str]:
    """Return the image size and the method of resizing in words."""
    short, long = preprocessing.short_side, preprocessing.long_side
    if preprocessing.resizing == "stretch":
        return {"image size": f"{short} x {long} pixels", "resizing": "stretched, whatever the aspect ratio"}
    return {
        "image size": f"short side {short}, long side at most {long} pixels",
        "resizing": f"as in {preprocessing.resizing}",
    }


def describe_depth(preprocessing: Preprocessing) -> dict[str, str]:
    """Return the range of the pixel values of images with more than 8 bits in words, if there is one."""
    if preprocessing.pixel_range is None:
        return {}
    low, high = preprocessing.pixel_range
    return {"over 8 bits": f"pixel values {low:g} to {high:g} become 0 to 255"}


def describe_object_sides(preprocessing: Preprocessing) -> dict[str, str]:
    """Return the sizes of the objects that a model was trained on in words, if they are known."""
    sides = preprocessing.object_sides
    if sides is None:
        return {}
    return {"objects": f"median side of {sides.original:.4g} pixels, resized {sides.resized:.4g}"}


def describe_data(target: str, split: str | None, *, allow_network: bool) -> list[Table]:
    """Show the splits of a dataset, and the number of objects of each class."""
    from querybox.arguments import require_dataset
    from querybox.data.read import as_data_errors, chosen_splits, shown
    from querybox.data.records import log_warnings, require_usable

    path = require_dataset("querybox info", target)
    with as_data_errors(path):
        readers = chosen_splits(path, split, allow_network=allow_network)
        splits = {name: require_usable(read()) for name, read in readers.items()}
    for data in splits.values():
        log_warnings(data)
    rows = []
    for name, data in splits.items():
        crowds = sum(int(image.crowd.sum()) for image in data.images)
        empty = sum(len(image.labels) == 0 for image in data.images)
        invalid = ", ".join(f"{count} {kind}" for kind, count in data.faulty_boxes.items()) or "none"
        rows.append([name, *map(str, (len(data.images), empty, data.num_objects, crowds)), invalid])
    heads = ["split", "images", "without objects", "objects", "crowds", "invalid boxes"]
    return [table(str(shown(path)), heads, rows, numeric=range(1, 5)), classes_table(splits)]


def classes_table(splits: Mapping[str, DetectionData]) -> Table:
    """Show the number of objects of each class in every split; classes are identified by id and name."""
    counts: dict[tuple[int, str], list[int]] = {}
    for column, data in enumerate(splits.values()):
        objects = Counter(label for image in data.images for label in image.labels[~image.crowd].tolist())
        for label, category in enumerate(data.categories):
            row = counts.setdefault((category.id, category.name), [0] * len(splits))
            row[column] = objects[label]
    rows = [[str(category_id), name, *map(str, row)] for (category_id, name), row in counts.items()]
    heads = ["id", "class", *(f"objects in {name}" for name in splits)]
    return table("", heads, rows, numeric=[0, *range(2, len(heads))])
