"""Errors that a caller sees; service.front writes them.

ServiceError
├── BadRequest 400            malformed body, or numbers that are not finite
├── Unauthorized 401          no key, or none of this service; WWW-Authenticate
├── Forbidden 403             a key without the scope that the route needs
├── NotFound 404              no such path
├── ModelNotFound 404
├── NotAcceptable 406         no answer of the wanted media type
├── ReloadRefused 409         what was to be served instead fails its checks
├── TooLarge 413              names the limit and its setting
├── UnsupportedMediaType 415
├── Unprocessable 422         well-formed, but not what the model takes
├── QueueFull 429             Retry-After
├── QuotaExceeded 429         Retry-After
├── ClientLeft 499            hung up; not of the standard, but what logs and metrics call it
├── Unavailable 503           not ready, or draining; Retry-After
│   ├── OutOfMemory
│   └── Stuck                of /livez: to be started again
└── DeadlineExceeded 504

Every error answer is ``{"error": text, "code": snake_case, "request_id": id}``.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import ClassVar

from common.errors import Explained


class ServiceError(Explained):
    """Base of all errors with an HTTP meaning; its text goes to the caller; of a body it quotes a name at most."""

    status: ClassVar[int]
    code: ClassVar[str]
    retry_after_s: int | None = None
    headers: ClassVar[dict[str, str]] = {}  # of the answer

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        if retry_after_s is not None:
            self.retry_after_s = max(1, math.ceil(retry_after_s))  # the header has whole seconds


class BadRequest(ServiceError):
    """The body is not what its media type says, or holds a number that is not finite."""

    status = 400
    code = "bad_request"


class Unauthorized(ServiceError):
    """The request carries no key, or one that this service does not know."""

    status = 401
    code = "unauthorized"
    headers: ClassVar[dict[str, str]] = {"www-authenticate": "Bearer"}


class Forbidden(ServiceError):
    """The key lacks the scope that this route needs."""

    status = 403
    code = "forbidden"


class NotFound(ServiceError):
    """There is nothing at this path."""

    status = 404
    code = "not_found"


class ModelNotFound(ServiceError):
    """No model of that name is served."""

    status = 404
    code = "model_not_found"


class NotAcceptable(ServiceError):
    """The wanted media type cannot carry this answer."""

    status = 406
    code = "not_acceptable"


class ReloadRefused(ServiceError):
    """What was to be served instead fails its checks, or another reload runs; what was served is served on."""

    status = 409
    code = "reload_refused"


class TooLarge(ServiceError):
    """The request is over a limit that waiting does not change."""

    status = 413
    code = "too_large"


class UnsupportedMediaType(ServiceError):
    """The body is of a media type that this route does not read."""

    status = 415
    code = "unsupported_media_type"


class Unprocessable(ServiceError):
    """Well-formed, but of the wrong shape, range or option."""

    status = 422
    code = "unprocessable"


class QueueFull(ServiceError):
    """More rows wait than the queue may hold or the deadline allows, or bodies take all of their room."""

    status = 429
    code = "queue_full"
    retry_after_s = 1


class QuotaExceeded(ServiceError):
    """The key has used up its rows for now."""

    status = 429
    code = "quota_exceeded"
    retry_after_s = 1


class ClientLeft(ServiceError):
    """The caller has hung up; nobody reads this answer."""

    status = 499
    code = "client_left"


class Unavailable(ServiceError):
    """The service is starting or stopping."""

    status = 503
    code = "unavailable"
    retry_after_s = 5


class OutOfMemory(Unavailable):
    """The device has no memory left for a pass."""

    code = "out_of_memory"


class Stuck(Unavailable):
    """The engine makes no progress any more; the process should be started again."""

    code = "stuck"


class DeadlineExceeded(ServiceError):
    """No answer within the deadline; what was still queued is dropped."""

    status = 504
    code = "deadline_exceeded"


def code_of(status: HTTPStatus) -> str:
    """The code of what is refused outside the service's own routes: its phrase."""
    return status.phrase.lower().replace(" ", "_").replace("-", "_")
