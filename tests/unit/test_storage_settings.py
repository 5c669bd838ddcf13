"""The settings of storage, and what of Celery's it relies on."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from celery.backends.redis import RedisBackend
from celery.worker import request as celery_request

from agentlink.errors import SettingsError
from agentlink.settings import Settings
from tests.unit.test_settings import Load, load_with  # noqa: F401 - a fixture


def test_large_results_are_kept_below_the_home_and_are_those_above_64_kb(load_with: Load) -> None:  # noqa: F811
    settings = load_with(AGENTLINK_HOME="/h/agentlink")
    assert settings.storage_location == "/h/agentlink/results"
    assert settings.results_inline_bytes == 64_000
    assert settings.disk_quota_bytes == 20_000_000_000


def test_they_may_be_kept_elsewhere(load_with: Load) -> None:  # noqa: F811
    settings = load_with(AGENTLINK_STORAGE="memory://results", AGENTLINK_RESULTS_INLINE="1MB")
    assert settings.storage_location == "memory://results"
    assert settings.results_inline_bytes == 1_000_000
    assert load_with(AGENTLINK_STORAGE="/mnt/shared").storage_location == "/mnt/shared"


def test_it_must_be_clear_where_that_is(load_with: Load) -> None:  # noqa: F811
    with pytest.raises(
        SettingsError, match="AGENTLINK_STORAGE: want a folder's absolute path or an address like s3://"
    ):
        load_with(AGENTLINK_STORAGE="results")
    with pytest.raises(
        SettingsError, match=r"AGENTLINK_STORAGE: want an address that fsspec knows: .*nosuch"
    ) as raised:
        load_with(AGENTLINK_STORAGE="nosuch://me:secret@bucket/results")
    assert "secret" not in str(raised.value)


def test_an_address_with_a_password_is_not_shown(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, storage="ftp://me:secret@host/results")
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_get_result_meta", ["self", "result", "state", "traceback", "request", "format_date", "encode"]),
        ("_unpack_chord_result", ["self", "tup", "decode", "EXCEPTION_STATES", "PROPAGATE_STATES"]),
        ("meta_from_decoded", ["self", "meta"]),
        ("encode", ["self", "data"]),
        ("decode", ["self", "payload"]),
        ("store_result", ["self", "task_id", "result", "state", "traceback", "request", "kwargs"]),
        ("on_chord_part_return", ["self", "request", "state", "result", "propagate", "kwargs"]),
    ],
)
def test_celerys_redis_backend_has_the_methods_we_override(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(RedisBackend, name)).parameters) == parameters


def test_a_chords_member_leaves_four_parts_that_are_unpacked_one_by_one() -> None:
    """A fifth tells a reference."""
    assert "self.encode([1, tid, state, result])" in inspect.getsource(RedisBackend.on_chord_part_return)
    assert "_, tid, state, retval = decode(tup)" in inspect.getsource(RedisBackend._unpack_chord_result)


def test_a_tasks_success_is_looked_up_by_the_method_we_override() -> None:
    assert "self._success_was_stored()" in inspect.getsource(celery_request.Request.on_failure)
