"""What a setting may be: each value by itself, and what must fit together. A message says what would be right."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from agentlink.address import SOCKET_PATH_MAX_BYTES, checked_address
from agentlink.home import checked_home
from agentlink.units import checked_name, format_duration, parse_duration, parse_share, parse_size, shown

if TYPE_CHECKING:
    from agentlink.settings import Settings

#: What the guard watches, each of which can be switched off.
RESOURCES = ("memory", "memory_free", "cpu", "disk_free", "disk_quota", "broker_memory", "processes")
#: How much is told of what happens, from nothing to everything.
EVENT_LEVELS = ("off", "basic", "standard", "full")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMATS = ("text", "json")


def size(least: str, most: str = "1000TB") -> BeforeValidator:
    return BeforeValidator(partial(_between, parse_size, least, most))


def duration(least: str, most: str) -> BeforeValidator:
    return BeforeValidator(partial(_between, parse_duration, least, most))


def share(least: str, most: str = "100%") -> BeforeValidator:
    return BeforeValidator(partial(_between, parse_share, least, most))


def _between(parse: Callable[[object], float], least: str, most: str, value: object) -> float:
    amount = parse(value)
    if not parse(least) <= amount <= parse(most):
        raise ValueError(f"want {least} to {most}, got {shown(value)}")
    return amount


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"want a number, got {value}")  # noqa: TRY004 - Python would take it for 0 or 1
    return value


def _names_from_text(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _modules(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"want modules as Python imports them, like mywork or mywork.tasks, got {shown(name)}")
    return names


def _resources(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in RESOURCES:
            raise ValueError(f"want some of {', '.join(RESOURCES)}, got {shown(name)}")
    return names


def _address(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        raise ValueError(f"want an address in numbers, like 127.0.0.1 or 0.0.0.0, got {shown(address)}") from None


def _broker_url(url: object) -> str | None:
    if url is not None and not isinstance(url, str):
        raise ValueError("want a text")  # and don't show what was given, it may hold a password
    return None if url is None else checked_address(url)


def _master_name(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"want a name of letters, digits and . - _ as Sentinel knows it, got {shown(name)}")
    return name


def _storage(location: str | None) -> str | None:
    if location is None or location.startswith("/"):
        return location
    protocol, separator, _ = location.partition("://")
    if not separator:
        raise ValueError("want a folder's absolute path or an address like s3://bucket/folder")
    import fsspec  # takes 60 ms, and few set this

    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise ValueError(f"want an address that fsspec knows: {error}") from None
    return location


def _event_level(level: str) -> str:
    if level.lower() not in EVENT_LEVELS:
        raise ValueError(f"want one of {', '.join(EVENT_LEVELS)}, got {shown(level)}")
    return level.lower()


def _log_level(level: str) -> str:
    if level.upper() not in LOG_LEVELS:
        raise ValueError(f"want one of {', '.join(LOG_LEVELS)}, got {shown(level)}")
    return level.upper()


def _log_format(name: str) -> str:
    if name.lower() not in LOG_FORMATS:
        raise ValueError(f"want {' or '.join(LOG_FORMATS)}, got {shown(name)}")
    return name.lower()


Count = Annotated[int, BeforeValidator(_no_truth_value)]
Share = Annotated[float, BeforeValidator(parse_share)]
Home = Annotated[Path, AfterValidator(checked_home)]
Name = Annotated[str | None, BeforeValidator(checked_name)]
Address = Annotated[str, AfterValidator(_address)]
Modules = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names_from_text), AfterValidator(_modules)]
Resources = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names_from_text), AfterValidator(_resources)]
BrokerUrl = Annotated[str | None, BeforeValidator(_broker_url)]
MasterName = Annotated[str | None, AfterValidator(_master_name)]
Storage = Annotated[str | None, AfterValidator(_storage)]
EventLevel = Annotated[str, AfterValidator(_event_level)]
LogLevel = Annotated[str, AfterValidator(_log_level)]
LogFormat = Annotated[str, AfterValidator(_log_format)]


def contradictions(settings: Settings) -> Iterator[str]:
    """What is wrong with values that are right by themselves: a line each."""
    yield from _marks_out_of_order(settings)
    if not settings.soft_time_limit_s < settings.hard_time_limit_s:
        yield (
            f"soft_time_limit ({format_duration(settings.soft_time_limit_s)}) must be below "
            f"hard_time_limit ({format_duration(settings.hard_time_limit_s)})"
        )
    if settings.keep_results_s < settings.hard_time_limit_s:
        yield (
            f"keep_results ({format_duration(settings.keep_results_s)}) must be at least hard_time_limit "
            f"({format_duration(settings.hard_time_limit_s)}), or results vanish while their run goes on"
        )
    if settings.behind_sentinel and settings.broker_master is None:
        yield "broker_url is of Sentinels and needs broker_master, the name of the master they watch"
    if settings.broker_master is not None and not settings.behind_sentinel:
        yield "broker_master is for a broker_url of Sentinels (sentinel://) only"
    if settings.broker_url is None and len(os.fsencode(settings.socket_path)) > SOCKET_PATH_MAX_BYTES:
        yield (
            f"home is too long: the broker's socket {shown(str(settings.socket_path))} takes "
            f"{len(os.fsencode(settings.socket_path))} bytes and a Unix socket's path at most {SOCKET_PATH_MAX_BYTES}; "
            "set a shorter AGENTLINK_HOME"
        )


def _marks_out_of_order(settings: Settings) -> Iterator[str]:
    for resource in ("memory", "cpu", "disk_quota", "broker_memory", "processes"):
        names = [f"{resource}_{mark}" for mark in ("resume", "soft", "hard")]
        resume, soft, hard = (getattr(settings, f"{name}_fraction", 1.0) for name in names)
        if not 0 < resume < soft:
            yield f"{names[0]} ({resume:.0%}) must be above 0 and below {names[1]} ({soft:.0%})"
        if soft > hard:
            yield f"{names[1]} ({soft:.0%}) must be at most {names[2]} ({hard:.0%})"
