// A form made from the signature of a workflow, for a run now or at times to come.

import { ask, change, id, make, say, setText } from "./page.js";

export class WorkflowForm {
  /** `words` makes a sentence of the answer to what is sent. */
  constructor(name, address, words) {
    this.dialog = id(name);
    this.forms = [];
    id("al-form-workflow").addEventListener("change", () => this.showFields());
    this.dialog.querySelector("form").addEventListener("submit", (event) => this.send(event, address, words));
  }

  async open() {
    try {
      this.forms = (await ask("/workflows/forms")).workflows;
    } catch (error) {
      say(error.message, true);
      return;
    }
    const select = id("al-form-workflow");
    const before = select.value;
    select.replaceChildren(...this.forms.map((form) => make("option", { value: form.name }, form.name)));
    if (this.forms.some((form) => form.name === before)) select.value = before;
    this.showFields();
    this.dialog.showModal();
  }

  showFields() {
    const form = this.forms.find((one) => one.name === id("al-form-workflow").value);
    setText(id("al-form-about"), form ? form.about : "");
    id("al-form-error").hidden = true;
    id("al-form-fields").replaceChildren(...(form ? form.fields.map(field) : []));
  }

  async send(event, address, words) {
    event.preventDefault();
    const button = event.submitter || this.dialog.querySelector("[type=submit]");
    button.disabled = true;
    try {
      say(words(await change(address, this.filledIn())));
      this.dialog.close();
    } catch (error) {
      setText(id("al-form-error"), error.message);
      id("al-form-error").hidden = false;
    } finally {
      button.disabled = false;
    }
  }

  filledIn() {
    const facts = { workflow: id("al-form-workflow").value, arguments: {} };
    for (const input of this.dialog.querySelectorAll("[data-fact]")) facts[input.dataset.fact] = input.value.trim();
    for (const input of id("al-form-fields").querySelectorAll("[name]")) {
      if ("lines" in input.dataset) {
        const given = input.value.split("\n").filter((line) => line.trim());
        if (given.length) facts.arguments[input.name] = given;
      } else if (input.required || input.value !== "") facts.arguments[input.name] = input.value;
    }
    return facts;
  }
}

function field({ name, kind, type, needed, default: value }) {
  const shared = { name, required: needed, class: "form-control", autocomplete: "off" };
  let input;
  if (kind === "choice") {
    input = make("select", { ...shared, class: "form-select" },
      ...["true", "false"].map((word) => make("option", { value: word, selected: word === value }, word)));
  } else if (kind === "lines") {
    input = make("textarea", { ...shared, required: null, rows: 3, "data-lines": true, placeholder: "one a line" });
  } else {
    input = make("input", { ...shared, ...(kind === "number" ? { type: "text", inputmode: "decimal" } : { type: kind }) });
    input.value = value;
  }
  return make("label", { class: "al-field" },
    make("span", {}, name, make("small", { class: "al-muted" }, ` ${type}${needed ? "" : ", may be left out"}`)), input);
}
