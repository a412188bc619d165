from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_writers import changed
from PIL import Image

from querybox.data import Batch, DataSettings, DetectionData, read_dataset, train_loader
from querybox.data.findings import FindingCollector
from querybox.data.loader import collate
from querybox.data.phases import Phases
from querybox.data.records import ImageRecord, make_record
from querybox.data.sampler import BatchSampler
from querybox.data.scan import examine_images
from querybox.data.training_images import AugmentedImage, TrainingImages, UnreadableImage, decoded_bytes
from querybox.errors import ConfigError
from querybox.structures import Category

SAMPLE = Path(__file__).parent.parent / "data" / "coco_sample"
SMALL = DataSettings(image_size=64, workers=0)


@pytest.fixture
def sample() -> DetectionData:
    return read_dataset(SAMPLE, "train")


def epoch(data: DetectionData, settings: DataSettings, number: int = 0, **values: Any) -> list[Batch]:
    loader = train_loader(data, settings, **{"batch_size": 2, "seed": 0, **values})
    loader.batch_sampler.set_epoch(number)
    return list(loader)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.image_ids for batch in first] == [batch.image_ids for batch in second]
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.pixels, b.pixels, rtol=0, atol=0)
        torch.testing.assert_close(a.sizes, b.sizes, rtol=0, atol=0)
        for one, other in zip(a.targets, b.targets, strict=True):
            torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=0)
            torch.testing.assert_close(one.labels, other.labels, rtol=0, atol=0)


def test_a_batch_is_padded_and_its_targets_are_normalised(sample: DetectionData) -> None:
    (batch,) = epoch(sample, SMALL, batch_size=3)
    assert batch.pixels.dtype == torch.uint8
    assert sorted(batch.image_ids) == [204805, 401416, 542145]
    assert batch.pixels.shape[2:] == tuple(batch.sizes.amax(0).tolist())
    for pixels, (height, width), target in zip(
        batch.pixels, batch.sizes.tolist(), batch.targets, strict=True
    ):
        assert not pixels[:, height:].any()
        assert not pixels[:, :, width:].any()
        assert pixels[:, :height, :width].any()
        corners = torch.cat(
            [target.boxes[:, :2] - target.boxes[:, 2:] / 2, target.boxes[:, :2] + target.boxes[:, 2:] / 2]
        )
        assert corners.min() >= -1e-6
        assert corners.max() <= 1 + 1e-6


def test_crowds_are_no_targets(sample: DetectionData) -> None:
    settings = DataSettings(image_size=64, workers=0, crop=0)
    (batch,) = epoch(sample, settings, batch_size=3)
    real = {image.id: int((~image.crowd).sum()) for image in sample.images}
    assert real[204805] == len(sample.images[0].labels) - 1
    assert {
        number: len(target.labels) for number, target in zip(batch.image_ids, batch.targets, strict=True)
    } == real


def test_batches_do_not_depend_on_workers_or_cache_and_change_with_the_epoch(sample: DetectionData) -> None:
    alone = train_loader(sample, SMALL, batch_size=2, seed=3)
    helped = train_loader(sample, SMALL.replace(workers=2), batch_size=2, seed=3)
    cached = train_loader(sample, SMALL.replace(cache=True), batch_size=2, seed=3)
    seen = []
    for number in (0, 1, 5):
        for loader in (alone, helped, cached):
            loader.batch_sampler.set_epoch(number)
        seen.append(list(alone))
        assert_same(seen[-1], list(helped))
        assert_same(seen[-1], list(cached))
    assert any(a.pixels.shape != b.pixels.shape for a, b in zip(seen[0], seen[1], strict=True))


STRONG = SMALL.replace(
    stretch=True, mosaic=0.7, mixup=0.7, zoom_out=0.5, iou_crop=0.5, photometric=0.5, multi_scale=1
)


def test_strong_augmentation_does_not_depend_on_workers_or_cache(sample: DetectionData) -> None:
    values = {"batch_size": 2, "epochs": 4}
    for number in range(4):
        alone = epoch(sample, STRONG, number, **values)
        assert_same(alone, epoch(sample, STRONG.replace(cache=True), number, **values))
    assert_same(alone, epoch(sample, STRONG.replace(workers=2), 3, **values))


