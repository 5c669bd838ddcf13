"""Settings: where they come from, and what happens when they make no sense."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentlink.errors import SettingsError
from agentlink.settings import Settings, load

Load = Callable[..., Settings]


@pytest.fixture
def load_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Load settings from these variables and this file alone."""

    def load_with(toml: str | None = None, **variables: str) -> Settings:
        for name in [name for name in os.environ if name.startswith("AGENTLINK_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        if toml is not None:
            (tmp_path / "agentlink.toml").write_text(toml)
        return load.__wrapped__()

    return load_with


def test_defaults_need_nothing(load_with: Load, tmp_path: Path) -> None:
    settings = load_with(HOME=str(tmp_path), XDG_STATE_HOME="")
    assert settings.home == tmp_path / ".local/state/agentlink"
    assert settings.embedded
    assert settings.url == f"redis+socket://{tmp_path}/.local/state/agentlink/broker/socket?virtual_host=0"
    assert 0 < settings.memory_bytes <= 8_000_000_000


def test_the_home_follows_the_xdg_state_folder(load_with: Load) -> None:
    assert load_with(XDG_STATE_HOME="/var/state").home == Path("/var/state/agentlink")
    assert load_with(XDG_STATE_HOME="relative", HOME="/h").home == Path("/h/.local/state/agentlink")


def test_the_environment_wins_over_the_file(load_with: Load) -> None:
    toml = 'memory = "2GB"\nconcurrency = 3\nimports = ["a", "b"]\n'
    settings = load_with(toml, AGENTLINK_MEMORY="1.5GB")
    assert settings.memory_bytes == 1_500_000_000
    assert settings.concurrency == 3
    assert settings.imports == ("a", "b")


def test_words_of_people_become_numbers_with_units(load_with: Load) -> None:
    settings = load_with(AGENTLINK_MEMORY_SOFT="90%", AGENTLINK_STOP_GRACE="2m", AGENTLINK_IMPORTS="one, two")
    assert settings.memory_soft_fraction == pytest.approx(0.9)
    assert settings.stop_grace_s == 120
    assert settings.imports == ("one", "two")


def test_settings_can_not_be_changed(load_with: Load) -> None:
    settings = load_with()
    with pytest.raises(Exception, match="frozen"):
        settings.concurrency = 3  # type: ignore[misc]


def test_every_problem_is_named_at_once_with_its_source_and_a_remedy(load_with: Load) -> None:
    with pytest.raises(SettingsError) as raised:
        load_with(
            'memroy = "2GB"\nconcurrency = "two"\n',
            AGENTLINK_MEMORY_SOFT="150%",
            AGENTLINK_BROKER_URL="amqp://host",
            AGENTLINK_STOP_GRAVE="1m",
        )
    problems = "\n".join(raised.value.problems)
    assert len(raised.value.problems) == 5
    assert "memroy in agentlink.toml: is not a setting; did you mean memory?" in problems
    assert "concurrency in agentlink.toml: input should be a valid integer" in problems
    assert "AGENTLINK_MEMORY_SOFT: want a share like 60% or 0.6, got '150%'" in problems
    assert "AGENTLINK_BROKER_URL: want a URL that starts with redis://" in problems
    assert "AGENTLINK_STOP_GRAVE: is not a setting; did you mean AGENTLINK_STOP_GRACE?" in problems


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"MEMORY_RESUME": "90%"}, "memory_resume (90%) must be below memory_soft (85%)"),
        ({"SOFT_TIME_LIMIT": "2h"}, "soft_time_limit (2 h 00 m) must be above 0 and below hard_time_limit (1 h 01 m)"),
        ({"KEEP_RESULTS": "1m"}, "keep_results (1 m 00 s) must be at least hard_time_limit (1 h 01 m)"),
        ({"MEMORY": "10MB"}, "memory (10 MB) must be at least 100 MB"),
        ({"PUBLISH_TIMEOUT": "5m"}, "publish_timeout (5 m 00 s) must be between 500 ms and 1 m"),
        ({"GUARD_INTERVAL": "1ms"}, "guard_interval (1 ms) must be between 10 ms and 1 s"),
        ({"HOME": "/" + "long" * 30}, "bytes and a Unix socket's path at most 103; set a shorter AGENTLINK_HOME"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    load_with: Load, variables: dict[str, str], problem: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load_with(**{f"AGENTLINK_{name}": value for name, value in variables.items()})
    assert problem in str(raised.value)


def test_a_file_that_is_no_toml_is_named(load_with: Load) -> None:
    with pytest.raises(SettingsError, match=r"agentlink.toml: not valid TOML: .*line 1"):
        load_with("memory = 8GB\n")


def test_a_home_with_odd_characters_makes_a_valid_address(load_with: Load) -> None:
    from kombu.utils.url import url_to_parts

    settings = load_with(AGENTLINK_HOME="/tmp/a b#c?d%e")
    assert url_to_parts(settings.url).path == "tmp/a b#c?d%e/broker/socket"


def test_another_broker_can_be_named(load_with: Load) -> None:
    settings = load_with(AGENTLINK_BROKER_URL="redis://user:secret@host:6380/2")
    assert not settings.embedded
    assert settings.url == settings.result_url == "redis://user:secret@host:6380/2"
