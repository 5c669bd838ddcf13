"""How the members of a chord are counted, and its body is sent: once, whenever a process or the broker is away.

Celery's `on_chord_part_return` counts a member, claims the chord after the last, reads the members' results and sends
the body. It takes any error after the claim for a failure of the chord, also that of a connection: so what it does is
done with a client that tries again itself. Private parts of Celery 5.7's `RedisBackend` used here, held by a contract
test: `_chord_cleanup_script`, `_create_client`, `connparams`, what `set_chord_size` writes, and that
`on_chord_part_return` speaks with the broker through `self.client` and what uses that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import redis
from celery.result import AsyncResult
from redis.backoff import ExponentialBackoff
from redis.commands.core import Script
from redis.retry import Retry

from agentlink.broker import chords
from agentlink.broker.calls import current_bundle
from agentlink.broker.stored import LargeResults

# Between two looks whether who was about to send a chord's body has done so or is gone.
_LOOK_FOR_SENDER_S = 0.2
# Who has counted for so long may have met trouble, and what it has claimed be another's, or nobody's.
_LONG_S = 1.0
#: A command is tried so often, with growing pauses of up to some seconds, as is each connection: some minutes together.
_RETRIES = 10
_PAUSE_S = (0.1, 5.0)


class ChordCounting(LargeResults):
    """What `ResultBackend` does about chords."""

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Have a chord's size known in the step that sends the last of its members: a canvas may have thousands."""
        bundle = current_bundle.get()
        if bundle is None:
            super().set_chord_size(group_id, chord_size)
            return
        size = ["SET", self.get_key_for_group(group_id, ".s").decode(), chord_size]
        expires = ["EX", self.chord_expires] if self.chord_expires else []
        bundle.also += [["DEL", self.get_key_for_group(group_id, ".c").decode()], size + expires]

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Remember a chord that is about to be sent: a run's, should its counters get lost."""
        super().apply_chord(header_result_args, body, **kwargs)
        if run_id := chords.run_of(body):
            group_id, results = header_result_args
            members = list(chords.flat_ids(results))
            self.patiently(self._run_all, chords.recording_commands(group_id, members, body, run_id))

    def add_to_chord(self, group_id: str, result: AsyncResult) -> None:
        """Have a chord wait for one member more: that of a run, once for each id; see `chords`."""
        task = self.app.current_worker_task
        index = task.request.group_index if task is not None and task.request.group == group_id else None
        more_key = self.get_key_for_group(group_id, ".t").decode()
        self.patiently(self._run_all, [chords.adding_command(group_id, result.id, index, more_key)])

    @cached_property
    def _chord_cleanup_script(self) -> Script:
        script: Script = self.client.register_script(chords.CLEANUP_LUA)
        return script

    def on_chord_part_return(self, request: Any, state: str, result: Any, *args: Any, **kwargs: Any) -> None:
        """Count a member of a chord, and send the chord's body after the last; see `complete_chord`."""
        began_at = time.monotonic()
        try:
            self._count(request, state, result, *args, **kwargs)
        except (*self.connection_errors, redis.ResponseError) as error:
            if not self._may_pass(error) or not request.group:
                raise
            self.complete_chord(request, state, result)
        else:
            if request.group and self._waits and time.monotonic() - began_at > _LONG_S:
                self.complete_chord(request, state, result)

    def complete_chord(self, request: Any, state: str, result: Any) -> None:
        """Count in a chord what may have been counted, and send the chord's body if nobody is left who was about to.

        Celery lets one process send the body, and holds the others off by a key that outlives that process for a while.
        """
        sender = self.get_key_for_group(request.group, ".c")
        count = partial(self._count, request, state, result)
        self.patiently(count)
        while (sent_by := self.patiently(lambda: self.client.get(sender))) not in (None, b"done"):
            time.sleep(_LOOK_FOR_SENDER_S)
        if sent_by is None:
            self.patiently(count)

    def _count(self, *args: Any, **kwargs: Any) -> None:
        with self._persistently():
            super().on_chord_part_return(*args, **kwargs)

    @contextmanager
    def _persistently(self) -> Iterator[None]:
        """Have what is done meanwhile done with the client that tries again, if this process may wait.

        A backend belongs to one thread.
        """
        if not self._waits:
            yield
            return
        usual = self.client
        self.__dict__["client"] = self._persistent_client
        try:
            yield
        finally:
            self.__dict__["client"] = usual

    @cached_property
    def _persistent_client(self) -> redis.Redis:
        retry = Retry(ExponentialBackoff(base=_PAUSE_S[0], cap=_PAUSE_S[1]), _RETRIES)
        client: redis.Redis = self._create_client(**self.connparams, retry=retry)
        return client
