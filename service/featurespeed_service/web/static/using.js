// What to do with a report: download it, or copy the lines that ask for it again or put it to use.

import { key, request } from "./api.js";
import { h } from "./dom.js";

export function useIt(job, snippet) {
  const spec = JSON.stringify(job.request, null, 2);
  const here = location.origin + location.pathname.replace(/\/$/, "");
  const keyed = key.get() ? " -H \"Authorization: Bearer $FEATURESPEED_API_KEY\"" : "";
  const curl = `curl -sS${keyed} -H 'Content-Type: application/json' ${here}/v1/jobs -d @- <<'SPEC'\n${spec}\nSPEC\n\n` +
    `curl -sS${keyed} ${here}/v1/jobs/${job.id}/result > report.json`;
  const opened = key.get() ? `Client("${here}", api_key=os.environ["FEATURESPEED_API_KEY"])` : `Client("${here}")`;
  const client = `import json\n${key.get() ? "import os\n" : ""}\nfrom featurespeed import Client\n\nspec = json.loads(r"""\n${spec}\n""")\n` +
    `with ${opened} as client:\n    report = client.${job.kind}(spec)\n`;
  const parts = [["PyTorch: set it up", "snippet", snippet], ["curl", "curl", curl], ["Python client", "client", client]];
  return [
    h("h2", {}, "Use it"),
    h("div", { className: "buttons" },
      download(job), copyButton("Copy the report’s JSON", async () => (await request(`v1/jobs/${job.id}/result`)).text()),
      h("a", { className: "button", href: "#/new" }, "New job")),
    ...parts.filter(([, , text]) => text).map(([title, id, text]) => h("details", { id: `use-${id}`, open: id === "snippet" },
      h("summary", {}, title), h("div", { className: "buttons" }, copyButton("Copy", async () => text)), h("pre", { tabIndex: 0 }, text))),
  ];
}

// a plain link would carry no key
function download(job) {
  return h("button", { type: "button", id: "download", onclick: async () => {
    const address = URL.createObjectURL(await (await request(`v1/jobs/${job.id}/result`)).blob());
    h("a", { href: address, download: `${job.id}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } }, "Download the report (JSON)");
}

function copyButton(title, text) {
  const button = h("button", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(await text());
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = title; }, 1500);
  } }, title);
  return button;
}
