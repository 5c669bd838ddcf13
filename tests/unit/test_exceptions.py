"""Exceptions go through a result store and come back as they were raised."""

from __future__ import annotations

import enum
import json
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.app.trace import TraceInfo
from celery.backends.base import Backend
from celery.exceptions import SecurityError

from agentlink.broker.exceptions import FIELD_MAX_CHARS, WholeExceptions, as_raised

STORE = WholeExceptions(app=Celery(set_as_current=False), serializer="json")
STOCK = Backend(app=Celery(set_as_current=False), serializer="json")


class Overdrawn(Exception):
    """Says with a keyword what it does not pass on."""

    def __init__(self, *, account: str, missing: float) -> None:
        super().__init__(f"{account} lacks {missing}")
        self.account, self.missing = account, missing


class Wrapped(Exception):
    """Would make another text of its own text."""

    def __init__(self, code: int) -> None:
        super().__init__(f"failed with {code}")
        self.code = code


class Reserved(Exception):
    """Has its fact where nobody is to look, and needs it to speak."""

    def __init__(self, seat: int, hall: str) -> None:
        self._seat, self._lock = seat, threading.Lock()
        self.hall = hall

    def __str__(self) -> str:
        return f"seat {self._seat} in {self.hall} is taken"


class Silent(Exception):
    """Can't speak without what no JSON carries."""

    def __init__(self, lock: Any) -> None:
        super().__init__()
        self._lock = lock

    def __str__(self) -> str:
        return f"locked: {self._lock.locked()}"


class Slotted(Exception):
    __slots__ = ("where",)

    def __init__(self, where: str) -> None:
        super().__init__("gone")
        self.where = where


class Missing(OSError):
    def __init__(self, path: str, tries: int) -> None:
        super().__init__(2, "not there", path)
        self.tries = tries


class Colour(enum.Enum):
    RED = 1


class Several(ExceptionGroup[Exception]):
    def __new__(cls, message: str, errors: list[Exception], source: str) -> Several:
        group = super().__new__(cls, message, errors)
        group.source = source
        return group

    def __init__(self, message: str, errors: list[Exception], source: str) -> None:
        super().__init__(message, errors)
        self.source = source


class Outer:
    class Inner(Exception):
        pass


def there_and_back(error: BaseException) -> Any:
    return STORE.exception_to_python(STORE.decode(STORE.encode(STORE.prepare_exception(error))))


def _noted() -> Exception:
    error = ValueError("bad row")
    error.add_note("in line 3")
    error.row = {"id": 3}  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        KeyError("name"),
        Exception(),
        Overdrawn(account="A1", missing=2.5),
        Wrapped(7),
        Slotted("here"),
        FileNotFoundError(2, "No such file or directory", "a.txt"),
        Missing("b.txt", tries=3),
        ImportError("no module", name="numpy", path="/lib"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        Outer.Inner("nested", 1, None),
        _noted(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_type_arguments_fields_and_words_survive(error: Any) -> None:
    back = there_and_back(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert vars(back) == vars(error)
    assert str(back) == str(error)
    for name in ("filename", "errno", "name", "path", "where", "object"):
        assert getattr(back, name, "-") == getattr(error, name, "-")


def test_private_fields_are_kept_where_json_can_carry_them_since_methods_need_them() -> None:
    back = there_and_back(Reserved(seat=12, hall="B"))
    assert str(back) == "seat 12 in B is taken"
    assert vars(back) == {"_seat": 12, "hall": "B"}


def test_a_public_field_that_json_cannot_carry_becomes_its_repr() -> None:
    error = Overdrawn(account="A1", missing=1)
    error.account, error.missing = Colour.RED, {Path("x")}  # type: ignore[assignment]
    back = there_and_back(error)
    assert type(back) is Overdrawn
    assert (back.account, back.missing) == ("<Colour.RED: 1>", repr({Path("x")}))


def test_a_field_that_is_very_long_does_not_fill_the_broker() -> None:
    error = Overdrawn(account="x" * 10 * FIELD_MAX_CHARS, missing=1)
    error.args = ()
    assert len(there_and_back(error).account) == FIELD_MAX_CHARS
    assert len(STORE.encode(STORE.prepare_exception(error))) < 3 * FIELD_MAX_CHARS


def test_what_cannot_speak_without_what_is_lost_still_says_what_it_said() -> None:
    back = there_and_back(Silent(threading.Lock()))
    assert isinstance(back, Silent)
    assert (type(back).__name__, str(back)) == ("Silent", "locked: False")


def test_of_a_module_that_is_not_loaded_there_is_an_exception_of_that_name_with_its_fields_and_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("elsewhere")
    exec(
        "class Rejected(Exception):\n"
        "    def __init__(self, form, *, fields):\n"
        "        super().__init__(form)\n"
        "        self.fields = fields\n"
        "    def __str__(self):\n"
        "        return f'{self.args[0]}: {self.fields}'\n",
        vars(module),
    )
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    prepared = STORE.prepare_exception(module.Rejected("order", fields=["size"]))
    monkeypatch.delitem(sys.modules, "elsewhere")
    back: Any = STORE.exception_to_python(json.loads(STORE.encode(prepared)))
    assert type(back).__name__ == "Rejected"
    assert isinstance(back, Exception)
    assert (back.args, back.fields, str(back)) == (("order",), ["size"], "order: ['size']")
    assert "elsewhere" not in sys.modules


def test_a_group_comes_back_with_its_members_however_deep() -> None:
    inner = ExceptionGroup("inner", [Wrapped(1), KeyError("k")])
    back = there_and_back(ExceptionGroup("outer", [inner, Overdrawn(account="A1", missing=2)]))
    assert type(back) is ExceptionGroup
    assert str(back) == "outer (2 sub-exceptions)"
    assert [type(member) for member in back.exceptions] == [ExceptionGroup, Overdrawn]
    wrapped, key = back.exceptions[0].exceptions
    assert (type(wrapped), wrapped.code, str(wrapped)) == (Wrapped, 1, "failed with 1")
    assert (type(key), key.args) == (KeyError, ("k",))
    matched, _ = back.split(Overdrawn)
    assert matched.exceptions[0].account == "A1"


def test_a_group_of_ones_own_and_one_of_base_exceptions_come_back_too() -> None:
    back = there_and_back(Several("bad rows", [ValueError("row 1")], "a.csv"))
    assert (type(back), back.source, back.exceptions[0].args) == (Several, "a.csv", ("row 1",))
    stopped = there_and_back(BaseExceptionGroup("stopped", [KeyboardInterrupt(), ValueError("x")]))
    assert type(stopped) is BaseExceptionGroup
    assert [type(member) for member in stopped.exceptions] == [KeyboardInterrupt, ValueError]


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), Wrapped(7), FileNotFoundError(2, "No such file", "a.txt"), ExceptionGroup("g", [ValueError()])],
    ids=lambda error: type(error).__name__,
)
def test_a_plain_celery_client_reads_what_it_always_did(error: Exception) -> None:
    ours = json.loads(STORE.encode(STORE.prepare_exception(error)))
    stocks = json.loads(STOCK.encode(STOCK.prepare_exception(error)))
    assert {name: ours[name] for name in stocks} == stocks
    plain = STOCK.exception_to_python(ours)
    assert repr(plain) == repr(STOCK.exception_to_python(stocks))


