"""Errors of requests as callers see them: a status, a message of one line, and a type to branch on."""

from __future__ import annotations

import math


class RequestError(Exception):
    """A request that is not answered; its message is for the caller."""

    status = 422
    error_type = "Validation"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the reply."""
        return {}


class TooLargeError(RequestError):
    """The body is longer than allowed."""

    status = 413
    error_type = "TooLarge"


class MediaTypeError(RequestError):
    """The content type of the body is not JSON."""

    status = 415
    error_type = "MediaType"


class UnauthorizedError(RequestError):
    """The key is absent or wrong."""

    status = 401
    error_type = "Unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        """The authentication scheme that is expected."""
        return {"WWW-Authenticate": "Bearer"}


class OverloadedError(RequestError):
    """Too many tokens are waiting already; the caller may try again later."""

    status = 429
    error_type = "Overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        """Whole seconds after which the waiting work will be done."""
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


class InternalError(RequestError):
    """A fault of the server."""

    status = 500
    error_type = "Internal"


class TimedOutError(RequestError):
    """The request took too long."""

    status = 504
    error_type = "Timeout"


class UnhealthyError(RequestError):
    """The server is starting or going down."""

    status = 503
    error_type = "Unhealthy"


class BackendError(RequestError):
    """The replica that ran the model failed or died during the request; the caller may try again."""

    status = 503
    error_type = "Backend"
