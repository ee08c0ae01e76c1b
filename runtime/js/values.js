// What modules produce: outputs, and the errors that steer a handler. Converts any value a module
// returns or yields into the strings passed to Rust; a value that cannot become a frame is a
// TypeError that names the fix.
(function () {
const { core } = __bootstrap;
const { op_xs_check_frame, op_xs_emit, op_xs_emit_bytes, op_xs_emit_stored, op_xs_results } = core.ops;
const { stringify } = JSON;
const { getPrototypeOf } = Object;
const { isView } = ArrayBuffer;
const objectPrototype = Object.prototype;
const HANDLER = 0;
// Maximum number of results buffered here, and of their characters: together with the limits of a
// group and one call in runtime/src/isolate/limits.rs they still fit into a batch of the store.
const RESULTS_MAX = 512, RESULT_CHARS_MAX = 128 * 1024;

class Retry extends Error {
  constructor(reason, options = {}) {
    super(reason, "cause" in options ? { cause: options.cause } : undefined);
    this.name = "Retry";
    if (options.after !== undefined) duration(options.after, "the after of a Retry");
    this.after = options.after;
  }
}

class Park extends Error {
  constructor(reason, options = {}) {
    super(reason, "cause" in options ? { cause: options.cause } : undefined);
    this.name = "Park";
  }
}

class Out {
  #content;
  constructor(content) {
    this.#content = content;
  }
  static content(out) {
    return out.#content;
  }
  static is(value) {
    return typeof value === "object" && value !== null && #content in value;
  }
}

const CONTENT_KEYS = ["topic", "meta", "body", "json", "ttl"];
const FRAME_KEYS = new Set(CONTENT_KEYS);
// Keys of an append with terms.
const APPEND_KEYS = new Set([...CONTENT_KEYS, "key", "expect"]);
// Maximum characters of a text quoted in an error.
const SHOWN_MAX = 40;
// Levels of an output that are searched for what JSON does not hold.
const DEPTH_MAX = 100;

// Topics and ttls that Rust has found right. Asking costs as much as the call of a handler.
const known = new Set();
const KNOWN_MAX = 1024;

// Everything is checked here, where an error has the author's line: what uses the frame has none.
function frame(content) {
  checkContent(content, "frame()");
  const { topic = "" } = content;
  if (typeof topic !== "string") throw new TypeError(`frame(): topic is ${nameOf(topic)}; use text`);
  const taken = written(content, "frame()");
  const key = `${topic}\n${taken.ttl}`;
  if (!known.has(key)) {
    op_xs_check_frame(topic, taken.ttl);
    if (known.size >= KNOWN_MAX) known.clear();
    known.add(key);
  }
  return new Out({ topic, ...taken });
}

// The content of a frame as Rust takes it, but for a body that is not text.
function written(content, where) {
  const meta = metaText(content.meta, where);
  const ttl = content.ttl === undefined ? "" : String(content.ttl);
  const body = (content.json === undefined ? content.body : jsonText(content.json, where)) ?? "";
  checkBody(body, where, true);
  return { meta, ttl, body };
}

function checkContent(content, where, keys = FRAME_KEYS) {
  if (typeof content !== "object" || content === null || !isPlain(content)) {
    throw new TypeError(
      `${where} takes an object such as { meta: {...} } or { body: "..." }, not ${nameOf(content)}; ${meant(content)}`,
    );
  }
  for (const key of Object.keys(content)) {
    if (!keys.has(key)) {
      throw new TypeError(`${notTaken(key, where)}: { meta: { ${key}: ... } }`);
    }
  }
  if (content.body !== undefined && content.json !== undefined) {
    throw new TypeError(`${where} takes body or json, not both`);
  }
}

// Why a key is refused, up to where it may belong. A key for generators and commands is not treated
// as a typo.
function notTaken(key, where) {
  if (!APPEND_KEYS.has(key)) return `${where} does not know "${key}"; put it into meta`;
  const why = where === "frame()"
    ? "only the ctx.append() of a generator or a command does"
    : "a handler's frames are stored exactly once, in one commit with its state and its place";
  return `${where} takes no "${key}" here: ${why}; a field of meta is written`;
}

// What to write instead of a value that is not the content of a frame.
function meant(value) {
  if (Out.is(value)) return "write what frame() was given";
  if (typeof value === "string") return `write { body: ${value.length > SHOWN_MAX ? "..." : stringify(value)} }`;
  if (isBytes(value) || isLarge(value)) return "write { body: ... }";
  if (typeof value === "number" || typeof value === "boolean") return `write { json: ${value} }`;
  if (Array.isArray(value)) return "write { json: [...] }";
  return "write { meta: ... } with a plain object";
}

// Names a value the way its author would.
function nameOf(value) {
  if (value === null || value === undefined) return String(value);
  if (Out.is(value)) return "a frame(...)";
  if (typeof value !== "object") return `a ${typeof value}`;
  if (Array.isArray(value)) return "an array";
  return `a ${getPrototypeOf(value)?.constructor?.name ?? "null-prototype object"}`;
}

function isPlain(value) {
  const prototype = getPrototypeOf(value);
  return prototype === null || prototype === objectPrototype;
}

function metaText(meta, where) {
  if (meta === undefined || meta === null) return "";
  if (typeof meta !== "object" || !(isPlain(meta) || typeof meta.toJSON === "function")) {
    throw new TypeError(`${where}: meta is ${nameOf(meta)}; use a plain object, or { json: ... } for other values`);
  }
  return metaOf(meta, where);
}

function metaOf(meta, where) {
  let text;
  try {
    text = stringify(meta);
  } catch (error) {
    throw new TypeError(`${where}: meta is not JSON: ${error.message}`);
  }
  // A toJSON method may return anything.
  if (text?.[0] !== "{") {
    throw new TypeError(`${where}: meta is ${nameOf(meta)}, which JSON does not write as an object; use { value: ... } or String(...)`);
  }
  checkWritten(meta, text, where, "meta");
  return text;
}

// The bytes of a view, without the rest of its buffer.
function viewBytes(view) {
  return view instanceof Uint8Array
    ? view
    : new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function jsonText(value, where) {
  let text;
  try {
    text = stringify(value);
  } catch (error) {
    throw new TypeError(`${where}: json cannot be written: ${error.message}`);
  }
  if (text === undefined) throw new TypeError(`${where}: json is ${nameOf(value)}, which JSON does not have`);
  checkWritten(value, text, where, "json");
  return text;
}

// JSON silently writes what it has no form for as null, {} or {"0":...}: texts without them need no
// closer look. Most outputs hold no other object, so that is asked first.
const isDoubtful = (text) =>
  text.includes("null") || (text.includes("{", 1) || text.length < 3 || text[2] === "0") && (text.includes("{}") || text.includes('{"0":'));

// Refuses values whose content is not in their JSON, such as NaN or a promise.
function checkWritten(value, text, where, path) {
  const found = isDoubtful(text) ? lost(value, path, 0) : null;
  if (found !== null) throw new TypeError(`${where}: ${found}`);
}

// The first part of a value that JSON does not hold, or null. As JSON does, it takes `undefined`
// for a value that is absent, and leaves the rest to toJSON() where there is one.
function lost(value, path, depth) {
  if (typeof value === "number") {
    return Number.isFinite(value) ? null : `${path} is ${value}, which JSON does not have; use null or text`;
  }
  if (typeof value === "function" || typeof value === "symbol") return `${path} is ${nameOf(value)}; give its result instead`;
  if (typeof value !== "object" || value === null || depth > DEPTH_MAX) return null;
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? `${path} is an invalid Date` : null;
  if (typeof value.toJSON === "function") return null;
  if (isThenable(value)) return `${path} is a promise; await it first`;
  const array = Array.isArray(value);
  // What an object of a class without such properties holds is behind its methods.
  if (isBytes(value) || value instanceof Error || !array && !isPlain(value) && Object.keys(value).length === 0) {
    return `${path} is ${nameOf(value)}, which JSON does not hold; convert it first, as with ${conversion(value)}`;
  }
  for (const key of array ? value.keys() : Object.keys(value)) {
    const found = lost(value[key], array ? `${path}[${key}]` : `${path}.${key}`, depth + 1);
    if (found !== null) return found;
  }
  return null;
}

// How to make JSON of it.
function conversion(value) {
  if (value instanceof Set || isBytes(value)) return "[...value]";
  // A Map, Headers, URLSearchParams.
  return typeof value.entries === "function" ? "Object.fromEntries(value)" : "String(value)";
}

// Options as JSON. Refuses functions, which JSON would omit, so that the option would silently have
// no effect. `root` is how the author would write the options themselves.
function optionsText(options, where = "", root = "") {
  const paths = new Map();
  return stringify(options, function (key, value) {
    const outer = paths.get(this);
    const path = outer === undefined ? root : Array.isArray(this) ? `${outer}[${key}]` : outer && `${outer}.${key}` || key;
    if (typeof value === "function" || typeof value === "symbol") {
      throw new TypeError(`${where}${where && ": "}${path} is ${nameOf(value)}; give its result instead`);
    }
    if (typeof value === "object" && value !== null) paths.set(value, path);
    return value;
  });
}

// `large`: whether a body that is stored in chunks is allowed.
function checkBody(body, where, large = false) {
  if (typeof body === "string" || isBytes(body) || (large && isLarge(body))) return;
  throw new TypeError(
    `${where}: body is ${nameOf(body)}; use a string or a Uint8Array, or json: ... for any other value`,
  );
}

// Whether the outputs buffered for a handler fill a commit; reset by the handler's loop.
const buffer = { full: false };
// Results of a handler's calls that are handed over together, each as the input's number and its
// meta: one op call per result would cost as much as the handler call itself.
let results = [];
let chars = 0;

function keep(input, meta) {
  results.push(input, meta);
  chars += meta.length;
  if (results.length >= 2 * RESULTS_MAX || chars >= RESULT_CHARS_MAX) flush();
}

// Hands over the buffered results. JSON text contains no line feeds.
function flush() {
  if (results.length === 0) return;
  const text = results.join("\n");
  drop();
  if (op_xs_results(text)) buffer.full = true;
}

function drop() {
  results = [];
  chars = 0;
}

// Hands one frame to Rust. `run` is the run that made it, `input` the frame of a batch that caused
// it.
function hand(run, input, topic, meta, ttl, body) {
  if (run === HANDLER) flush();
  const full = typeof body === "string"
    ? op_xs_emit(run, input, topic, meta, ttl, body)
    : op_xs_emit_bytes(run, input, topic, meta, ttl, isView(body) ? viewBytes(body) : new Uint8Array(body));
  if (full) buffer.full = true;
}

// Whether it is stored in chunks. Using Blob loads it: most bodies are text.
const isLarge = (body) => typeof body === "object" && body !== null && (body instanceof Blob || body instanceof ReadableStream);

const isBytes = (value) => isView(value) || value instanceof ArrayBuffer;

// Hands over what `written` returned.
function emit(run, input, topic, { meta, ttl, body }, where) {
  checkBody(body, where);
  hand(run, input, topic, meta, ttl, body);
}

// Hands over a frame whose body is in the store already.
function emitStored(run, { topic, meta, ttl }, hash) {
  op_xs_emit_stored(run, topic, meta, ttl, hash);
}

// Hands over what run() returned or yielded.
function output(run, input, value, asBody) {
  if (value === undefined || value === null) return;
  if (typeof value === "object" && getPrototypeOf(value) === objectPrototype) {
    if (asBody) hand(run, input, "", "", "", jsonText(value, "the result"));
    else if (run === HANDLER) keep(input, metaOf(value, "the result"));
    else hand(run, input, "", metaOf(value, "the result"), "", "");
  } else if (typeof value === "string") {
    hand(run, input, "", "", "", value);
  } else if (typeof value !== "object") {
    const fix = typeof value === "function" ? "call it" : `use { value: ${String(value)} } or String(...)`;
    throw new TypeError(`${nameOf(value)} cannot become a frame; ${fix}`);
  } else if (Out.is(value)) {
    const content = Out.content(value);
    emit(run, input, content.topic, content, "frame()");
  } else if (isBytes(value)) {
    hand(run, input, "", "", "", value);
  } else if (Array.isArray(value)) {
    for (const item of value) {
      if (!Out.is(item)) {
        throw new TypeError("an array cannot become a frame; return frame({ json: [...] }) for one frame, or [frame(...), frame(...)] for several");
      }
      output(run, input, item, asBody);
    }
  } else if (isPlain(value) || typeof value.toJSON === "function") {
    if (asBody) hand(run, input, "", "", "", jsonText(value, "the result"));
    else hand(run, input, "", metaOf(value, "the result"), "", "");
  } else if (typeof value.next === "function") {
    throw new TypeError("a generator cannot become a frame; a handler has run(...) without *, others write yield* for what yields");
  } else {
    throw new TypeError(`${nameOf(value)} cannot become a frame; return a plain object, text, bytes or frame({...})`);
  }
}

function isThenable(value) {
  return typeof value === "object" && value !== null && typeof value.then === "function";
}

// Ends an abandoned iterator. An error it throws then is not the reason for the end.
async function left(iterator) {
  try {
    await iterator?.return?.();
  } catch {
    // See above.
  }
}

// Rejects a state that JSON would change, as it would differ after a restart: returns the path of
// the first such value.
function unstorable(value, path = "state", seen = []) {
  switch (typeof value) {
    case "string":
    case "boolean":
      return null;
    case "number":
      return Number.isFinite(value) ? null : `${path} is ${value}`;
    case "object":
      break;
    default:
      return `${path} is ${nameOf(value)}`;
  }
  if (value === null) return null;
  if (seen.includes(value)) return `${path} contains itself`;
  if (seen.length > 100) return `${path} is nested deeper than 100 levels`;
  const array = Array.isArray(value);
  if (!array && !isPlain(value)) return `${path} is ${nameOf(value)}`;
  if (Object.getOwnPropertySymbols(value).length > 0) return `${path} has a symbol as a key`;
  seen.push(value);
  const keys = array ? value.keys() : Object.keys(value);
  for (const key of keys) {
    const inner = value[key];
    const at = array ? `${path}[${key}]` : `${path}.${key}`;
    const found = unstorable(inner, at, seen);
    if (found !== null) return found;
  }
  seen.pop();
  return null;
}

function stateText(state) {
  const found = unstorable(state);
  if (found !== null) {
    throw new TypeError(`${found}, which JSON cannot keep; state must be plain JSON (store dates as text, Maps as objects)`);
  }
  return stringify(state);
}

const UNITS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 };

// Converts a Duration to milliseconds.
function duration(value, what) {
  if (typeof value === "number" && value >= 0 && Number.isFinite(value)) return value;
  const parts = typeof value === "string" ? /^(\d+(?:\.\d+)?)(ms|s|m|h|d|w)$/.exec(value) : null;
  if (parts === null) {
    throw new TypeError(`${what} is ${stringify(value) ?? nameOf(value)}; use milliseconds or text such as "500ms", "30s", "5m"`);
  }
  return Number(parts[1]) * UNITS[parts[2]];
}

// What Rust reports about a thrown value: name, message, stack, and the verdict it asks for.
function describe(error) {
  let verdict = 0, after = -1, name = "", message, stack = "";
  try {
    // First: the verdict holds even if the rest cannot be shown.
    if (error instanceof Retry) verdict = 1;
    else if (error instanceof Park) verdict = 2;
    if (typeof error === "object" && error !== null && typeof error.message === "string") {
      name = String(error.name ?? "Error");
      message = error.message;
      stack = typeof error.stack === "string" ? error.stack : "";
      if (error.cause !== undefined) message += ` (cause: ${brief(error.cause)})`;
      if (verdict === 1 && error.after !== undefined) after = duration(error.after, "the after of a Retry");
    } else {
      message = `threw ${brief(error)}; throw an Error to have its place reported`;
    }
  } catch {
    message ??= "threw a value that cannot be shown";
  }
  // Rust takes an error without any text for success.
  if (name === "" && message === "") message = "threw an error without a message";
  return { name, message, stack, verdict, after };
}

// Reports a thrown value to Rust.
function report(op, first, error) {
  const { name, message, stack } = describe(error);
  op(first, name, message, stack);
}

// A short form of a value. JSON has no cycles and no BigInt.
function brief(value) {
  try {
    if (typeof value === "object" && value !== null && typeof value.message === "string") {
      return `${value.name ?? "Error"}: ${value.message}`;
    }
    return typeof value === "string" ? stringify(value) : typeof value === "object" ? stringify(value) ?? "an object" : String(value);
  } catch {
    return "a value that cannot be shown";
  }
}

return {
  APPEND_KEYS, Retry, Park, Out, buffer, drop, emit, emitStored, flush, frame, output, checkContent, stateText, duration, describe,
  isLarge, isThenable, left, optionsText, report, viewBytes, nameOf, written,
};
})();
