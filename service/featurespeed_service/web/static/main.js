// Which page is shown: #/ the jobs, #/new a new one, #/jobs/ID one of them; before all, the API key where one is needed.

import { key } from "./api.js";
import { alertBox, h, show } from "./dom.js";
import { jobPage } from "./job.js";
import { jobsPage } from "./jobs.js";
import { newPage } from "./new.js";

const KEY_FORM = /^fsk_[A-Za-z0-9]+_[A-Za-z0-9]+$/;
let leave = new AbortController();

function route() {
  leave.abort();
  leave = new AbortController();
  document.getElementById("forget").hidden = !key.get();
  const path = location.hash.slice(1) || "/";
  const job = /^\/jobs\/([^/]+)$/.exec(path);
  if (job) jobPage(decodeURIComponent(job[1]), leave.signal);
  else if (path === "/new") newPage(leave.signal);
  else jobsPage(leave.signal);
  document.getElementById("main").focus({ preventScroll: true });
}

function login(why) {
  leave.abort();
  key.forget();
  document.getElementById("forget").hidden = true;
  const input = h("input", { id: "key", type: "password", autocomplete: "off", spellcheck: false, "aria-describedby": "key-hint" });
  const told = h("div", { id: "key-fault" }, why ? alertBox(why) : []);
  const submit = event => {
    event.preventDefault();
    const given = input.value.trim();
    if (!KEY_FORM.test(given)) return told.replaceChildren(alertBox("A key has the form fsk_<id>_<secret>."));
    key.set(given);
    route();
  };
  show("API key",
    h("h1", {}, "API key"),
    h("form", { id: "login", onsubmit: submit },
      h("div", { className: "field" },
        h("label", { htmlFor: "key" }, "This service wants an API key"), input,
        h("span", { id: "key-hint", className: "hint" }, "fsk_…; it is kept until this tab is closed.")),
      told, h("div", { className: "buttons" }, h("button", { className: "main" }, "Use it"))));
  input.focus();
}

key.onRefused(login);
document.getElementById("forget").addEventListener("click", () => login(""));
addEventListener("hashchange", route);
route();
