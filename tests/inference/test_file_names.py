"""Names of files that are written for images, videos and frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from querybox.errors import ConfigError
from querybox.files import comparable
from querybox.inference.drawings import drawing_paths
from querybox.inference.file_names import check_folder, file_names, name_of, renamed
from querybox.inference.sources import is_video

STEMS = st.sampled_from(
    [
        "a",
        "A",
        "a-2",
        "a-3",
        "a_000001",
        "A_000001",
        "a_000001-2",
        "a_000001_000000",
        "a_1000000",
        "a-2_000001",
        "_000001",
    ]
)
SOURCES = st.lists(
    st.tuples(STEMS, st.sampled_from([".jpg", ".png", ".mp4", ".avi"])), unique=True, max_size=12
)


def named(*sources: str) -> list[str]:
    return list(file_names(map(Path, sources)).values())


def written(sources: Sequence[Path], names: dict[str, str]) -> list[str]:
    """Return the names of all files by image and frame, and those of the drawings."""
    images = [name_of(str(source), names) for source in sources if not is_video(source)]
    videos = [str(source) for source in sources if is_video(source)]
    frames = [name_of(f"{video}#{number}", names) for video in videos for number in (0, 1, 12, 1_000_000)]
    return images + frames


def test_names_that_are_equal_but_for_case_are_numbered() -> None:
    """As on Windows and macOS, where they would be one file; so do accents that are composed in two ways."""
    assert named("x/a.jpg", "y/A.png", "a.mp4", "z/a.jpeg", "a-2.jpg") == ["a", "A-2", "a", "a-3", "a-2-2"]
    assert named("\u00e9.jpg", "x/e\u0301.jpg") == ["\u00e9", "e\u0301-2"]
    assert named("a.b.jpg", "a.c.jpg", "x/a.b.jpg") == ["a.b", "a.c", "a.b-2"]


def test_images_keep_off_the_names_of_frames() -> None:
    assert named("clip.avi", "clip.mp4", "clip_000001.jpg") == ["clip", "clip-2", "clip_000001-2"]
    assert named("clip_000001.jpg", "CLIP.mp4") == ["clip_000001", "CLIP-2"]
    assert named("clip.mp4", "clip_000001.mp4", "clip_1.jpg", "clip.jpg") == [
        "clip",
        "clip_000001",
        "clip_1",
        "clip",
    ]
    assert named("clip.mp4", "x/clip.mp4", "clip-2_000001.png") == ["clip", "clip-2", "clip-2_000001-2"]


@pytest.mark.parametrize("stem", ["a" * 251, "\u00e9" * 125, "clip_" + "0" * 246])
def test_long_names_are_cut(stem: str) -> None:
    """Their files have names of at most 255 bytes, as those of numbered files and of frames would not."""
    first, second, video = (Path("x", f"{stem}.jpg"), Path("y", f"{stem}.jpg"), Path("x", f"{stem}.mp4"))
    names = file_names([first, second, video])
    assert names[str(first)] == stem
    files = [f"{name}.txt" for name in written([first, second, video], names)]
    files += [path.name for path in drawing_paths(names, Path("out"))]
    assert max(len(os.fsencode(file)) for file in files) <= 255
    assert len(set(files)) == len(files)


@given(SOURCES)
def test_no_two_results_have_one_file(parts: list[tuple[str, str]]) -> None:
    sources = [Path(str(index), stem + suffix) for index, (stem, suffix) in enumerate(parts)]
    names = file_names(sources)
    for files in (written(sources, names), [path.name for path in drawing_paths(names, Path("out"))]):
        assert len({comparable(file) for file in files}) == len(files)
    assert list(names) == list(map(str, sources))


def test_the_first_of_some_files_keeps_its_name() -> None:
    for sources in permutations(["clip.avi", "clip.mp4", "clip_000001.jpg"]):
        assert named(*sources)[0] == Path(sources[0]).stem


def test_thousands_of_equal_names_take_no_time() -> None:
    names = named(*(f"{number}/image.jpg" for number in range(20_000)))
    assert (names[0], names[-1], len(set(names))) == ("image", "image-20000", 20_000)


def test_what_has_another_name_is_told() -> None:
    names = file_names(map(Path, ["v/clip.mp4", "v/clip_000001.jpg", "v/a.jpg"]))
    assert list(renamed(names)) == [f"clip_000001-2 for {Path('v/clip_000001.jpg')}"]


def test_a_path_that_is_the_name_of_a_frame_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"clip\.mp4#1: has the name that results give to a frame of .*clip\.mp4; ren"
    ):
        file_names([Path("v/clip.mp4"), Path("v/clip.mp4#1")])
    assert named("v/clip.mp4", "x/clip.mp4#1", "v/clip.mp4#a", "v/b#1.jpg") == [
        "clip",
        "clip",
        "clip-2",
        "b#1",
    ]


def test_sources_in_the_folder_of_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    check_folder(tmp_path / "masks", [tmp_path / "a.png"])
    with pytest.raises(
        ConfigError, match=r"a\.png: is in .*masks, to which results are written; expected another"
    ):
        check_folder(tmp_path / "masks", [tmp_path / "a.jpg", tmp_path / "x" / ".." / "masks" / "a.png"])
    with pytest.raises(ConfigError, match=r"is in .*masks"):  # where case is ignored
        check_folder(tmp_path / "masks", [tmp_path / "Masks" / "a.png"])
