from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from querybox.data.findings import FindingCollector
from querybox.data.image import SUFFIXES
from querybox.data.locate import ImageLocator, find_files, image_files
from querybox.errors import ImageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        (["images/a.jpg"], "images/a.jpg", "images/a.jpg"),
        (["images/a.jpg"], "a.jpg", "images/a.jpg"),
        (["images/a.jpg", "a.jpg"], "a.jpg", "images/a.jpg"),
        (["photos/deep/a.jpg"], "a.jpg", "photos/deep/a.jpg"),
        (["images/a.jpg"], "../images/a.jpg", "images/a.jpg"),
        (["images/a.jpg"], "../../elsewhere/a.jpg", "images/a.jpg"),
        (["images/a.jpg"], "/somewhere/else/a.jpg", "images/a.jpg"),
        (["images/a.jpg"], "D:\\photos\\a.jpg", "images/a.jpg"),
        (["images/a.jpg"], "..\\..\\label-studio\\media\\upload\\4\\a.jpg", "images/a.jpg"),
        (["images/a b.jpg"], "/data/local-files/?d=some/folder/a%20b.jpg", "images/a b.jpg"),
        (["images/a/1.jpg", "images/b/1.jpg"], "/data/local-files/?d=b%5C1.jpg", "images/b/1.jpg"),
        (["images/a.jpg"], "https://example.org/upload/a.jpg?token=x/y", "images/a.jpg"),
        (["images/a.jpg"], "/data/upload/1/0a1b2c3d-a.jpg", "images/a.jpg"),
        (["images/0a1b2c3d-a.jpg", "images/a.jpg"], "upload/0a1b2c3d-a.jpg", "images/0a1b2c3d-a.jpg"),
        (["images/A.JPG"], "a.jpg", "images/A.JPG"),
        (["images/a.png"], "a.jpg", "images/a.png"),
        (["images/a.png", "images/a.jpg"], "x/a.jpg", "images/a.jpg"),
        (["photos/a.jpg", "segmentation/a.png"], "a", "photos/a.jpg"),
        (["photos/a.jpg", "segmentation/a.png"], "a.bmp", "photos/a.jpg"),
        (["photos/a.jpg", "SegmentationClass/a.png", "masks/a.jpg"], "a.jpg", "photos/a.jpg"),
        (["segmentation/a.png"], "segmentation/a.png", "segmentation/a.png"),
        (["masks/a.png"], "/x/masks/a.png", "masks/a.png"),
        (["masks/train/a.png"], "/x/train/a.png", "missing"),
        (["SegmentationClass/a.png", "SegmentationObject/a.png"], "a.jpg", "missing"),
        (["annotations/panoptic_val2017/a.png"], "a.jpg", "missing"),
        (["face_mask/images/a.png"], "a.png", "face_mask/images/a.png"),
        (["a/1.jpg", "b/1.jpg"], "/x/b/1.jpg", "b/1.jpg"),
        (["images/a/1.jpg", "images/b/1.jpg"], "b\\1.jpg", "images/b/1.jpg"),
        (["train/images/1.jpg", "val/images/1.jpg"], "val/labels/1.jpg", "val/images/1.jpg"),
        (["images/1.jpg", "thumbnails/1.jpg"], "/x/1.jpg", "images/1.jpg"),
        (["photos/a.jpg", "photos/A.jpg"], "a.jpg", "photos/a.jpg"),
        (["images/a_jpg.rf.0a1b2c.jpg"], "a_jpg.rf.0a1b2c", "images/a_jpg.rf.0a1b2c.jpg"),
        (["images/a%20b.jpg"], "a b.jpg", "images/a%20b.jpg"),
        (["images/caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg"], "cafe\N{COMBINING ACUTE ACCENT}.jpg", None),
        (["__MACOSX/images/a.jpg", "images/._a.jpg"], "a.jpg", "missing"),
        (["images/a.txt"], "a.jpg", "missing"),
        (["images/ba.jpg"], "a.jpg", "missing"),
    ],
)
def test_names_that_tools_write(tmp_path: Path, files: list[str], name: str, expected: str | None) -> None:
    root = touch(tmp_path / "data", *files)
    found = ImageLocator(root, [root / "images"]).find(name)
    if expected == "missing":
        assert found is None
    else:
        assert found == root / (expected or files[0])


def test_composed_and_decomposed_names_are_the_same(tmp_path: Path) -> None:
    written = "Z\N{LATIN SMALL LETTER U WITH DIAERESIS}rich.jpg"
    root = touch(tmp_path, f"images/{unicodedata.normalize('NFD', written)}")
    found = ImageLocator(root, [root / "images"]).find(written)
    assert found is not None
    assert unicodedata.normalize("NFC", found.name) == written


def test_copies_in_several_folders_are_not_guessed(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg", "b/1.jpg")
    locator = ImageLocator(root)
    with pytest.raises(ImageError, match=r"'1\.jpg' could be (a/1\.jpg, b/1\.jpg|b/1\.jpg, a/1\.jpg)"):
        locator.find("1.jpg")
    findings = FindingCollector(root)
    assert locator.find_or_note("1.jpg", image_id=7, where="images[3]", findings=findings) is None
    (found,) = findings.by_kind()
    assert (found.kind, found.image_ids) == ("ambiguous_image", (7,))
    assert found.places[0].what.startswith("images[3]: '1.jpg' could be")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "x/../../secret.jpg", "..\\secret.jpg", "OUTSIDE/secret.jpg"]
)
def test_files_outside_the_folder_are_never_found(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "secret.jpg")
    root = touch(tmp_path / "data", "a.jpg")
    locator = ImageLocator(root)
    name = name.replace("OUTSIDE", str(tmp_path))
    assert locator.find(name) is None
    findings = FindingCollector(root)
    assert locator.find_or_note(name, image_id=1, where="here", findings=findings) is None
    assert [one.kind for one in findings.by_kind()] == ["missing_image"]


def test_a_missing_image_is_expected_in_the_first_folder(tmp_path: Path) -> None:
    root = touch(tmp_path, "images/a.jpg")
    findings = FindingCollector(root)
    locator = ImageLocator(root, [root / "gone", root / "images"])
    path = locator.find_or_note("b.jpg", image_id=1, where="here", findings=findings)
    assert path == root / "images" / "b.jpg"
    assert not findings.by_kind()


def test_files_are_listed_in_order_through_links(tmp_path: Path) -> None:
    root = touch(tmp_path / "data", "b.JPG", "a-1/x.png", "a/x.png", "a/._x.png", ".cache/x.png", "a.txt")
    touch(tmp_path / "other", "y.png")
    (root / "link").symlink_to(tmp_path / "other")
    (root / "a" / "loop").symlink_to(root)
    expected = ["a/x.png", "a-1/x.png", "b.JPG", "link/y.png"]
    assert [path.relative_to(root).as_posix() for path in image_files(root)] == expected
    assert find_files(root, {".txt"}) == [root / "a.txt"]


def test_names_in_another_case_are_of_images_that_are_used(tmp_path: Path) -> None:
    """Windows and macOS find an image by its name in any case; elsewhere another link to it stands for that."""
    root = touch(tmp_path, "A.JPG", "b.jpg")
    if not (root / "a.jpg").exists():
        (root / "a.jpg").hardlink_to(root / "A.JPG")
    locator = ImageLocator(root)
    found = locator.find("a.jpg")
    assert found == root / "a.jpg"
    assert locator.others([found]) == ["b.jpg"]


def test_suffixes_are_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
