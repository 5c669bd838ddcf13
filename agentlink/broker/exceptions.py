"""Exceptions on their way from a task to whoever asks for its result: type, arguments and fields survive.

Celery's JSON of an exception is its module, its name and its `args`, with which it calls the class again: a class that
takes something else comes back as a bare `Exception`, or says something else, and attributes are lost. So there stands
beside them, where a plain Celery client does not look:

- `exc_fields`: its attributes, and its notes. Of a public one that JSON can't carry, or that is very long, the `repr`;
  a private one is there for the methods of its class, and kept only as it is.
- `exc_text`: what it says, unless `args` say the same. It is for those who don't have its class.
- `exc_members`: the exceptions in an exception group, each in this form.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

import celery.exceptions
from celery.backends.base import EXCEPTION_ABLE_CODECS, Backend
from kombu.utils.encoding import safe_repr

#: Longer fields are stored as the beginning of their `repr`: a failure stays in the broker, whose memory is small.
FIELD_MAX_CHARS = 10_000

_NOTES = "__notes__"
# Where attributes are that are not in an instance's `__dict__`: `OSError.filename`, and those of `__slots__`.
_SLOTS = (GetSetDescriptorType, MemberDescriptorType)
# What has a place of its own, and whatever it was that lacks an attribute.
_NO_FIELDS = (
    vars(BaseException)["args"],
    vars(AttributeError)["obj"],
    vars(BaseExceptionGroup)["message"],
    vars(BaseExceptionGroup)["exceptions"],
)


class WholeExceptions(Backend):
    """A result store that keeps of an exception what it knows, not only what its class is to be called with."""

    def prepare_exception(self, exc: BaseException, serializer: str | None = None) -> Any:
        """Celery's form of an exception, and what is missing there."""
        prepared = super().prepare_exception(exc, serializer)
        if (serializer or self.serializer) in EXCEPTION_ABLE_CODECS:
            return prepared
        if fields := dict(_kept(exc, self.encode)):
            prepared["exc_fields"] = fields
        text = _text(exc)
        if text != _text(Exception(*prepared["exc_message"])):
            prepared["exc_text"] = safe_repr(exc) if text is None else text
        if isinstance(exc, BaseExceptionGroup):
            prepared["exc_members"] = [self.prepare_exception(member, serializer) for member in exc.exceptions]
        return prepared

    def exception_to_python(self, exc: Any) -> BaseException | None:
        """The exception as it was raised; of a class that is called the same, if its own is not loaded in this process.

        Raises:
            SecurityError: what is stored is no exception, and nothing of it was called.
        """
        if not isinstance(exc, dict) or "exc_type" not in exc:
            return self._by_celery(exc)
        cls = _loaded_class(exc)
        if cls is not None and not (isinstance(cls, type) and issubclass(cls, BaseException)):
            return self._by_celery(exc)  # which refuses it
        members = [self.exception_to_python(member) for member in exc.get("exc_members") or ()]
        error = _made_again(cls or _stand_in(exc, members), _arguments(exc, members))
        if error is None:
            return self._by_celery(exc)
        _set_fields(error, exc.get("exc_fields") or {})
        if _text(error) is None:  # it would say it with what could not be kept
            error.__class__ = _saying(_stored_text(exc), type(error), type(error).__name__, type(error).__module__)
        return error

    def _by_celery(self, exc: Any) -> BaseException | None:
        error: BaseException | None = super().exception_to_python(exc)
        return error


def as_raised(exc: BaseException, text: str | None) -> tuple[BaseException, str | None]:
    """The exception that a task has raised, and its traceback with its causes.

    Celery 5.7 hands something else in where the exception can't be pickled, since it also goes to the main process: one
    of a base class, or a wrapper. That has the traceback of what is being handled meanwhile: the exception itself.
    """
    raised = sys.exc_info()[1]
    if raised is None or exc is raised or raised.__traceback__ is None or exc.__traceback__ is not raised.__traceback__:
        return exc, text
    return raised, "".join(traceback.format_exception(raised))


def _kept(error: BaseException, encode: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
    """The fields of an exception in the form in which they are stored."""
    for name, value in {**dict(_in_slots(error)), **vars(error)}.items():
        if not _is_field(name):
            continue
        if _is_short_json(value, encode):
            yield name, value
        elif not name.startswith("_"):
            yield name, safe_repr(value)[:FIELD_MAX_CHARS]


def _in_slots(error: BaseException) -> Iterator[tuple[str, Any]]:
    for cls in type(error).__mro__:
        for name, slot in vars(cls).items():
            if not isinstance(slot, _SLOTS) or slot in _NO_FIELDS:
                continue
            with contextlib.suppress(AttributeError):  # it is empty
                value = slot.__get__(error, type(error))
                if value is not None or cls.__module__ != "builtins":
                    yield name, value


def _is_field(name: str) -> bool:
    return name == _NOTES or not name.startswith("__")


def _is_short_json(value: Any, encode: Callable[[Any], Any]) -> bool:
    try:
        return len(encode(value)) <= FIELD_MAX_CHARS
    except Exception:  # noqa: BLE001 - whatever a value raises when it is asked for its JSON, it has none
        return False


def _text(error: BaseException) -> str | None:
    """What an exception says; None: it can't."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the words are the user's code
        return None


def _stored_text(stored: Mapping[str, Any]) -> str:
    return str(stored.get("exc_text") or Exception(*_arguments(stored, ())))


def _arguments(stored: Mapping[str, Any], members: Sequence[Any]) -> list[Any]:
    message = stored.get("exc_message", "")
    args = list(message) if isinstance(message, (list, tuple)) else [message]
    return [*args[:1], members] if members else args


def _loaded_class(stored: Mapping[str, Any]) -> Any:
    """What bears the exception's name in its module; None where there is nothing, or the module is not loaded.

    It is not imported for that: who may write results is not to choose which code runs here.
    """
    found: Any = sys.modules.get(stored.get("exc_module") or "")
    for name in stored["exc_type"].split("."):
        found = getattr(found, name, None) if found is not None else None
    return found


def _stand_in(stored: Mapping[str, Any], members: Sequence[Any]) -> type[BaseException]:
    base: type[BaseException] = Exception
    if members:
        base = ExceptionGroup if all(isinstance(member, Exception) for member in members) else BaseExceptionGroup
    return _saying(_stored_text(stored), base, stored["exc_type"], celery.exceptions.__name__)


def _saying(text: str, base: type[BaseException], name: str, module: str) -> type[BaseException]:
    """A class for one exception, which has its text and no need to make it."""
    return type(name, (base,), {"__module__": module, "__str__": lambda _: text})


def _made_again(cls: type[BaseException], args: list[Any]) -> BaseException | None:
    """An exception with these `args`; without its constructor where that wants others, or would make others of them."""
    with contextlib.suppress(Exception):
        error = cls(*args)
        if isinstance(error, cls) and list(error.args) == args:
            return error
    built_in = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    with contextlib.suppress(Exception):
        error = built_in.__new__(cls, *args)
        error.args = tuple(args)
        return error
    return None


def _set_fields(error: BaseException, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        slot = getattr(type(error), name, None)
        if not _is_field(name) or callable(slot):  # no stored name takes the place of a method
            continue
        if isinstance(slot, _SLOTS):
            with contextlib.suppress(AttributeError, TypeError, ValueError):
                slot.__set__(error, value)
        else:
            vars(error)[name] = value
