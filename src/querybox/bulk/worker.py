"""The work of one process of Ray: predict one part after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from querybox.bulk.attempts import MAX_ATTEMPTS
from querybox.bulk.parts import Part
from querybox.bulk.rows import predict_part
from querybox.data.storage import join, write
from querybox.errors import PredictionError, QueryboxError
from querybox.inference.engine import Engine
from querybox.inference.optimized_model import as_optimized
from querybox.inference.options import Options
from querybox.urls import public_name, without_credentials

if TYPE_CHECKING:
    import pyarrow as pa


class Worker:
    """Holds the model, and writes the file of each part that it is given.

    A part that is given twice, because the process was killed, becomes the same file again.
    """

    def __init__(
        self, load: Callable[[], Engine], options: Options, output: str, begin: Callable[[int], int]
    ) -> None:
        """Load the model.

        Args:
            load: Returns the model.
            options: What is detected.
            output: Path or URL of the folder of the files.
            begin: Returns how many times the part of this number has been begun, this time included.
        """
        self.engine = as_optimized(load())
        self.options = options
        self.output = output
        self.begin = begin

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Predict the part in a table with the columns ``number`` and ``places`` and one row.

        Returns:
            A table with one row: the numbers of ``images``, ``objects`` and ``errors``; and ``failure``, why the part
            could not be predicted and has no file, or an empty string.
        """
        import pyarrow as pa

        (row,) = batch.to_pylist()
        part = Part(row["number"], tuple(row["places"]))
        failure, tally = "", Counter[str]()
        try:
            if self.begin(part.number) > MAX_ATTEMPTS:
                raise PredictionError(
                    f"the process that predicted this part, or its machine, ended {MAX_ATTEMPTS} times; it may have "
                    "lacked memory, or an image may crash its decoder"
                )
            content, found = predict_part(self.engine, part, self.options)
            write(join(self.output, part.file_name), content)
            tally = found
        except (QueryboxError, OSError) as error:
            failure = f"{public_name(part.places[0])}: {without_credentials(str(error))}"
        counts = {name: tally[name] for name in ("images", "objects", "errors")}
        return pa.Table.from_pylist([{**counts, "failure": failure}])
