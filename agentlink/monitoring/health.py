"""`agentlink health`: whether the workers of this host live, by exit status; no broker is needed.

It is asked every few seconds by Docker and the like, so it imports next to nothing: `agentlink.cli` comes here before
it imports the other commands.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from agentlink import heartbeats
from agentlink.errors import AgentLinkError
from agentlink.heartbeats import IN_WORDS, STALE_S, Heartbeat
from agentlink.home import checked_home, default_home
from agentlink.units import format_duration, parse_duration

HEALTHY, UNHEALTHY, UNKNOWN = 0, 1, 2
_URL_TIMEOUT_S = 5.0


class Verdict(NamedTuple):
    """Whether all is well, and a line for each thing that is worth knowing: what is wrong, or who is well."""

    ok: bool
    reasons: list[str]


def workers_live(home: Path, *, names: Collection[str] = (), stale_s: float = STALE_S) -> Verdict:
    """Whether each worker that has started on this host, or each of those named, lives. There must be one.

    One whose guard has paused it lives, and so does one that waits for a broker or ends its tasks before it stops.
    """
    return _judged(home, names, lambda heartbeat: _why_dead(heartbeat, stale_s))


def workers_ready(home: Path, *, names: Collection[str] = (), stale_s: float = STALE_S) -> Verdict:
    """Whether each of them lives and takes tasks: it has its processes, and is connected to the broker."""
    return _judged(home, names, lambda heartbeat: _why_dead(heartbeat, stale_s) or _why_unready(heartbeat))


def main(arguments: list[str]) -> int:
    """Look, say what was found, and return the exit status: 0 well, 1 not well, 2 it could not be found out."""
    parser = ArgumentParser(
        prog="agentlink health",
        description="Tell by the exit status whether the workers of this host live: 0 yes, 1 no, 2 not known.",
    )
    parser.add_argument("--worker", action="append", default=[], metavar="NAME", help="only this one (repeatable)")
    parser.add_argument("--ready", action="store_true", help="whether they take tasks, not only live")
    parser.add_argument(
        "--within", type=_duration, default=STALE_S, help="how long one may not have been heard of (default: 30s)"
    )
    parser.add_argument("--url", help="ask this address instead (http://…/livez), and tell what it answers")
    options = parser.parse_args(arguments)
    if options.url:
        verdict = _answer_of(options.url)
    else:
        look = workers_ready if options.ready else workers_live
        try:
            verdict = look(_home(), names=options.worker, stale_s=options.within)
        except (AgentLinkError, ValueError) as error:
            print(f"agentlink: {error}", file=sys.stderr)  # noqa: T201 - click would take longer to import than all this
            return UNKNOWN
    print("\n".join(verdict.reasons))  # noqa: T201
    return HEALTHY if verdict.ok else UNHEALTHY


def _judged(home: Path, names: Collection[str], why_not: Callable[[Heartbeat], str]) -> Verdict:
    heartbeats_here = heartbeats.of_this_host(home)
    missing = [name for name in names if name not in {heartbeat.worker for heartbeat in heartbeats_here}]
    wrong = [f"{name}: no such worker has started on this host" for name in missing]
    well: list[str] = []
    for heartbeat in heartbeats_here:
        if names and heartbeat.worker not in names:
            continue
        if why := why_not(heartbeat):
            wrong.append(f"{heartbeat.worker}: {why}")
        else:
            well.append(f"{heartbeat.worker}: {IN_WORDS[heartbeat.state]}")
    if not wrong and not well:
        wrong = [f"no worker has started on this host with the home {home}"]
    return Verdict(not wrong, wrong + well)


def _why_dead(heartbeat: Heartbeat, stale_s: float) -> str:
    if not heartbeat.has_process:
        return f"was killed (pid {heartbeat.pid})"
    # While it stops, its main loop waits for the tasks: how long they may take is for whoever stops it.
    if heartbeat.state != "stopping" and heartbeat.age_s > stale_s:
        return f"its main loop has not turned for {format_duration(heartbeat.age_s)} (pid {heartbeat.pid})"
    return ""


def _why_unready(heartbeat: Heartbeat) -> str:
    return "" if heartbeat.state == "ready" else IN_WORDS[heartbeat.state]


def _home() -> Path:
    if named := os.environ.get("AGENTLINK_HOME"):
        return checked_home(Path(named))
    from agentlink.settings_sources import file_values  # the parser of TOML takes as long as all the rest

    return checked_home(Path(str(file_values().get("home") or default_home())))


def _answer_of(url: str) -> Verdict:
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    if not url.startswith(("http://", "https://")):
        return Verdict(False, [f"want an address that begins with http:// or https://, got {url}"])
    try:
        with urlopen(url, timeout=_URL_TIMEOUT_S) as answer:  # noqa: S310 - of a scheme that was checked
            return Verdict(True, [answer.read().decode(errors="replace").strip()])
    except HTTPError as error:
        return Verdict(False, [f"{url} answers {error.code}: {error.read().decode(errors='replace').strip()}"])
    except (URLError, HTTPException, OSError, ValueError) as error:
        return Verdict(False, [f"{url} does not answer: {getattr(error, 'reason', error)}"])


def _duration(written: str) -> float:
    try:
        return parse_duration(written)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
