// The service's API: the key goes into a header alone, never into an address.

const KEY = "featurespeed-api-key";
let refused = () => {};

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: value => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
  onRefused: action => { refused = action; },
};

/** A problem of the API (RFC 9457), or no answer at all: then status is 0. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || (status ? `status ${status}` : "the service does not answer"));
    this.status = status;
    this.errors = body.errors || [];
  }
}

export async function request(path, options = {}) {
  const sent = key.get();
  const headers = { ...options.headers, ...(sent && { Authorization: `Bearer ${sent}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    connection(false);
    throw new Problem(0, {});
  }
  connection(true);
  if (answer.ok) return answer;
  const problem = new Problem(answer.status, await answer.json().catch(() => ({})));
  problem.retryAfter = Number(answer.headers.get("Retry-After")) || undefined;
  if (answer.status === 401 && sent === key.get()) refused(sent ? problem.message : "");
  throw problem;
}

export const json = async (path, options) => (await request(path, options)).json();

function connection(there) {
  const told = document.getElementById("connection");
  told.hidden = there;
  told.textContent = there ? "" : "The service does not answer. Trying again …";
}

/** Events of a stream, for as long as `signal` allows; after a break it goes on after the last one seen.
 *  EventSource sends no header, hence no key. Ends where `take` returns true. */
export async function follow(path, signal, take) {
  let seen = "";
  while (!signal.aborted) {
    let pause = 1;
    try {
      const answer = await request(path, { signal, headers: seen && { "Last-Event-ID": seen } });
      for await (const event of events(answer.body)) {
        if (signal.aborted) return;
        if (await take(event.event, JSON.parse(event.data))) return;
        seen = event.id || seen;
      }
    } catch (error) {
      if (signal.aborted) return;
      const lasting = error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429;
      if (lasting) throw error;
      if (!(error instanceof Problem)) connection(false);
      pause = error.retryAfter || pause;
    }
    await new Promise(done => setTimeout(done, 1000 * pause));
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();  // not whole yet
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map(line => line.split(/: (.*)/)));
      if (fields.data) yield fields;  // else a keep-alive
    }
  }
}
