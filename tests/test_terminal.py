"""Names of classes and files cannot control a terminal, wherever they are printed."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.text import Text

from querybox.cli.main import fail, log_to_stderr
from querybox.cli.streams import print_summary, print_text, write_stderr
from querybox.cli.tables import table
from querybox.terminal import Console
from querybox.text import UNPRINTABLE, printable

HOSTILE = "cat\x1b[2J\x1b]0;title\x07\x9b31m\x7f\r\u202egnp\u2028\udcff"
SHOWN = r"cat\u001b[2J\u001b]0;title\u0007\u009b31m\u007f\r\u202egnp\u2028\udcff"  # of which a terminal makes nothing


def test_control_characters_become_json_escapes() -> None:
    assert printable(HOSTILE) == SHOWN
    harmless = (
        "naïve Ünïcödé\t漢字 👩\u200d🚒 \u0645\u06cc\u200c\u062e\n"  # with the joiners of emoji and Persian
    )
    assert printable(harmless) == harmless


@pytest.mark.parametrize("indent", [None, 2])
def test_json_stays_the_same(indent: int | None) -> None:
    content = {"names": [HOSTILE, 'tab\t, newline\n, quote" and \\u001b']}
    text = printable(json.dumps(content, ensure_ascii=False, indent=indent))
    assert json.loads(text) == content
    assert not UNPRINTABLE.search(text)


def consoles() -> Iterator[tuple[Console, io.StringIO]]:
    for terminal in (False, True):
        file = io.StringIO()
        yield Console(file=file, force_terminal=terminal, width=150, color_system=None), file


def test_consoles_print_no_control_characters() -> None:
    for console, file in consoles():
        console.print(HOSTILE)
        console.print(Text(f"a {HOSTILE}", "bold"), markup=False)
        console.print(table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, "1"], ["dog", "2"]], numeric=[1]))
        lines = file.getvalue().splitlines()
        assert not [line for line in lines if UNPRINTABLE.search(line)]
        assert file.getvalue().count(r"cat\u001b[2J") == 5
        assert len({len(line) for line in lines[3:]}) == 1  # the borders are straight


def test_progress_and_lines_above_it_print_none(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    console = Console(file=file, width=150, color_system=None)
    with Progress(console=console, auto_refresh=False) as progress:
        progress.add_task(HOSTILE.replace("[", "("), total=1)
        progress.refresh()
    assert r"cat\u001b(2J" in file.getvalue()
    assert not UNPRINTABLE.search(file.getvalue())


def test_messages_logs_and_summaries_print_none(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr():
        logging.getLogger("querybox.data").warning("class %s", f"a\n{HOSTILE}")
    write_stderr(f"{HOSTILE}\n")
    print_text(HOSTILE)
    print_summary(HOSTILE)
    try:
        int(HOSTILE)
    except ValueError as error:
        fail(str(error), debug=True)
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\n{SHOWN}\n"
    assert err.splitlines()[0].startswith(r"class a cat\u001b[2J")
    assert not UNPRINTABLE.search(out + err)


def test_the_command_line_prints_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataset_writers import Drawn, coco, write_images, write_json

    from querybox.cli import main

    image = Drawn(name="a\x1b[31m.png", size=(8, 8), objects=[("x\x1b]0;t\x07\u202e", (1, 1, 5, 5))])
    write_images(tmp_path, [image])
    document = coco([image], ["x\x1b]0;t\x07\u202e"])
    document["annotations"].append({**document["annotations"][0], "id": 2, "bbox": [1, 1, 0, 0]})
    data = write_json(tmp_path / "data.json", document)
    for words in (["info", str(data)], ["validate", str(data)], ["validate", str(data), "--json"]):
        assert main(words) == 0
    assert main(["predict", "model.safetensors", "none\x1b]0;t.png"]) == 2
    out, err = capsys.readouterr()
    assert r"x\u001b]0;t\u0007\u202e" in out
    assert r"none\u001b]0;t.png: no such file or folder" in err
    assert not UNPRINTABLE.search(out + err)
