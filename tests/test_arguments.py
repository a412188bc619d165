"""Wrong types and values given to public functions are errors of the library that say what is expected.

Tests check the types of all arguments with beartype. These calls run in a process of their own, so that they reach the
library as those of users do.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import run_program

EXAMPLE = Path(__file__).parent.parent / "examples" / "blood_cells"
PREPARE = f"""
import dataclasses, io, json, sys
import numpy as np, torch
from PIL import Image
import querybox as qb
from querybox.losses.classification import CrossEntropyLoss, FocalLoss
from querybox.masks import Rle

model = dict(backbone="test_resnet", width=32, heads=4, feedforward=64, encoder_layers=1, decoder_layers=2, queries=10)
detector = qb.Detector.from_recipe("detr_r18", num_classes=2, **model).eval()
image = np.zeros((64, 64, 3), np.uint8)
found = detector.predict(image, threshold=0)[0]
example = {str(EXAMPLE)!r}
data = qb.read_dataset(example, "test")
batch = qb.ImageBatch.from_images([image])
output = detector(batch)
criterion = detector.criterion()
label = torch.tensor([0])
composed = qb.Detector.from_recipe("detr_r18", num_classes=2, **model)
composed.recipe = None
file = io.BytesIO()
Image.fromarray(image).save(file, "jpeg")
truncated = Image.open(io.BytesIO(file.getvalue()[:-9]))
closed = Image.open(file)
closed.close()

def changed(change):
    detector = qb.Detector.from_recipe("detr_r18", num_classes=2, **model).eval()
    change(detector)
    return detector

poisoned = changed(lambda it: it.decoder.box_head[4].bias.data.fill_(float("nan")))

def target(label):
    return qb.Target(boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2]]), labels=torch.tensor([label]))

def masked(masks):
    return dataclasses.replace(target(0), masks=masks)

def detected(**values):
    return dataclasses.replace(found, **values)

def outcome(code):
    try:
        return ["", repr(eval(code))]
    except Exception as error:
        kind = "QueryboxError" if isinstance(error, qb.QueryboxError) else type(error).__name__
        return [kind, str(error)]

