// The list of jobs: kept up to date by the service.

import { follow, json } from "./api.js";
import { alertBox, h, show, when } from "./dom.js";

export async function jobsPage(signal) {
  const body = h("tbody");
  const told = h("div");
  const older = h("button", { type: "button", hidden: true }, "Older jobs");
  const columns = ["created", "job", "kind", "architecture", "status", "progress"];
  show("Jobs",
    h("h1", {}, "Jobs"),
    h("p", { className: "buttons" }, h("a", { className: "button", href: "#/new" }, "New job")),
    told,
    h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Jobs, newest first" },
      h("table", { className: "jobs" },
        h("thead", {}, h("tr", {}, columns.map(name => h("th", { scope: "col" }, name)))), body)),
    h("p", { className: "buttons" }, older));

  const rows = new Map();
  const put = (job, first) => {
    const known = rows.get(job.id);
    const text = JSON.stringify(job);
    if (known?.text === text) return;
    const row = line(job);
    rows.set(job.id, { row, text });
    if (known) known.row.replaceWith(row);
    else if (first) body.prepend(row);
    else body.append(row);
  };
  let cursor = null;
  older.addEventListener("click", async () => {
    const page = await json(`v1/jobs?limit=50&cursor=${encodeURIComponent(cursor)}`);
    page.jobs.map(summary).forEach(job => put(job, false));
    cursor = page.next_cursor;
    older.hidden = !cursor;
  });
  let started = false;
  try {
    await follow("v1/events", signal, (_, page) => {
      told.replaceChildren();
      for (const job of page.jobs.toReversed()) put(job, true);
      if (!rows.size) told.replaceChildren(h("p", { className: "soft" }, "No jobs yet."));
      if (!started) [cursor, older.hidden] = [page.next_cursor, !page.next_cursor];
      started = true;
    });
  } catch (error) {
    if (!signal.aborted && error.status !== 401) told.replaceChildren(alertBox(error.message));
  }
}

const summary = job => ({
  id: job.id, kind: job.kind, family: job.request.architecture.family, status: job.status,
  created_at: job.created_at, fraction: job.progress.fraction, message: job.progress.message,
});

function line(job) {
  const cells = [
    when(job.created_at),
    h("a", { href: `#/jobs/${job.id}` }, job.id),
    job.kind, job.family,
    h("span", { className: `badge ${job.status}` }, job.status),
    h("progress", { max: 1, value: job.fraction, "aria-label": `progress of ${job.id}` }),
  ];
  return h("tr", { "data-job": job.id }, cells.map(cell => h("td", {}, cell)));
}
