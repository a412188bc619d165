"""Ways to spoil a file. All that is chosen is chosen by the random generator that is given."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

WORDS = (
    *(
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0",
        b"1.5",
        b"1e30",
        b"9" * 5000,
        b"18446744073709551616",
    ),
    *(
        b"null",
        b"true",
        b"''",
        b'""',
        b"[]",
        b"{}",
        b"\\ud800",
        b"\\u0000",
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
    ),
    *(
        b"..",
        b"../../x",
        b"/",
        b"~",
        b"C:\\x",
        b"\\\\host\\share",
        b"http://localhost:9/",
        b"x" * 5000,
        b"%s%n",
        b"\r",
    ),
)
"""What takes the place of a word of a text."""
YAML_WORDS = (
    *(
        b"!!python/object/apply:os.system ['true']",
        b"!!python/name:os.system",
        b"!!binary aa",
        b"!!set {a, b}",
    ),
    *(
        b"!!timestamp 2001-13-45",
        b"&a [*a]",
        b"*a",
        b"<<: {a: b}",
        b"? [a]\n: b",
        b"---\n",
        b"%YAML 9.9\n",
        b"\t",
    ),
    b"- " * 2000,
    b"[" * 20_000,
)
CSV_WORDS = (b'"', b'""', b",", b",,,,", b'"\n', b";", b"\t", b"\r\n", b"\0", b"=1+1")
XML_WORDS = (
    b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>',
    b'<!DOCTYPE a SYSTEM "file:///etc/passwd">',
    b'<?xml version="1.0" encoding="utf-7"?>',
    b'<?xml version="1.0" encoding="nonsense"?>',
    *(b"&b;", b"&#0;", b"&#xd800;", b"<![CDATA[", b"]]>", b"<!--", b"<a:b>", b"<object/>"),
    b"<object>" * 5000,
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        2**64,
        10**400,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        "0",
        "1",
        "nan",
        "\ud800",
        "\0",
        "..",
        "/etc/passwd",
        "a\nb",
        "x" * 10_000,
        [],
        [[]],
        {},
        {"": {}},
        [None] * 4,
    ),
    *(
        "F32",
        "BF16",
        "I64",
        "C64",
        "F8_E4M3",
        "F4",
        [0, 0],
        [2**40],
        [-1],
        [1, 2**62],
        "hf-hub:a/b",
        "local-dir:/etc",
    ),
    *("detr", "dino", "resnet18.tv_in1k", 7, 8, 64, 1000, 10**6, 10**9),
)
"""What takes the place of a value of a JSON document."""
DEEP = "nested deeply"
"""In a document, stands for brackets that cannot be built as values."""


def spoil(content: bytes, kind: str, random: Random) -> bytes:
    """Return `content` with one to three mutations that suit its kind."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        try:
            content = random.choice((*MUTATIONS[kind], change_bytes))(content, random)
        except (ValueError, LookupError, RecursionError, zipfile.BadZipFile, NotImplementedError):
            content = change_bytes(content, random)  # it is no such document any more
    return content


def change_bytes(content: bytes, random: Random) -> bytes:
    """Flip, cut, repeat, remove, move, insert."""
    start, end = sorted((random.randrange(len(content) + 1), random.randrange(len(content) + 1)))
    end = min(end, start + random.choice((1, 8, 64, 10**6)))
    piece = content[start:end]
    match random.randrange(7):
        case 0:
            piece = bytes(byte ^ (1 << random.randrange(8)) for byte in piece[:1]) + piece[1:]
        case 1:
            return content[:start]
        case 2:
            piece *= random.choice((2, 3, 20))
        case 3:
            piece = b""
        case 4:
            place = random.randrange(len(content) + 1)
            return content[:place] + piece + content[place:]
        case 5:
            piece = random.randbytes(random.choice((1, 4, 100)))
        case _:
            piece = bytes([random.choice((0, 0x7F, 0x80, 0xFF))]) * len(piece)
    return content[:start] + piece + content[end:]


