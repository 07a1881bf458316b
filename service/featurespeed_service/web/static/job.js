// One job: its progress and measurements while it runs, its report when it is done.

import { follow, json } from "./api.js";
import { alertBox, h, number, show, when } from "./dom.js";
import { drawn } from "./plots.js";
import { useIt } from "./using.js";

const ended = status => ["succeeded", "failed", "cancelled"].includes(status);
const MOST_ROWS = 100;

export async function jobPage(id, signal) {
  const status = h("span", { id: "status", className: "badge" });
  const message = h("span", { id: "message", className: "soft" });
  const bar = h("progress", { id: "bar", max: 1, value: 0, "aria-label": "progress" });
  const facts = h("p", { className: "soft" });
  const told = h("div");
  const cancel = h("button", { id: "cancel", type: "button", hidden: true }, "Cancel");
  const retry = h("button", { id: "retry", type: "button", hidden: true }, "Run again");
  const live = liveMeasurements();
  const result = h("div", { id: "result" });
  show(id,
    h("h1", {}, `Job ${id}`), facts,
    h("p", { role: "status", "aria-live": "polite" }, status, " ", message), bar, told,
    h("div", { className: "buttons" }, cancel, retry), live.element, result);

  const act = (verb, then) => async () => {
    try { then?.(await json(`v1/jobs/${id}:${verb}`, { method: "POST" })); } catch (error) { told.replaceChildren(alertBox(error.message)); }
  };
  cancel.addEventListener("click", act("cancel", () => { cancel.disabled = true; message.textContent = "stopping …"; }));
  retry.addEventListener("click", act("retry", job => { location.hash = `#/jobs/${job.id}`; }));

  const progress = found => {
    bar.value = found.fraction;
    message.textContent = `${found.cells_done} of ${found.cells_total} done${found.message ? `, ${found.message}` : ""}`;
  };
  const statusOf = async job => {
    status.textContent = job.status;
    status.className = `badge ${job.status}`;
    facts.textContent = `${job.kind}, ${job.request.architecture.family}, created ${when(job.created_at)}`;
    told.replaceChildren(...(job.error ? [alertBox(`${job.error.type}: ${job.error.detail}`)] : []));
    cancel.hidden = ended(job.status);
    retry.hidden = !["failed", "cancelled"].includes(job.status);
    progress(job.progress);
    if (job.status === "succeeded") {
      await report(job, result, signal);
      live.element.hidden = true;
    }
    return ended(job.status);
  };
  try {
    await follow(`v1/jobs/${encodeURIComponent(id)}/events`, signal, async (kind, data) => {
      if (kind === "progress") progress(data);
      if (kind === "measurement") live.add(data);
      return kind === "status" && await statusOf(data);
    });
  } catch (error) {
    if (!signal.aborted && error.status !== 401) told.replaceChildren(alertBox(error.message));
  }
}

/** Measurements as they arrive: the angles of the newest as a figure, and a row for each. */
function liveMeasurements() {
  const body = h("tbody");
  const place = h("div", { className: "plot", "data-figure": "live", role: "group", "aria-label": "Angles measured last, by block" });
  const table = h("table", {}, h("caption", {}, "Measurements as they arrive"),
    h("thead", {}, h("tr", {}, ["seed", "step", "loss", "angle of the last hidden feature"].map(t => h("th", { scope: "col" }, t)))), body);
  const element = h("section", { id: "live", hidden: true }, place,
    h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Measurements as they arrive" }, table));
  const latest = new Map();
  let waiting = false;
  const draw = async () => {
    waiting = false;
    const data = [...latest.values()].map(m => ({
      type: "scatter", mode: "lines+markers", name: `seed ${m.seed}, step ${m.step}`, x: m.angles.map((_, i) => i + 1), y: m.angles,
    }));
    const axis = { zeroline: false, gridcolor: "rgba(128,128,128,0.25)" };
    const layout = {
      height: 260, margin: { l: 60, r: 20, t: 20, b: 50 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {},
      xaxis: { ...axis, title: { text: "block" } }, yaxis: { ...axis, title: { text: "angle θ (radians)" }, range: [0, 1.7] }, showlegend: true,
    };
    await drawn(element, { live: { data, layout } });
  };
  const add = m => {
    element.hidden = false;
    latest.set(m.seed, m);
    const known = m.angles.filter(angle => angle !== null);
    body.prepend(h("tr", {}, [m.seed, m.step, number(m.loss), number(known.at(-2) ?? known.at(-1))].map(v => h("td", {}, String(v)))));
    if (body.rows.length > MOST_ROWS) body.lastChild.remove();
    if (!waiting) setTimeout(draw, 300);
    waiting = true;
  };
  return { element, add };
}

async function report(job, place, signal) {
  let shown;
  try {
    shown = await json(`v1/jobs/${job.id}/view`, { signal });
  } catch (error) {
    if (error.status !== 409) throw error;
    return place.replaceChildren(alertBox(error.message), ...useIt(job, null));
  }
  if (signal.aborted) return;
  const facts = h("dl", {}, Object.entries(shown.facts).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]).flat());
  const warnings = shown.warnings.length ? [h("h2", {}, "Warnings"), h("ul", {}, shown.warnings.map(w => h("li", {}, w)))] : [];
  const figures = Object.entries(shown.figures).map(([name, figure]) => {
    const picture = h("div", { className: "plot", "data-figure": name });
    return h("figure", {}, h("figcaption", {}, h("h2", {}, figure.title), h("p", {}, figure.caption)), picture);
  });
  place.replaceChildren(facts, ...warnings, ...shown.tables.map(table), ...useIt(job, shown.snippet), ...figures);
  await drawn(place, shown.figures);
}

function table({ caption, titles, rows }) {
  const row = ([first, ...rest]) => h("tr", {}, h("th", { scope: "row" }, first),
    rest.map(value => h("td", { className: value.endsWith("✗ fails") ? "fails" : "" }, value)));
  return h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, titles.map(title => h("th", { scope: "col" }, title)))), h("tbody", {}, rows.map(row))));
}
