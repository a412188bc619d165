from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from querybox.data import read_dataset


def test_writes_pictures_coco_and_csv(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    code, out, err = run("predict", model, photos / "images", "--threshold", "0.2", "--output", "found")
    assert (code, err) == (0, "")
    folder = tmp_path / "found"
    content = json.loads((folder / "detections.json").read_text())
    assert [Path(image["file_name"]).name for image in content["images"]] == [
        "train1.jpg", "train2.jpg", "train3.jpg", "train4.jpg", "val1.jpg", "val2.jpg",
    ]  # fmt: skip
    assert {each["category_id"] for each in content["annotations"]} <= {3, 9}
    with (folder / "detections.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(content["annotations"]) > 0
    with Image.open(folder / "val2.jpg") as drawn:
        assert drawn.size == (60, 40)
    assert out == f"Found {len(content['annotations'])} objects in 6 images. Results are in found\n"


def test_tiles(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    """An image of 60 x 40 pixels has two tiles of 32 in one direction, three in the other, and the whole."""
    counts = []
    for words in ((), ("--tile", "64"), ("--tile", "32", "--overlap", "0.3")):
        arguments = ("--threshold", "0", "--format", "csv", "--overwrite", *words)
        code, _, err = run("predict", model, photos / "images" / "val2.jpg", *arguments)
        assert (code, err) == (0, "")
        with (tmp_path / "predictions" / "detections.csv").open() as file:
            counts.append(len(list(csv.DictReader(file))))
    assert counts[2] > counts[1] == counts[0]
    code, _, err = run("predict", model, photos / "images" / "val2.jpg", "--tile", "5", "--overwrite")
    assert (code, "tile=5; expected an integer, 32 to 8192" in err) == (2, True)
    code, _, err = run("predict", model, photos / "images" / "val2.jpg", "--tile", "auto", "--overwrite")
    assert (code, "tile='auto' needs the sizes of the objects" in err) == (2, True)
    code, _, err = run("predict", model, photos / "images" / "val2.jpg", "--tile", "some", "--overwrite")
    assert (code, "--tile" in err) == (2, True)


def test_draws_a_video(run: Any, model: Path, tmp_path: Path) -> None:
    import av

    (tmp_path / "clips").mkdir()
    with av.open(tmp_path / "clips" / "a.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(11):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    code, out, err = run("predict", model, "clips", "--threshold", "0", "--batch-size", "4")
    assert (code, err) == (0, "")
    assert "in 11 images" in out
    content = json.loads((tmp_path / "predictions" / "detections.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        f"clips/a.mp4#{number}" for number in range(11)
    ]
    with av.open(tmp_path / "predictions" / "a.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 11


def test_broken_files_are_named_and_the_others_predicted_on(
    run: Any, model: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(b"<html>")
    (folder / "2.jpg").write_bytes((photos / "images" / "val1.jpg").read_bytes())
    (folder / "3.mp4").write_bytes(b"no video")
    (folder / "4#x.jpg").write_bytes((photos / "images" / "val2.jpg").read_bytes())
    (folder / "5.jpg").write_bytes(b"")
    code, out, err = run("predict", model, folder, "--threshold", "0", "--output", "found")
    assert code == 1
    assert [line.partition(": cannot")[0] for line in err.splitlines()] == [
        f"ImageError: {folder / name}" for name in ("1.jpg", "3.mp4", "5.jpg")
    ]
    assert "in 2 images, 3 of 5 files could not be read. Results are in found" in out
    assert sorted(path.name for path in (tmp_path / "found").glob("*.jpg")) == ["2.jpg", "4#x.jpg"]
    content = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert [Path(image["file_name"]).name for image in content["images"]] == ["2.jpg", "4#x.jpg"]


def test_a_video_that_breaks_off_is_drawn_up_to_there(
    run: Any, model: Path, photos: Path, tmp_path: Path
) -> None:
    import av

    with av.open(tmp_path / "a.avi", "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuvj420p")))
        container.mux(stream.encode())
    whole = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(whole[: len(whole) // 2])
    words = ("predict", model, "a.avi", photos / "images" / "val1.jpg", "--threshold", "0")
    code, out, err = run(*words)
    frames = len(json.loads((tmp_path / "predictions" / "detections.json").read_text())["images"]) - 1
    assert code == 1
    assert f"ends after {frames} of 12 frames" in err
    assert f"in {frames + 1} images" in out
    if frames:
        with av.open(tmp_path / "predictions" / "a.mp4") as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
    assert (tmp_path / "predictions" / "val1.jpg").is_file()


def test_repeats_itself(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    words = ("predict", model, photos / "images", "--threshold", "0", "--format", "csv", "--output")
    assert run(*words, "a")[0] == run(*words, "b")[0] == 0
    assert (tmp_path / "a" / "detections.csv").read_text() == (tmp_path / "b" / "detections.csv").read_text()


def test_writes_only_what_is_asked_for(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    picture = photos / "images" / "val1.jpg"
    assert run("predict", model, picture, "--format", "coco, csv")[0] == 0
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        "detections.csv",
        "detections.json",
    ]


def test_labels_of_yolo_can_be_read_as_a_dataset(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    words = ("predict", model, photos / "images", "--threshold", "0.2", "--format")
    code, out, _ = run(*words, "yolo", "--output", "found")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["classes.txt", "labels"]
    shutil.copytree(photos / "images", tmp_path / "found" / "images")
    data = read_dataset(tmp_path / "found")
    assert len(data.images) == 6
    assert f"Found {data.num_objects} objects" in out
    assert [category.name for category in data.categories] == ["cat", "dog"]
    code, _, err = run(*words, "masks", "--output", "other")
    assert code == 2
    assert err.startswith(
        "ConfigError: masks: the detections have no masks; expected those of a detector trained with"
    )


def test_no_score_is_blamed_where_no_image_was_read(run: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    code, out, err = run("predict", model, "broken.jpg")
    assert (code, out) == (
        1,
        "Found 0 objects in 0 images, 1 of 1 files could not be read. Results are in predictions\n",
    )
    assert err.startswith("ImageError: ")


def test_options_reach_the_detector(run: Any, model: Path, photos: Path) -> None:
    words = ("predict", model, photos / "images" / "val1.jpg", "--overwrite", "--threshold", "0")
    assert "Found 8 objects in 1 image." in run(*words)[1]
    assert "Found 3 objects in 1 image." in run(*words, "--top-k", "3")[1]
    none = "Found 0 objects in 1 image: none scores at least 1, see --threshold. Results are in"
    assert none in run(*words[:-1], "1")[1]
    alone = run(*words, "--nms", "0")[1]
    assert int(alone.split()[1]) < 8


def test_a_run_folder_is_its_best_model(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    picture = photos / "images" / "val1.jpg"
    (tmp_path / "run").mkdir()
    code, _, err = run("predict", "run", picture)
    assert code == 2
    assert "run: the folder holds neither the detector of a run (best.safetensors, last.safetensors)" in err
    (tmp_path / "run" / "last.safetensors").write_bytes(b"worse")
    assert "last.safetensors: corrupt" in run("predict", "run", picture)[2]
    (tmp_path / "run" / "best.safetensors").symlink_to(model)
    assert run("predict", "run", picture)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL"], "ConfigError: querybox predict got no sources"),
        (["MODEL", "missing.jpg"], "DataError: missing.jpg: no such file or folder"),
        (["MODEL", "empty"], "DataError: empty: found no image or video among 0 files"),
        (["MODEL", "*.jpg"], "DataError: *.jpg: found no image or video among 0 files"),
        (["missing.safetensors", "PICTURE"], "CheckpointError: missing.safetensors: no such weights file"),
        (["PICTURE", "PICTURE"], "CheckpointError: PICTURE: expected a detector's weights"),
        (
            ["PICTURE", "MODEL"],
            "ConfigError: PICTURE: is not a model, but MODEL is; the model comes first: "
            "querybox predict MODEL PICTURE\n",
        ),
        (["IMAGES", "PICTURE", "MODEL"], "the model comes first: querybox predict MODEL IMAGES PICTURE\n"),
        (["MODEL", "PICTURE", "--format", "png"], "ConfigError: --format got 'png'; expected one or more of"),
        (["MODEL", "PICTURE", "--threshold", "2"], "ConfigError: predict got threshold=2.0; expected 0 to 1"),
        (
            ["MODEL", "PICTURE", "--top-k", "0"],
            "ConfigError: predict got top_k=0; expected an integer, 1 or more",
        ),
        (["MODEL", "PICTURE", "--nms", "-1"], "ConfigError: predict got nms=-1.0"),
        (["MODEL", "PICTURE", "--batch-size", "0"], "ConfigError: predict got batch_size=0"),
        (
            ["MODEL", "PICTURE", "--output", "IMAGES"],
            "ConfigError: PICTURE: the drawing would overwrite a source",
        ),
        (["MODEL", "PICTURE", "--output", "PICTURE"], "PICTURE: the folder cannot be created (File exists)"),
    ],
)
def test_bad_input_is_told_in_one_line(
    run: Any, model: Path, photos: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    images = photos / "images"
    names = {"MODEL": model, "IMAGES": images, "PICTURE": images / "val1.jpg"}
    code, _, err = run("predict", *(names.get(word, word) for word in words))
    assert code == 2
    assert err.count("\n") == 1
    for name, path in names.items():
        message = message.replace(name, str(path))
    assert message in err


def test_results_are_not_mixed_with_older_ones(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    first, second = photos / "images" / "val1.jpg", photos / "images" / "val2.jpg"
    assert run("predict", model, first)[0] == 0
    code, _, err = run("predict", model, second)
    assert code == 2
    assert err.startswith("ConfigError: predictions: the folder is not empty; expected a new one")
    assert not (tmp_path / "predictions" / "val2.jpg").exists()
    assert run("predict", model, second, "--overwrite")[0] == 0
    content = json.loads((tmp_path / "predictions" / "detections.json").read_text())
    assert [Path(image["file_name"]).name for image in content["images"]] == ["val2.jpg"]


def test_an_interrupted_prediction_leaves_no_older_tables(
    run: Any, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("predict", model, photos / "images", "--threshold", "0", "--overwrite")
    assert run(*words, "--format", "coco,csv")[0] == 0
    saved: list[Path] = []
    save = Image.Image.save

    def interrupting(self: Image.Image, path: Path, *arguments: Any, **options: Any) -> None:
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt
        save(self, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupting)
        assert run(*words)[0] == 130
    names = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert names == ["train1.jpg", "train2.jpg"]
    assert run(*words)[0] == 0
    with (tmp_path / "predictions" / "detections.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6 * 8


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_file_names_may_be_of_another_encoding(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"b\xe4r")
    folder.mkdir()
    source = folder / os.fsdecode(b"\xff.jpg")
    source.write_bytes((photos / "images" / "val1.jpg").read_bytes())
    output = folder / "found"
    code, out, err = run("predict", model, folder, "--threshold", "0", "--output", output)
    assert (code, err) == (0, "")
    assert out.endswith("b\\udce4r/found\n")
    content = json.loads((output / "detections.json").read_text())
    assert content["images"][0]["file_name"] == str(source)
    with (output / "detections.csv").open() as file:
        assert {row["source"] for row in csv.DictReader(file)} == {f"{tmp_path}/b\\udce4r/\\udcff.jpg"}
    assert (output / source.name).is_file()


@pytest.mark.parametrize(
    "words",
    [["MODEL", ""], ["", "photos"], ["MODEL", "photos", "--output", ""], ["MODEL", "photos", "--output="]],
)
def test_an_empty_path_is_not_the_current_folder(
    run: Any, model: Path, photos: Path, words: list[str]
) -> None:
    names = {"MODEL": model, "photos": photos / "images"}
    code, out, err = run("predict", *(names.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert err == (
        "ConfigError: an argument is empty; expected a path or another value: check for variables of the shell that "
        "are not set\n"
    )


def test_tracks_the_objects_of_a_video(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av
    from squares import SquareEngine, crossing, picture, write

    monkeypatch.setattr("querybox.cli.predict.load_model", lambda *_, **__: SquareEngine())
    write(tmp_path / "crossing.mkv", crossing(20))
    words = ("predict", model, "crossing.mkv", "--overwrite")
    assert run(*words, "--track", "--format", "pictures,coco,csv,mot")[0] == 0
    folder = tmp_path / "predictions"
    with (folder / "detections.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["name"], row["track_id"]) for row in rows[2:]} in (
        {("red", "1"), ("blue", "2")},
        {("red", "2"), ("blue", "1")},
    )
    assert len((folder / "mot" / "crossing.txt").read_text().splitlines()) == 38
    annotations = json.loads((folder / "detections.json").read_text())["annotations"]
    assert {each.get("track_id") for each in annotations} == {None, 1, 2}
    with av.open(folder / "crossing.mp4") as container:
        drawn = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert run(*words)[0] == 0
    with av.open(folder / "crossing.mp4") as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with (folder / "detections.csv").open() as file:
        assert "track_id" not in file.readline()
    assert len(drawn) == len(plain) == 20
    assert (abs(drawn[10].astype(int) - plain[10]) > 100).any()
    assert run(*words, "--tracker", "sort", "--format", "mot")[0] == 0
    assert len((folder / "mot" / "crossing.txt").read_text().splitlines()) == 36
    code, _, err = run(*words, "--format", "mot")
    assert (code, err) == (
        2,
        "ConfigError: --format got 'mot', the format of tracks, without tracking; add --track\n",
    )
    Image.fromarray(picture(10, 50)).save("a.png")
    code, _, err = run("predict", model, "crossing.mkv", "a.png", "--track", "--output", "new")
    assert (code, "a.png: objects are tracked from frame to frame of a video" in err) == (2, True)
    assert not Path("new").exists()
    code, _, err = run(*words, "--tracker", "deepsort")
    assert (code, "bytetrack" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["--workers", "2"],
            "ConfigError: querybox predict: --workers has no effect without --ray: set it as well, or omit --workers",
        ),
        (
            ["--ray", "local", "--overwrite"],
            "ConfigError: querybox predict: --overwrite has no effect with --ray: omit one of them",
        ),
        (["--ray", "local", "--format", "csv"], "--format has no effect with --ray"),
        (["--ray", "local", "--tuned"], "--tuned has no effect with --ray"),
        (["--ray", "local", "--track"], "--track has no effect with --ray"),
        (["--ray", "local", "--workers", "0"], "workers=0; expected"),
        (["--ray", "local", "--threshold", "2"], "threshold=2.0; expected"),
        (["--ray", "local", "--tile", "5"], "tile=5; expected"),
        (
            ["--ray", "local", "s3://bucket/a.tar"],
            "a.tar: is on the network, and querybox connects to nothing without permission; allow it with "
            "--allow-network",
        ),
        (
            ["--ray", "local", "--output", "https://me:secret@host/found?token=secret"],
            "https://host/found?token=***: is on the network, and querybox connects to nothing without permission",
        ),
        (
            ["--ray", "local", "--allow-network", "ftp://host/a.tar"],
            "got the scheme 'ftp'; expected a path, or one of",
        ),
    ],
)
def test_options_of_collections_are_checked_before_ray_starts(
    run: Any,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    error: str,
) -> None:
    monkeypatch.setattr("querybox.bulk.cluster.cluster", None)
    code, _, err = run("predict", model, photos / "images", *words)
    assert (code, error in err) == (2, True), err
    assert not (tmp_path / "predictions").exists()


def test_a_collection_needs_a_model_before_ray_starts(run: Any, photos: Path) -> None:
    code, _, err = run("predict", "none.onnx", photos / "images", "--ray", "local")
    assert (code, err.startswith("CheckpointError: none.onnx: no such file")) == (2, True)
    assert not Path("predictions").exists()
