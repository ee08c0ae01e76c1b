// The built-in module "xs/test": exactly what runtime/xs.d.ts declares, plus what the entry of a
// test file needs (suite, register).
(function () {
const { core } = __bootstrap;
const { op_xs_trial, op_xs_trial_answer, op_xs_trial_asked, op_xs_trial_ended } = core.ops;
const { parse, stringify } = JSON;
const { frames } = core.loadExtScript("ext:xs_runtime/frame.js");
const { describe, nameOf, optionsText, viewBytes } = core.loadExtScript("ext:xs_runtime/values.js");

// Time limit of one test.
const TEST_MS = 30_000;
const LATE = Symbol("late");
const tests = [];
const files = new Map();

function test(name, body) {
  if (typeof body !== "function") throw new TypeError(`test(${stringify(name)}) takes a function, not ${nameOf(body)}`);
  tests.push({ name: String(name), body });
}

function register(file, definition) {
  if (typeof definition === "object" && definition !== null) files.set(definition, file);
}

function suite() {
  // Saved before a test can replace them.
  const { clearTimeout, setTimeout } = globalThis;
  const later = (ms) => {
    let timer;
    const over = new Promise((resolve) => { timer = setTimeout(resolve, ms, LATE); });
    return { over, forget: () => clearTimeout(timer) };
  };
  // Unhandled rejections of the running test: they fail that test, and no other.
  let lost = [];
  return {
    // A test that never returns ends the isolate; another one continues after it and is given
    // `from`.
    async *run({ args: { from } }) {
      core.setUnhandledPromiseRejectionHandler((_promise, reason) => {
        lost.push(reason);
        return true;
      });
      for (const { name, body } of tests.slice(from)) {
        yield { name, begun: true };
        const begun = performance.now();
        const limit = later(TEST_MS);
        let error = null;
        lost = [];
        try {
          if (await Promise.race([body(), limit.over]) === LATE) {
            const text = `the test did not end in ${TEST_MS / 1000} s`;
            throw Object.assign(new Error(text), { name: "TimeoutError", stack: "" });
          }
          // Unhandled rejections are reported only in a later turn of the event loop.
          await later(0).over;
          if (lost.length > 0) throw lost[0];
        } catch (thrown) {
          const { name, message, stack } = describe(thrown);
          error = { name, message: message.slice(0, 16_000), stack: stack.slice(0, 16_000) };
        } finally {
          limit.forget();
        }
        yield { name, ms: performance.now() - begun, error };
      }
    },
  };
}

async function bytesOf(content) {
  const body = content.json === undefined ? content.body : stringify(content.json);
  if (body === undefined || body === null) return "";
  const bytes = typeof body === "string" ? new TextEncoder().encode(body)
    : ArrayBuffer.isView(body) ? viewBytes(body)
    : await new Response(body).bytes();
  return bytes.toBase64();
}

async function given({ topic, meta, ttl, ...content }) {
  return { topic, meta: meta === undefined ? "" : stringify(meta), ttl: ttl ?? "", body: await bytesOf(content) };
}

async function answer(fake, { number, request, body }) {
  try {
    if (fake === undefined) throw new TypeError("fetch() has no network in a test; give trial() a fetch");
    const { url, method, headers } = parse(request);
    const init = { method, headers: new Headers(headers) };
    if (body !== "") init.body = Uint8Array.fromBase64(body);
    const response = await fake(url, init);
    const head = { status: response.status, statusText: response.statusText, headers: [...response.headers] };
    op_xs_trial_answer(number, stringify(head), await response.bytes());
  } catch (error) {
    op_xs_trial_answer(number, "", new TextEncoder().encode(error?.message ?? String(error)));
  }
}

async function asked(trial, fake) {
  for (;;) {
    const text = await op_xs_trial_asked(trial);
    if (text === "") return;
    void answer(fake, parse(text));
  }
}

async function trial(module, options = {}) {
  const file = files.get(module);
  if (file === undefined) throw new TypeError("trial() takes the default export of a module, as the test imports it");
  const { fetch: fake, frames: before = [], now, ...rest } = options;
  const request = { ...rest, file, frames: await Promise.all(before.map(given)) };
  if (now !== undefined) request.now = new Date(now).getTime();
  const number = op_xs_trial(optionsText(request, "trial()"));
  void asked(number, fake);
  const text = await op_xs_trial_ended(number);
  const end = text.indexOf("\n");
  const { state, error } = parse(text.slice(0, end));
  const result = { out: frames(text.slice(end + 1)), state: state === null ? undefined : parse(state) };
  if (error !== null) {
    const place = error.file === undefined ? "" : ` (${error.file}:${error.line}:${error.column})`;
    result.error = Object.assign(new Error(error.message), { name: "TrialError", code: error.code, place: place.slice(2, -1) });
  }
  return result;
}

const { getPrototypeOf } = Object;

const isIterable = (value) => typeof value[Symbol.iterator] === "function" && typeof value.next !== "function";

// Converts values that JSON would show as {} although they have contents.
function filled(_key, value) {
  if (typeof value === "bigint") return `${value}n`;
  if (value instanceof Error) return { name: value.name, message: value.message, ...value };
  return typeof value === "object" && value !== null && isIterable(value) ? [...value] : value;
}

function shown(value) {
  try {
    return stringify(value, filled) ?? String(value);
  } catch {
    return String(value);
  }
}

// The comparable contents of an object of a class, most of which are behind accessors; undefined
// when its own keys hold everything.
function content(value) {
  if (value instanceof Error) {
    const { name, message, cause, errors } = value;
    return { name, message, cause, errors, ...value };
  }
  if (ArrayBuffer.isView(value)) return viewBytes(value).toHex();
  if (value instanceof ArrayBuffer) return new Uint8Array(value).toHex();
  if (value instanceof Boolean || value instanceof Number || value instanceof String) return value.valueOf();
  if (value instanceof RegExp) return String(value);
  if (typeof value.toJSON === "function") return { json: value.toJSON() };
  if (isIterable(value)) return [...value];
  if (Object.keys(value).length > 0) return undefined;
  throw new TypeError(`${nameOf(value)} cannot be compared; compare its contents`);
}

// Compares entries in any order.
function sameEntries(a, b, open) {
  const left = new Map(b.entries());
  return a.size === b.size && [...a.entries()].every(([key, item]) => {
    const equal = ([other, its]) => same(key, other, open) && same(item, its, open);
    const found = left.has(key) ? [key, left.get(key)] : [...left].find(equal);
    return found !== undefined && equal(found) && left.delete(found[0]);
  });
}

const isKeyed = (value) => value instanceof Map || value instanceof Set;
const kindOf = (value) => getPrototypeOf(value) ?? Object.prototype;

// `open`: the pairs being compared; a cycle back to one of them adds nothing new.
function same(a, b, open = []) {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (kindOf(a) !== kindOf(b)) return false;
  if (open.some(([one, other]) => one === a && other === b)) return true;
  const deeper = [...open, [a, b]];
  if (isKeyed(a)) return sameEntries(a, b, deeper);
  if (!Array.isArray(a) && kindOf(a) !== Object.prototype) {
    const one = content(a), other = content(b);
    if (one !== undefined || other !== undefined) return same(one, other, deeper);
  }
  const keys = Object.keys(a);
  return (!Array.isArray(a) || a.length === b.length) && keys.length === Object.keys(b).length
    && keys.every((key) => Object.hasOwn(b, key) && same(a[key], b[key], deeper));
}

function assert(condition, message = "the condition does not hold") {
  if (!condition) throw Object.assign(new Error(message), { name: "AssertionError" });
}

function assertEquals(actual, expected, message = "") {
  if (same(actual, expected)) return;
  const text = `${message}${message && ": "}got ${shown(actual)}, expected ${shown(expected)}`;
  throw Object.assign(new Error(text), { name: "AssertionError" });
}

return { assert, assertEquals, register, suite, test, trial };
})();
