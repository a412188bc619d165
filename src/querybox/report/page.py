"""The HTML of the report. Every text that is handed in is escaped; markup comes from here alone."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 4rem; color: #1d2733; background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.75rem 0 1rem; padding-bottom: .3rem; border-bottom: 1px solid #dde3ea; font-size: 1.2rem; }
p { max-width: 75ch; color: #56616e; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin-top: 1.5rem; }
.tile { flex: 1 0 7rem; padding: .7rem 1rem; border-radius: 8px; background: #f2f5f8; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tile span { color: #56616e; font-size: .85rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1.25rem 2rem;
  align-items: start; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: .5rem;
  align-items: start; }
.pair img { width: auto; max-width: 100%; max-height: 36rem; }
a { color: #00558c; }
figcaption { margin-top: .35rem; color: #56616e; font-size: .85rem; overflow-wrap: anywhere; }
.pictures { display: grid; gap: 1.5rem; }
.scroll { max-height: 34rem; overflow: auto; }
.wide { grid-column: 1 / -1; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e6ebf0; text-align: left; vertical-align: top;
  overflow-wrap: break-word; }
th { color: #56616e; font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; }
pre { padding: 1rem; border-radius: 8px; background: #f2f5f8; font-size: .82rem; overflow-x: auto; }
summary { cursor: pointer; font-size: 1.2rem; font-weight: 600; }
details { margin-top: 2rem; }
@media print { .scroll { max-height: none; }
  details > pre { white-space: pre-wrap; } figure, tr { break-inside: avoid; } }
"""


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """Return the whole file. Nothing in it may load or run anything: the policy in its head sees to that."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{paragraph(subtitle)}\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """Return content under a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def tiles(values: Mapping[str, str]) -> str:
    """Return a row of large numbers, each over its name."""
    cells = (
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def grid(parts: Iterable[str]) -> str:
    """Return parts side by side where there is room."""
    return '<div class="grid">\n' + "\n".join(parts) + "\n</div>"


def pictures(parts: Iterable[str]) -> str:
    """Return large pictures below each other."""
    return '<div class="pictures">\n' + "\n".join(parts) + "\n</div>"


def figure(image: bytes, alt: str, *, wide: bool = False) -> str:
    """Return an SVG or JPEG image, as part of the page; a `wide` one has a row to itself."""
    place = ' class="wide"' if wide else ""
    return f"<figure{place}>{embedded(image, alt)}</figure>"


def figures(images: Mapping[str, bytes], caption: str, link: tuple[str, str] | None) -> str:
    """Return images by what they show, side by side where there is room, over a caption that may end with a link.

    Args:
        images: By what is said to whom cannot see them.
        caption: Below them.
        link: Its address and its text.
    """
    pair = "".join(embedded(image, alt) for alt, image in images.items())
    more = f' <a href="{escape(link[0])}">{escape(link[1])}</a>' if link else ""
    return f'<figure><div class="pair">{pair}</div><figcaption>{escape(caption)}{more}</figcaption></figure>'


def embedded(image: bytes, alt: str) -> str:
    """Return an image as an element, which keeps what it holds to itself: no script in it runs, no id meets another."""
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "svg+xml"
    source = f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
    return f'<img src="{source}" alt="{escape(alt)}">'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Collection[int] = ()) -> str:
    """Return a table; `numeric` columns are set flush right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' if column in numeric else "" for column in range(len(cells))]
        return "".join(
            f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)
        )

    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>"
    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    box = f'class="scroll" tabindex="0" role="region" aria-label="{escape(", ".join(heads))}"'  # by keyboard, too
    return f"<div {box}><table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table></div>"


def file_section(title: str, path: Path) -> str:
    """Return the text of a file, folded away; nothing when there is no such file."""
    if not path.is_file():
        return ""
    text = escape(path.read_text(encoding="utf-8", errors="replace"))
    return f"<details>\n<summary>{escape(title)}</summary>\n<pre>{text}</pre>\n</details>"
