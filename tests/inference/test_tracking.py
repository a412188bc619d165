"""Tracking: an object keeps its number in all that is written, and every video begins anew."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from squares import SIDE, WIDTH, SquareEngine, crossing, picture, write

from querybox.errors import ConfigError, MissingExtraError
from querybox.inference.detections import Detections
from querybox.inference.draw import draw
from querybox.inference.predict import predict
from querybox.inference.sources import Frame
from querybox.inference.trackers import TrackerName
from querybox.inference.tracking import PresentationTimes, tracked
from querybox.inference.writers import coco_file, csv_file, mot_files
from querybox.structures import Category

TRACKERS: tuple[TrackerName, ...] = ("bytetrack", "sort", "ocsort")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "crossing.mkv", crossing())


def tracks(found: list[Detections], name: str) -> list[int]:
    """Return the numbers of the tracks of one class, frame by frame."""
    return [
        track
        for each in found
        for track, other in zip(each.tracks(), each.names, strict=True)
        if other == name
    ]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_objects_that_cross_keep_their_numbers(video: Path, tracker: TrackerName) -> None:
    found = SquareEngine().predict(video, track=tracker)
    assert len(found) == 40
    red, blue = tracks(found, "red"), tracks(found, "blue")
    begin = {"bytetrack": 1, "sort": 2, "ocsort": 2}[tracker]  # how many frames confirm a track
    assert (len(red), len(blue)) == (40, 40)
    numbers = {each[begin] for each in (red, blue)}
    assert numbers == {1, 2}
    for each in (red, blue):
        assert set(each[:begin]) <= {0, each[begin]}
        assert set(each[begin:]) == {each[begin]}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_video_begins_anew_and_repeats_itself(tmp_path: Path, tracker: TrackerName) -> None:
    short = write(tmp_path / "short.mkv", islice(crossing(), 12))
    found = [each.tracks() for each in SquareEngine().predict([short, short], track=tracker)]
    assert found[:12] == found[12:]
    assert {1, 2} == {*found[11]}


def test_bytetrack_goes_on_with_low_scores_that_begin_no_track(tmp_path: Path) -> None:
    """The red square fades for ten frames; the blue one is dim for as long as it is there."""
    fading = [picture(10 + n, None, brightness=120 if 10 <= n < 20 else 255) for n in range(30)]
    video = write(tmp_path / "fading.mkv", fading)
    assert [len(each) for each in SquareEngine().predict(video)] == [1] * 10 + [0] * 10 + [1] * 10
    assert tracks(SquareEngine().predict(video, track="bytetrack"), "red") == [0] + [1] * 29
    assert [len(each) for each in SquareEngine().predict(video, track="sort")][10:20] == [0] * 10
    dim = write(tmp_path / "dim.mkv", [picture(10 + n, None, brightness=120) for n in range(30)])
    assert not any(map(len, SquareEngine().predict(dim, track="bytetrack")))


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_score_at_the_threshold_begins_a_track(tracker: TrackerName, dtype: torch.dtype) -> None:
    """In float32, 0.7 is less than in Python."""
    frames = [
        Frame(source=f"camera#{number}", pixels=torch.zeros(3, 48, 48, dtype=torch.uint8), time=number / 30)
        for number in range(4)
    ]
    found = [
        Detections(
            boxes_xyxy=torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
            scores=torch.tensor([0.7], dtype=dtype),
            labels=torch.tensor([0]),
            categories=SquareEngine.categories,
            size=(48, 48),
            source=frame.source,
            time=frame.time,
        )
        for frame in frames
    ]
    times = PresentationTimes()
    assert list(times.recorded(frames)) == frames
    assert [each.tracks() for each in tracked(found, times, tracker, 0.7)][-1] == [1]


def test_a_track_ends_a_second_after_its_last_detection(tmp_path: Path) -> None:
    """At any frame rate, which is that of the header."""
    for rate in (10, 30):
        for seconds, last in ((0.5, 1), (2.0, 2)):
            shown = [picture(70, None)] * 5
            hidden = [picture(None, None)] * int(seconds * rate)
            video = write(tmp_path / "hiding.mkv", [*shown, *hidden, *shown], rate=rate)
            assert tracks(SquareEngine().predict(video, track="bytetrack"), "red")[-1] == last, (
                rate,
                seconds,
            )


HIDDEN = [*[40 * number for number in range(20)], *[760 + 3000 * number for number in range(1, 6)]]
"""Times in milliseconds: 25 frames a second for 0.8 s, then five that are 3 s apart. On average 2.5 a second."""


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
@pytest.mark.parametrize("start", [0, 5000])
def test_a_second_is_one_at_a_variable_frame_rate(
    tmp_path: Path, tracker: TrackerName, name: str, start: int
) -> None:
    """What is hidden for 0.24 s keeps its number; 3 s later it is another object."""
    pictures = [picture(None if 8 <= number < 14 else 70, None) for number in range(len(HIDDEN))]
    codec = "mpeg4" if name.endswith("mp4") else "rawvideo"
    times = [start + time for time in HIDDEN]
    video = write(tmp_path / name, pictures, rate=25, codec=codec, times=times)
    constant = write(tmp_path / f"constant-{name}", pictures[:20], rate=25, codec=codec)
    found = SquareEngine().predict([video, constant], track=tracker)
    numbers = tracks(found[: len(HIDDEN)], "red")
    assert numbers[:14] == tracks(found[len(HIDDEN) :], "red")
    assert numbers[7] == numbers[13] == 1  # OC-SORT confirms it again when it comes back
    assert 2 not in numbers[:14]
    assert 1 not in numbers[14:]
    assert {each.time for each in found} == {None}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_frames_that_are_missing_count_with_their_time(tmp_path: Path, tracker: TrackerName) -> None:
    for gap, last in ((800, 1), (1200, 2)):
        times = [*range(0, 400, 40), *range(360 + gap, 760 + gap, 40)]
        video = write(tmp_path / "gap.mkv", [picture(70, None)] * len(times), rate=25, times=times)
        for tile in (None, 100):
            found = SquareEngine().predict(video, track=tracker, tile=tile)
            assert tracks(found, "red")[-1] == last, (gap, tile)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_objects_of_slow_videos_are_tracked(tmp_path: Path, tracker: TrackerName) -> None:
    """Also if the frames, about one a second, are not even: one may be missed."""
    times = [1040 * number + 20 * (number % 3) for number in range(10)]
    pictures = [picture(None if number == 5 else 70, None) for number in range(10)]
    uneven = write(tmp_path / "uneven.mkv", pictures, rate=1, times=times)
    even = write(tmp_path / "even.mkv", pictures, rate=1)
    found = SquareEngine().predict([uneven, even], track=tracker)
    assert tracks(found[:10], "red") == tracks(found[10:], "red")
    assert tracks(found[:10], "red")[-1] == 1


def test_what_is_written_has_the_numbers(video: Path, tmp_path: Path) -> None:
    found = SquareEngine().predict(video, track="bytetrack")
    with (
        coco_file(tmp_path / "d.json", SquareEngine.categories) as coco,
        csv_file(tmp_path / "d.csv", tracking=True) as table,
        mot_files(tmp_path, {str(video): "crossing"}) as mot,
    ):
        for each in found:
            for add in (coco, table, mot):
                add(each)
    assert sum(map(len, found)) == 80
    expected = [track for each in found for track in each.tracks()]
    annotations = json.loads((tmp_path / "d.json").read_text())["annotations"]
    assert [each.get("track_id", 0) for each in annotations] == expected
    with (tmp_path / "d.csv").open(newline="", encoding="utf-8") as file:
        assert [int(row["track_id"] or 0) for row in csv.DictReader(file)] == expected
    read_back = np.loadtxt(tmp_path / "mot" / "crossing.txt", delimiter=",")
    assert read_back.shape == (78, 10)  # without the first frame, whose objects are in no track yet
    for frame, each in enumerate(found, start=1):
        rows = read_back[read_back[:, 0] == frame]
        kept = each.where(torch.tensor(each.tracks()) > 0)
        assert rows[:, 1].tolist() == kept.tracks()
        sizes = kept.boxes_xyxy[:, 2:] - kept.boxes_xyxy[:, :2]
        np.testing.assert_allclose(
            rows[:, 2:6], torch.cat([kept.boxes_xyxy[:, :2] + 1, sizes], 1), atol=0.006
        )
        np.testing.assert_allclose(rows[:, 6], kept.scores, atol=6e-5)
        assert (rows[:, 7:] == -1).all()


def test_the_package_of_the_trackers_reads_the_mot_file(video: Path, tmp_path: Path) -> None:
    import trackers

    with mot_files(tmp_path, {str(video): "crossing"}) as mot:
        for each in SquareEngine().predict(video, track="bytetrack"):
            mot(each)
    frames = trackers.load_mot_file(tmp_path / "mot" / "crossing.txt")
    assert sorted(frames) == list(range(2, 41))
    assert all(sorted(frame.ids.tolist()) == [1, 2] for frame in frames.values())


def test_every_video_has_a_mot_file_and_older_ones_are_removed(video: Path, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.mkv", [picture(None, None)] * 3)
    folder = tmp_path / "out"
    for _ in range(2):
        with mot_files(folder, {str(empty): "a", str(video): "b"}) as mot:
            for each in predict(SquareEngine(), [empty, video], track="sort"):
                mot(each)
        assert (folder / "mot" / "a.txt").read_text() == ""
        assert len((folder / "mot" / "b.txt").read_text().splitlines()) > 70
    with suppress(KeyboardInterrupt), mot_files(folder, {str(empty): "a", str(video): "b"}) as mot:
        mot(next(predict(SquareEngine(), empty, track="sort")))
        raise KeyboardInterrupt
    assert not list((folder / "mot").iterdir())


def test_the_number_is_drawn_and_kept_by_other_methods() -> None:
    found = Detections(
        boxes_xyxy=torch.tensor([[10.0, 12, 30, 32], [90.0, 16, 110, 36]]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([0, 1]),
        categories=(Category(id=1, name="red"), Category(id=2, name="blue")),
        size=(48, WIDTH),
        track_ids=torch.tensor([3, 0]),
    )
    assert [each.get("track_id") for each in found.to_coco(1)] == [3, None]
    assert found.above(0.6).tracks() == found.nms(0.5).tracks()[:1] == [3]
    np.testing.assert_array_equal(found.to_supervision().tracker_id, [2, -1])
    image = picture(10, 90)
    changed = np.asarray(draw(image, found)) != np.asarray(
        draw(image, dataclasses.replace(found, track_ids=None))
    )
    assert changed[:, : 10 + 3 * SIDE].any()
    assert not changed[:, 85:].any()


@pytest.mark.parametrize("tracker", TRACKERS)
def test_boxes_without_an_area_are_tracked(tmp_path: Path, tracker: TrackerName) -> None:
    class Flat(SquareEngine):
        @staticmethod
        def find(difference: torch.Tensor) -> tuple[float, tuple[float, ...]]:
            return 0.9, (50.0, 20.0, 0.0, 0.0)

    video = write(tmp_path / "a.mkv", [picture(10, 90)] * 5)
    assert [len(each) for each in Flat().predict(video, track=tracker)] == [2] * 5


def test_images_are_refused(video: Path, tmp_path: Path) -> None:
    from PIL import Image

    image = tmp_path / "1.png"
    Image.fromarray(picture(10, 50)).save(image)
    for sources, name in (([video, image], r"1\.png"), (tmp_path, r"1\.png"), (picture(1, 50), "in memory")):
        with pytest.raises(ConfigError, match=rf"{name}: objects are tracked .* this is an image; expected"):
            predict(SquareEngine(), sources, track="sort")


def test_a_missing_package_is_named(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'querybox\[track\]'"):
        predict(SquareEngine(), video, track="sort")
