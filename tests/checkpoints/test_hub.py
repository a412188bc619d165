"""Names on the hub, against a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import socket
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save
from torch.testing import assert_close

from querybox.checkpoints import hub as hub_module
from querybox.checkpoints.files import read_checkpoint_file
from querybox.checkpoints.hub import fetch
from querybox.errors import CheckpointError

COMMIT, OLDER = "1" * 40, "2" * 40
STATE = {"weight": torch.arange(6.0)}
CONFIG = b'{"model_type": "detr"}'
NAME = "hf://someone/detector"
WHOLE = {"config.json": CONFIG, "model.safetensors": save(STATE)}


def answer(kind: str, commit: str, files: dict[str, bytes], file: str) -> bytes | None:
    """Return what the Hub answers: a file, what a revision is, or which files it has."""
    if kind == "resolve":
        return files.get(file)
    if kind == "revision":
        return json.dumps({"id": "someone/detector", "sha": commit}).encode()
    assert kind == "tree"
    entries = [
        {"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in files.items()
    ]
    return json.dumps(entries).encode()


class Hub:
    """A repository on a server of its own."""

    def __init__(self) -> None:
        self.files = {
            COMMIT: dict(WHOLE),
            OLDER: {**WHOLE, "model.safetensors": save({"weight": torch.zeros(6)})},
        }
        self.files[COMMIT]["README.md"] = b"not needed"
        self.refs = {"main": COMMIT, "old": OLDER}
        self.downloads: list[str] = []
        self.requests = 0
        self.permitted = True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.requests += 1
                path = self.path.partition("?")[0].removeprefix("/api/models").lstrip("/")
                owner, name, kind, revision, *rest = path.split("/")
                commit = hub.refs.get(revision, revision)
                files = hub.files.get(commit)
                content = (
                    answer(kind, commit, files, "/".join(rest))
                    if files is not None and hub.permitted and f"{owner}/{name}" == "someone/detector"
                    else None
                )
                self.send_response(200 if content is not None else 404)
                if not hub.permitted or f"{owner}/{name}" != "someone/detector":
                    self.send_header("X-Error-Code", "RepoNotFound")
                elif files is None:
                    self.send_header("X-Error-Code", "RevisionNotFound")
                elif content is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", commit)
                content = content or b""
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    hub.downloads += ["/".join(rest)] if kind == "resolve" else []
                    self.wfile.write(content)

            do_GET = do_HEAD  # noqa: N815 - their name

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    download = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path, endpoint=hub.address)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "model_info", huggingface_hub.HfApi(endpoint=hub.address).model_info)
    yield hub
    hub.stop()


def test_a_name_is_fetched_once_and_nothing_else_with_it(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="querybox")
    read = read_checkpoint_file(NAME)
    assert_close(read.tensors, STATE, rtol=0, atol=0)
    assert read.metadata["config"] == {"model_type": "detr"}
    assert f"{NAME}@main is commit {COMMIT}" in caplog.text
    read_checkpoint_file(Path(NAME))  # as the command line passes it
    assert sorted(hub.downloads) == ["config.json", "model.safetensors"]


def test_a_revision_is_pinned_to_its_commit(hub: Hub) -> None:
    pinned = fetch(f"{NAME}@old").name
    assert pinned == f"{NAME}@{OLDER}"
    hub.refs["old"] = COMMIT
    assert_close(read_checkpoint_file(pinned).tensors["weight"], torch.zeros(6))
    assert_close(read_checkpoint_file(f"{NAME}@old").tensors, STATE)


def test_a_commit_in_the_cache_is_not_requested_again(hub: Hub) -> None:
    hub.files[COMMIT]["preprocessor_config.json"] = b"{}"
    snapshot = fetch(NAME)
    shutil.rmtree(
        snapshot.folder.parents[1] / "trees", ignore_errors=True
    )  # which other versions do not write
    requests = hub.requests
    assert fetch(snapshot.name) == snapshot
    assert hub.requests == requests


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_part_of_a_commit_in_the_cache_is_completed_or_told(hub: Hub, missing: str) -> None:
    """Downloads are interrupted, and other programs download single files."""
    hub.files[COMMIT]["preprocessor_config.json"] = b"{}"
    snapshot = fetch(NAME)
    for refetched in (True, False):
        (snapshot.folder / missing).unlink()
        shutil.rmtree(snapshot.folder.parents[1] / "trees", ignore_errors=True)
        if refetched:
            assert (fetch(snapshot.name).folder / missing).is_file()
    hub.stop()
    for name in (NAME, snapshot.name):
        with pytest.raises(CheckpointError, match=r"not in the cache, and the download failed"):
            fetch(name)


def test_safetensors_are_preferred(hub: Hub) -> None:
    hub.files[COMMIT] |= {"pytorch_model.bin": b"", "model.fp16.safetensors": b"", "tf_model.h5": b""}
    fetch(NAME)
    assert sorted(hub.downloads) == ["config.json", "model.safetensors"]


def test_what_is_in_the_cache_needs_no_network(hub: Hub) -> None:
    pinned = fetch(NAME).name
    hub.stop()
    for name in (NAME, pinned):
        assert_close(read_checkpoint_file(name).tensors, STATE, rtol=0, atol=0)


@pytest.mark.parametrize("revision", ["main", "old"])
def test_a_repository_that_is_no_longer_permitted_is_that_of_the_cache(
    hub: Hub, revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a private repository without a token, the Hub says that there is none."""
    pinned = fetch(f"{NAME}@{revision}").name
    hub.permitted = False
    assert fetch(f"{NAME}@{revision}").name == pinned
    (warning,) = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert re.fullmatch(
        rf"{NAME}@{revision}: cannot be looked up on the Hub \(404 .*\); using the cache", warning
    )
    with pytest.raises(CheckpointError, match="no such repository or revision, or it is not public"):
        fetch(f"{NAME}@another")


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_shards_are_fetched_with_their_index(hub: Hub, index: str, tmp_path: Path) -> None:
    suffix = index.split(".")[1]
    stem = index.split(".")[0]
    places = {name: f"{stem}-0000{part}-of-00002.{suffix}" for part, name in enumerate(("weight", "bias"), 1)}
    repository = {"config.json": CONFIG, index: json.dumps({"weight_map": places}).encode()}
    for name, file in places.items():
        if suffix == "bin":
            torch.save({name: torch.ones(2)}, tmp_path / file)
        else:
            (tmp_path / file).write_bytes(save({name: torch.ones(2)}))
        repository[file] = (tmp_path / file).read_bytes()
    hub.files[COMMIT] = repository
    expected = {"weight": torch.ones(2), "bias": torch.ones(2)}
    assert_close(read_checkpoint_file(NAME).tensors, expected)
    assert sorted(hub.downloads) == sorted(repository)
    hub.stop()
    assert_close(read_checkpoint_file(NAME).tensors, expected)


