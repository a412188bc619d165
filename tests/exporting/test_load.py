from __future__ import annotations

import copy
import pickle
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from querybox.checkpoints.find import Format
from querybox.detector import Detector, load
from querybox.errors import CheckpointError, ConfigError, MissingExtraError
from querybox.exporting import Exported, ExportedModel, load_exported
from querybox.exporting.card import Card
from querybox.structures import ImageBatch


def test_a_truncated_file_is_told(file: Path, tmp_path: Path) -> None:
    broken = tmp_path / file.name
    broken.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"{file.name}: corrupt"):
        load_exported(broken, trusted=True)


@pytest.mark.parametrize("name", ["a.onnx", "a.xml", "a.pt2"])
def test_a_file_of_something_else_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file; expected an exported model: check the path"):
        load_exported(tmp_path / name)
    (tmp_path / name).write_text("<html></html>")
    with pytest.raises(CheckpointError, match=rf"{name}: corrupt"):
        load_exported(tmp_path / name, trusted=True)


def test_a_suffix_in_upper_case_is_the_same(file: Path, engine: ExportedModel, tmp_path: Path) -> None:
    renamed = tmp_path / f"model{file.suffix.upper()}"
    shutil.copy(file, renamed)
    if file.suffix == ".xml":
        shutil.copy(file.with_suffix(".bin"), tmp_path)
    model = load(renamed, trusted=True)
    assert isinstance(model, ExportedModel)
    assert model.card == engine.card


def test_a_name_of_no_format_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.engine").touch()
    with pytest.raises(CheckpointError, match=r"expected an exported model, \.onnx, \.xml, \.pt2 or \.pte"):
        load_exported(tmp_path / "a.engine")


def test_weights_that_are_missing_are_told(exported: object, tmp_path: Path) -> None:
    xml, _ = exported("openvino").files  # type: ignore[operator]
    shutil.copy(xml, tmp_path)
    with pytest.raises(CheckpointError, match=r"its model\.bin is missing"):
        load_exported(tmp_path / xml.name)


def test_weights_of_another_export_are_told(exported: object, tmp_path: Path) -> None:
    """OpenVINO takes any of the same size."""
    xml, weights = exported("openvino").files  # type: ignore[operator]
    shutil.copy(xml, tmp_path)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / weights.name).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"its model\.bin is damaged, or that of another export; copy both"
    ):
        load_exported(tmp_path / xml.name)


@pytest.mark.skipif(sys.platform != "linux", reason="mapped files are listed by Linux")
def test_the_file_of_a_model_in_use_may_be_overwritten(file: Path, engine: ExportedModel) -> None:
    """The process would get SIGBUS where a file that is mapped into memory has been cut."""
    assert engine.card
    assert str(file.with_suffix("")) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_model_that_is_not_ours_is_told(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    torch.export.save(program, tmp_path / "relu.pt2")
    with pytest.raises(CheckpointError, match="expected a model that querybox exported"):
        load_exported(tmp_path / "relu.pt2", trusted=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its card is not JSON"),
        ('{"format": "querybox-export-9"}', "got querybox-export-9"),
        ('{"format": "querybox-export-1", "categories": []}', "its card cannot be read"),
    ],
)
def test_a_card_that_cannot_be_read_is_told(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Card.from_json(text, "a.onnx")


def test_a_program_runs_only_if_it_is_trusted(exported: object) -> None:
    (file,) = exported("torch").files  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="if you trust its source"):
        load_exported(file)


def test_autocast_does_not_change_a_program(
    exported: Callable[[Format], Exported], loaded: Callable[[Path], ExportedModel]
) -> None:
    engine = loaded(exported("torch").files[0])
    batch = ImageBatch.from_images([torch.zeros(3, 64, 64, dtype=torch.uint8)], engine.preprocessing)
    expected = engine(batch).layers[-1].logits
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(engine(batch).layers[-1].logits, expected, rtol=0, atol=0)


def test_threads_have_the_answers_to_their_own_images(engine: ExportedModel) -> None:
    sizes = torch.tensor([[96, 96]])
    images = torch.randint(256, (24, 1, 3, 96, 96), dtype=torch.uint8)
    expected = [engine.run(image, sizes)["logits"] for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: engine.run(image, sizes)["logits"], images))
    assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_copy_in_another_process_is_refused_with_the_cure(engine: ExportedModel) -> None:
    for copied in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(ConfigError, match=r"load its file in each process with querybox\.load"):
            copied(engine)


@pytest.mark.parametrize("size", [(9, 64), (40, 7), (1, 1), (90, 5), (33, 34)])
def test_thin_images_are_padded(engine: ExportedModel, detector: Detector, size: tuple[int, int]) -> None:
    assert engine.card.min_side == 33
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8)]
    found = engine(ImageBatch.from_images(images, engine.preprocessing)).layers[-1]
    batch = ImageBatch.from_images(images, detector.preprocessing)
    border = (0, max(0, 33 - size[1]), 0, max(0, 33 - size[0]))
    padded = ImageBatch(
        images=F.pad(batch.images, border),
        padding_mask=F.pad(batch.padding_mask, border, value=True),
        sizes=batch.sizes,
    )
    with torch.inference_mode():
        expected = detector.eval()(padded).layers[-1]
    assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    assert_close(found.boxes, expected.boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_package_is_told(
    exported: object, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    file = exported(name).files[0]  # type: ignore[operator]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=rf"needs the package {package}, .* pip install 'querybox\[{name}\]'"
    ):
        load_exported(file)
