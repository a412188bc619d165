"""Answers are those of `predict`, number for number, and of all images of a request or none."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from servers import Client, GatedEngine, Reply, form, picture, serving
from tiny_models import SEGMENTATION

from querybox.detector import Detector
from querybox.errors import OutOfMemoryError
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine
from querybox.inference.optimized import OptimizedDetector
from querybox.inference.predict import detect, predict, prepare
from querybox.inference.sources import read_frames
from querybox.serving.workers import open_engines
from querybox.structures import ImageBatch, Preprocessing

Begin = Callable[[Callable[[], Reply]], Callable[[], Reply]]


def as_json(found: Detections) -> dict[str, Any]:
    """Return what the server has to answer for an image."""
    coco = found.to_coco(0)
    rows = [
        {
            "label": label,
            "category_id": row["category_id"],
            "name": found.categories[label].name,
            "score": row["score"],
            "box_xyxy": box,
            "segmentation": row.get("segmentation"),
        }
        for label, row, box in zip(found.labels.tolist(), coco, found.boxes_xyxy.tolist(), strict=True)
    ]
    return {"width": found.size[1], "height": found.size[0], "detections": rows}


def predicted(engine: Engine, folder: Path, *files: bytes, **options: Any) -> Any:
    """Return what `predict` finds in image files, as the server has to answer it."""
    paths = [folder / f"{index}.png" for index in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    found = predict(engine, paths, **options)
    return json.loads(json.dumps({"images": [as_json(each) for each in found]}))


def test_answers_are_those_of_predict(client: Client, engine: OptimizedDetector, tmp_path: Path) -> None:
    files = [picture(40, 60, 1), picture(60, 40, 2, "JPEG"), picture(50, 50, 3, "TIFF")]
    expected = predicted(engine, tmp_path, *files, threshold=0.1, top_k=4)
    answer = client.predict(*files, query="?threshold=0.1&top_k=4")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert [len(image["detections"]) for image in answer.json["images"]] == [4, 4, 4]
    assert answer.json == expected


def test_the_defaults_are_those_of_the_server(engine: OptimizedDetector, tmp_path: Path) -> None:
    with serving([engine], threshold=0.2, top_k=3) as client:
        answer = client.predict(picture())
    assert answer.json == predicted(engine, tmp_path, picture(), threshold=0.2, top_k=3)


def test_masks_are_answered_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", num_classes=2, **SEGMENTATION)
    detector.preprocessing = Preprocessing(short_side=32, long_side=48)
    engine = detector.optimize()
    with serving([engine], threshold=0) as client:
        answer = client.predict(picture())
    assert answer.json["images"][0]["detections"][0]["segmentation"]["size"] == [40, 60]
    assert answer.json == predicted(engine, tmp_path, picture(), threshold=0)


def test_images_are_upright(client: Client, engine: OptimizedDetector, tmp_path: Path) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(picture())).save(file, "JPEG", exif=exif)
    answer = client.predict(file.getvalue(), query="?threshold=0")
    assert (answer.json["images"][0]["width"], answer.json["images"][0]["height"]) == (40, 60)
    assert answer.json == predicted(engine, tmp_path, file.getvalue(), threshold=0)


def test_a_detector_is_loaded_once_for_all_threads(detector: Detector) -> None:
    threads = torch.get_num_threads()
    try:
        engines = open_engines(lambda: detector, 3)
    finally:
        torch.set_num_threads(threads)
    assert len(engines) == 3
    assert len(set(map(id, engines))) == 1


def test_batches_hold_images_of_one_size_and_their_answers_are_those_of_that_batch(
    gated: GatedEngine, engine: OptimizedDetector, tmp_path: Path, at_once: Begin
) -> None:
    wide, tall = [picture(40, 60, seed) for seed in range(3)], [picture(60, 40, seed) for seed in range(2)]
    with serving([gated], max_batch=3, max_wait=10) as client:
        gated.sizes.clear()
        asked = [at_once(partial(client.predict, file, query="?threshold=0")) for file in wide[:2]]
        client.wait_for("querybox_images_in_progress", 2)
        asked += [at_once(lambda: client.predict(*tall, wide[2], query="?threshold=0"))]
        client.wait_for("querybox_images_in_progress", 5)
        # The wide ones are full; the tall ones wait for a third, of another request.
        asked += [at_once(lambda: client.predict(picture(60, 40, 9), query="?threshold=0"))]
        answers = [image for answer in asked for image in answer().json["images"]]
    assert gated.sizes == [3, 3]
    expected = batch_of(engine, tmp_path, *wide)
    found = [answers[0], answers[1], answers[4]]
    assert sorted(map(str, found)) == sorted(map(str, expected))


def batch_of(engine: Engine, folder: Path, *files: bytes) -> list[Any]:
    """Return the detections of images that share a forward pass."""
    paths = [folder / f"{index}.png" for index in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    inputs = list(prepare(read_frames(paths), engine.preprocessing))
    return [json.loads(json.dumps(as_json(each))) for each in detect(engine, inputs, 100)]


def test_requests_with_other_options_do_not_share_a_batch(gated: GatedEngine, at_once: Begin) -> None:
    with serving([gated], max_batch=2, max_wait=0.01) as client:
        gated.gate.clear()
        gated.sizes.clear()
        queries = ("?threshold=0", "?threshold=0.1", "?top_k=1")
        asked = [at_once(partial(client.predict, picture(), query=query)) for query in queries]
        client.wait_for("querybox_images_in_progress", 3)
        gated.gate.set()
        assert [answer().status for answer in asked] == [200, 200, 200]
    assert gated.sizes == [1, 1, 1]


def test_an_image_does_not_spoil_the_answers_of_others(gated: GatedEngine, at_once: Begin) -> None:
    def error(batch: ImageBatch) -> Exception | None:
        spoilt = (
            len(batch.images) > 1 or batch.images[0, 0].unique().numel() == 1
        )  # one of several, or the uniform image alone
        return ValueError("a bug") if spoilt else None

    uniform = io.BytesIO()
    Image.new("L", (60, 40)).save(uniform, "PNG")
    with serving([gated], max_batch=3, max_wait=10) as client:
        gated.sizes.clear()
        gated.error = error
        files = [picture(seed=1), uniform.getvalue(), picture(seed=2)]
        asked = [at_once(partial(client.predict, file)) for file in files]
        assert [answer().status for answer in asked] == [200, 500, 200]
    assert gated.sizes == [3, 1, 1, 1]


def test_a_lack_of_memory_is_no_bug(gated: GatedEngine) -> None:
    with serving([gated]) as client:
        gated.error = lambda _: OutOfMemoryError("of the GPU")
        answer = client.predict(picture())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "not enough memory" in answer.json["detail"]


def test_unusable_weights_are_told(gated: GatedEngine, engine: OptimizedDetector) -> None:
    output = engine(ImageBatch.from_images([torch.zeros(3, 32, 48, dtype=torch.uint8)], engine.preprocessing))
    with torch.inference_mode():
        output.layers[-1].logits.fill_(torch.nan)
    with serving([gated]) as client:
        gated.engine = Broken(engine, output)
        answer = client.predict(picture(40, 60))
    assert answer.status == 500
    assert answer.json["detail"].startswith("images[0]: the model predicts NaN")


class Broken(GatedEngine):
    """An engine whose output is always the same."""

    def __init__(self, engine: Engine, output: Any) -> None:
        super().__init__(engine)
        self.output = output

    def __call__(self, batch: ImageBatch, /) -> Any:
        return self.output


def test_all_images_are_answered_or_none(client: Client) -> None:
    answer = client.predict(picture(), b"nonsense", picture())
    assert answer.status == 422
    assert answer.json["detail"].startswith("images[1]: cannot be read as an image (of no known format)")


def test_a_form_with_other_fields_is_refused(client: Client) -> None:
    body, kind = form([picture()], "file"), {"Content-Type": "multipart/form-data; boundary=boundary"}
    answer = client.request("/predict", body, kind)
    assert (answer.status, answer.json["title"]) == (422, "Unprocessable Entity")
    assert "got files named ['file']; expected a multipart form with one or more" in answer.json["detail"]