def test_a_hub_that_does_not_answer_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = fetch(NAME).name
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub, "model_info", huggingface_hub.HfApi(endpoint=address).model_info)
        monkeypatch.setattr(hub_module, "TIMEOUT", 0.2)
        requests = hub.requests
        assert fetch(NAME).name == pinned
        assert hub.requests == requests


def test_damage_in_the_cache_is_found(hub: Hub) -> None:
    weights = fetch(NAME).folder / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.resolve().write_bytes(damaged)
    with pytest.raises(
        CheckpointError, match="corrupt file: the Hub's cache says that its SHA-256 begins with"
    ):
        read_checkpoint_file(NAME)


def test_without_a_network_the_cure_is_named_and_works(hub: Hub, tmp_path: Path) -> None:
    hub.stop()
    with pytest.raises(
        CheckpointError, match=r"download config\.json and model\.safetensors from .*/someone/detector/"
    ):
        read_checkpoint_file(NAME)
    folder = tmp_path / "fetched by hand"
    folder.mkdir()
    for name, content in WHOLE.items():
        (folder / name).write_bytes(content)
    assert_close(read_checkpoint_file(folder).tensors, STATE, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://detector", "expected hf://owner/name"),
        ("hf://a/b/c", "expected hf://owner/name"),
        ("hf://someone/../detector", "expected hf://owner/name"),
        ("hf://someone/detector@", "expected hf://owner/name"),
        ("hf://someone/else", "no such repository or revision"),
        ("hf://someone/detector@absent", "no such repository or revision"),
        ("hf://someone/detector@noconfig", "has no config.json"),
        ("hf://someone/detector@noweights", "has none of model.safetensors"),
        ("hf://someone/detector@code", "has none of model.safetensors"),
    ],
)
def test_wrong_names_say_what_is_wrong(hub: Hub, name: str, message: str) -> None:
    hub.files |= {
        "noconfig": {"model.safetensors": b""},
        "noweights": {"config.json": CONFIG},
        "code": {"config.json": CONFIG, "model.py": b"", "pytorch_model.pkl": b"", "model.bin": b""},
    }
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_file(name)