print(json.dumps([outcome(code) for code in json.loads(sys.argv[1])]))
"""
A_PATH = "a str or a pathlib.Path"
WRONG = {
    "qb.load(3)": f"load got an object of type int; expected the path of a model: {A_PATH}",
    "qb.load(None)": "load got None; expected the path of a model",
    "qb.load('')": "load got an empty path; expected the path of a model",
    "qb.load(b'a.safetensors')": "load got an object of type bytes; expected the path",
    "qb.Detector.load(3)": "Detector.load got an object of type int; expected the path of a model",
    "qb.read_dataset(3)": f"read_dataset got an object of type int; expected the path of a dataset: {A_PATH}",
    "qb.read_dataset(example, 3)": "read_dataset got an object of type int; expected the name of a split",
    "qb.read_dataset(example, 'test', max_corrupt='a')": "read_dataset got max_corrupt='a'; expected 0 to 1",
    "qb.validate(['a'])": "validate got an object of type list; expected the path of a dataset",
    "qb.validate(example, 3)": "validate got an object of type int; expected the name of a split",
    "qb.validate(example, max_corrupt=5)": "validate got max_corrupt=5; expected 0 to 1",
    "qb.diagnose(3)": "diagnose got an object of type int; expected the path of the folder of a run",
    "qb.train(3)": "train got an object of type int; expected the path of a dataset or a run file, or RunSettings",
    "qb.train('photos', epochs=None)": "setting 'train.epochs' got None",
    "qb.convert(detector, 'a.pth', to='facebook')": "convert got an object of type Detector; expected the path of a",
    "qb.convert('a.pth', 3, to='facebook')": "convert got an object of type int; expected the path of the file or",
    "qb.export('a.pth', 'a.onnx', to='onnx')": "export got an object of type str; expected a Detector",
    "qb.export(detector, 3, to='onnx')": "export got an object of type int; expected the path of the file to write",
    "qb.evaluate('a.pth', data)": "evaluate got an object of type str; expected a model: load it with querybox.load",
    "qb.evaluate(detector, None)": "read_dataset got None; expected the path of a dataset",
    "qb.draw('a.jpg', found)": "got a str as image; expected RGB in 0-255",
    "qb.draw(image / 255, found)": "got a ndarray of float64 [64, 64, 3] as image; expected RGB in 0-255",
    "qb.draw(image[:32], found)": "draw got detections of 64x64 (height x width) for an image of 32x64; expected th",
    "qb.draw(Image.new('I;16', (64, 64)), found)": "got a PIL image of mode I;16, 64 x 64 pixels as image; expected",
    "qb.draw(image, [found])": "draw got an object of type list; expected the Detections of one image",
    "qb.Detector.from_recipe(3, num_classes=2)": "unknown recipe '3'. Known recipes: detr_r50",
    "qb.Detector.from_recipe('detr_r18', num_classes='2')": "got num_classes='2'; expected an integer, 1 to 65536",
    "qb.Detector.from_recipe('detr_r18', num_classes=2.5)": "got num_classes=2.5; expected an integer, 1 to 65536",
    "qb.Detector.from_recipe('detr_r18', num_classes=True)": "got num_classes=True; expected an integer, 1 to 65536",
    "qb.Detector.from_recipe('detr_r18', num_classes=0)": "got num_classes=0; expected an integer, 1 to 65536",
    "qb.Detector.from_recipe('detr_r18', categories=3)": "got an object of type int as categories; expected a sequence",
    "qb.Detector.from_recipe('detr_r18', categories='cat')": "got an object of type str as categories; expected a seq",
    "qb.Detector.from_recipe('detr_r18', categories=[])": "from_recipe got no categories; expected at least one class",
    "qb.Detector.from_recipe('detr_r18', categories=[3])": "got an object of type int; expected a sequence of Categor",
    "qb.Detector.from_recipe('detr_r18', categories=['a', 'a'])": "several categories have the same id or name (a); ma",
    "setattr(detector, 'categories', 3)": "the detector got an object of type int as categories; expected a sequence",
    "setattr(detector, 'categories', [qb.Category(id='1', name='a')])": "expected an integer as id and a str as name",
    "setattr(detector, 'categories', [qb.Category(id=True, name='a')])": "expected an integer as id and a str as name",
    "changed(lambda it: setattr(it, 'categories', 'abc'))": "the detector got an object of type str as categories; exp",
    "changed(lambda it: setattr(it, 'categories', ['a', 'b', 'c'])).predict(image)": "the class head has 2 rows for cl",
    "changed(lambda it: it.half())(batch)": "the detector has parameters of torch.float16, which is too coarse for its",
    "changed(lambda it: it.bfloat16())(batch)": "the detector has parameters of torch.bfloat16, which is too coarse f",
    "changed(lambda it: it.to('meta'))(batch)": "the detector is on meta and the images are on cpu; expected the same",
    "changed(lambda it: it.to('meta')).predict(image)": "the parameters of the detector are on the meta device, which ",
    "changed(lambda it: it.to('meta')).save('a.safetensors')": "not written, because it could not be loaded again: its",
    "dataclasses.replace(batch, images=batch.images.byte())": "images [1, 3, 64, 64] of torch.uint8, a padding mask [1",
    "dataclasses.replace(batch, images=torch.zeros(1, 4, 64, 64))": "ImageBatch got images [1, 4, 64, 64] of torch.flo",
    "dataclasses.replace(batch, images=torch.tensor(1.0))": "ImageBatch got images [] of torch.float32, a padding mask",
    "dataclasses.replace(batch, padding_mask=batch.padding_mask[:, 32:])": "a padding mask [1, 32, 64] of torch.bool a",
    "dataclasses.replace(batch, padding_mask=batch.padding_mask.float())": "a padding mask [1, 64, 64] of torch.float3",
    "dataclasses.replace(batch, padding_mask=None)": "ImageBatch.padding_mask got None; expected a tensor: use ImageB",
    "dataclasses.replace(batch, sizes=batch.sizes[0])": "and sizes [2]; expected normalised images [B, 3, H, W], a mas",
    "qb.ImageBatch.from_images([image], device='gpu')": "from_images got device='gpu', which PyTorch cannot use (Expec",
    "qb.ImageBatch.from_images([image], device='gpu:0')": "finds here: 'cuda' for GPUs of NVIDIA and AMD, 'mps' for th",
    "qb.ImageBatch.from_images([image], device=3.5)": "from_images got an object of type float; expected a device, suc",
    "changed(lambda it: it.backbone.half())(batch)": "of torch.float16 and torch.float32, which cannot be combined (ex",
    "changed(lambda it: it.neck.double())(batch)": "of torch.float32 and torch.float64, which cannot be combined (Inpu",
    "changed(lambda it: it.encoder.layers[0].half())(batch)": "the detector has parameters of torch.float16 and torch.",
    "changed(lambda it: it.decoder.bfloat16())(batch)": "expected torch.float32: use detector.float() with torch.autoc",
    "setattr(detector, 'preprocessing', 3)": "the detector got an object of type int; expected a Preprocessing as prep",
    "setattr(detector, 'recipe', 3)": "the detector got an object of type int; expected the Recipe that it was built f",
    "qb.train('photos', recipe=3)": "setting 'recipe' got 3: input should be a valid string",
    "qb.Preprocessing(pixel_range=(False, True))": "got pixel_range=(False, True); expected two finite numbers, the lo",
    "qb.Preprocessing(pixel_range='ab')": "Preprocessing got pixel_range='ab'; expected two finite numbers, the lower",
    "qb.Preprocessing(pixel_range=(0, 9, 99))": "got pixel_range=(0, 9, 99); expected two finite numbers, the lower fi",
    "qb.Preprocessing(resizing='strech')": "got resizing='strech'; expected one of querybox, facebook, huggingface, mm",
    "qb.load(example + '/weights.safetensors', heads=True)": "got heads=True, but the file says 4; omit heads",
    "poisoned.predict(image)": "an image in memory: the model predicts NaN or infinite values: its weights are unusab",
    "poisoned.predict(image, threshold=1)": "an image in memory: the model predicts NaN or infinite values",
    "poisoned.trace(image)": "an image in memory: the model predicts NaN or infinite values",
    "poisoned.save('a.safetensors')": "could not be loaded again: 1 tensors have NaN or infinite values: decoder.box_",
    "detector.save(3)": "save got an object of type int; expected the path of the file to write",
    "detector.save('a.safetensors', dtype='fp16')": "save got dtype='fp16'; expected a floating-point type",
    "detector.save('a.safetensors', dtype=torch.int8)": "save got dtype=torch.int8; expected a floating-point type",
    "detector.save('a.safetensors', dtype=getattr(torch, 'float8_e8m0fnu', 8))": "save got dtype=",
    "detector.save('a.safetensors', dtype=getattr(torch, 'float4_e2m1fn_x2', 4))": "save got dtype=",
    "detector.predict(None)": "predict got None; expected a path, a PIL image, or a uint8 array or tensor, or",
    "detector.predict(3)": "predict got an object of type int; expected a path, a PIL image",
    "detector.predict([[1, 2], [3]])": "predict got an object of type list; expected a path, a PIL image",
    "detector.predict([None])": "predict got None; expected a path, a PIL image",
    "detector.predict(b'x')": "predict got an object of type bytes; expected a path, a PIL image",
    "detector.predict(io.BytesIO(b'x'))": "predict got an object of type BytesIO; expected a path, a PIL image",
    "detector.predict(image / 255)": "got a ndarray of float64 [64, 64, 3] as image; expected RGB in 0-255",
    "detector.predict(torch.rand(3, 64, 64))": "got a Tensor of torch.float32 [3, 64, 64] as image; expected RGB",
    "detector.predict(image[..., 0])": "got a ndarray of uint8 [64, 64] as image; expected RGB in 0-255",
    "detector.predict(Image.new('F', (9, 9)))": "got a PIL image of mode F, 9 x 9 pixels as image; expected RGB in",
    "detector.predict(image, threshold='0.5')": "predict got threshold='0.5'; expected 0 to 1",
    "detector.predict(image, threshold=None)": "predict got threshold=None; expected 0 to 1",
    "detector.predict(image, threshold=float('nan'))": "predict got threshold=nan; expected 0 to 1",
    "detector.predict(image, top_k=2.5)": "predict got top_k=2.5; expected an integer, 1 or more",
    "detector.predict(image, nms=[1])": "predict got nms=[1]; expected 0 to 1",
    "detector.predict(image, batch_size=None)": "predict got batch_size=None; expected an integer, 1 or more",
    "detector.predict(image, top_k=True)": "predict got top_k=True; expected an integer, 1 or more",
    "detector.predict(image, batch_size=True)": "predict got batch_size=True; expected an integer, 1 or more",
    "detector.predict(image, threshold=False)": "predict got threshold=False; expected 0 to 1",
    "detector.predict(image, nms=True)": "predict got nms=True; expected 0 to 1",
    "detector.predict(image, tile=640, overlap=False)": "tiles got overlap=False; expected 0 to 0.9",
    "detector.trace(3)": "got an object of type int; expected a path, a PIL image",
    "detector.trace([image, image])": "trace got more than one image; expected one",
    "detector.trace(image, target=[1])": "trace got an object of type list; expected a Target",
    "detector(image)": "the detector got an object of type ndarray; expected an ImageBatch: ImageBatch.from_images",
    "qb.ImageBatch.from_images(None)": "from_images got None; expected a list of images",
    "qb.ImageBatch.from_images(image)": "from_images got an object of type ndarray; expected a list of images",
    "qb.ImageBatch.from_images([])": "from_images got no images; expected at least one",
    "qb.ImageBatch.from_images([image / 255])": "got a ndarray of float64 [64, 64, 3] as image",
    "qb.ImageBatch.from_images([torch.rand(3, 9, 9)])": "got a Tensor of torch.float32 [3, 9, 9] as image",
    "qb.ImageBatch.from_images(['a.jpg'])": "got a str as image; expected RGB in 0-255: a PIL image of 8 bits, a uint8",
    "qb.ImageBatch.from_images([image[..., 0]])": "got a ndarray of uint8 [64, 64] as image; expected RGB in 0-255",
    "qb.ImageBatch.from_images([np.zeros((9, 9, 4), np.uint8)])": "got a ndarray of uint8 [9, 9, 4] as image; expected",
    "qb.ImageBatch.from_images([torch.from_numpy(image)])": "got a Tensor of torch.uint8 [64, 64, 3] as image; expect",
    "qb.ImageBatch.from_images([torch.zeros(3, 9, 9).char()])": "got a Tensor of torch.int8 [3, 9, 9] as image; expect",
    "qb.ImageBatch.from_images([torch.zeros(3, 9, 9).bool()])": "got a Tensor of torch.bool [3, 9, 9] as image; expect",
    "qb.ImageBatch.from_images([torch.zeros(3, 9, 9).cfloat()])": "got a Tensor of torch.complex64 [3, 9, 9] as image",
    "detector.predict(torch.zeros(3, 9, 9, dtype=torch.uint8, device='meta'))": "[3, 9, 9] on meta as image; expected",
    "detector.predict(torch.zeros(3, 9, 9, dtype=torch.uint8).to_sparse())": "got a Tensor of torch.uint8 [3, 9, 9]",
    "detector.predict(Image.new('RGB', (0, 0)))": "got a PIL image of mode RGB, 0 x 0 pixels as image; expected RGB in",
    "detector.predict(Image.new('L', (9, 0)))": "got a PIL image of mode L, 9 x 0 pixels as image; expected RGB in",
    "detector.predict(truncated)": "got a PIL image of mode RGB that cannot be decoded: image file is truncated",
    "detector.predict(closed)": "got a PIL image of mode RGB that cannot be decoded: Operation on closed image",
    "found.above('0.5')": "above got threshold='0.5'; expected 0 to 1",
    "found.nms(None)": "nms got iou=None; expected 0 to 1",
    "detected(scores=found.scores * 40)": "Detections got scores from ",
    "detected(scores=found.scores * torch.nan)": "Detections got scores from nan to nan; expected 0 to 1",
    "detected(scores=found.scores[:9])": "got boxes_xyxy [10, 4], scores [9], labels [10]; expected [N, 4] boxes_xyx",
    "detected(scores=torch.tensor(0.5))": "got boxes_xyxy [10, 4], scores [], labels [10]; expected [N, 4] boxes_xyxy",
    "detected(scores=found.scores.clone().requires_grad_())": "got scores on cpu with a gradient; expected a tensor on",
    "detected(boxes_xyxy=found.boxes_xyxy.to('meta'))": "got boxes_xyxy on meta; expected a tensor on the CPU without",
    "detected(boxes_xyxy=found.boxes_xyxy.numpy())": "Detections.boxes_xyxy got an object of type ndarray; expected a",
    "detected(labels=found.labels + 7)": "for 2 categories; expected 0 to 1: a label is an index into the categories,",
    "detected(labels=found.labels - 2)": "Detections got labels from -",
    "detected(labels=found.scores)": "got labels of torch.float32, scores of torch.float32, boxes_xyxy of torch.float",
    "detected(size=[64, 64])": "Detections got size=[64, 64]; expected (height, width) of the image in pixels, a tupl",
    "detected(size=(64, 64.5))": "Detections got size=(64, 64.5); expected (height, width) of the image in pixels",
    "detected(size=(0, 64))": "Detections got size=(0, 64); expected (height, width) of the image in pixels",
    "detected(categories=None)": "Detections.categories got None; expected a tuple of Category, by label",
    "detected(categories=('cat', 'dog'))": "Detections got categories of type str; expected Category(id=..., name=...",
    "qb.evaluate(detector, data, max_corrupt=5)": "evaluate got max_corrupt=5; expected 0 to 1",
    "qb.evaluate(detector, data, max_corrupt=None)": "evaluate got max_corrupt=None; expected 0 to 1",
    "detected(masks=np.zeros((10, 9, 9), dtype=bool))": "Detections.masks got an object of type ndarray; expected an",
    "detected(masks=(Rle.of(np.zeros((9, 8), dtype=bool)),) * 10)": "got a mask of 9x8 for an image of 64x64; expected",
    "detected(masks=())": "labels [10], masks 0; expected [N, 4] boxes_xyxy and N of each other",
    "qb.Target(boxes=[[0.1] * 4], labels=[1])": "Target.boxes got an object of type list; expected a tensor",
    "qb.Target(boxes=torch.zeros(1, 4), labels=np.zeros(1))": "Target.labels got an object of type ndarray",
    "qb.Target(boxes=torch.zeros(1, 4), labels=torch.zeros(1))": "[1, 4] of torch.float32 and labels [1] of torch.floa",
    "qb.Target(boxes=torch.zeros(4), labels=torch.tensor(1))": "boxes [4] of torch.float32 and labels [] of torch.int6",
    "qb.Target(boxes=torch.zeros(1, 4), labels=torch.zeros(1).bool())": "G integers of torch.int64: boxes.float(), lab",
    "qb.Target(boxes=torch.zeros(1, 4), labels=torch.zeros(1).int())": "G integers of torch.int64: boxes.float(), labe",
    "qb.Target(boxes=torch.ones(1, 4).int(), labels=label)": "[G, 4] floating-point numbers and G integers",
    "qb.Target(boxes=torch.zeros(1, 4).cfloat(), labels=label)": "[G, 4] floating-point numbers and G integers",
    "qb.Target(boxes=torch.tensor([[40.0, 30, 20, 20]]), labels=label)": "values from 20 to 40; expected (centre x, ce",
    "qb.Target(boxes=torch.tensor([[0.5, -0.1, 0.2, 0.2]]), labels=label)": "boxes with values from -0.1 to 0.5; expec",
    "qb.Target(boxes=torch.full((1, 4), torch.nan), labels=label)": "got boxes with values from nan to nan; expected",
    "qb.Target(boxes=torch.full((1, 4), torch.inf), labels=label)": "got boxes with values from inf to inf; expected",
    "qb.Target(boxes=torch.zeros(1, 4), labels=label - 1)": "Target got the label -1; expected 0 to C-1 for C classes",
    "qb.Target(boxes=torch.zeros(1, 4), labels=label.to('meta'))": "boxes on cpu and labels on meta; expected the same",
    "qb.Target(boxes=torch.zeros(1, 4), labels=label, masks=[1])": "Target.masks got an object of type list; expected",
    "masked(torch.zeros(1, 9, 9))": "masks [1, 9, 9] of torch.float32 for 1 objects; expected [G, height, width]",
    "masked(torch.zeros(2, 9, 9).bool())": "masks [2, 9, 9] of torch.bool for 1 objects; expected [G, height, width]",
    "masked(torch.zeros(9, 9).bool())": "masks [9, 9] of torch.bool for 1 objects; expected [G, height, width]",
    "masked(torch.zeros(1, 9, 9).bool().to('meta'))": "masks on meta and labels on cpu; expected the same device",
    "criterion(output, [target(2)])": "the criterion got the label 2 for 2 classes; expected labels from 0 to 1",
    "criterion(output, [target(0).to('meta')])": "got targets on meta and images on cpu; expected the same device: tar",
    "detector(batch, [target(2)])": "the detector got the label 2 for 2 classes; expected labels from 0 to 1",
    "detector(batch, target(0))": "the detector got an object of type Target; expected a list with a Target for each",
    "detector(batch, [])": "the detector got 0 targets for 1 images; expected one for each",
    "qb.Criterion(3)": "Criterion got an object of type int; expected a HungarianMatcher",
    "qb.Criterion(classification='focal')": "Criterion got an object of type str; expected a CrossEntropyLoss or a Foc",
    "qb.Criterion(qb.HungarianMatcher(), classification=FocalLoss())": "FocalLoss and a matcher with CrossEntropyLoss;",
    "qb.Criterion(box_weight=float('nan'))": "Criterion got box_weight=nan; expected 0 to 1000000.0",
    "detector.predict([], track='deepsort')": "predict got track='deepsort'; expected one of bytetrack, sort, ocsort",
    "qb.Criterion(auxiliary='no')": "Criterion got an object of type str; expected True or False",
    "qb.Criterion(class_weight=float('inf'))": "Criterion got class_weight=inf; expected 0 to 1000000.0",
    "FocalLoss(gamma=float('nan'))": "FocalLoss got gamma=nan; expected 0 to 100",
    "CrossEntropyLoss(no_object_weight='a')": "CrossEntropyLoss got no_object_weight='a'; expected 0 to 1000000.0",
    "qb.ImageBatch.from_images([image], None)": "from_images got None; expected a Preprocessing: detector.prepro",
    "qb.HungarianMatcher('1')": "HungarianMatcher got class_cost='1'; expected 0 to 1000000.0",
    "qb.HungarianMatcher(giou_cost=-2)": "HungarianMatcher got giou_cost=-2; expected 0 to 1000000.0",
    "qb.HungarianMatcher(classification=3)": "HungarianMatcher got an object of type int; expected a CrossEntropyLoss",
    "qb.Detector.of(composed).criterion()": "criterion: the detector was not built by a recipe, so its losses are not",
    "criterion(output, None)": "the criterion got None; expected a list with a Target for each image",
    "criterion(output, [{}])": "the criterion got an object of type dict; expected a Target for each image",
    "criterion(output, [])": "the criterion got 0 targets for 1 images; expected one for each",
    "criterion(None, [])": "the criterion got None; expected the DetectorOutput of a detector",
    "qb.models.find(['dino_small'])": "unknown recipe '['dino_small']'",
    "qb.RunSettings.parse(None)": "got None",
    "qb.RunSettings(epochs=3)": "setting 'data' is missing; unknown setting 'epochs'. Did you mean 'train.epochs'?",
    "qb.RunSettings(recipe=3, data='a', train=dict(epochs='x'))": "setting 'train.epochs' got 'x'",
    "qb.models.DETR(width='x')": "setting 'width' got 'x'",
    "qb.models.DETR(width=2**40)": "setting 'width' got 1099511627776: input should be less than or equal to 4096",
    "qb.models.DETR(feedforward=2**40)": "setting 'feedforward' got 1099511627776: input should be less than or equal",
    "qb.models.DINO(points=2**40)": "setting 'points' got 1099511627776: input should be less than or equal to 100",
    "qb.models.DINO(denoising=2**40)": "setting 'denoising' got 1099511627776: input should be less than or equal to 1",
    "qb.models.RTDETR(encoder_width=2**40)": "setting 'encoder_width' got 1099511627776: input should be less than or",
    "qb.RunSettings(data=dict(workers=2**40))": "setting 'data.workers' got 1099511627776: input should be less than o",
    "qb.RunSettings(data=dict(multi_scale=2**40))": "setting 'data.multi_scale' got 1099511627776: input should be les",
    "qb.RunSettings(data=dict(crop_scales=[2**40]))": "setting 'data.crop_scales.0' got 1099511627776: input should be",
    "qb.RunSettings(data={}, train=dict(seed=2**70))": "setting 'train.seed' got 1180591620717411303424: input should",
    "setattr(qb.RunSettings(data={}), 'output', 'a')": "RunSettings: got a new value for 'output', but settings cannot",
    "qb.models.DETR(withd=64)": "unknown setting 'withd'. Did you mean 'width'?",
}  # fmt: skip
RIGHT = {
    "changed(lambda it: it.double())(batch).layers[-1].logits.dtype": "torch.float64",
    "changed(lambda it: it.half()).predict(image, threshold=0)": "[Detections(10 objects",
    "changed(lambda it: it.bfloat16()).predict(image, threshold=0)": "[Detections(10 objects",
    "changed(lambda it: setattr(it, 'categories', ['cat', 'dog'])).categories[1]": "Category(id=1, name='dog'",
    "qb.Detector.from_recipe('detr_r18', categories=('cat', 'dog'), **model).categories[1]": "Category(id=1, name='dog",
    "detector.predict(image, threshold=np.float32(0), top_k=np.int64(3))": "[Detections(3 objects",
    "detector.predict((image, torch.from_numpy(image).permute(2, 0, 1)), threshold=1)": "[Detections(0 objects), Det",
    "detector.predict(iter([image]), threshold=1)": "[Detections(0 objects)]",
    "detector.predict([])": "[]",
    "qb.draw(torch.from_numpy(image).permute(2, 0, 1), found).size": "(64, 64)",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The kind of error ("" for none) and the message, or the result, of every call."""
    calls = [*WRONG, *RIGHT]
    printed = run_program(PREPARE, tmp_path_factory.mktemp("empty"), json.dumps(calls))
    return dict(zip(calls, json.loads(printed.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_argument_is_an_error_of_the_library(call: str, outcomes: dict[str, list[str]]) -> None:
    kind, message = outcomes[call]
    assert kind == "QueryboxError", message
    assert WRONG[call] in message
    assert "\n" not in message


@pytest.mark.parametrize("call", RIGHT)
def test_what_is_right_stays_so(call: str, outcomes: dict[str, list[str]]) -> None:
    kind, result = outcomes[call]
    assert kind == "", result
    assert result.startswith(RIGHT[call])
