// A new job: a form made from the service's own schema, with examples to start from; or the same as JSON.

import { json, request } from "./api.js";
import { alertBox, h, show } from "./dom.js";
import { schemaForm, showFaults } from "./form.js";

export async function newPage(signal) {
  show("New job", h("h1", {}, "New job"), h("p", { className: "soft" }, "Loading …"));
  let schema, examples;
  try {
    [schema, examples] = await Promise.all([json("v1/schema", { signal }), json("static/examples.json", { signal })]);
  } catch (error) {
    if (!signal.aborted && error.status !== 401) show("New job", h("h1", {}, "New job"), alertBox(error.message));
    return;
  }
  if (signal.aborted) return;
  const told = h("div", { tabIndex: -1 });
  const holder = h("div");
  const text = h("textarea", { id: "spec", spellcheck: false });
  const written = h("div", { className: "field", hidden: true }, h("label", { htmlFor: "spec" }, "Specification (JSON)"), text);
  const toggle = h("button", { type: "button", "aria-pressed": "false" }, "Edit as JSON");
  const picker = h("select", { id: "example" }, Object.keys(examples).map(name => h("option", { value: name }, name)));
  let form;
  const fill = spec => {
    form = schemaForm(schema.JobRequest, schema.JobRequest, spec);
    holder.replaceChildren(form.element);
  };
  const spec = () => written.hidden ? form.read() : JSON.parse(text.value);
  const asJson = on => {
    if (on) text.value = JSON.stringify(form.read(), null, 2);
    written.hidden = !on;
    holder.hidden = on;
    toggle.setAttribute("aria-pressed", String(on));
    toggle.textContent = on ? "Back to the form" : "Edit as JSON";
  };
  const tell = (...children) => {
    told.replaceChildren(...children);
    if (children.length) told.focus();
  };
  toggle.addEventListener("click", () => {
    tell();
    if (written.hidden) return asJson(true);
    try { fill(JSON.parse(text.value)); asJson(false); } catch (error) { tell(alertBox(`This is no JSON: ${error.message}`)); }
  });
  picker.addEventListener("change", () => {
    tell();
    fill(examples[picker.value]);
    if (!written.hidden) text.value = JSON.stringify(examples[picker.value], null, 2);
  });
  const submit = async event => {
    event.preventDefault();
    tell();
    try {
      const body = written.hidden ? JSON.stringify(form.read()) : text.value;
      const headers = { "Content-Type": "application/json" };
      const job = await (await request("v1/jobs", { method: "POST", headers, body })).json();
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      if (error.status === 401) return;
      const rest = showFaults(holder, error.errors || []);
      const lines = written.hidden ? rest : error.errors || [];
      const list = lines.map(e => h("li", {}, `${e.field}: ${e.bound} (got ${JSON.stringify(e.value)})`));
      tell(alertBox(error.errors?.length ? "The specification is refused; see the fields." : error.message, list.length ? h("ul", {}, list) : []));
    }
  };
  show("New job",
    h("h1", {}, "New job"),
    h("form", { id: "new", onsubmit: submit, noValidate: true },
      h("div", { className: "field" }, h("label", { htmlFor: "example" }, "Start from an example"), picker),
      told,
      h("div", { className: "buttons" }, toggle),
      holder, written,
      h("div", { className: "buttons" }, h("button", { className: "main", id: "submit" }, "Run"))));
  fill(examples[picker.value]);
}
