"""The shipped containers and services: what can be checked of them without running them."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentlink.settings import Settings
from agentlink.units import parse_duration, parse_size
from agentlink.up import KILL_AFTER_S

REPOSITORY = Path(__file__).parents[2]
UNITS = sorted((REPOSITORY / "docs" / "systemd").glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ["cpu", "io", "flower"]
WORKERS = ["cpu", "io"]

# The time a stop takes at most: the drain, and twice to end what does not end.
DRAIN_S = Settings().stop_grace_s + 2 * KILL_AFTER_S


def _default(value: Any) -> str:
    """What Compose takes where the user has said nothing: `4g` of `${CPU_MEMORY:-4g}`."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("profile", [[], ["--profile", "watch"]])
def test_docker_compose_understands_its_file(profile: list[str], tmp_path: Path) -> None:
    answer = subprocess.run(
        ["docker-compose", *profile, "config", "--quiet"], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=50, check=False, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_limited_watched_and_closed(name: str) -> None:
    service = SERVICES[name]
    assert parse_size(_default(service["mem_limit"])) > 0
    assert float(_default(service["cpus"])) > 0
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(_default(port).startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", WORKERS)
def test_a_workers_container_gives_it_more_time_than_its_drain(name: str) -> None:
    service = SERVICES[name]
    assert parse_duration(service["stop_grace_period"]) >= DRAIN_S
    assert service["healthcheck"]["test"] == ["CMD", "agentlink", "health"]
    assert service["environment"]["AGENTLINK_MEMORY"] == service["mem_limit"]
    assert service["init"] is True


def test_containers_of_ours_are_not_root() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert re.findall(r"^USER (\d+)", dockerfile, re.MULTILINE) == ["10001"]
    assert all("user" not in SERVICES[name] for name in OURS)
    assert SERVICES["valkey"]["user"].split(":")[0] != "0"


def test_the_image_has_every_package_and_nothing_else_of_the_checkout() -> None:
    taken = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"agentlink", "resource_guard", "tasks", "workflows", "celeryconfig.py", "pyproject.toml"} <= taken
    assert all((REPOSITORY / name).exists() for name in taken)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_its_units(unit: Path, tmp_path: Path) -> None:
    """With a program in place of ours, whose path is not on this machine."""
    text = re.sub(r"/opt/agentlink/\.venv/bin/\w+", "/bin/true", unit.read_text())
    (made := tmp_path / unit.name.replace("@", "@cpu")).write_text(text)
    answer = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(made)], capture_output=True, text=True, timeout=50, check=False
    )
    # Those of the machine's own units that it reads on the way are none of ours.
    assert [line for line in answer.stderr.splitlines() if unit.name.partition("@")[0] in line] == []


def test_there_is_a_unit_for_the_whole_and_for_each_part() -> None:
    assert [unit.name for unit in UNITS] == [
        "agentlink-flower.service",
        "agentlink-worker@.service",
        "agentlink.service",
    ]


@pytest.mark.parametrize("unit", [unit for unit in UNITS if "flower" not in unit.name], ids=lambda unit: unit.name)
def test_a_service_gets_more_time_than_its_drain_and_is_watched(unit: Path) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(unit.read_text())
    service = parser["Service"]
    assert parse_duration(service["TimeoutStopSec"]) >= DRAIN_S
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed", "the worker's processes are the worker's to end"
    assert parse_duration(service["WatchdogSec"]) >= 15
