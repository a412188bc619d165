"""The files to which the page of a folder of a web server links."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit


class Links(HTMLParser):
    """The addresses to which a page links."""

    def __init__(self, page: str) -> None:
        """Find them."""
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address of a link."""
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def linked_files(url: str, page: bytes) -> list[str]:
    """Return the URLs of the files in a folder to which its page links, each once.

    Links to other hosts, or to other folders of this one, are left out.

    Args:
        url: URL of the folder, whose path ends with ``/``.
        page: The HTML page at this URL, such as the listing of nginx or Apache.
    """
    found = dict.fromkeys(resolve(url, link) for link in Links(page.decode(errors="replace")).found)
    return [each for each in found if each is not None]


def resolve(url: str, link: str) -> str | None:
    """Return the URL of a link if it leads to a file in the folder with this URL."""
    folder = urlsplit(url)
    try:
        target = urlsplit(urljoin(url, link.strip()))
    except ValueError:  # a host that is none
        return None
    path, start = unquote(target.path), unquote(folder.path)
    name = path.removeprefix(start)
    here = (target.scheme, target.netloc) == (folder.scheme, folder.netloc) and path.startswith(start)
    is_name = name and "/" not in name and "\\" not in name
    return target._replace(fragment="").geturl() if here and is_name else None
