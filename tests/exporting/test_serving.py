from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from servers import picture, serving

from querybox.exporting import ExportedModel, load_exported
from querybox.serving.workers import open_engines


def test_exported_models_answer_in_several_threads(file: Path, engine: ExportedModel, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    models = iter([engine, load_exported(file, trusted=True)])
    try:
        engines = open_engines(partial(next, models), 2)
    finally:
        torch.set_num_threads(threads)
    assert engines[0] is not engines[1]  # a request of OpenVINO can be used by one thread at a time
    files = [picture(64, 96, seed=seed) for seed in range(8)]
    with serving(engines) as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(partial(client.predict, query="?threshold=0"), files))
    for content, answer in zip(files, answers, strict=True):
        (tmp_path / "a.png").write_bytes(content)
        (found,) = engine.predict(tmp_path / "a.png", threshold=0)
        detections = answer.json["images"][0]["detections"]
        assert [each["score"] for each in detections] == found.scores.tolist()
        assert [each["box_xyxy"] for each in detections] == found.boxes_xyxy.tolist()
        assert [each["segmentation"] for each in detections] == [m.to_coco() for m in found.known_masks("")]
