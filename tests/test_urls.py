"""What of a URL is shown and stored, wherever it appears."""

from __future__ import annotations

import pytest

from querybox.errors import ConfigError
from querybox.urls import has_misplaced_password, is_url, public_name, without_credentials

AT = "https://host/a.jpg"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://user:secret@host/a.jpg", AT),
        ("https://secret@host/a.jpg", AT),
        ("https://user:se@cret@host/a.jpg", AT),
        ("https://user:sec/ret@host/a.jpg", AT),
        ("https://user:12?secret@host/a.jpg", AT),
        ("https://user:se cret@host/a.jpg", AT),
        (f"{AT}?X-Amz-Expires=9&X-Amz-Signature=secret==", f"{AT}?X-Amz-Expires=9&X-Amz-Signature=***"),
        (f"{AT}?id=3&token=secret#1.jpg", f"{AT}?id=3&token=***#1.jpg"),
        (f"{AT}?X-Goog-Credential=secret&w=2", f"{AT}?X-Goog-Credential=***&w=2"),
        (f"{AT}?sv=2024&sig=secret", f"{AT}?sv=2024&sig=***"),
        (f"{AT}?loginpas=secret", f"{AT}?loginpas=***"),
        (f"{AT}#access_token=secret", f"{AT}#access_token=***"),
        ("s3://key:secret@bucket/my photos/a.jpg", "s3://bucket/my photos/a.jpg"),
        ("abfs://container:secret@account/a.jpg", "abfs://account/a.jpg"),
    ],
)
def test_credentials_are_hidden(url: str, name: str) -> None:
    assert public_name(url) == public_name(name) == name
    if " " not in url:
        assert without_credentials(f"first '{url}': no such file") == f"first '{name}': no such file"
        assert str(ConfigError(f"{url}: no such file")) == f"{name}: no such file"


@pytest.mark.parametrize(
    "place",
    [
        f"{AT}?id=3&width=100",
        "https://host/photo@2x.jpg",
        "https://host:8080/a.jpg",
        "https://[::1]:8080/a.jpg?mail=me",
        "abfs://container@account.dfs.core.windows.net/a.jpg",
        "hf://facebook/detr-resnet-50@0123abc",
        "s3://bucket/me@home.jpg",
        "photos/a?token=b.jpg",
        "C:/me:you@home.jpg",
    ],
)
def test_what_tells_one_file_from_another_remains(place: str) -> None:
    assert public_name(place) == place == without_credentials(place)


def test_a_long_text_takes_no_longer() -> None:
    """Messages contain text of files, on which a careless pattern would take hours."""
    for text in (
        "a" * 10**6,
        "a" * 10**6 + "://",
        "a://b:" + "/" * 10**6,
        "a://b?" + ":" * 10**6,
        "a://?" * 10**5,
    ):
        assert without_credentials(text) == text


def test_an_ambiguous_url_is_told_from_one_with_a_port() -> None:
    assert has_misplaced_password("https://me:12/3@host/a.jpg")
    assert not any(map(has_misplaced_password, ("https://me:123@host/a@2x.jpg", "https://host/a@2x.jpg")))


def test_a_drive_is_no_url() -> None:
    assert not is_url("C://photos")
    assert not is_url("photos")
    assert is_url("s3://photos")