def test_all_images_of_a_batch_have_its_size(sample: DetectionData) -> None:
    settings = SMALL.replace(stretch=True, multi_scale=2, zoom_out=0.5, mosaic=0.5)
    assert settings.sizes().scales == (32, 64)  # multiples of 32 in 48 to 80, rounded down
    images = replace(sample, images=sample.images[:2])
    sizes = {
        tuple(batch.sizes.unique(dim=0).flatten().tolist())
        for number in range(10)
        for batch in epoch(images, settings, number, epochs=10)
    }
    assert sizes == {(32, 32), (64, 64)}
    oblong = SMALL.replace(scales=(40, 48), multi_scale=1, crop=0)
    seen = {
        tuple(batch.sizes.amin(1).tolist())
        for number in range(10)
        for batch in epoch(images, oblong, number, epochs=10)
    }
    assert seen == {(40, 40), (48, 48), (64, 64)}


def test_sizes_of_multi_scale_batches_are_those_of_rtdetr() -> None:
    published = DataSettings(image_size=640, stretch=True, multi_scale=3)
    assert published.sizes().scales == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    scales = Phases(published, 0, 1).scales
    assert sorted(scales) == [480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800]
    small = DataSettings(image_size=320, stretch=True, multi_scale=1)
    assert small.sizes().scales == (224, 256, 288, 320, 352, 384)
    odd = DataSettings(image_size=100, stretch=True, multi_scale=1)
    assert odd.sizes().scales == (64, 96, 100)
    assert odd.sizes().decoded_side == 200


def test_mixed_images_have_the_objects_of_both(sample: DetectionData) -> None:
    settings = SMALL.replace(stretch=True, crop=0, horizontal_flip=0)
    (plain,) = epoch(sample, settings, batch_size=3)
    (mixed,) = epoch(sample, settings.replace(mixup=1.0), batch_size=3)
    assert mixed.image_ids == plain.image_ids
    for number in range(3):
        own, other = plain.targets[number], plain.targets[number - 1]
        torch.testing.assert_close(mixed.targets[number].boxes, torch.cat([own.boxes, other.boxes]))
        assert mixed.targets[number].labels.tolist() == [*own.labels.tolist(), *other.labels.tolist()]
    mean = (plain.pixels[1].float() + plain.pixels[0].float()) / 2
    assert (mixed.pixels[1] - mean).abs().max() <= 0.05 * 255 + 0.5


def test_mixup_needs_two_images(sample: DetectionData) -> None:
    with pytest.raises(ConfigError, match=r"each process trains on one image.*increase 'train.batch_size'"):
        epoch(sample, SMALL.replace(mixup=0.5), batch_size=2, world_size=2)


def test_an_image_that_is_gone_leaves_its_part_of_a_mosaic_empty(sample: DetectionData) -> None:
    gone = [changed(image, path=Path("gone.jpg")) for image in sample.images[1:]]
    data = replace(sample, images=(sample.images[0], *gone))
    images = TrainingImages(data, SMALL.replace(mosaic=1.0, stretch=True), 0, fill=(0.0, 255.0, 0.0))
    found = images[0, 3]
    assert isinstance(found, AugmentedImage)
    green = (found.sample.pixels.permute(1, 2, 0) == torch.tensor([0, 255, 0])).all(2)
    assert 0.2 < green.float().mean() < 0.95
    assert isinstance(images[1, 3], UnreadableImage)


def test_an_image_varies_with_the_epoch_and_the_seed(sample: DetectionData) -> None:
    def pixels(seed: int, number: int) -> bytes:
        item = TrainingImages(sample, SMALL, seed)[0, number]
        assert not isinstance(item, UnreadableImage)
        return item.sample.pixels.numpy().tobytes()

    assert pixels(0, 0) == pixels(0, 0)
    assert len({pixels(0, 0), pixels(0, 1), pixels(0, 2), pixels(1, 0), pixels(2, 0)}) >= 4


def test_the_global_generator_is_left_alone(sample: DetectionData) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    epoch(sample, SMALL)
    torch.testing.assert_close(torch.rand(1), expected, rtol=0, atol=0)


def test_processes_share_the_batches_of_one(sample: DetectionData) -> None:
    (whole,) = epoch(sample, SMALL, batch_size=4)
    shares = [epoch(sample, SMALL, batch_size=4, rank=rank, world_size=2)[0] for rank in (0, 1)]
    assert [share.image_ids for share in shares] == [whole.image_ids[0::2], whole.image_ids[1::2]]
    for rank, share in enumerate(shares):
        for position, target in enumerate(share.targets):
            torch.testing.assert_close(target.boxes, whole.targets[rank + 2 * position].boxes, rtol=0, atol=0)
            h, w = share.sizes[position].tolist()
            torch.testing.assert_close(
                share.pixels[position, :, :h, :w],
                whole.pixels[rank + 2 * position, :, :h, :w],
                rtol=0,
                atol=0,
            )


