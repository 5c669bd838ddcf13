"""Our pages in Flower's server: they are there, nobody gets round Flower's authentication, and changes are asked for
by Flower's own pages or by programs with credentials alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from agentlink.broker import guard_watch
from agentlink.monitoring.flower.application import with_our_pages
from agentlink.monitoring.flower.base import Change
from agentlink.monitoring.flower.routes import NAVIGATION, ROUTES
from tests.integration import sample
from tests.integration.flower_server import FlowerServer, credentials, flower_server
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, RunUnknown


def _address(pattern: str) -> str:
    """One that a pattern of ours fits: of several words the first, some file of ours, or the id of some run."""
    pattern = re.sub(r"\((\w+)\|[^)]*\)", r"\1", pattern.rstrip("$"))
    return pattern.replace("(.+)", "page.js").replace("([^/]+)", "some-run")


#: An address of each of our routes, and whether it changes something.
ADDRESSES = [(_address(route.regex.pattern), issubclass(route.handler_class, Change)) for route in ROUTES]
CHANGES = [address for address, changes in ADDRESSES if changes]


@pytest.fixture(scope="module")
def flower(module_system: System) -> Iterator[FlowerServer]:
    with flower_server(module_system) as flower:
        yield flower


@pytest.mark.parametrize("page", ["/", "/tasks", "/broker", "/workflows", "/no-such-page"])
def test_each_page_of_flower_leads_to_ours(flower: FlowerServer, page: str) -> None:
    answer = flower.ask(page)
    assert answer.status == (404 if page == "/no-such-page" else 200)
    for name, title in NAVIGATION:
        assert f'href="/{name}"' in answer.body
        assert title in answer.body


def test_a_navigation_that_is_not_flowers_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="want one list of links"):
        with_our_pages("<nav></nav>")


@pytest.mark.parametrize("address", CHANGES)
def test_a_change_is_not_made_by_looking(flower: FlowerServer, address: str) -> None:
    assert flower.ask(address).status == 405
    assert flower.ask(address, "OPTIONS").status == 405


@pytest.mark.parametrize("address", CHANGES)
def test_a_change_is_not_made_without_the_token_of_a_page(flower: FlowerServer, address: str) -> None:
    """Nor for another site, nor for one that has taken this server's address under its own name."""
    token = flower.token()
    for headers in (
        {},
        {"Cookie": token["Cookie"]},
        token | {"X_XSRFToken": "0" * 32},
        token | {"Sec_Fetch_Site": "cross-site"},
        token | {"Origin": "http://elsewhere.example"},
        token | {"Host": "elsewhere.example"},
    ):
        answer = flower.ask(address, "POST", {"runs": ["some-run"]}, **headers)
        assert answer.status == 403, headers
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_page_loads_nothing_from_elsewhere_and_shows_itself_in_no_frame(flower: FlowerServer) -> None:
    policy = flower.ask("/workflows").headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


def test_nobody_gets_round_the_authentication(module_system: System) -> None:
    with flower_server(module_system, "--basic_auth=anna:secret") as flower:
        for address, changes in ADDRESSES:
            assert flower.ask(address, "POST" if changes else "GET", {}).status == 401, address
            assert flower.ask(address, "POST" if changes else "GET", {}, **credentials("anna:guess")).status == 401
        known = credentials("anna:secret")
        assert flower.ask("/workflows", **known).status == 200
        # A program with credentials needs no token; a browser, which sends them along whoever asks, does.
        assert flower.ask("/workflows/cancel", "POST", {"runs": ["x"]}, **known).json["changed"] == 0
        for asked_by in ({"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-origin"}, {"Origin": flower.url}):
            assert flower.ask("/workflows/cancel", "POST", {"runs": ["x"]}, **known, **asked_by).status == 403


def test_read_only_is_read_only_and_a_prefix_is_before_each_address(module_system: System) -> None:
    with flower_server(module_system, "--read_only", "--url_prefix=mon") as flower:
        flower.url = flower.url.rstrip("/").removesuffix("/mon") + "/mon"
        page = flower.ask("/workflows")
        assert page.status == 200
        assert 'src="/mon/static/agentlink/workflows.js"' in page.body
        assert flower.ask("/static/agentlink/workflows.js").status == 200
        assert next(flower.events("/workflows/stream"))[0] == "runs"
        for address in CHANGES:
            answer = flower.ask(address, "POST", {}, **flower.token())
            assert (answer.status, answer.json["error"]) == (403, "Flower is in read-only mode")


