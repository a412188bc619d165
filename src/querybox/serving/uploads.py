"""The images of a request, which are read into memory; nothing is written to disk."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from querybox.data.encoded import EncodedImage
from querybox.serving.problems import ProblemError
from querybox.serving.settings import ServingSettings

FIELD = "image"
"""Name of the form field of every image."""
EXPECTED = (
    f"expected a multipart form with one or more files named '{FIELD}', as of curl -F {FIELD}=@photo.jpg"
)


class _Form(MultiPartParser):
    """Starlette's parser, with limits, in memory: by default it writes files of more than 1 MB to the disk."""

    spool_max_size = sys.maxsize

    def __init__(self, request: Request, settings: ServingSettings) -> None:
        received = self._received(request, settings)
        super().__init__(request.headers, received, max_files=settings.files, max_fields=0)
        self.complete = False

    def on_end(self) -> None:
        """Note that the last boundary has been read."""
        self.complete = True

    async def _received(self, request: Request, settings: ServingSettings) -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > settings.max_bytes:
                raise _too_large(settings)
            yield chunk
        if not self.complete:  # otherwise a truncated file would be skipped
            raise MultiPartException("It ends before its last boundary.")


async def read_images(request: Request, settings: ServingSettings) -> list[EncodedImage]:
    """Return the images of a request, named by their position in the answer: ``images[0]``.

    The names that files have at the client are not used.

    Raises:
        ProblemError: The body is too large, is not a multipart form, or has other fields.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise ProblemError(415, f"got the content type '{kind}'; {EXPECTED}")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > settings.max_bytes:
        raise _too_large(settings)
    try:
        form = await _Form(request, settings).parse()
    except MultiPartException as error:
        limit = f"at most {settings.files}, and no other fields"
        raise ProblemError(400, f"the form cannot be read ({error.message}); {EXPECTED}, {limit}") from None
    try:
        return _images(form)
    finally:
        await form.close()


def _images(form: FormData) -> list[EncodedImage]:
    names = sorted({name for name, _ in form.multi_items()})
    if names != [FIELD]:
        found = f"files named {names}" if names else "no files"
        raise ProblemError(422, f"got {found}; {EXPECTED}")
    files = [file.file for _, file in form.multi_items() if isinstance(file, UploadFile)]
    return [EncodedImage(name=f"images[{index}]", content=file.read()) for index, file in enumerate(files)]


def _too_large(settings: ServingSettings) -> ProblemError:
    return ProblemError(
        413,
        f"the body of the request has more than {settings.max_bytes:,} bytes; send fewer or smaller images, or start "
        "the server with a larger --max-bytes",
    )