@pytest.mark.parametrize("settings", [{"workers": 0}, {"workers": 1}, {"cache": True}])
def test_an_image_that_is_gone_is_left_out_of_its_batch(
    sample: DetectionData, settings: dict[str, Any]
) -> None:
    gone = changed(sample.images[0], path=Path("gone.jpg"))
    data = replace(sample, images=(gone, *sample.images[1:]))
    (batch,) = epoch(data, SMALL.replace(**settings), batch_size=3)
    assert batch.unreadable == (UnreadableImage(204805, "gone.jpg: no such image file"),)
    assert sorted(batch.image_ids) == [401416, 542145]
    assert len(batch.pixels) == len(batch.sizes) == len(batch.targets) == 2


def test_a_batch_without_any_image_has_a_placeholder(sample: DetectionData) -> None:
    gone = [changed(image, path=Path("gone.jpg")) for image in sample.images]
    (batch,) = epoch(replace(sample, images=tuple(gone)), SMALL, batch_size=3)
    assert batch.image_ids == ()
    assert len(batch.unreadable) == 3
    assert len(batch.pixels) == len(batch.targets) == 1
    assert not batch.pixels.any()
    assert len(batch.targets[0].labels) == 0


def test_the_loader_names_every_image_once_lost_or_not(sample: DetectionData) -> None:
    gone = changed(sample.images[1], path=Path("gone.jpg"))
    data = replace(sample, images=(sample.images[0], gone, sample.images[2]))
    seen = [
        batch.image_ids + tuple(lost.image_id for lost in batch.unreadable)
        for batch in epoch(data, SMALL, batch_size=1)
    ]
    assert sorted(seen) == sorted((image.id,) for image in data.images)


def test_what_workers_get_can_be_pickled(sample: DetectionData) -> None:
    loader = train_loader(sample, SMALL, batch_size=2, seed=0)
    copy = pickle.loads(pickle.dumps(loader.dataset))
    first, second = collate([loader.dataset[0, 1]]), collate([copy[0, 1]])
    assert isinstance(first, Batch)
    assert isinstance(second, Batch)
    assert_same([first], [second])


def shapes(landscape: int, portrait: int) -> DetectionData:
    """Return data with so many images of each shape; there are no files."""
    none = np.zeros(0)
    images = tuple(
        ImageRecord(
            id=number,
            path=Path("none"),
            width=4 if number < landscape else 3,
            height=3 if number < landscape else 4,
            boxes_xyxy=np.zeros((0, 4)),
            labels=none.astype(np.int64),
            crowd=none.astype(bool),
            areas=none,
        )
        for number in range(landscape + portrait)
    )
    return DetectionData(source=Path("none"), categories=(Category(id=1, name="a"),), images=images)


def batches(sampler: BatchSampler) -> Iterator[list[int]]:
    for batch in sampler:
        yield [key.image_index for key in batch]


