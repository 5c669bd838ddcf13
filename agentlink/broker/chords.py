"""What is remembered of a run's chord while its members run, and what becomes of one whose counters were lost.

Celery keeps of a chord in progress four small keys, and the body in nothing but its members' messages. Should a key be
gone (deleted by hand, or an append-only file cut short), the last member finds nothing to complete, and nothing is left
that could. So a chord of a run is recorded as it is sent: its members' ids, its body. The record goes in the step that
sends the body; what is left, the watch looks at.

Of Celery 5.7's `RedisBackend`, held by a contract test: `_chord_cleanup_script`, `CHORD_CLEANUP_LUA`, and the keys that
it is called with; that a chord's keys end in `.j`, `.s`, `.t`, `.d` and `.c`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from typing import Any

import redis
from celery import signature, states
from celery.app.task import Context
from celery.backends.redis import CHORD_CLEANUP_LUA
from celery.canvas import Signature
from celery.result import GroupResult

from agentlink.broker.calls import Command
from agentlink.errors import AgentLinkError
from agentlink.settings import load

logger = logging.getLogger(__name__)

#: The chords of runs whose bodies have not been sent, by when they were (seconds since 1970): group ids.
PENDING_KEY = "agentlink:chords"
#: What is known of one; Celery's script that ends a chord removes it.
CHORD_PREFIX = "agentlink:chord:"
#: A chord is not looked at before it is so old, nor completed before its last member has been done for so long.
QUIET_S = 5.0
# The most that one look is at. Where there are more, those looked at come last the next time.
_AT_ONCE = 1_000

_COUNTERS = (".j", ".s", ".t", ".d", ".c")

# Stands before Celery's: the group's id is what stands between a prefix of ours and `.c` in the claim's key.
CLEANUP_LUA = f"""
local group_id = string.match(KEYS[1], 'celery%-taskset%-meta%-(.*)%.c$')
if group_id and redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', '{CHORD_PREFIX}' .. group_id)
    redis.call('ZREM', '{PENDING_KEY}', group_id)
end
{CHORD_CLEANUP_LUA}"""

# A task that its process's death has begin again adds what it adds again. A chord of no run is not recorded: there only
# this command may be sent again, since its answer got lost.
_ADD_LUA = """
if redis.call('EXISTS', KEYS[1]) == 1 then
    if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return end
elseif not redis.call('SET', KEYS[3], '', 'NX', 'EX', ARGV[3]) then return end
redis.call('INCR', KEYS[2])"""
_ADDED = "added:"
#: How long a command is sent again for, at most; and then some.
_ADDING_S = 3600

#: Tells, of some steps of a run, those that have ended. Whoever keeps runs adds to `lookups`.
Ended = Callable[[redis.Redis, str, Sequence[str]], Collection[str]]
lookups: list[Ended] = []


class ChordLost(AgentLinkError):
    """A chord's counters are gone, and so are results of members: its body can't be given them."""

    def __init__(self, group_id: str, missing: Sequence[str]) -> None:
        super().__init__(group_id, missing)
        self.group_id, self.missing = group_id, list(missing)

    def __str__(self) -> str:
        return (
            f"the counters of chord {self.group_id} were lost, and the results of {len(self.missing)} of its members "
            f"are not kept ({', '.join(self.missing[:3])}): resume the run, or let its tasks keep their results"
        )


def recording_commands(group_id: str, members: Sequence[str], body: Any, run_id: str) -> list[Command]:
    """What remembers a chord that is about to be sent."""
    keep_s = int(2 * load().keep_results_s)
    record = {"members": json.dumps(list(members)), "last": members[-1], "body": json.dumps(body), "run": run_id}
    return [
        ["HSET", CHORD_PREFIX + group_id, *(word for pair in record.items() for word in pair)],
        ["EXPIRE", CHORD_PREFIX + group_id, keep_s],
        ["ZADD", PENDING_KEY, f"{time.time():.3f}", group_id],
        ["EXPIRE", PENDING_KEY, keep_s],
    ]


def adding_command(group_id: str, member: str, index: int | None, more_key: str) -> Command:
    """What has a chord wait for one member more, with the result at a place; `more_key` is Celery's count of those."""
    keys = (CHORD_PREFIX + group_id, more_key, f"agentlink:added:{group_id}:{member}")
    return ["EVAL", _ADD_LUA, len(keys), *keys, _ADDED + member, "" if index is None else index, _ADDING_S]


def run_of(body: Any) -> str | None:
    """The run that a chord's body belongs to."""
    run_id: str | None = (first_task(body).options.get("headers") or {}).get("agentlink_run")
    return run_id


def first_task(canvas: Any) -> Any:
    """The task with which a canvas begins."""
    while tasks := getattr(canvas, "tasks", None):
        canvas = tasks if isinstance(tasks, Signature) else next(iter(tasks))
    return canvas


