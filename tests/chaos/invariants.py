"""What must hold when all is done, each as a list of the violations found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from agentlink.broker import dead_letters, queues
from tests.chaos.cluster import Cluster
from tests.chaos.faults import Event
from tests.chaos.ledger import Attempt
from workflows import RunState, WorkflowRun

Attempts = Mapping[int, list[Attempt]]


def each_ended(accepted: Iterable[int], attempts: Attempts) -> Iterator[str]:
    """Every task that was accepted has ended at least once."""
    for number in accepted:
        if not any(attempt.ended_at for attempt in attempts.get(number, [])):
            yield f"task {number} has not ended; its attempts: {attempts.get(number, [])}"


def none_ran_unasked(refused: Iterable[int], attempts: Attempts) -> Iterator[str]:
    """A call that was refused has not run."""
    for number in refused & attempts.keys():
        yield f"task {number} was refused and ran: {attempts[number]}"


def each_result_is_of_an_attempt(results: Mapping[int, str], attempts: Attempts) -> Iterator[str]:
    """A result names an attempt that has ended."""
    for number, attempt_id in results.items():
        if not any(attempt.id == attempt_id and attempt.ended_at for attempt in attempts.get(number, [])):
            yield f"task {number} has the result of {attempt_id}, which did not end: {attempts.get(number, [])}"


def each_repetition_has_a_cause(attempts: Attempts, events: list[Event]) -> Iterator[str]:
    """A task runs again only if something has hit the attempt before: its child, its worker, or the broker."""
    for tries in attempts.values():
        for attempt, again in pairwise(tries):
            if not any(may_have_hit(event, attempt, again) for event in events):
                yield f"task {attempt.number} ran again and nothing had happened: {attempt}, {again}"


def may_have_hit(event: Event, attempt: Attempt, again: Attempt) -> bool:
    """Whether an event may be why a task has two attempts, the second after the first."""
    ended_at = event.ended_at or float("inf")
    hit_the_first = event.began_at < again.started_at and attempt.started_at < ended_at + SLACK_S[event.kind]
    if event.worker in ("", attempt.worker) and event.child_pid in (None, attempt.child_pid) and hit_the_first:
        return True
    # A worker that was stopped has in hand what others have run meanwhile, and begins it before it knows better.
    hit_the_second = event.began_at < attempt.started_at and again.started_at < ended_at + SLACK_S[event.kind]
    return event.kind == "stop_worker" and event.worker == again.worker and hit_the_second


#: How long after its end an event may still hit an attempt that begins. A stopped worker that goes on starts what it
#: had in hand before it learns that it is not its own any more; a broker that is back has to be connected to.
SLACK_S = {
    "kill_child": 0.0,
    "kill_worker": 0.0,
    "stop_worker": 1.0,
    "end_worker": 0.0,
    "quit_worker": 0.0,
    "kill_broker": 3.0,
    "freeze_broker": 3.0,
}


def each_run_is_complete(runs: list[tuple[WorkflowRun, int]]) -> Iterator[str]:
    """A workflow has its answer, and its record counts each step once."""
    for run, answer in runs:
        progress = run.progress
        if progress.state is not RunState.SUCCEEDED or progress.steps_done != progress.steps_total:
            yield f"run {run.id} is recorded as {progress}:\n" + "\n".join(f"  {step}" for step in run.steps())
        elif run.result != answer:
            yield f"run {run.id} has answered {run.result}, not {answer}"


def nothing_is_left(cluster: Cluster) -> Iterator[str]:
    """With the workers gone, the broker holds no message, no lease, and no key that stays for ever."""
    client = cluster.client
    for queue in queues.lengths(client, ["cpu"]):
        if queue["waiting"] or queue["delayed"]:
            yield f"left in its queue: {queue}"
    for pattern in ("agentlink:inflight:*", "agentlink:started:*", "agentlink:leases"):
        for key in client.scan_iter(pattern, count=1000):
            yield f"left behind by a worker: {key}"
    for letter in dead_letters.find(client):
        yield f"a dead letter: {letter}"
    yield from (f"for ever in the broker: {key}" for key in cluster.keys_without_ttl())
