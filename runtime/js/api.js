// The built-in module "xs": exactly what runtime/xs.d.ts declares.
(function () {
const { core } = __bootstrap;
const { frame, Retry, Park } = core.loadExtScript("ext:xs_runtime/values.js");

// Identities: they exist to give editors the types.
const handler = (definition) => definition;
const generator = (definition) => definition;
const command = (definition) => definition;

async function* chunks(source) {
  const decoder = new TextDecoder();
  for await (const bytes of source) yield decoder.decode(bytes, { stream: true });
  yield decoder.decode();
}

// Lines without their ends; a last line without an end counts.
async function* lines(source) {
  let rest = "";
  for await (const text of chunks(source)) {
    rest += text;
    const parts = rest.split("\n");
    rest = parts.pop();
    for (const part of parts) yield part.endsWith("\r") ? part.slice(0, -1) : part;
  }
  if (rest !== "") yield rest;
}

// Server-sent events, as the HTML standard reads them.
async function* sse(response) {
  if (!response.ok) throw new Error(`sse: the server answered ${response.status} ${response.statusText}`.trim());
  if (response.body === null) return;
  let event = "", data = [], id = "";
  for await (const line of lines(response.body)) {
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
