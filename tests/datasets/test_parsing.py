from __future__ import annotations

from pathlib import Path

import pytest

from querybox.data import text
from querybox.data.findings import FindingCollector
from querybox.data.parsing import (
    csv_columns,
    json_head,
    read_head,
    stated_size,
    xml_element,
    xml_root,
)
from querybox.data.text import decode, decode_head, read_bounded
from querybox.errors import DataError


def test_large_files_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert read_bounded(tmp_path / "a.json") == b"[1, 2, 3]"
    monkeypatch.setattr(text, "MAX_BYTES", 8)
    with pytest.raises(DataError, match=r"a\.json: has 9 bytes; expected at most 8: split the file"):
        read_bounded(tmp_path / "a.json")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: cannot be read: No such file"):
        read_bounded(tmp_path / "absent.json")
    assert read_head(tmp_path / "absent.json") == ""
    assert xml_element(tmp_path / "absent.xml", "meta", before=frozenset()) is None


def test_the_beginning_of_a_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"image": "\xc3\xa9", "boxes": [' + b"1, " * 100_000)
    head = json_head(tmp_path / "a.json")
    assert (len(head), head[0]["image"]) == (1, "\u00e9")
    assert 20_000 < len(head[0]["boxes"]) < 22_000


@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        ("Bär", "cp1252"),
        ("Größe, Öl, weiß", "cp1252"),
        ("camión pequeño, détecté, À côté", "cp1252"),
        ("naïve café “déjà vu”", "cp1252"),
        ("<name>Größe</name>", "cp1252"),
        ("<name>créée</name><name>café</name>", "cp1252"),
        ("<name>鳄鱼</name>", "gbk"),  # the first character is not among the common ones
        ("细胞", "gbk"),
        ("红细胞、白细胞。血小板", "gbk"),
        ("cell 大型车辆, a 囧 face", "gbk"),
    ],
)
def test_text_of_windows_is_told_apart(tmp_path: Path, words: str, encoding: str) -> None:
    """On a system in UTF-8, where nothing says whether Chinese or Western European text is meant."""
    findings = FindingCollector(tmp_path)
    content = f"0: {words}\n".encode(encoding)
    assert decode(content, tmp_path / "classes.txt", findings) == f"0: {words}\n"
    assert decode_head(content) == f"0: {words}\n"
    (finding,) = findings.by_kind()
    assert finding.places[0].what == f"{tmp_path / 'classes.txt'}: read as {encoding}"


@pytest.mark.parametrize("content", [b"", b"{]", b"\xff\xfe\xff", b"\0", b"[" * 100_000])
def test_other_content_is_not_recognised(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert not json_head(tmp_path / "a")
    assert len(csv_columns(tmp_path / "a")) <= 1
    assert xml_root(tmp_path / "a") == ""


def test_a_header_with_a_huge_value_is_no_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"' + "a" * 60_000 + '",b\n')
    assert len(csv_columns(tmp_path / "a.csv")) == 2
    (tmp_path / "a.csv").write_text('"a')
    assert csv_columns(tmp_path / "a.csv") == ("a",)


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ('<?xml version="1.0"?><!-- <other> --><annotations a="b"/>', "annotations"),
        ("<annotation>", "annotation"),
        ("plain text", ""),
    ],
)
def test_the_root_of_xml(tmp_path: Path, text: str, tag: str) -> None:
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "a.xml").write_bytes(text.encode(encoding))
        assert xml_root(tmp_path / "a.xml") == tag


def test_an_element_is_read_only_up_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<a><meta><b>1</b></meta><image/>" + " " * 10_000_000 + "<")
    meta = xml_element(tmp_path / "a.xml", "meta", before=frozenset({"image"}))
    assert meta is not None
    assert meta.findtext("b") == "1"
    assert xml_element(tmp_path / "a.xml", "c", before=frozenset({"image"})) is None


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        ("30", "40.0", (30, 40)),
        (0, 40, None),
        (None, 40, None),
        ("x", "40", None),
        ("1e999", "40", None),
        (-3, 4, None),
    ],
)
def test_sizes(height: str | float | None, width: str | float | None, size: tuple[int, int] | None) -> None:
    assert stated_size(height, width) == size
