"""Errors of requests as problem details (RFC 9457): status, title, and a message that says what to do."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 1
"""Seconds after which a request that was refused because the server is busy may be repeated."""


class ProblemDetails(BaseModel):
    """Why a request was not answered."""

    title: str = Field(description="The name of the status.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was found, what is expected, and what to do.")


class ProblemError(Exception):
    """The reason why a request cannot be answered; raised anywhere below the routes."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def unavailable(detail: str) -> ProblemError:
    """Return the error of a request that may succeed if it is repeated."""
    return ProblemError(503, detail, {"Retry-After": str(RETRY_AFTER)})


def response(problem: ProblemError) -> JSONResponse:
    """Return a problem as an HTTP response."""
    title = HTTPStatus(problem.status).phrase
    details = ProblemDetails(title=title, status=problem.status, detail=problem.detail)
    return JSONResponse(details.model_dump(), problem.status, problem.headers, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Send all errors of an application as problem details, including those of the framework."""

    @app.exception_handler(ProblemError)
    async def stated(_: Request, error: ProblemError) -> JSONResponse:
        return response(error)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        detail = {
            404: "there is no such page; see /docs",
            405: f"{request.method} is not possible here; see /docs",
        }.get(error.status_code, str(error.detail))
        return response(ProblemError(error.status_code, detail, error.headers))

    @app.exception_handler(RequestValidationError)
    async def options(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()]
        return response(ProblemError(422, f"{'; '.join(found)}; see /docs for the parameters"))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        return unexpected(error)


def unexpected(error: Exception) -> JSONResponse:
    """Log an error that is a bug, and return a response that reveals nothing about this machine."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error(
        "a request failed because of a bug, please report it: %s: %s (%s, line %s)",
        type(error).__name__,
        error,
        place.filename,
        place.lineno,
    )
    return response(ProblemError(500, "an unexpected error; see the log of the server"))
