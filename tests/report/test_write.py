from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from chromium import chromium, find_chromium, run_axe
from report_pages import CATEGORIES, NAMES, Page, make_data, read, without_charts
from run_records import SPLIT, write_run

from querybox.data.records import DetectionData
from querybox.detector import Detector
from querybox.diagnosis import diagnose
from querybox.diagnosis.record import add_to_record
from querybox.evaluation.errors import ABBREVIATIONS
from querybox.evaluation.evaluate import coco_metrics
from querybox.evaluation.result import Evaluation
from querybox.inference.detections import Detections
from querybox.report import write_report
from querybox.report.charts import literal
from querybox.report.examples import best_images, worst_images
from querybox.report.next_steps import most_frequent_error, next_steps
from querybox.structures import Category, Preprocessing

METRICS_CSV = """\
epoch,step,lr,loss,loss_cls,loss_bbox,loss_iou,grad_norm,AP,AP50
1,10,0.0001,30.5,1.5,2.5,1.25,4.0,,
2,20,0.0001,20.5,1.0,2.0,1.0,3.0,0.125,0.25
3,30,0.0001,10.5,0.5,1.5,0.75,2.0,,
"""


def measure(data: DetectionData) -> Evaluation:
    """Find the objects of the images with even ids."""
    return coco_metrics(
        data,
        {
            record.id: Detections(
                boxes_xyxy=torch.from_numpy(record.boxes_xyxy),
                scores=torch.full((len(record.labels),), 0.75),
                labels=torch.from_numpy(record.labels),
                categories=CATEGORIES,
                size=(48, 64),
            )
            for record in data.images
            if record.id % 2 == 0
        },
    )


@pytest.fixture
def no_charts() -> Iterator[None]:
    with without_charts():
        yield


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.csv").write_text(METRICS_CSV)
    (folder / "run.yaml").write_text("recipe: </pre><script>evil</script>\n")
    (folder / "environment.json").write_text('{"torch": "2.14"}')
    data = make_data(folder)
    assert write_report(folder, measure(data), data) == folder / "report.html"
    return folder


def test_report_stands_alone(run_dir: Path) -> None:
    page = read(run_dir)
    assert page.links == page.images
    assert all(link.startswith("data:image/") for link in page.links)
    assert page.tags.isdisjoint({"script", "link", "iframe", "i"})


def test_text_of_the_data_stays_text(run_dir: Path) -> None:
    page = read(run_dir)
    for name in NAMES:
        assert name in page.text
    assert "recipe: </pre><script>evil</script>" in page.text
    assert "<i>.json" in page.text
    assert "<b>1.png: F1 0.000" in page.text


def test_report_says_what_was_measured(run_dir: Path) -> None:
    text = read(run_dir).text
    for part in (
        "Training report",
        "AP50",
        "Worst images",
        "Best images",
        "Settings",
        "Environment",
        '"torch": "2.14"',
    ):
        assert part in text


def svgs(page: Page) -> list[str]:
    prefix = "data:image/svg+xml;base64,"
    files = [
        base64.b64decode(image.removeprefix(prefix)) for image in page.images if image.startswith(prefix)
    ]
    return ["".join(ElementTree.fromstring(file).itertext()) for file in files]


def test_charts(run_dir: Path) -> None:
    texts = svgs(read(run_dir))
    for title in (
        "Loss, all decoder layers",
        "Loss, last decoder layer",
        "Average precision",
        "Learning rate",
        "Gradient norm, before clipping",
        "Precision and recall at IoU 0.50",
        "True class (row) detected as (column)",
    ):
        assert sum(title in text for text in texts) == 1, title
    assert sum("細胞" in text for text in texts) == 2
    assert sum(r"$\frac{$" in text for text in texts) == 2
    assert not any("by object size" in text for text in texts)  # the columns are not in metrics.csv


