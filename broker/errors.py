"""The exceptions of the broker: one tree, with `BrokerError` as its root.

The docstring of each class is its default message. The classes are independent of HTTP: only `api/errors.py` maps a
`code` to a status, and only `broker/cli/main.py` maps it to an exit code.
"""

from __future__ import annotations


class BrokerError(Exception):
    """Internal broker error."""

    code = "internal_error"
    param: str | None = None

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        if param is not None:
            self.param = param

    @property
    def message(self) -> str:
        return str(self)


class InvalidRequest(BrokerError):
    """The request is not valid."""

    code = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        if code is not None:
            self.code = code


class BodyTooLarge(BrokerError):
    """The request body is larger than TOKENCAST_MAX_BODY allows."""

    code = "request_too_large"


class ModelNotFound(BrokerError):
    """No upstream serves this model."""

    code = "model_not_found"
    param = "model"


class UpstreamNotFound(BrokerError):
    """There is no such upstream."""

    code = "upstream_not_found"


class WorkerNotFound(BrokerError):
    """There is no such worker."""

    code = "worker_not_found"


class InvalidKey(BrokerError):
    """The API key is missing or unknown."""

    code = "invalid_api_key"


class KeyExpired(InvalidKey):
    """The API key has expired; ask the operator for a new one."""

    code = "api_key_expired"


class ReadOnlyKey(BrokerError):
    """This API key can only read."""

    code = "read_only_key"


class OperatorRequired(BrokerError):
    """This needs an API key with the role `operator`."""

    code = "operator_required"


class InvalidToken(BrokerError):
    """The stream token is not valid."""

    code = "invalid_token"
    param = "token"


class TokenExpired(InvalidToken):
    """The stream token has expired; request a new one."""

    code = "token_expired"


class InvalidCursor(BrokerError):
    """A cursor has the form `<attempt>-<seq>`, with two integers."""

    code = "invalid_cursor"
    param = "after"


class GenerationNotFound(BrokerError):
    """No such generation."""

    code = "generation_not_found"
    param = "id"


class GroupNotFound(BrokerError):
    """No such group."""

    code = "group_not_found"
    param = "name"


class GenerationGone(BrokerError):
    """The generation was deleted or has expired."""

    code = "generation_gone"
    param = "id"


class DeliveryNotFound(BrokerError):
    """The generation's webhook has no such attempt."""

    code = "delivery_not_found"
    param = "n"


class NotEnded(BrokerError):
    """The generation has not ended yet."""

    code = "not_ended"
    param = "id"


class RequestNotKept(BrokerError):
    """The request of this cancelled generation was too long to be kept."""

    code = "request_not_kept"
    param = "id"


class IdempotencyConflict(BrokerError):
    """This Idempotency-Key was used with a different body."""

    code = "idempotency_conflict"
    param = "idempotency-key"


class LimitExceeded(BrokerError):
    """The tenant has reached one of its limits."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str | None = None, *, retry_after: int) -> None:
        """`retry_after`: seconds after which a new request can succeed."""
        super().__init__(message)
        self.retry_after = retry_after


class StorageUnavailable(BrokerError):
    """Redis does not answer."""

    code = "storage_unavailable"


class Misconfigured(BrokerError):
    """The configuration is not valid."""

    code = "misconfigured"