class Picky(Wrapped):
    """Can't be pickled, while its base class can be made from what it has."""

    def __init__(self, *, code: int) -> None:
        super().__init__(code)


@pytest.mark.parametrize("error", [Overdrawn(account="A1", missing=2), Picky(code=3)], ids=["wrapped", "of its base"])
def test_what_celery_hands_in_for_an_exception_that_cannot_be_pickled_is_undone(error: Exception) -> None:
    """With the real code of Celery's that makes another exception of it."""
    task = Mock(throws=())
    try:
        try:
            {}["the cause"]
        except KeyError as cause:
            raise error from cause
    except Exception as raised:  # noqa: BLE001 - as Celery does
        task.backend.mark_as_failure.side_effect = lambda _, exc, text, **__: stored.append((exc, as_raised(exc, text)))
        stored: list[Any] = []
        TraceInfo("FAILURE", raised).handle_failure(task, Mock())
    [(handed_in, (exc, text))] = stored
    assert type(handed_in) is not type(error)
    assert exc is error
    assert "KeyError: 'the cause'" in text
    assert text.rstrip().endswith(f"{type(error).__name__}: {error}")


def test_a_failure_that_is_stored_while_another_exception_is_handled_stays_what_it_is() -> None:
    timeout = TimeoutError("too long")
    assert as_raised(timeout, "text") == (timeout, "text")
    try:
        {}["other"]
    except KeyError:
        assert as_raised(timeout, "text") == (timeout, "text")


def test_what_a_plain_celery_worker_has_stored_is_read() -> None:
    stored = json.loads(STOCK.encode(STOCK.prepare_exception(KeyError("name"))))
    back: Any = STORE.exception_to_python(stored)
    assert (type(back), back.args) == (KeyError, ("name",))


def test_nothing_stored_is_none_and_what_names_no_exception_is_refused() -> None:
    assert STORE.exception_to_python(None) is None
    with pytest.raises(SecurityError):
        STORE.exception_to_python({"exc_type": "system", "exc_message": ["true"], "exc_module": "os"})


def test_stored_fields_take_the_place_of_no_method_and_of_nothing_that_python_keeps() -> None:
    fields = {"with_traceback": 1, "__class__": "str", "__traceback__": "x", "filename": ["x"], "said": 1}
    stored = {"exc_type": "OSError", "exc_message": [1, "no"], "exc_module": "builtins", "exc_fields": fields}
    back: Any = STORE.exception_to_python(stored)
    assert type(back) is PermissionError
    assert back.with_traceback(None) is back
    assert vars(back) == {"said": 1}
