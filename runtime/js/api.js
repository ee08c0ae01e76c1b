// The built-in module "xs": exactly what runtime/xs.d.ts declares.
(function () {
const { core } = __bootstrap;
const { frame, Retry, Park } = core.loadExtScript("ext:xs_runtime/values.js");

// Identity functions: they exist to give editors the types.
const handler = (definition) => definition;
const generator = (definition) => definition;
const command = (definition) => definition;

async function* chunks(source) {
  const decoder = new TextDecoder();
  for await (const bytes of source) yield decoder.decode(bytes, { stream: true });
  yield decoder.decode();
}

// Lines without their line endings; a last line without one counts. Each chunk is scanned once,
// even if a line spans many chunks.
async function* linesOf(texts) {
  let line = [];
  for await (const text of texts) {
    const [end, ...others] = text.split("\n");
    line.push(end);
    for (const next of others) {
      const whole = line.join("");
      yield whole.endsWith("\r") ? whole.slice(0, -1) : whole;
      line = [next];
    }
  }
  const rest = line.join("");
  if (rest !== "") yield rest;
}

const lines = (source) => linesOf(chunks(source));

// Normalizes all line endings to \n.
async function* unified(texts) {
  let cr = false;
  for await (let text of texts) {
    if (cr && text.startsWith("\n")) text = text.slice(1);
    else if (text === "") continue;
    cr = text.endsWith("\r");
    yield text.replace(/\r\n?/g, "\n");
  }
}

// Parses server-sent events as the HTML standard does.
async function* sse(response) {
  if (!response.ok) {
    // An unread body would hold its connection.
    await response.body?.cancel().catch(() => {});
    throw new Error(`sse: the server answered ${response.status} ${response.statusText}`.trim());
  }
  if (response.body === null) return;
  let event = "", data = [], id = "";
  for await (const line of linesOf(unified(chunks(response.body)))) {
    if (line === "") {
      if (data.length > 0) yield { event: event || "message", data: data.join("\n"), id };
      event = "";
      data = [];
      continue;
    }
    const colon = line.indexOf(":");
    if (colon === 0) continue;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") data.push(value);
    else if (field === "event") event = value;
    else if (field === "id" && !value.includes("\0")) id = value;
  }
}

return { handler, generator, command, frame, lines, sse, Retry, Park };
})();