def test_report_of_an_evaluation_alone(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    write_report(tmp_path, measure(data), data)
    text = read(tmp_path).text
    assert "Evaluation report" in text
    assert "Learning rate" not in text
    assert "Settings" not in text
    assert "Likely causes of a low AP" not in text


def test_report_is_the_same_when_written_again(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    first = write_report(tmp_path, measure(data), data).read_bytes()
    assert write_report(tmp_path, measure(data), data).read_bytes() == first


@pytest.mark.usefixtures("no_charts")
def test_missing_image_is_said_and_not_fatal(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    data.images[1].path.unlink()
    write_report(tmp_path, measure(data), data)
    assert "<b>1.png: F1 0.000." in read(tmp_path).text
    assert "no such image file" in read(tmp_path).text


def test_data_without_objects(tmp_path: Path) -> None:
    data = make_data(tmp_path, images=1)
    evaluation = measure(data)
    assert math.isnan(evaluation.metrics["AP"])
    write_report(tmp_path, evaluation, data)
    assert not re.search(r"\bnan\b|-1\.000", read(tmp_path).text)


def test_many_classes(tmp_path: Path) -> None:
    data = make_data(tmp_path, images=3)
    many = tuple(Category(id=number, name=f"class {number}") for number in range(30))
    data = DetectionData(source=data.source, categories=many, images=data.images)
    write_report(tmp_path, coco_metrics(data, {}), data)
    assert sum("class 29" in text for text in svgs(read(tmp_path))) == 1


def test_worst_and_best_images_are_different_ones(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    evaluation = measure(data)
    worst = worst_images(evaluation, data, 2)
    assert [record.id for record in worst] == [1, 3]
    best = best_images(evaluation, data, worst)
    assert [record.id for record in best] == [2, 4, 5]
    assert [record.id for record in worst_images(evaluation, data, 20)] == [1, 3, 5]  # no others have errors


def test_of_equally_bad_images_that_with_the_most_errors_is_the_worst(tmp_path: Path) -> None:
    data = make_data(tmp_path, images=3)
    boxes = torch.tensor([[5.0, 5.0, 30.0, 40.0]])
    one = Detections(
        boxes_xyxy=boxes, scores=torch.ones(1), labels=torch.tensor([1]), categories=CATEGORIES, size=(48, 64)
    )
    two = replace(
        one, boxes_xyxy=boxes.repeat(2, 1), scores=torch.ones(2), labels=torch.zeros(2, dtype=torch.long)
    )
    # 0 has no object and two false positives; 1 and 2 have one object each, of which one is found.
    evaluation = coco_metrics(data, {0: two, 1: one})
    assert evaluation.operating_point.image_f1 == {0: 0.0, 1: 1.0, 2: 0.0}
    assert [record.id for record in worst_images(evaluation, data, 20)] == [0, 2]


def test_each_image_lists_its_errors(run_dir: Path) -> None:
    text = read(run_dir).text
    assert "<b>1.png: F1 0.000. 0 found; false negatives: 1 missed." in text
    assert "<b>4.png: F1 1.000. 1 found." in text
    assert all(f"{short} {error_type}" in text for error_type, short in ABBREVIATIONS.items())


def make_detector() -> Detector:
    detector = Detector.from_recipe(
        "detr_r18", categories=CATEGORIES, backbone="test_resnet", width=16, heads=2, feedforward=16,
        encoder_layers=1, decoder_layers=1, queries=4,
    )  # fmt: skip
    detector.preprocessing = Preprocessing(short_side=48, long_side=64)
    return detector


@pytest.mark.usefixtures("no_charts")
def test_worst_images_come_with_pages_to_look_inside(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    data.images[3].path.unlink()
    seen: list[int] = []
    write_report(
        tmp_path,
        measure(data),
        data,
        worst=3,
        detector=make_detector(),
        callback=lambda one: seen.append(one.id),
    )
    page = read(tmp_path)
    links = [link for link in page.links if link not in page.images]
    assert links == ["inspect/worst_01.html", "inspect/worst_03.html"]  # the second image is gone
    assert seen == [1, 5]
    for number, link in zip(seen, links, strict=True):
        text = (tmp_path / link).read_text()
        assert f"<h1>Inspector: &lt;b&gt;{number}.png</h1>" in text
        assert '"objects": {"labels": [' in text
    assert sorted(each.name for each in (tmp_path / "inspect").iterdir()) == [
        "worst_01.html",
        "worst_03.html",
    ]


def report_of(run: Path, folder: Path) -> str:
    folder.mkdir()
    data = make_data(folder, images=1)
    write_report(run, measure(data), data)
    return read(run).text


@pytest.mark.usefixtures("no_charts")
def test_a_diagnosis_is_part_of_a_run_s_report(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert "No problem found in the record of the run." in report_of(run, tmp_path / "1")
    validation = replace(SPLIT, objects={"cat": 600, "dog": 400, "<b>owl": 200})
    add_to_record(run, validation=validation)
    text = report_of(run, tmp_path / "2")
    assert "No training image has an object of: <b>owl. (data)" in text
    assert "in the validation data: 200" in text
    assert "Split the data again" in text
    add_to_record(run, evaluation=None)
    assert "Not examined: the run has not been evaluated yet" in report_of(run, tmp_path / "3")


@pytest.mark.usefixtures("no_charts")
def test_a_run_s_report_begins_with_what_to_do_next(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "best.safetensors").touch()
    validation = replace(SPLIT, objects={"cat": 600, "dog": 400, "<b>owl": 200})
    add_to_record(run, validation=validation)
    data = make_data(tmp_path)
    text = read(write_report(run, measure(data), data).parent).text
    first, worst, predict, export = next_steps(run, measure(data), diagnose(run))
    assert first.text.startswith("To raise the AP: No training image has an object of: <b>owl. ")
    assert worst.text.startswith("Look at the worst images below. Of 3 errors, 3 are of the type 'missed'.")
    assert predict.command == f"querybox predict {run} IMAGES --threshold 0.75"
    assert export.command == f"querybox export {run} --to onnx"
    places = [text.index(step.text) for step in (first, worst, predict, export)]
    assert places == sorted(places)
    assert places[-1] < text.index("Likely causes of a low AP")


@pytest.mark.parametrize(("threshold", "expected"), [(0.996999979, "0.99"), (0.75, "0.75"), (0.004, "0.00")])
def test_the_threshold_of_the_command_keeps_what_was_counted(
    tmp_path: Path, threshold: float, expected: str
) -> None:
    run = write_run(tmp_path)
    (run / "best.safetensors").touch()
    evaluation = measure(make_data(tmp_path))
    point = replace(evaluation.operating_point, threshold=threshold)
    steps = next_steps(run, replace(evaluation, operating_point=point), None)
    assert steps[-2].command.endswith(f" --threshold {expected}")


def test_without_errors_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    evaluation = measure(data)
    assert most_frequent_error(evaluation) == "Of 3 errors, 3 are of the type 'missed'."
    perfect = measure(data.only([0, 2, 4]))
    assert most_frequent_error(perfect) == ""
    assert next_steps(tmp_path, perfect, None) == []


def test_literal_names() -> None:
    assert literal("$x$") == r"\$x\$"
    assert literal("two\nlines") == "two lines"
    assert literal("a" * 40) == "a" * 27 + "…"


def test_in_a_browser(tmp_path: Path) -> None:
    """Nothing is asked for, nothing goes wrong, all can read it, and its links lead somewhere."""
    program = find_chromium()
    data = make_data(tmp_path)
    path = write_report(tmp_path, measure(data), data, worst=1, detector=make_detector())
    with chromium(program, tmp_path / "profile") as page:
        for width in (1200, 390):
            page.size(width, 800)
            page.open(path, "document.readyState === 'complete'")
            assert page.run("document.documentElement.scrollWidth") <= width
            assert all(page.run("Array.from(document.images, (image) => image.naturalWidth > 0)"))
            for scheme in ("light", "dark"):
                page.scheme(scheme)
                found = run_axe(page)
                assert not found, json.dumps(found, indent=1)
            page.click("figcaption a")
            page.wait("document.querySelector('#description')?.textContent")
            assert page.run("document.querySelector('h1').textContent") == "Inspector: <b>1.png"
            page.click("[value=matching]")
            assert page.run("document.querySelectorAll('#marks .over[data-line=match]').length") == 1
        assert page.errors == []
        pages = [path.as_uri(), (tmp_path / "inspect" / "worst_01.html").as_uri()]
        assert [url for url in page.requests if not url.startswith("data:")] == pages * 2
