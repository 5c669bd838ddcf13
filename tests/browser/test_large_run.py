"""A run of 5,000 steps is no reason for its page to be slow."""

from __future__ import annotations

from agentlink.broker.streams import RUN_PREFIX
from tests.browser import work
from tests.browser.eyes import Eyes, expect
from tests.integration.system import System
from workflows import StepState

WIDTH = 2_500
# Each 0.1 s, so many steps change.
AT_ONCE = 20
_FRAMES = """
window.longest = 0;
(function frame(before) {
  requestAnimationFrame((now) => { window.longest = Math.max(window.longest, now - before); frame(now); });
})(performance.now());
"""


def test_the_page_of_5000_steps_is_usable(eyes: Eyes, module_system: System) -> None:
    client = module_system.client
    steps = work.record_large_run(client, "large", WIDTH)
    try:
        page = eyes.look("/workflows/run/large")
        row = page.get_by_role("button", name=f"{WIDTH} times echo")
        expect(row).to_be_visible(timeout=2_000)
        painted_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        row.click()
        expect(page.locator(".al-cells > rect")).to_have_count(WIDTH)
        page.evaluate(_FRAMES)
        for begin in range(0, 600, AT_ONCE):
            work.move_on(client, "large", steps[begin : begin + AT_ONCE], StepState.SUCCEEDED)
            page.wait_for_timeout(100)
        expect(page.locator('.al-cells > [data-state="succeeded"]')).to_have_count(300)
        longest_ms = page.evaluate("window.longest")
        page.get_by_role("tab", name="Timeline").click()
        page.get_by_role("tab", name="Steps").click()
        expect(page.locator("#al-steps-count")).to_contain_text("5,001")
        metrics = page.context.new_cdp_session(page)
        metrics.send("Performance.enable")
        found = {one["name"]: one["value"] for one in metrics.send("Performance.getMetrics")["metrics"]}
        print(f"first paint {painted_ms:.0f} ms, longest frame {longest_ms:.0f} ms, heap {found['JSHeapUsedSize']:.0f}")
        assert painted_ms < 2_000
        assert longest_ms < 200
        assert found["JSHeapUsedSize"] < 200e6
    finally:
        client.delete(*client.keys(f"{RUN_PREFIX}large*"))
