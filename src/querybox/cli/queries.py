"""``querybox queries``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from querybox.cli.model import load_detector, require_order
from querybox.cli.progress import progress_bar
from querybox.cli.streams import print_text
from querybox.files import require_own


def queries(
    model: Path,
    data: str,
    /,
    *,
    split: str | None = None,
    output: Annotated[Path, Parameter(alias="-o")] = Path("queries.png"),
    queries: int = 20,
    batch_size: int = 8,
    allow_network: bool = False,
) -> None:
    """Show where in the image each object query predicts, and boxes of which size.

    The picture has a panel for each query, with a mark at the centre of every box that it predicted over all images of
    a dataset. Dots are small boxes, below 1 % of the image; horizontal marks are wide boxes and vertical marks tall
    ones. Queries that have specialised have different panels. Queries of two-stage models and of DINO are the encoder's
    proposals in each image: they differ in rank, not in location.

    ```
    querybox queries run photos/ --split val
    querybox queries detr-r50.pth val2017.json --queries 100 -o queries.svg
    ```

    Args:
        model: A checkpoint of any layout, or a run folder: its best model, or else its last.
        data: A dataset: COCO, Pascal VOC, YOLO or the format of an annotation tool; or the URL of shards. Its labels do
            not matter.
        split: Split of the dataset, such as val; required if it has several.
        output: The picture: .png, .svg or .pdf.
        queries: How many queries to show, those with the highest mean score first.
        batch_size: Images per forward pass on an accelerator; the result does not depend on it.
        allow_network: Open the URLs of shards that the dataset is, or that its file has.
    """
    from querybox.data import read_dataset
    from querybox.inspect import query_view
    from querybox.inspect.queries import check_picture

    require_order("querybox queries", model, [data])
    check_picture(output, queries)  # fail before the work is done, not after
    require_own(output)
    dataset = read_dataset(data, split, allow_network=allow_network)
    detector = load_detector(model)
    with progress_bar(len(dataset.images)) as advance:
        view = query_view(detector, dataset, batch_size=batch_size, callback=advance)
    view.save(output, queries)
    print_text(f"The picture is {output}")
