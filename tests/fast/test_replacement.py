"""What a user has changed in a detector is what its fast copies compute, too."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from querybox import Detector, ImageBatch, Target
from querybox.fast.convolution import FusedConv2d, FusedLinear
from querybox.fast.fusion import fuse
from querybox.fast.inference import CachedCells
from querybox.fast.replacement import copy_modules
from querybox.fast.training import FoldedConv2d, for_training
from querybox.modules.blocks import FeedForward
from querybox.modules.decoder import Decoder
from querybox.precision import Precision
from querybox.structures import DetectorOutput, Memory, Predictions, Queries

Change = Callable[[nn.Module], None]
EXACT = {**TINY, "dropout": 0.0}
IMAGES = ImageBatch.from_images(
    [torch.randint(256, (3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)]
)
TARGETS = [Target(boxes=torch.tensor([[0.3, 0.4, 0.2, 0.3]]), labels=torch.tensor([1]))]


def make_detector(trained: Change, recipe: str = "detr_r18") -> Detector:
    torch.manual_seed(0)
    detector = Detector.from_recipe(recipe, num_classes=3, **EXACT)
    trained(detector)
    return detector


@pytest.fixture(params=["inference", "training"])
def answer(request: pytest.FixtureRequest) -> Callable[[Detector], Predictions]:
    """Return the answer of a fast copy of a detector."""

    def answer(detector: Detector) -> Predictions:
        fast = detector.optimize() if request.param == "inference" else for_training(detector.train())
        return fast(IMAGES).layers[-1]

    return answer


class LoRALinear(nn.Linear):
    """A linear layer with an update of low rank."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features)
        self.load_state_dict(plain.state_dict())
        self.down = nn.Linear(plain.in_features, 2, bias=False)
        self.up = nn.Linear(2, plain.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


class Doubling(nn.Conv2d):
    """A convolution whose forward method is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def layer_of(detector: Detector) -> Any:
    decoder: Any = detector.decoder
    return decoder.layers[0]


def with_lora(detector: Detector) -> None:
    attention = layer_of(detector).self_attention
    attention.value = LoRALinear(attention.value)
    feedforward = layer_of(detector).feedforward
    feedforward[3] = LoRALinear(feedforward[3])


def with_a_subclass_of_convolution(detector: Detector) -> None:
    first = next(part for part in detector.backbone.modules() if type(part) is nn.Conv2d)
    first.__class__ = Doubling


def with_hooks(kind: type[nn.Module]) -> Change:
    def change(detector: nn.Module) -> None:
        for module in list(detector.modules()):
            if type(module) is kind:
                module.register_forward_hook(lambda *call: 0.7 * call[2])

    return change


def with_pre_hooks(detector: Detector) -> None:
    for module in list(detector.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: (0.9 * inputs[0],))


def with_a_forward_of_its_own(detector: Detector) -> None:
    module = layer_of(detector).feedforward
    plain = module.forward
    module.forward = lambda x: 1.5 * plain(x)


def with_parametrizations(detector: Detector) -> None:
    parametrizations.weight_norm(layer_of(detector).self_attention.query)
    first: Any = next(part for part in detector.backbone.modules() if type(part) is nn.Conv2d)
    parametrizations.weight_norm(first)
    with torch.no_grad():
        first.parametrizations.weight.original0.mul_(1.5)


def with_activation(activation: type[nn.Module]) -> Change:
    def change(detector: nn.Module) -> None:
        for module in list(detector.modules()):
            if isinstance(module, FeedForward):
                module[1] = activation()

    return change


def with_one_layer_in_two_places(detector: Detector) -> None:
    """A convolution that two batch norms follow, in a body of somebody's own."""

    class Body(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            conv = nn.Conv2d(3, 3, 1)
            self.first = nn.Sequential(conv, nn.BatchNorm2d(3))
            self.second = nn.Sequential(conv, nn.BatchNorm2d(3))
            self.body = body

        def forward(self, x: Tensor) -> Any:
            return self.body(self.second[1](self.first[0](x)) + self.first(x) + self.second(x))

    backbone: Any = detector.backbone
    backbone.body = Body(backbone.body)
    backbone.body.first[1].running_var.fill_(3.0)
    backbone.body.second[1].running_var.fill_(0.3)
    backbone.train()


def with_pruning(detector: Detector) -> None:
    prune.l1_unstructured(layer_of(detector).feedforward[0], "weight", amount=0.5)


CHANGES: dict[str, Any] = {
    "pruning": with_pruning,
    "LoRA": with_lora,
    "subclass of a convolution": with_a_subclass_of_convolution,
    "hooks of linear layers": with_hooks(nn.Linear),
    "hooks of convolutions": with_hooks(nn.Conv2d),
    "hooks of batch norms": with_hooks(nn.BatchNorm2d),
    "hooks of activations": with_hooks(nn.ReLU),
    "hooks of dropout": with_hooks(nn.Dropout),
    "hooks of feed-forward networks": with_hooks(FeedForward),
    "pre-hooks": with_pre_hooks,
    "forward of an instance": with_a_forward_of_its_own,
    "parametrizations": with_parametrizations,
    "GELU": with_activation(nn.GELU),
    "SiLU": with_activation(nn.SiLU),
    "one layer in two places": with_one_layer_in_two_places,
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_changes_are_seen(name: str, trained: Change, answer: Callable[[Detector], Predictions]) -> None:
    detector = make_detector(trained)
    before = detector.eval()(IMAGES).layers[-1].logits
    CHANGES[name](detector)
    theirs = detector.eval()(IMAGES).layers[-1]
    assert float((theirs.logits - before).abs().max()) > 1e-3
    ours = answer(detector)
    assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-4)
    assert_close(ours.boxes, theirs.boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["LoRA", "pre-hooks", "hooks of batch norms", "parametrizations", "GELU"])
@torch.no_grad()
def test_changes_are_seen_in_half_precision(name: str, trained: Change) -> None:
    detector = make_detector(trained)
    CHANGES[name](detector)
    ours, theirs = (
        detector.optimize(precision="bf16")(IMAGES).layers[-1],
        detector.eval()(IMAGES).layers[-1],
    )
    assert_close(ours.logits, theirs.logits, rtol=0, atol=0.1)
    assert ours.logits.dtype == torch.float32


class Recorder:
    """Counts the calls of a hook that is a bound method."""

    def __init__(self) -> None:
        self.calls = 0

    def hook(self, *_: object) -> None:
        self.calls += 1


def test_hooks_call_the_same_object(trained: Change, answer: Callable[[Detector], Predictions]) -> None:
    detector, recorder = make_detector(trained), Recorder()
    parts: Any = detector
    for module in (parts, parts.backbone, parts.encoder.position, layer_of(detector).self_attention.query):
        module.register_forward_hook(recorder.hook)
    answer(detector)
    assert recorder.calls == 4


class Mirrored(Detector):
    """A detector whose forward method is its own."""

    def forward(self, batch: ImageBatch, targets: Any = None, object_counts: Any = None) -> DetectorOutput:
        output = super().forward(batch, targets, object_counts)
        layers = tuple(Predictions(logits=-layer.logits, boxes=layer.boxes) for layer in output.layers)
        return DetectorOutput(layers=layers)


@torch.no_grad()
def test_the_forward_method_of_a_subclass_is_run(
    trained: Change, answer: Callable[[Detector], Predictions]
) -> None:
    plain = make_detector(trained)
    theirs = plain.eval()(IMAGES).layers[-1]
    assert_close(answer(Mirrored.of(plain)).logits, -theirs.logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_predict_sees_hooks(trained: Change) -> None:
    detector = make_detector(trained)
    detector.preprocessing = replace(detector.preprocessing, short_side=64)
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    before = detector.predict(picture, threshold=0.0)[0].scores
    layer_of(detector).feedforward.register_forward_hook(lambda *call: 1.5 * call[2])
    assert float((detector.predict(picture, threshold=0.0)[0].scores - before).abs().max()) > 1e-3


def test_gradients_of_lora_layers(trained: Change) -> None:
    detector = make_detector(trained)
    with_lora(detector)
    assert detector.recipe is not None
    gradients = []
    for model in (detector.train(), for_training(detector)):
        detector.zero_grad()
        losses = detector.recipe.criterion()(model(IMAGES), TARGETS)
        torch.stack(list(losses.values())).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in detector.named_parameters() if p.grad is not None})
    assert any(".up." in name for name in gradients[0])
    assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def test_plain_parts_are_replaced(trained: Change) -> None:
    """Or all of the above would hold of copies in which nothing is replaced."""
    detector = make_detector(trained)
    model = detector.optimize().model
    assert not [part for part in model.modules() if type(part) in (nn.Conv2d, nn.Linear, nn.BatchNorm2d)]
    assert {part.activation for part in model.modules() if isinstance(part, FusedConv2d)} >= {nn.ReLU}
    assert {part.activation for part in model.decoder.modules() if isinstance(part, FusedLinear)} >= {nn.ReLU}
    assert isinstance(model.encode, CachedCells)
    assert any(isinstance(part, FoldedConv2d) for part in for_training(detector).modules())


def test_sequences_of_ones_own_are_left_alone() -> None:
    """Its class may call the children of a sequence one by one."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x: Tensor) -> list[Tensor]:
            maps = []
            for step in self.steps:
                x = step(x)
                maps.append(x)
            return maps

    torch.manual_seed(0)
    own = Own().eval()
    norm: Any = own.steps[1]
    norm.running_var.fill_(2.0)
    fused = copy_modules(own)
    fuse(fused)
    x = torch.randn(1, 3, 8, 8)
    assert_close(fused(x), own(x))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("recipe", ["detr_r18", "dino_r50"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
@torch.no_grad()
def test_optimised_copies_can_be_copied(
    duplicate: Callable[[Any], Any], recipe: str, precision: Precision, trained: Change
) -> None:
    engine = make_detector(trained, recipe).optimize(precision=precision)
    before = engine(IMAGES).layers[-1]
    copied = duplicate(engine)
    for each in (copied, engine):
        after = each(IMAGES).layers[-1]
        assert_close(after.logits, before.logits, rtol=0, atol=0)
        assert_close(after.boxes, before.boxes, rtol=0, atol=0)
    ours = {parameter.data_ptr() for parameter in engine.model.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in copied.model.parameters()}
    assert copied.model.encode.encoder is copied.model.encoder


@pytest.mark.parametrize("training", [False, True])
def test_eight_threads(trained: Change, *, training: bool) -> None:
    """`predict` makes a copy in every thread, of a detector that is in either mode."""
    detector = make_detector(trained).train(training)
    detector.preprocessing = replace(detector.preprocessing, short_side=64, long_side=96)
    generator = np.random.default_rng(0)
    pictures = [generator.integers(256, size=(60 + 4 * row, 80, 3), dtype=np.uint8) for row in range(8)]
    expected = [detector.predict(picture, threshold=0.0)[0] for picture in pictures]
    engine = detector.optimize()
    start = Barrier(8)

    def work(place: int) -> list[Any]:
        start.wait()
        found = []
        for picture in (pictures[place], pictures[-place]):
            found += detector.predict(picture, threshold=0.0)
            found += engine.predict(picture, threshold=0.0)
            found += detector.optimize().predict(picture, threshold=0.0)
            nn.Linear(2, 2)(torch.zeros(1, 2))  # PyTorch still works
        return found

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(work, range(8)))
    for place, found in enumerate(results):
        for each, right in zip(found, [expected[place]] * 3 + [expected[-place]] * 3, strict=True):
            assert_close(each.scores, right.scores, rtol=0, atol=1e-6)
            assert_close(each.boxes_xyxy, right.boxes_xyxy, rtol=0, atol=1e-3)
    assert detector.training is training
    assert all(part.training is training for part in detector.decoder.modules())


class OtherDecoder(Decoder):
    """Stands for the decoder of a kind of model that is yet to come."""

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        content, answers = queries.content, []
        for layer in self.layers:
            content = layer(content, queries.position + memory.tokens.mean(1, keepdim=True), memory)
            answers.append(content)
        answers = answers[-1:] if self.last_only else answers
        return tuple(
            Predictions(logits=self.class_head(self.norm(x)), boxes=self.box_head(x)) for x in answers
        )


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@torch.no_grad()
def test_a_new_decoder_is_optimised_like_the_others(precision: Precision, trained: Change) -> None:
    detector = make_detector(trained)
    detector.decoder.__class__ = OtherDecoder
    (ours,), theirs = detector.optimize(precision=precision)(IMAGES).layers, detector.eval()(IMAGES).layers
    assert len(theirs) == 2
    assert ours.logits.dtype == ours.boxes.dtype == torch.float32
    assert_close(ours.logits, theirs[-1].logits, rtol=0, atol=1e-4 if precision == "float32" else 0.1)
    assert_close(ours.boxes, theirs[-1].boxes, rtol=0, atol=1e-4 if precision == "float32" else 0.05)
