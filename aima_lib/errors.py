"""Every error AIMA raises on purpose.

* AimaError
  - InvalidArgument     the request does not match its schema, or names something impossible
  - Unauthenticated     no key, or an unknown one
  - PermissionDenied    the caller's scopes do not reach that far
  - NotFound            no such model, engine, service, run, unit ...
  - AlreadyExists       the name is taken, by something else
  - FailedPrecondition  the thing is not in a state where this can be done
  - ResourceExhausted   not enough memory, disk or room; or the caller's allowance is used up, and `retry_after` says for how long
  - Cancelled           somebody asked for it to stop
  - DeadlineExceeded    it took longer than it was given
  - Unavailable         something outside AIMA did not answer; trying again may help
  - ApprovalRequired    a person or a policy must agree first
  - Internal            a bug in AIMA

The class says which kind, the message says what happened with the names in it, `hint` says what to do, and `next` holds calls,
ready filled, that may mend it. Faces map a class to a status or an exit code by the row below, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class AimaError(Exception):
    """Base class. Catch this to catch everything AIMA raises on purpose."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        next: Sequence[Mapping[str, Any]] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.next = [dict(call) for call in next]
        self.details = dict(details or {})

    @property
    def retry_after(self) -> float | None:
        """In how many seconds the same call may pass, where that is known: what was used up comes back with time."""
        found = self.details.get("retry_after_seconds")
        return found if isinstance(found, int | float) else None

    def as_dict(self) -> dict[str, Any]:
        """The wire form: code, message, retryable, and where known hint, next and details."""
        retryable = self.retryable or self.retry_after is not None
        body: dict[str, Any] = {"code": self.code, "message": str(self), "retryable": retryable}
        extra = {"hint": self.hint, "next": self.next, "details": self.details}
        return body | {key: value for key, value in extra.items() if value}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> AimaError:
        """The error whose wire form is `body`; an unknown code becomes Internal."""
        kind = BY_CODE.get(str(body.get("code")), Internal)
        return kind(str(body.get("message", "")), hint=body.get("hint"), next=body.get("next") or (), details=body.get("details"))


class InvalidArgument(AimaError):
    """The arguments do not match the unit's input schema."""

    code, http_status, exit_code = "invalid_argument", 400, 2


class Unauthenticated(AimaError):
    """No key was given, or nobody has that key."""

    code, http_status, exit_code = "unauthenticated", 401, 3


class PermissionDenied(AimaError):
    """The caller is known and may not do this."""

    code, http_status, exit_code = "permission_denied", 403, 4


class NotFound(AimaError):
    """The named thing does not exist."""

    code, http_status, exit_code = "not_found", 404, 5


class AlreadyExists(AimaError):
    """The name is taken by something else."""

    code, http_status, exit_code = "already_exists", 409, 6


class FailedPrecondition(AimaError):
    """The thing is not in a state where this can be done."""

    code, http_status, exit_code = "failed_precondition", 412, 7


class ResourceExhausted(AimaError):
    """Not enough memory, disk or room, or the caller's allowance is used up."""

    code, http_status, exit_code, retryable = "resource_exhausted", 507, 8, False


class Cancelled(AimaError):
    """Somebody asked for it to stop."""

    code, http_status, exit_code = "cancelled", 499, 9


class DeadlineExceeded(AimaError):
    """It took longer than it was given."""

    code, http_status, exit_code, retryable = "deadline_exceeded", 504, 10, True


class Unavailable(AimaError):
    """Something outside AIMA did not answer."""

    code, http_status, exit_code, retryable = "unavailable", 503, 11, True


class ApprovalRequired(AimaError):
    """A person or a policy must agree first."""

    code, http_status, exit_code = "approval_required", 428, 12


class Internal(AimaError):
    """A bug in AIMA."""


BY_CODE: dict[str, type[AimaError]] = {kind.code: kind for kind in (*AimaError.__subclasses__(),)}