def replace_word(*more: bytes) -> Mutation:
    """Return the mutation that puts another word in the place of one, a number or a sign."""

    def mutate(content: bytes, random: Random) -> bytes:
        word = re.compile(rb"[\w.+-]+|[^\w\s]")
        found = word.search(content, random.randrange(len(content))) or word.search(content)
        if found is None:
            return change_bytes(content, random)
        return content[: found.start()] + random.choice((*WORDS, *more)) + content[found.end() :]

    return mutate


def change_lines(content: bytes, random: Random) -> bytes:
    """Remove, repeat, move or indent a line, or a tag of XML."""
    lines = re.split(rb"(?<=[\n>])", content)
    at, to = random.randrange(len(lines)), random.randrange(len(lines))
    match random.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines[at] *= random.choice((2, 100))
        case 2:
            lines[at], lines[to] = lines[to], lines[at]
        case _:
            lines[at] = random.choice((b" ", b"\t", b"- ", b"#")) + lines[at]
    return b"".join(lines)


def change_json(content: bytes, random: Random) -> bytes:
    """Change a value of the document."""
    return dumped(changed(json.loads(content), random), random)


def changed(document: Any, random: Random) -> Any:
    """Replace, remove, repeat or wrap a value somewhere in the document, which is changed in place."""
    places = list(values_within(document))
    if not places:
        return random.choice(VALUES)
    container, key = random.choice(places)
    value = container[key]
    match random.randrange(6):
        case 0:
            del container[key]
        case 1:
            container[key] = random.choice((str(value), [value], {"a": value}, DEEP))
        case 2 if isinstance(container, list):
            container.extend([value] * random.choice((1, 1, 50)))
        case 3 if isinstance(container, dict):
            container[random.choice(("", "x" * 1000, "\ud800", "id", f"{key} "))] = container.pop(key)
        case 4:
            other, name = random.choice(places)
            container[key] = (
                json.loads(json.dumps(other[name])) if name in other or isinstance(name, int) else None
            )
        case _:
            container[key] = random.choice(VALUES)
    return document


def values_within(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value."""
    keys = (
        document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    )
    for key in list(keys):
        yield document, key
        yield from values_within(document[key])


def dumped(document: Any, random: Random) -> bytes:
    """Return the document as JSON, with brackets where `DEEP` stands."""
    depth = random.choice((10, 1000, 100_000))
    return json.dumps(document).replace(f'"{DEEP}"', "[" * depth + "]" * depth).encode()


def change_header(content: bytes, random: Random) -> bytes:
    """Change a value in the header of a safetensors file; mostly, its length is made to fit again."""
    length = int.from_bytes(content[:8], "little")
    header = dumped(changed(json.loads(content[8 : 8 + length]), random), random)
    stated = random.choice((len(header),) * 8 + (0, 2**40, 2**64 - 1, len(header) + 1))
    return stated.to_bytes(8, "little") + header + content[8 + length :]


def change_record(content: bytes, random: Random) -> bytes:
    """Change a record of a zip file, its name, or how it is packed, with checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    # Records whose length matters less than what they say come first: the pickle, and what tells the format.
    at = min(random.randrange(len(records)), random.randrange(len(records)))
    packed = io.BytesIO()
    with zipfile.ZipFile(
        packed, "w", random.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    ) as archive:
        for number, (name, data) in enumerate(records):
            if number == at and random.random() < 0.8:
                data = random.choice((change_bytes, replace_word()))(data, random)
            elif number == at:
                name = random.choice(("..", "/x", "", name.upper(), f"{name}/x", "archive/data/0"))
            archive.writestr(name, data)
    return packed.getvalue()


MUTATIONS: dict[str, tuple[Mutation, ...]] = {
    "bytes": (),
    "json": (change_json, change_json, change_json, replace_word()),
    "xml": (change_lines, replace_word(), replace_word(*XML_WORDS)),
    "csv": (change_lines, replace_word(), replace_word(*CSV_WORDS)),
    "yaml": (change_lines, replace_word(), replace_word(*YAML_WORDS)),
    "lines": (change_lines, replace_word()),
    "safetensors": (change_header, change_header),
    "zip": (change_record, change_record),
}
"""By kind of file; bytes are changed in any of them."""
