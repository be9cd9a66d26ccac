"""The service's errors, one tree on top of the model's own (`deployments.model.errors`).

EmbeddingError
├── InputError (deployments.model.errors)
│   ├── RequestError         the request as a whole: shape, limits
│   │   ├── BodyTimeoutError
│   │   ├── BodyTooLargeError
│   │   ├── FingerprintError
│   │   ├── NotFoundError
│   │   ├── RequestTooLargeError
│   │   ├── UnauthorizedError
│   │   │   ├── KeyFormatError
│   │   │   └── MissingKeyError
│   │   ├── UnsupportedCodingError
│   │   └── UnknownModelError
│   └── ImageSourceError     an image that cannot be had: refused address, failed download
└── ServiceError             not the caller's fault; worth another try later
    ├── OverloadedError      says when to come back
    │   └── RateLimitError   the API key's own limit
    ├── TowerUnavailableError
    └── DeadlineError

Every argument goes to `super().__init__`, so that each survives pickling between processes.
"""

from deployments.model.errors import EmbeddingError, ImageError, InputError


class RequestError(InputError):
    """A request that no item of it can mend: its shape, its size, an unknown name."""


class BodyTimeoutError(RequestError):
    """A body that arrives too slowly."""


class BodyTooLargeError(RequestError):
    """More bytes than the server reads."""


class FingerprintError(RequestError):
    """The caller asks for vectors of other weights, precision or preprocessing than are served."""


class NotFoundError(RequestError):
    """A file or a batch that the caller does not have."""


class RequestTooLargeError(RequestError):
    """More work than the server takes at once, or an item that no batch can hold."""


class UnauthorizedError(RequestError):
    """No API key, or one that is not known."""


class MissingKeyError(UnauthorizedError):
    """No API key at all."""


class KeyFormatError(UnauthorizedError):
    """An Authorization header of another form than `Bearer KEY`."""


class UnsupportedCodingError(RequestError):
    """A body that is packed in a way that is not read here."""


class UnknownModelError(RequestError):
    """A model that this server does not serve."""


class ImageSourceError(ImageError):
    """An image that cannot be had from where it is said to be."""


class ServiceError(EmbeddingError):
    """The service could not do what was rightly asked; the same request may work later."""


class _LaterError(ServiceError):
    """What may work after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.args[0])


class OverloadedError(_LaterError):
    """Too much work is outstanding; `retry_after_s` is when that will have drained."""


class RateLimitError(OverloadedError):
    """An API key has used up a limit of its own."""


class TowerUnavailableError(_LaterError):
    """A tower's replicas died, sleep or cannot be reached."""


class DeadlineError(ServiceError):
    """The request's time ran out."""