def test_a_run_is_started_followed_cancelled_and_resumed(module_system: System, flower: FlowerServer) -> None:
    module_system.start_worker()
    token = flower.token()
    form = next(form for form in flower.ask("/workflows/forms").json["workflows"] if form["name"].endswith(".waits"))
    assert [(field["name"], field["kind"], field["needed"]) for field in form["fields"]] == [
        ("path", "text", True),
        ("started", "text", True),
    ]
    go, started = module_system.folder / "go", module_system.folder / "started"
    asked = {"workflow": "waits", "arguments": {"path": str(go), "started": str(started)}}
    answer = flower.ask("/workflows/start", "POST", asked, **token)
    assert answer.status == 200, answer.body
    run = sample.waits.AsyncResult(answer.json["run"])
    wait_until(started.exists, what="the step's start")

    assert flower.ask("/workflows/cancel", "POST", {"runs": [run.id, "unknown"]}, **token).json == {
        "changed": 1,
        "refused": {"unknown": str(RunUnknown("unknown"))},
    }
    wait_until(lambda: run.record().state is RunState.CANCELLED, what="the run's end")
    go.touch()
    wait_until(
        lambda: flower.ask("/workflows/resume", "POST", {"runs": [run.id]}, **token).json["changed"], what="resuming"
    )
    assert run.get(timeout=20) == 2


def test_a_call_that_makes_no_sense_is_refused_with_a_sentence(flower: FlowerServer) -> None:
    token = flower.token()
    for facts, said in (
        ({"workflow": "sums", "arguments": {"count": "many"}}, "count: "),
        ({"workflow": "sums", "arguments": {"number": "1"}}, "there is no 'number'"),
        ({"workflow": "sums", "arguments": {}}, "count"),
        ({"workflow": "nonesuch", "arguments": {}}, "no workflow is called 'nonesuch'"),
    ):
        answer = flower.ask("/workflows/start", "POST", facts, **token)
        assert answer.status == 409
        assert said in answer.json["error"]
    assert flower.ask("/workflows/start", "POST", [], **token).status == 400


def test_the_stream_tells_what_has_changed_and_no_more(module_system: System, flower: FlowerServer) -> None:
    if not module_system.workers:
        module_system.start_worker()
    run = sample.sums.delay(3)
    stream = flower.events(f"/workflows/run/{run.id}/stream")
    run.get(timeout=20)
    states: dict[str, int] = {}
    for name, facts in stream:
        if name == "steps":
            states |= {step[0]: step[3] for step in facts["steps"]}
        if name == "run" and facts["state"] == "SUCCEEDED":
            assert facts["result"] == "1006"
            break
    assert list(states.values()) == [3] * 5


def test_the_table_is_searched_in_all_that_is_known_of_runs(module_system: System, flower: FlowerServer) -> None:
    marked = sample.double.apply_async((7654321,), tags=["monday"])
    sample.double.delay(1)
    for words in ("text=7654321", "tag=monday", "text=MONDAY&workflow=double", f"text={marked.id}"):
        _, facts = next(flower.events(f"/workflows/stream?{words}"))
        assert facts["order"] == [marked.id], words
        assert facts["total"] == 1
    _, facts = next(flower.events("/workflows/stream?text=nowhere"))
    assert facts["order"] == []


def test_limits_are_changed_and_workers_paused_by_sentences(module_system: System, flower: FlowerServer) -> None:
    """What comes of it is told as on the command line; what makes no sense is refused, and nothing is changed."""
    if not module_system.workers:
        module_system.start_worker()
    token = flower.token()
    for address, facts, said in (
        ("limits", {"limits": {"memory": "lots"}}, "want a size"),
        ("limits", {"limits": {"mood": "1"}}, "want RESOURCE=LIMIT"),
        ("pause", {"duration": "a while"}, "want a duration"),
    ):
        answer = flower.ask(f"/resources/{address}", "POST", facts, **token)
        assert answer.status == 409
        assert said in answer.json["error"]
    assert flower.ask("/resources/limits", "POST", {"limits": {}}, **token).status == 400

    try:
        answer = flower.ask("/resources/limits", "POST", {"limits": {"memory": "3GB"}}, **token)
        assert "→ 3 GB" in answer.json["said"]
        flower.ask("/resources/pause", "POST", {"reason": "for a test", "duration": "10m"}, **token)
        for name, facts in flower.events("/resources/stream"):
            if name == "now" and facts["workers"] and facts["workers"][0]["state"] == "paused":
                break
        assert facts["paused"]["reason"] == "for a test"
        assert next(limit["ordered"] for limit in facts["limits"] if limit["name"] == "memory") == "3 GB"
    finally:
        assert "resumed" in flower.ask("/resources/resume", "POST", {}, **token).json["said"]
        flower.ask("/resources/reset", "POST", {}, **token)
        module_system.client.delete(guard_watch.ORDERS_KEY)


def test_plots_have_what_was_before_and_then_what_is_new(module_system: System, flower: FlowerServer) -> None:
    if not module_system.workers:
        module_system.start_worker()
    told = (facts for name, facts in flower.events("/resources/stream?span=600") if name == "plots" and facts["times"])
    first = next(told)
    more = next(facts for facts in told if facts["more"])
    assert more["times"][0] > first["times"][-1]
    assert set(more["values"]) == set(first["values"]) >= {"memory_bytes", "cpu_fraction", "queue_depth:cpu"}
    assert flower.ask("/resources/stream?span=7").status == 400
