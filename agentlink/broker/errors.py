"""What can go wrong with the broker, as a caller sees it."""

from __future__ import annotations

import redis
from kombu.exceptions import EncodeError, OperationalError

from agentlink.errors import AgentLinkError
from agentlink.settings import load
from agentlink.units import format_size


def refuses_to_write(error: BaseException) -> bool:
    """Whether a broker that answers takes nothing for now: its memory or its disk is full, or it follows another.

    For the disk redis-py knows no class of its own. A PING is answered so, too.
    """
    if isinstance(error, (redis.OutOfMemoryError, redis.ReadOnlyError)):
        return True
    return isinstance(error, redis.ResponseError) and "MISCONF " in str(error)


def reason_of(error: Exception) -> str:
    """Why a broker took nothing, and where something is full what to do about it."""
    if "maxmemory" in str(error):
        return (
            f"it is full: broker_memory is {format_size(load().broker_memory_bytes)}; let workers finish what is "
            "queued, wait for results to expire, or raise AGENTLINK_BROKER_MEMORY"
        )
    if "MISCONF " in str(error):
        return f"it can't write to its disk; free some space there ({error})"
    return str(error)


class BrokerError(AgentLinkError):
    """The broker can't be started, reached or stopped."""


class BrokerStartError(BrokerError):
    """The embedded broker did not start."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy

    def __str__(self) -> str:
        return f"the broker can't start: {self.reason}; {self.remedy}"


class BrokerStopError(BrokerError):
    """The embedded broker did not stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the broker did not stop: {self.reason}"


class BrokerUnavailable(BrokerError, OperationalError):
    """The broker did not take a call: nothing of it was accepted and nothing of it will run.

    Also a kombu `OperationalError`, so that code written for plain Celery, and Celery itself, treats it as one.
    """

    def __init__(self, broker: str, reason: str) -> None:
        super().__init__(broker, reason)
        self.broker, self.reason = broker, reason

    def __str__(self) -> str:
        return f"the broker at {self.broker} did not take the call: {self.reason}"


class ResultNotStored(BrokerError, EncodeError):
    """A task's result is too large for the broker, and could not be stored in a file either: the task fails.

    Also a kombu `EncodeError`: for Celery it is a result that can't be kept.
    """

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(task_id, reason)
        self.task_id, self.reason = task_id, reason

    def __str__(self) -> str:
        return f"the result of task {self.task_id} could not be stored: {self.reason}"


class ArgumentNotStored(BrokerError, EncodeError):
    """An argument is too large for a message, and could not be stored in a file either: nothing of the call is queued.

    Also a kombu `EncodeError`: for Celery it is an argument that can't be sent.
    """

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(task, reason)
        self.task, self.reason = task, reason

    def __str__(self) -> str:
        return f"a large argument of {self.task} could not be stored, and nothing was sent: {self.reason}"


class LetterUnknown(AgentLinkError):
    """No dead letter has this id, or one that begins so."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.prefix = prefix

    def __str__(self) -> str:
        return f"no dead letter's id is or begins with {self.prefix!r}; `agentlink dead` lists them"


class LetterAmbiguous(AgentLinkError):
    """Several dead letters' ids begin so."""

    def __init__(self, prefix: str, ids: list[str]) -> None:
        super().__init__(prefix, ids)
        self.prefix, self.ids = prefix, ids

    def __str__(self) -> str:
        shown = ", ".join(self.ids[:3]) + (", …" if len(self.ids) > 3 else "")
        return f"{len(self.ids)} dead letters' ids begin with {self.prefix!r} ({shown}); give more of it"


class ChunksNotSent(BrokerError):
    """The broker has not taken what a step has put out; the rest of it would be out of order, and the step fails."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(step, reason)
        self.step, self.reason = step, reason

    def __str__(self) -> str:
        return f"the output of {self.step} can't be sent: {self.reason}"


class BrokerNotRunning(BrokerError):
    """The broker does not run, and what was asked for starts nothing."""

    def __init__(self, broker: str, reason: str) -> None:
        super().__init__(broker, reason)
        self.broker, self.reason = broker, reason

    def __str__(self) -> str:
        return f"the broker at {self.broker} can't be asked: {self.reason}"


class Overtaken(BrokerError):
    """What a message was to be sent for has changed meanwhile: nothing of it was accepted."""

    def __str__(self) -> str:
        return "it was overtaken: somebody else has done it, or changed what it was to be done for"