def flat_ids(results: Any) -> Iterator[str]:
    """Of a header's results, however deep."""
    for result in results:
        if isinstance(result, GroupResult):
            yield from flat_ids(result.results)
        else:
            yield result.id


class ChordWatch:
    """Finds chords all of whose members have ended and whose bodies were never sent, and completes or fails them."""

    def __init__(self, backend: Any, goes_on: Callable[[Sequence[str]], dict[str, bool]]) -> None:
        """`backend` is the result backend; `goes_on` tells of runs that are known whether each has yet to end."""
        self._backend, self._goes_on = backend, goes_on

    def look(self, now: float) -> list[str]:
        """Look at those that wait longest; return the groups' ids of those that were completed or failed."""
        client = self._backend.client
        old = client.zrangebyscore(PENDING_KEY, "-inf", now - QUIET_S, start=0, num=_AT_ONCE)
        group_ids = [_text(one) for one in old]
        if not group_ids:
            return []
        if len(group_ids) == _AT_ONCE:
            client.zadd(PENDING_KEY, dict.fromkeys(group_ids, now), xx=True)
        with client.pipeline(transaction=False) as pipe:
            for group_id in group_ids:
                pipe.hmget(CHORD_PREFIX + group_id, "run", "last")
                pipe.get(self._backend.get_key_for_group(group_id, ".c"))
            answers = pipe.execute()
        facts = dict(zip(group_ids, zip(answers[::2], answers[1::2], strict=True), strict=True))
        runs = self._goes_on(sorted({_text(run) for (run, _), _ in facts.values() if run}))
        mended = []
        for group_id, ((run, last), claim) in facts.items():
            if not run or claim == b"done" or not runs.get(_text(run)):
                self._forget(group_id)
            elif claim is None and self._ended(_text(run), [_text(last)]) and self._mend(group_id, now):
                mended.append(group_id)
        return mended

    def _mend(self, group_id: str, now: float) -> bool:
        record = {
            _text(name): _text(value) for name, value in self._backend.client.hgetall(CHORD_PREFIX + group_id).items()
        }
        if not record:
            return False
        places = _places(record)
        members = list(places)
        if len(self._ended(record["run"], members)) < len(members):
            return False
        metas = [self._backend.get_task_meta(member) for member in members]
        if any(now - done_at < QUIET_S for meta in metas if (done_at := _done_at(meta)) is not None):
            return False  # whoever is about to send the body has a moment left
        body = signature(json.loads(record["body"]), app=self._backend.app)
        missing = [one for one, meta in zip(members, metas, strict=True) if meta["status"] not in states.READY_STATES]
        if missing:
            error = ChordLost(group_id, missing)
            logger.error("%s", error)
            self._fail_body(body, error)
            self._backend.chord_error_from_stack(body, error)
        else:
            logger.warning(
                "the counters of chord %s were lost; its %d members are counted again", group_id, len(members)
            )
            self._count_again(group_id, body, [(*one, meta) for one, meta in zip(places.items(), metas, strict=True)])
        self._forget(group_id)
        return True

    def _count_again(self, group_id: str, body: Any, members: list[tuple[str, int | None, dict[str, Any]]]) -> None:
        backend = self._backend
        backend.client.delete(
            *(backend.get_key_for_group(group_id, ending) for ending in (".j", ".s", ".t", ".d", ".c"))
        )
        backend.set_chord_size(group_id, len(members))
        for member, index, meta in members:
            request = Context(id=member, group=group_id, group_index=index, chord=body)
            backend.on_chord_part_return(request, meta["status"], meta["result"])

    def _fail_body(self, body: Any, error: ChordLost) -> None:
        """Celery fails a body without a word of which step it is: its run is to know."""
        first = first_task(body)
        request = Context(first | first.options | (first.options.get("headers") or {}), id=first.options.get("task_id"))
        self._backend._record_only(request.id, "FAILURE", self._backend.prepare_exception(error), None, request)

    def _ended(self, run_id: str, steps: Sequence[str]) -> set[str]:
        return {step for lookup in lookups for step in lookup(self._backend.client, run_id, steps)}

    def _forget(self, group_id: str) -> None:
        with self._backend.client.pipeline() as pipe:
            pipe.delete(CHORD_PREFIX + group_id)
            pipe.zrem(PENDING_KEY, group_id)
            pipe.execute()


def _places(record: dict[str, str]) -> dict[str, int | None]:
    """A chord's members, each with the place of its result; those that were added share the place of who did so."""
    places: dict[str, int | None] = {member: place for place, member in enumerate(json.loads(record["members"]))}
    for name, place in record.items():
        if name.startswith(_ADDED):
            places[name.removeprefix(_ADDED)] = int(place) if place else None
    return places


def _done_at(meta: dict[str, Any]) -> float | None:
    done = meta.get("date_done")
    if done is None:
        return None
    return (datetime.fromisoformat(done) if isinstance(done, str) else done).timestamp()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
