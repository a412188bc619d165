"""``querybox serve``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from querybox.cli.model import load_model, require_order
from querybox.errors import requires_extra
from querybox.precision import Precision


def serve(
    model: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: Annotated[str | None, Parameter(env_var="QUERYBOX_TOKEN", show_env_var=True)] = None,
    token_file: Path | None = None,
    allow_anonymous: bool = False,
    threshold: float = 0.5,
    top_k: int = 100,
    max_batch: int | None = None,
    max_wait: float | None = None,
    workers: int = 1,
    queue: int = 32,
    max_bytes: int = 16 * 2**20,
    max_pixels: int = 50_000_000,
    timeout: float = 30.0,
    precision: Precision = "float32",
    trust: bool = False,
) -> None:
    """Answer HTTP requests with detections, until Ctrl-C or SIGTERM.

    Open the address in a browser to drop an image and see its detections; /docs describes the API. Images are kept in
    memory only as long as a request takes, and nothing is written. URLs are not fetched.

    ```
    querybox serve run                                    # http://127.0.0.1:8000
    querybox serve model.onnx --workers 2                 # an exported model, in two threads
    querybox serve run --host 0.0.0.0 --token-file secret # other machines, with a token
    curl -F image=@a.jpg -F image=@b.jpg http://127.0.0.1:8000/predict
    ```

    Args:
        model: A checkpoint of any layout, a run folder (its best model, or else its last), or an exported model
            (.onnx, .xml for OpenVINO, .pt2 for PyTorch, .pte for ExecuTorch).
        host: Name or address to listen at. Addresses that other machines can reach require a token.
        port: Port to listen at; 0 for any that is free.
        token: Token that requests have to send, as Authorization: Bearer TOKEN. Other users of this machine may see
            what is given here; the environment variable and --token-file are not shown to them.
        token_file: File that contains the token.
        allow_anonymous: Let other machines send requests without a token.
        threshold: Minimum score of detections (0-1), unless a request sets another one.
        top_k: Maximum number of detections per image, unless a request sets another one.
        max_batch: Maximum number of images of one size, of any requests, in a forward pass; 8 on an accelerator and 1
            on a CPU by default, where batches are no faster.
        max_wait: Maximum time in seconds that an image waits for others of its size; 0.005 by default.
        workers: Number of threads that run the model; they share the processor cores.
        queue: Maximum number of images that are being received, are queued, or are in the model; further requests are
            answered with 503 and Retry-After.
        max_bytes: Maximum size of a request in bytes.
        max_pixels: Maximum number of pixels of an image.
        timeout: Seconds from the header of a request to its answer.
        precision: Precision of a checkpoint's computations: float32, bf16, fp16, or auto. auto is bf16 if the device
            computes it natively, otherwise float32. bf16 and fp16 are less accurate, and faster only on such devices.
        trust: Trust the source of a .pt2 or .pte file, which may execute code.
    """
    with requires_extra("serve", "querybox serve"):
        from querybox.serving.access import Access, read_token
        from querybox.serving.address import bind
        from querybox.serving.server import Server
        from querybox.serving.settings import ServingSettings
        from querybox.serving.workers import open_engines

    settings = ServingSettings(
        threshold=threshold,
        top_k=top_k,
        max_batch=max_batch,
        max_wait=max_wait,
        workers=workers,
        queue=queue,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        timeout=timeout,
    )
    require_order("querybox serve", model, [])
    secret = read_token(token, token_file)
    bound, loopback = bind(host, port, anonymous=allow_anonymous or secret is not None)
    with bound:
        engines = open_engines(partial(load_model, model, trusted=trust, precision=precision), workers)
        access = Access(token=secret, host=host, loopback=loopback)
        Server(model, engines, settings, access).serve_at(bound)
