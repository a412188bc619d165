"""The application: its routes, and the middleware around them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from querybox import __version__
from querybox.serving.access import Access, Guarded
from querybox.serving.answers import Answer
from querybox.serving.headers import WithHeaders
from querybox.serving.metrics import Measured, Metrics
from querybox.serving.pages import api_page, html, predict_page
from querybox.serving.problems import MEDIA_TYPE, ProblemDetails, ProblemError, add_handlers, unavailable
from querybox.serving.service import Service
from querybox.serving.settings import MAX_TOP_K
from querybox.serving.uploads import FIELD

CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client closed the connection, as nginx counts them; it is not sent."""
PROBLEMS = {
    400: "The body is not a readable multipart form, or has too many files.",
    401: "The token is missing or wrong.",
    403: "The server has no token, and the request uses another name of this machine, or comes from a page of another "
    "server.",
    408: "The request was not received in time.",
    413: "The body is too large.",
    415: "The body is not a multipart form.",
    422: "An image cannot be read or is too large, or a parameter is out of its range or given twice.",
    503: "The server is busy, or the answer was not ready in time; repeat it after `Retry-After` seconds.",
}
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "additionalProperties": False,
                "properties": {
                    FIELD: {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                },
            }
        }
    },
}
"""What FastAPI cannot derive, because the body is read by `querybox.serving.uploads`."""


class Options(BaseModel):
    """The parameters of a request to predict."""

    model_config = ConfigDict(extra="forbid")

    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Minimum score of detections; by default that of the server."
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOP_K,
        description="Maximum number of detections per image; by default that of the server.",
    )


class State(BaseModel):
    """The state of the server."""

    status: str


def create_app(service: Service, metrics: Metrics, access: Access) -> ASGIApp:
    """Return the application: the routes behind access control, measurements and security headers."""
    return WithHead(WithHeaders(Measured(Guarded(create_api(service, metrics, access), access), metrics)))


class WithHead:
    """ASGI middleware that answers HEAD, of which monitors make use, as GET; uvicorn leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self.app({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)


def create_api(service: Service, metrics: Metrics, access: Access) -> FastAPI:
    """Return the routes without middleware."""
    # FastAPI's own pages load scripts from elsewhere, and its telemetry would obey environment variables.
    app = FastAPI(
        title="querybox",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy with TLS they would lead to http
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    add_handlers(app)
    add_monitoring(app, service, metrics)
    add_pages(app, service, access)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ProblemDetails, "description": text, "content": {MEDIA_TYPE: {}}}
        for status, text in PROBLEMS.items()
    }

    @app.post(
        "/predict",
        response_model=Answer,
        response_description="The detections.",
        responses=responses,
        openapi_extra={"requestBody": BODY},
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Detect objects in one or several images. If one of them cannot be read, none is answered."""
        check_repetitions(request)
        answer = await service.predict(request, options.threshold, options.top_k)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.exception_handler(ClientDisconnect)
    async def disconnected(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    return app


def check_repetitions(request: Request) -> None:
    """Check that no parameter is in the query twice, of which FastAPI takes the last.

    Raises:
        ProblemError: A parameter is given more than once.
    """
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if count > 1:
            raise ProblemError(
                422, f"{name}: is given {count} times; expected it once; see /docs for the parameters"
            )


def add_monitoring(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """Add the routes for monitoring: state and measurements."""

    @app.get("/health")
    async def health() -> State:
        """Return that the server runs."""
        return State(status="running")

    @app.get("/ready", responses={503: {"model": ProblemDetails, "description": PROBLEMS[503]}})
    async def ready() -> State:
        """Return whether a request would be accepted now."""
        if not service.ready:
            raise unavailable("the server is busy; repeat the request later")
        return State(status="ready")

    @app.get("/metrics", response_class=Response)
    async def measurements() -> Response:
        """Return measurements in Prometheus' text format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def add_pages(app: FastAPI, service: Service, access: Access) -> None:
    """Add the web pages."""
    start = predict_page(service.settings.threshold, with_token=access.token is not None)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return html(start)

    @app.get("/docs", include_in_schema=False)
    async def api() -> HTMLResponse:
        return html(api_page(app.openapi()))
