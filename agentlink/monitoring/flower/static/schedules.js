// The Schedules page.

import { changing, follow, id, make, readOnly, root, shortName, sure } from "./page.js";
import { WorkflowForm } from "./form.js";

function show(schedules) {
  id("al-empty").hidden = schedules.length > 0;
  id("al-schedules").replaceChildren(...schedules.map(line));
}

function line(one) {
  const about = [one.workflow, one.declared && (one.changed ? "declared in code, changed since" : "declared in code"),
    one.missed === "once" && "missed times are made up for once"];
  const button = (action, label, look = "secondary") => make("button", {
    type: "button", class: `btn btn-sm btn-outline-${look}`, "aria-label": `${label} ${one.name}`,
    onclick: (event) => {
      if (action !== "remove" || sure(`Remove ${one.name}?`)) changing(event.target, `/schedules/${action}`, { name: one.name }, (answer) => answer.said);
    } }, label);
  return make("tr", { "data-schedule": one.name },
    make("td", { class: "al-workflow" }, make("b", {}, one.name), make("small", { class: "al-muted" }, about.filter(Boolean).join(" · "))),
    make("td", {}, one.when),
    make("td", {}, one.paused ? make("span", { class: "al-state al-asks" }, "paused") : one.next),
    make("td", {}, one.run_id ? make("a", { href: `${root}/workflows/run/${encodeURIComponent(one.run_id)}`, title: shortName(one.workflow) }, one.last || one.run_id.slice(0, 8)) : one.last),
    make("td", { class: `al-what${one.error ? " al-error" : ""}`, title: one.error || one.arguments }, one.error || one.arguments),
    readOnly ? null : make("td", {}, make("div", { class: "al-actions" }, button("run", "Run now", "primary"),
      one.paused ? button("resume", "Resume") : button("pause", "Pause"),
      one.declared ? null : button("remove", "Remove", "danger"))));
}

if (!readOnly) {
  const form = new WorkflowForm("al-form", "/schedules/add", (answer) => answer.said);
  id("al-add").addEventListener("click", () => form.open());
}
follow("/schedules/stream", { schedules: show });