@pytest.mark.parametrize(
    ("landscape", "portrait", "size"), [(20, 9, 4), (3, 3, 4), (8, 0, 4), (1, 2, 4), (5, 5, 1)]
)
def test_shapes_are_kept_apart_and_each_image_comes_once(landscape: int, portrait: int, size: int) -> None:
    sampler = BatchSampler(shapes(landscape, portrait), size, seed=0)
    made = list(batches(sampler))
    total = landscape + portrait
    assert len(made) == len(sampler) == max(1, total // size)
    assert max(Counter(index for batch in made for index in batch).values()) == 1
    assert {len(batch) for batch in made} == {min(size, total)}
    mixed = [len({index < landscape for index in batch}) > 1 for batch in made]
    assert not any(mixed[:-1])


def test_every_image_comes_over_the_epochs() -> None:
    sampler = BatchSampler(shapes(5, 2), 4, seed=0)
    seen: set[int] = set()
    for number in range(20):
        sampler.set_epoch(number)
        seen.update(index for batch in batches(sampler) for index in batch)
    assert seen == set(range(7))


def test_an_epoch_can_be_resumed() -> None:
    sampler = BatchSampler(shapes(20, 9), 4, seed=1)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, skip=5)
    assert list(sampler) == whole[5:]
    assert {key.epoch for batch in whole for key in batch} == {3}
    sampler.set_epoch(4)
    assert list(batches(sampler)) != [[key.image_index for key in batch] for batch in whole]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_global_batches_do_not_depend_on_the_processes(world_size: int) -> None:
    data = shapes(20, 9)
    whole = list(batches(BatchSampler(data, 8, seed=0)))
    shares = [list(batches(BatchSampler(data, 8, 0, rank, world_size))) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        assert sorted(index for share in shares for index in share[number]) == sorted(batch)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("size", [8, 32])  # 32: more than there are images
def test_batches_do_not_depend_on_the_parts(size: int, world_size: int) -> None:
    data = shapes(20, 9)
    whole = list(batches(BatchSampler(data, size, seed=0)))
    samplers = [BatchSampler(data, size, 0, rank, world_size, parts=4) for rank in range(world_size)]
    shares = [list(batches(sampler)) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])} == {4 * len(whole)}
    for number, batch in enumerate(whole):
        parts = [index for share in shares for part in share[4 * number : 4 * number + 4] for index in part]
        assert sorted(parts) == sorted(batch)
    assert {len(part) for part in shares[0][:3]} == {size // 4 // world_size}


def test_parts_have_an_image_for_each_process_and_the_augmentation_of_their_batch() -> None:
    assert [len(part) for part in BatchSampler(shapes(9, 0), 16, 0, 1, 2, parts=4)] == [2, 2]
    phases = Phases(DataSettings(image_size=64, multi_scale=1), seed=0, epochs=1)
    keys = [part[0] for part in BatchSampler(shapes(40, 0), 4, 0, parts=2, phases=phases)]
    scales = [key.augmentation.scale for key in keys]
    assert scales[::2] == scales[1::2] == [phases.batch(0, number, 10).scale for number in range(10)]


def test_batches_that_cannot_be_shared_are_errors() -> None:
    with pytest.raises(ConfigError, match="is 6; expected a multiple of the 2 processes x 2 parts"):
        BatchSampler(shapes(20, 0), 6, 0, 0, 2, parts=2)
    with pytest.raises(ConfigError, match="batch_size is 7; expected a multiple of the 2 processes"):
        BatchSampler(shapes(20, 0), 7, 0, 0, 2)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        BatchSampler(shapes(20, 0), 0, 0)
    with pytest.raises(ConfigError, match="3 images for 4 processes"):
        BatchSampler(shapes(3, 0), 4, 0, 0, 4)


@pytest.mark.parametrize("cache", [False, True])
def test_boxes_of_reduced_images_are_where_the_objects_are(tmp_path: Path, cache: bool) -> None:
    pixels = np.zeros((480, 640, 3), dtype=np.uint8)
    pixels[120:360, 320:480] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    findings = FindingCollector(tmp_path)
    record = make_record(
        id=1,
        path=tmp_path / "a.jpg",
        size=(480, 640),
        boxes_xyxy=[[320, 120, 480, 360]],
        labels=[0],
        findings=findings,
        locate=str,
    )
    data = DetectionData(source=tmp_path, categories=(Category(id=1, name="a"),), images=(record,))
    settings = DataSettings(
        image_size=48, crop=0.0, horizontal_flip=0.0, workers=0, cache=cache, scales=(48,)
    )
    assert decoded_bytes(data, settings) == 3 * 480 * 640 // 16
    (batch,) = train_loader(data, settings, batch_size=1, seed=0)
    assert batch.pixels.shape[-2:] == (48, 64)
    torch.testing.assert_close(batch.targets[0].boxes, torch.tensor([[0.625, 0.5, 0.25, 0.5]]))
    white = batch.pixels[0].float().mean(0) > 127
    assert white[13:35, 33:47].all()
    assert white.sum() == pytest.approx(24 * 16, abs=20)


def test_more_workers_than_cpus_are_kept_and_mentioned_once(
    sample: DetectionData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("querybox.data.loader.available_cpus", lambda: 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)  # as PyTorch counts them
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for _ in range(2):  # warnings are errors
        assert len(epoch(sample, SMALL.replace(workers=2), batch_size=3)) == 1
    assert (
        caplog.messages
        == ["data.workers is 2, but this process may use 1 CPU; data.workers=1 may be faster"] * 2
    )


def test_a_fork_server_imports_what_each_of_its_workers_needs(
    sample: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = forkserver._forkserver  # type: ignore[attr-defined, unused-ignore]
    for use in (
        lambda: train_loader(sample, DataSettings(workers=2), batch_size=2, seed=0),
        lambda: examine_images(()),
    ):
        monkeypatch.setattr(server, "_preload_modules", ["__main__", "json"])  # of a script
        for _ in range(2):
            use()
            assert vars(server)["_preload_modules"] == ["__main__", "json", "querybox.data.loader"]
