"""The pages as a person sees and uses them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentlink.broker import dead_letters
from tests.browser import work
from tests.browser.conftest import CHROMIUM
from tests.browser.eyes import Eyes, browser, expect
from tests.integration import sample
from tests.integration.flower_server import flower_server
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, StepState

pytestmark = pytest.mark.usefixtures("worker")


def test_a_run_that_is_started_by_a_form_goes_through_its_states_without_a_reload(
    eyes: Eyes, module_system: System
) -> None:
    go, started = module_system.folder / "go", module_system.folder / "started"
    page = eyes.look("/workflows")
    page.get_by_role("button", name="Start a run").click()
    page.locator("#al-form-workflow").select_option("tests.integration.sample.waits")
    page.get_by_label(re.compile("^path")).fill(str(go))
    page.get_by_label(re.compile("^started")).fill(str(started))
    page.get_by_role("button", name="Start", exact=True).click()
    line = page.locator("tbody tr").first
    expect(line.locator(".al-state")).to_have_text("running")
    line.get_by_role("link").click()

    expect(page.locator("h1")).to_contain_text("waits")
    first = page.locator('[data-place="0"]')
    expect(first).to_have_attribute("data-state", "running")
    page.evaluate("window.isTheSamePage = true")
    go.touch()
    expect(first).to_have_attribute("data-state", "succeeded")
    expect(page.locator("#al-state")).to_have_text("succeeded")
    expect(page.locator("#al-facts")).to_contain_text("2 of 2 have ended")
    assert page.evaluate("window.isTheSamePage")


def test_a_run_is_cancelled_and_resumed_and_a_step_runs_again(eyes: Eyes, module_system: System) -> None:
    go = module_system.folder / "go-on"
    run = sample.waits.delay(str(go), str(module_system.folder / "begun"))
    page = eyes.look(f"/workflows/run/{run.id}")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#al-state")).to_have_text("cancelled")
    go.touch()
    wait_until(lambda: run.steps()[0].state is not StepState.RUNNING, what="the step's end")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#al-state")).to_have_text("succeeded", timeout=20_000)
    ended_at = run.record().ended_at
    page.locator('[data-place="1"]').click()
    expect(page.locator("#al-step")).to_contain_text("tests.integration.sample.add")
    page.get_by_role("button", name="Run again from here").click()
    wait_until(
        lambda: (record := run.record()).state is RunState.SUCCEEDED and record.ended_at != ended_at,
        what="the step's second run",
        timeout_s=20,
    )


def test_a_step_that_waits_is_approved(eyes: Eyes) -> None:
    run = work.approved.delay()
    page = eyes.look(f"/workflows/run/{run.id}")
    expect(page.locator(".al-wait")).to_contain_text("Publish? <script>")
    expect(page.locator('[data-place="1"]')).to_have_attribute("data-state", "asks")
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("#al-state")).to_have_text("succeeded")
    expect(page.locator(".al-wait")).to_have_count(0)
    assert run.get(timeout=10) == "published"


def test_what_tasks_say_is_text_and_no_part_of_the_page(eyes: Eyes) -> None:
    """Names, arguments, results, errors, tracebacks; the console says nothing, see `eyes`."""
    failed, succeeded = work.says_hostile.delay(), work.returns_hostile.delay()
    assert succeeded.get(timeout=20) == work.HOSTILE
    wait_until(lambda: failed.record().state is RunState.FAILED, what="the run's end")
    page = eyes.look("/workflows")
    expect(page.locator(f'tr[data-run="{failed.id}"] .al-what')).to_have_text(f"ValueError: {work.HOSTILE}")
    page = eyes.look(f"/workflows/run/{failed.id}")
    page.get_by_role("button", name="at 1").click()
    expect(page.locator("#al-step")).to_contain_text(f"tests.{work.HOSTILE}")
    expect(page.locator("#al-step")).to_contain_text("Traceback")
    page.get_by_role("tab", name="Timeline").click()
    page.get_by_role("tab", name="Steps").click()
    expect(page.locator("#al-steps tr")).to_have_count(2)
    page = eyes.look(f"/workflows/run/{succeeded.id}?step={succeeded.id}")
    expect(page.locator("#al-facts")).to_contain_text(work.HOSTILE)
    expect(page.locator("#al-step")).to_contain_text(work.HOSTILE)
    assert page.locator("script:not([src])").count() == 0


def test_dead_letters_are_looked_at_sent_again_and_dropped(eyes: Eyes, module_system: System) -> None:
    work.dies.delay(work.HOSTILE, token="sesame-open")
    client = module_system.client
    wait_until(lambda: dead_letters.count(client) == 1, what="the letter", timeout_s=30)
    page = eyes.look("/letters")
    page.get_by_role("button", name="dies").click()
    expect(page.locator("#al-letter")).to_contain_text("onerror=console.log")
    assert "sesame-open" not in page.content()
    page.get_by_label("Close").click()
    page.get_by_label(re.compile("^Choose letter")).check()
    page.get_by_role("button", name="Send again").click()
    expect(page.locator("#al-empty")).to_be_visible()
    wait_until(lambda: dead_letters.count(client) == 1, what="the letter again", timeout_s=30)
    expect(page.locator("#al-letters tr")).to_have_count(1)
    page.get_by_label("Choose all letters shown").check()
    page.get_by_role("button", name="Drop").click()
    expect(page.locator("#al-empty")).to_be_visible()


def test_a_schedule_is_added_paused_run_and_removed(eyes: Eyes) -> None:
    page = eyes.look("/schedules")
    page.get_by_role("button", name="Add a schedule").click()
    page.get_by_label("Name").fill("doubling")
    page.get_by_label("Every").fill("half an hour")
    page.locator("#al-form-workflow").select_option("tests.integration.sample.double")
    page.get_by_label(re.compile("^number")).fill("21")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#al-form-error")).to_contain_text("want a duration")
    page.get_by_label("Every").fill("30m")
    page.get_by_role("button", name="Add", exact=True).click()
    line = page.locator('tr[data-schedule="doubling"]')
    expect(line).to_contain_text("every 30 m 00 s")
    line.get_by_role("button", name="Pause").click()
    expect(line).to_contain_text("paused")
    line.get_by_role("button", name="Run now").click()
    line.get_by_role("link").click()
    expect(page.locator("#al-state")).to_have_text("succeeded", timeout=20_000)
    page = eyes.look("/schedules")
    page.get_by_role("button", name="Remove doubling").click()
    expect(page.locator("#al-empty")).to_be_visible()


def test_the_keyboard_is_enough(eyes: Eyes) -> None:
    run = sample.sums.delay(20)
    assert run.get(timeout=20) == 1210
    page = eyes.look(f"/workflows/run/{run.id}")
    row = page.get_by_role("button", name=re.compile("^20 times add"))
    row.focus()
    page.keyboard.press("Enter")
    cells = page.get_by_role("listbox")
    cells.focus()
    page.keyboard.press("ArrowRight")
    expect(cells).to_have_attribute("aria-label", "Member 2 of 20: succeeded")
    page.keyboard.press("Enter")
    expect(page.locator("#al-step")).to_contain_text("0.1")
    page.get_by_role("tab", name="Graph").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Timeline")).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_pages_fit_a_phone(eyes: Eyes, scheme: str, tmp_path: Path) -> None:
    run = sample.sums.delay(30)
    run.get(timeout=20)
    page = eyes.other(color_scheme=scheme, viewport={"width": 390, "height": 844})
    for path in ("/workflows", f"/workflows/run/{run.id}?step={run.id}", "/resources", "/letters", "/schedules"):
        page.goto(eyes.url + path, wait_until="domcontentloaded")
        expect(page.locator("h1")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        page.screenshot(path=tmp_path / f"{scheme}-{path.strip('/').replace('/', '-')[:20]}.png")
    assert page.evaluate("document.documentElement.dataset.bsTheme") == scheme


def test_a_page_in_the_background_costs_nothing(eyes: Eyes) -> None:
    ended: list[str] = []
    began: list[str] = []
    page = eyes.page
    page.on("request", lambda asked: began.append(asked.url) if "/stream" in asked.url else None)
    page.on("requestfailed", lambda asked: ended.append(asked.url) if "/stream" in asked.url else None)
    eyes.look("/workflows")
    expect(page.locator("#al-range")).to_contain_text("of")
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(300)
    assert len(began) == len(ended) == 1
    page.evaluate("Object.defineProperty(document, 'hidden', {value: false})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(300)
    assert len(began) == 2


def test_in_read_only_mode_there_is_nothing_to_press(module_system: System) -> None:
    run = work.approved.delay()
    assert CHROMIUM
    with flower_server(module_system, "--read_only", imports=work.IMPORTS) as flower:
        with browser(Path(CHROMIUM), flower.url.rstrip("/")) as eyes:
            page = eyes.look("/workflows")
            expect(page.locator(f'tr[data-run="{run.id}"]')).to_be_visible()
            assert page.locator("main button", has_text=re.compile("Start|Cancel|Resume")).count() == 0
            page = eyes.look(f"/workflows/run/{run.id}?step={run.id}")
            expect(page.locator(".al-wait")).to_contain_text("Publish?")
            expect(page.locator("#al-step")).to_contain_text("echo")
            assert page.locator("main button", has_text=re.compile("Approve|Cancel|Resume|Run again")).count() == 0
            eyes.look("/letters")
            expect(page.locator("#al-empty")).to_be_visible()
            eyes.look("/schedules")
            expect(page.locator("#al-empty")).to_be_visible()
            assert page.locator("main [data-change]").count() == 0
        assert eyes.complaints == []
    run.cancel()


def test_all_workers_are_paused_and_go_on_and_plots_are_drawn(eyes: Eyes) -> None:
    page = eyes.look("/resources")
    card = page.get_by_label(re.compile("^Worker worker0"))
    expect(card).to_contain_text("takes tasks")
    expect(page.locator(".al-plot canvas")).to_have_count(7)
    page.get_by_role("button", name="Pause all workers").click()
    page.get_by_label("Reason").fill("<b>lunch</b>")
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(card).to_contain_text("takes no new tasks")
    expect(page.locator("#al-paused")).to_contain_text("<b>lunch</b>")
    page.get_by_role("button", name="Resume all workers").click()
    expect(card.locator(".al-state")).to_have_text("takes tasks")
    page.get_by_role("button", name="Limits").click()
    page.get_by_label(re.compile("^memory ")).first.fill("a lot")
    page.get_by_role("button", name="Change").click()
    expect(page.locator("#al-limits-error")).to_contain_text("want a size")
