"""Errors of the client: those of ``service.errors`` as a caller meets them, and what never reaches a service.

GlowError
├── InvalidRequest (ValueError)        400, 406, 415, 422, and what is refused before it is sent
│   ├── NotFound                       404
│   │   └── VersionGone                the version that answered the first rows of a call is served no more
│   └── TooLarge                       413
├── Unauthorized                       401
├── Forbidden                          403
├── NotNow                             asked again, ``retries`` times
│   ├── Busy                           429
│   ├── Unavailable                    502, 503, and any 5xx that is not the service's own
│   ├── DeadlineExceeded (TimeoutError)     408, 504, and the ``timeout`` of a call
│   └── ConnectionFailed (ConnectionError)
└── ServiceFailed                      500 of the service, and answers of what is no Glow service
"""

from __future__ import annotations


class GlowError(Exception):
    """What went wrong.

    Attributes:
        message: what the service says, or the client.
        code: the service's ``code``; of errors that come from elsewhere, one of the client's in the same style.
        status: HTTP status, None where no answer came.
        request_id: of the request, as the service's log has it; None where no service named one.
        retry_after_s: seconds that the service wants to be left alone for.
    """

    code = "error"

    def __init__(
        self,
        message: str,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message if self.request_id is None else f"{self.message} (request {self.request_id})"


class InvalidRequest(GlowError, ValueError):
    """What was asked cannot be answered, however often."""

    code = "invalid_request"


class NotFound(InvalidRequest):
    """No such model, or nothing at this address."""

    code = "not_found"


class VersionGone(NotFound):
    """The version that answered the first rows of a call, or was known to, is served no more."""

    code = "version_gone"


class TooLarge(InvalidRequest):
    """One row alone is over a limit of the service, or of something before it."""

    code = "too_large"


class Unauthorized(GlowError):
    """No key, or none of this service."""

    code = "unauthorized"


class Forbidden(GlowError):
    """The key lacks the scope that is needed."""

    code = "forbidden"


class NotNow(GlowError):
    """Another try may succeed."""


class Busy(NotNow):
    """The service's queue is full, or the key's quota used up."""

    code = "busy"


class Unavailable(NotNow):
    """The service is starting or stopping, or what stands before it does not reach it."""

    code = "unavailable"


class DeadlineExceeded(NotNow, TimeoutError):
    """No answer in time."""

    code = "deadline_exceeded"


class ConnectionFailed(NotNow, ConnectionError):
    """No connection, or one that broke off."""

    code = "connection_failed"


class ServiceFailed(GlowError):
    """A defect of the service, or an answer that is none of a Glow service."""

    code = "service_failed"


BY_STATUS: dict[int, type[GlowError]] = {
    **dict.fromkeys((400, 406, 415, 422), InvalidRequest),
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    413: TooLarge,
    429: Busy,
    **dict.fromkeys((502, 503), Unavailable),
    **dict.fromkeys((408, 504), DeadlineExceeded),
}
