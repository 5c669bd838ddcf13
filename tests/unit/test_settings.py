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

    def load_with(toml: str | bytes | None = None, **variables: str | None) -> Settings:
        for name in [name for name in os.environ if name.startswith("AGENTLINK_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        if toml is not None:
            (tmp_path / "agentlink.toml").write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        return load.__wrapped__()

    return load_with


def test_defaults_need_nothing(load_with: Load) -> None:
    settings = load_with(HOME="/h", XDG_STATE_HOME="")
    assert settings.home == Path("/h/.local/state/agentlink")
    assert settings.embedded
    assert settings.url == "redis+socket:///h/.local/state/agentlink/broker/socket?virtual_host=0"
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
    assert load_with('guard_off = ["cpu", "disk_free"]\n').guard_off == ("cpu", "disk_free")


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
        ({"MEMORY_RESUME": "90%"}, "memory_resume (90%) must be above 0 and below memory_soft (90%)"),
        ({"MEMORY_RESUME": "0"}, "memory_resume (0%) must be above 0 and below memory_soft (90%)"),
        ({"MEMORY_HARD": "85%"}, "memory_soft (90%) must be at most memory_hard (85%)"),
        ({"CPU_RESUME": "99%"}, "cpu_resume (99%) must be above 0 and below cpu_soft (95%)"),
        ({"DISK_QUOTA_SOFT": "90%"}, "disk_quota_resume (95%) must be above 0 and below disk_quota_soft (90%)"),
        (
            {"BROKER_MEMORY_SOFT": "0.8"},
            "broker_memory_resume (80%) must be above 0 and below broker_memory_soft (80%)",
        ),
        ({"PROCESSES_HARD": "75%"}, "processes_soft (80%) must be at most processes_hard (75%)"),
        ({"SOFT_TIME_LIMIT": "2h"}, "soft_time_limit (2 h 00 m) must be below hard_time_limit (1 h 01 m)"),
        ({"KEEP_RESULTS": "1m"}, "keep_results (1 m 00 s) must be at least hard_time_limit (1 h 01 m)"),
        (
            {"BROKER_URL": "sentinel://:secret@one;two"},
            "broker_url is of Sentinels and needs broker_master, the name of the master they watch",
        ),
        (
            {"BROKER_URL": "redis://:secret@host", "BROKER_MASTER": "agents"},
            "broker_master is for a broker_url of Sentinels (sentinel://) only",
        ),
        ({"BROKER_MASTER": "agents"}, "broker_master is for a broker_url of Sentinels (sentinel://) only"),
        ({"HOME": "/" + "long" * 30}, "bytes and a Unix socket's path at most 103; set a shorter AGENTLINK_HOME"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    load_with: Load, variables: dict[str, str], problem: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load_with(**{f"AGENTLINK_{name}": value for name, value in variables.items()})
    (told,) = raised.value.problems
    assert problem in told
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("broker_memory", "0", "want 16MB to 1000TB, got '0'"),
        ("broker_memory", "1kB", "want 16MB to 1000TB, got '1kB'"),
        (
            "broker_master",
            "my master",
            "want a name of letters, digits and . - _ as Sentinel knows it, got 'my master'",
        ),
        ("broker_start_timeout", "0", "want 100ms to 1h, got '0'"),
        ("publish_timeout", "5m", "want 500ms to 1m, got '5m'"),
        ("lease", "1d", "want 1s to 1h, got '1d'"),
        ("concurrency", "0", "input should be greater than or equal to 1, got '0'"),
        ("soft_time_limit", "0", "want 100ms to 365d, got '0'"),
        ("hard_time_limit", "1000d", "want 100ms to 365d, got '1000d'"),
        ("stop_grace", "2d", "want 0s to 1d, got '2d'"),
        ("keep_results", "700ms", "want 1s to 3650d, got '700ms'"),
        ("keep_runs", "999999999", "input should be less than or equal to 10000000, got '999999999'"),
        ("memory", "10MB", "want 100MB to 1000TB, got '10MB'"),
        ("memory_free", "9999TB", "want 0MB to 1000TB, got '9999TB'"),
        ("cpu", "0%", "want 1% to 100%, got '0%'"),
        ("cpu", "150%", "want a share like 60% or 0.6, got '150%'"),
        ("disk_free", "9999TB", "want 0MB to 1000TB, got '9999TB'"),
        ("disk_free_share", "100%", "want 0% to 99%, got '100%'"),
        ("disk_quota", "1MB", "want 10MB to 1000TB, got '1MB'"),
        ("processes", "5", "input should be greater than or equal to 10, got '5'"),
        ("guard_off", "memory,swap", "want some of memory, memory_free, cpu, disk_free"),
        ("guard_readings_on", "0", "input should be greater than or equal to 1, got '0'"),
        ("guard_readings_off", "101", "input should be less than or equal to 100, got '101'"),
        ("guard_rest", "1d", "want 0s to 1h, got '1d'"),
        ("guard_interval", "1ms", "want 10ms to 1s, got '1ms'"),
        ("metrics_port", "-1", "input should be greater than or equal to 0, got '-1'"),
        ("metrics_address", "here", "want an address in numbers, like 127.0.0.1 or 0.0.0.0, got 'here'"),
        ("flower_port", "65536", "input should be less than or equal to 65535, got '65536'"),
        ("imports", "a b,../x", "want modules as Python imports them, like mywork or mywork.tasks, got 'a b'"),
        ("imports", "a,../x", "got '../x'"),
        ("imports", "a..b", "got 'a..b'"),
    ],
)
def test_values_that_make_no_sense_are_refused(load_with: Load, name: str, value: str, want: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_with(**{f"AGENTLINK_{name.upper()}": value})
    (problem,) = raised.value.problems
    assert problem.startswith(f"AGENTLINK_{name.upper()}: ")
    assert want in problem


NAMES = [field.alias or name for name, field in Settings.model_fields.items()]


@pytest.mark.parametrize(
    "value", ["inf", "-inf", "nan", "1e400", "-1", "9" * 400, "[1]", "{}", "1979-05-27", '"\\u0000"']
)
@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_the_wrong_kind_is_one_problem(load_with: Load, name: str, value: str) -> None:
    """TOML knows numbers without end, dates and more, in any place."""
    with pytest.raises(SettingsError) as raised:
        load_with(f"{name} = {value}\n")
    (problem,) = raised.value.problems
    assert problem.startswith(f"{name} in agentlink.toml: ")
    assert len(problem) < 400


@pytest.mark.parametrize("name", ["concurrency", "keep_runs", "flower_port"])
def test_true_is_no_number(load_with: Load, name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} in agentlink.toml: want a number, got True"):
        load_with(f"{name} = true\n")


class TestTheFile:
    def test_that_is_no_toml_is_named(self, load_with: Load) -> None:
        with pytest.raises(SettingsError, match=r"agentlink.toml: not valid TOML: .*line 1"):
            load_with("memory = 8GB\n")

    @pytest.mark.parametrize("text", ["memory = " + "[" * 10_000, "memory = " + "9" * 10_000])
    def test_that_no_parser_gets_through_is_named(self, load_with: Load, text: str) -> None:
        with pytest.raises(SettingsError, match=r"agentlink\.toml: not valid TOML: "):
            load_with(text)

    def test_is_utf8_with_or_without_its_mark(self, load_with: Load) -> None:
        assert load_with('home = "/tmp/\u00e4"\n'.encode("utf-8-sig")).home == Path("/tmp/ä")
        with pytest.raises(SettingsError, match=r"agentlink\.toml: not valid TOML: want its text in UTF-8"):
            load_with('home = "/tmp/\u00e4"\n'.encode("cp1252"))

    def test_may_be_named(self, load_with: Load, tmp_path: Path) -> None:
        (tmp_path / "other.toml").write_text("concurrency = 7\n")
        assert load_with("concurrency = 3\n", AGENTLINK_CONFIG="other.toml").concurrency == 7
        assert load_with("concurrency = 3\n", AGENTLINK_CONFIG=os.devnull).concurrency != 3

    def test_that_is_named_must_be_there(self, load_with: Load) -> None:
        """A misspelt name would otherwise mean the defaults."""
        with pytest.raises(SettingsError, match=r"other\.toml: can't be read: No such file or directory"):
            load_with(AGENTLINK_CONFIG="other.toml")

    def test_must_be_a_file(self, load_with: Load, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=f"{tmp_path}: is not a file"):
            load_with(AGENTLINK_CONFIG=str(tmp_path))
        os.mkfifo(tmp_path / "pipe")  # every process of ours reads it, and a pipe can be read once
        with pytest.raises(SettingsError, match="pipe: is not a file"):
            load_with(AGENTLINK_CONFIG="pipe")


class TestTheHome:
    @pytest.mark.parametrize(
        ("variables", "want"),
        [
            ({"AGENTLINK_HOME": "~nobody-of-this-name/x"}, "want a folder, and there is no user ~nobody-of-this-name"),
            ({"HOME": "relative"}, "want HOME to be an absolute path, or AGENTLINK_HOME, got HOME='relative'"),
            ({"HOME": ""}, "want HOME to be an absolute path"),
            ({"HOME": "relative", "AGENTLINK_HOME": "~/x"}, "want HOME to be an absolute path"),
            ({"AGENTLINK_HOME": "."}, "want a folder, got '.'"),
            ({"AGENTLINK_HOME": "/a\udcff"}, "want a folder whose name is UTF-8, got '/a\\udcff'"),
            ({"AGENTLINK_HOME": "/"}, "want a folder of its own, got '/'"),
            ({"AGENTLINK_HOME": "/tmp/"}, "want a folder of its own, got '/tmp'"),
            ({"AGENTLINK_HOME": __file__}, "want a folder of its own, got "),
        ],
    )
    def test_must_be_a_folder_of_its_own(self, load_with: Load, variables: dict[str, str | None], want: str) -> None:
        """It is closed to everybody else, with all that is in it."""
        with pytest.raises(SettingsError) as raised:
            load_with(**({"XDG_STATE_HOME": None} | variables))
        (problem,) = raised.value.problems
        assert problem.startswith(f"AGENTLINK_HOME: {want}")

    def test_needs_no_home_of_the_user_when_it_is_named(self, load_with: Load) -> None:
        assert load_with(HOME="relative", AGENTLINK_HOME="/srv/agentlink").home == Path("/srv/agentlink")
        assert load_with(HOME=None, XDG_STATE_HOME=None).home.is_absolute()

    def test_may_be_written_with_a_tilde_or_from_here(self, load_with: Load, tmp_path: Path) -> None:
        assert load_with(HOME="/h", AGENTLINK_HOME="~/x").home == Path("/h/x")
        assert load_with(AGENTLINK_HOME="x/../y").home == tmp_path / "y"


def test_a_home_with_odd_characters_makes_a_valid_address(load_with: Load) -> None:
    from kombu.utils.url import url_to_parts

    settings = load_with(AGENTLINK_HOME="/tmp/a b#c?d%e")
    assert url_to_parts(settings.url).path == "tmp/a b#c?d%e/broker/socket"


class TestAnotherBroker:
    def test_can_be_named(self, load_with: Load) -> None:
        settings = load_with(AGENTLINK_BROKER_URL="redis://user:secret@host:6380/2")
        assert not settings.embedded
        assert settings.url == settings.result_url == "redis://user:secret@host:6380/2"

    def test_may_be_a_valkey(self, load_with: Load) -> None:
        settings = load_with(AGENTLINK_BROKER_URL="valkeys://host/1?ssl_cert_reqs=required")
        assert settings.url == settings.result_url == "rediss://host/1?ssl_cert_reqs=required"

    def test_may_be_behind_sentinel(self, load_with: Load) -> None:
        url = "sentinel://:secret@one;sentinel://two:5/2"
        settings = load_with(AGENTLINK_BROKER_URL=url, AGENTLINK_BROKER_MASTER="agents")
        assert settings.behind_sentinel
        assert settings.url == settings.result_url == "sentinel://:secret@one:26379/2;sentinel://:secret@two:5/2"
        assert settings.shown_url == "sentinel://:**@one:26379/2;sentinel://:**@two:5/2"
        assert not load_with().behind_sentinel

    def test_is_shown_without_its_password(self, load_with: Load) -> None:
        settings = load_with(AGENTLINK_BROKER_URL="redis://user:secret@host:6380/2")
        assert settings.shown_url == "redis://user:**@host:6380/2"
        assert "secret" not in repr(settings) + str(settings)
        assert load_with().shown_url.startswith("redis+socket:///")

    @pytest.mark.parametrize("written", ['"redis://user:secret@host:99999/0"', '["redis://user:secret@host"]'])
    def test_is_refused_without_its_password(self, load_with: Load, written: str) -> None:
        with pytest.raises(SettingsError) as raised:
            load_with(f"broker_url = {written}\n")
        (problem,) = raised.value.problems
        assert problem.startswith("broker_url in agentlink.toml: want ")
        assert "secret" not in problem
