from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image
from shards import jpeg, write_parquet

from querybox.bulk.parts import Part
from querybox.bulk.pictures import Decoded, decode


def found(path: Path) -> list[Decoded]:
    return [decode(picture, None) for picture in Part(0, (str(path),)).pictures()]


def test_every_row_is_an_image(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [jpeg((n + 1, 20)) for n in range(30)], row_group_size=11)
    images = found(path)
    assert [image.name for image in images] == [f"{path}#{row}" for row in range(30)]
    assert [image.pixels.shape[2] for image in images if image.pixels is not None] == list(range(1, 31))


def test_the_only_binary_column_has_the_images(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"jpg": [jpeg()], "caption": ["x"]}), tmp_path / "a.parquet")
    assert [image.error for image in found(tmp_path / "a.parquet")] == [None]
    for columns in ({"jpg": [jpeg()], "png": [jpeg()]}, {"caption": ["x"]}):
        pa.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
        (image,) = found(tmp_path / "a.parquet")
        assert "expected one with images" in str(image.error)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_columns_of_other_programs(tmp_path: Path, kind: pa.DataType) -> None:
    for type_, value in ((kind, jpeg()), (pa.struct({"bytes": kind}), {"bytes": jpeg()})):
        pa.parquet.write_table(pa.table({"image": pa.array([value], type_)}), tmp_path / "a.parquet")
        assert [image.error for image in found(tmp_path / "a.parquet")] == [None]


def test_broken_rows_are_errors(tmp_path: Path) -> None:
    images = found(write_parquet(tmp_path / "a.parquet", [jpeg(), None, b"", b"no image", jpeg()]))
    assert [image.error is None for image in images] == [True, False, False, False, True]
    assert "a.parquet#1: has no content; expected an embedded image" in str(images[1].error)
    assert "a.parquet#3: cannot be read as an image" in str(images[3].error)


def test_a_damaged_row_leaves_the_others(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    contents = []
    for _ in range(20):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(file, "PNG")
        contents.append(file.getvalue())
    path = write_parquet(tmp_path / "a.parquet", contents, row_group_size=8, compression="zstd")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    images = found(path)
    assert [image.error for image in images[:8]] == [None] * 8
    assert [image.name for image in images] == [f"{path}#{row}" for row in range(20)]
    assert [
        str(image.error) for image in images if image.error and "cannot be read as an image" in image.error
    ]


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"x" * 1000, b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"]
)
def test_what_is_no_parquet_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    (image,) = found(tmp_path / "a.parquet")
    assert image.name == str(tmp_path / "a.parquet")
    assert "cannot be read as Parquet" in str(image.error)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("querybox.data.parquet_file.MAX_CONTENT", 1 << 20)
    contents = [bytes(1 << 20)] * 4
    path = write_parquet(tmp_path / "a.parquet", contents, compression="zstd", use_dictionary=False)
    (image,) = found(path)
    assert "refused as a decompression bomb" in str(image.error)


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    (image,) = found(write_parquet(tmp_path / "a.parquet", []))
    assert "has no rows" in str(image.error)
