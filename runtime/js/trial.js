// The differences for a module under trial: requests go to the test, and time advances as fast as
// it is waited for.
(function () {
const { core } = __bootstrap;
const { op_xs_ask, op_xs_trial_now } = core.ops;
const { setTimeout: soon, clearTimeout: notSoon } = core.loadExtScript("ext:deno_web/02_timers.js");
const { parse, stringify } = JSON;
const NO_BODY = new Set([101, 204, 205, 304]);
// How long the clock stands still for an answer: a test may never give one.
const ANSWER_MS_MAX = 1_000;
// The ops whose answers come from outside the module and are sure to come, so that the clock stands
// still meanwhile.
const ANSWERING = [
  "op_xs_fs_text", "op_xs_fs_bytes", "op_xs_fs_list", "op_xs_fs_stat", "op_xs_append", "op_xs_append_bytes",
  "op_xs_append_stored", "op_xs_append_if", "op_xs_remove", "op_xs_get", "op_xs_last", "op_xs_last_per_topic",
  "op_xs_topics", "op_xs_blob_put", "op_xs_blob_text", "op_xs_blob_bytes", "op_xs_blob_open", "op_xs_bytes_next",
  "op_xs_upload_write", "op_xs_upload_end", "op_xs_drained",
];

// The number of pending answers, and the callback for when there are none.
let answering = 0, resume = () => {};

// Stops the clock until there is an answer.
function held(answer) {
  let timer = null;
  const end = () => {
    if (timer === null) return;
    notSoon(timer);
    timer = null;
    if (--answering === 0) resume();
  };
  answering++;
  timer = soon(end, ANSWER_MS_MAX);
  answer.then(end, end);
  return answer;
}

// Must run before the scripts that use these ops are loaded.
function prepare() {
  for (const name of ANSWERING) {
    const op = core.ops[name];
    core.ops[name] = (...args) => held(op(...args));
  }
}

async function fetch(input, init = undefined) {
  const request = new Request(input, init);
  request.signal.throwIfAborted();
  const { url, method, signal } = request;
  // Nothing else reaches the network.
  if (!/^https?:/.test(url)) return core.loadExtScript("ext:xs_runtime/fetch.js").fetch(request);
  const bytes = request.body === null ? new Uint8Array(0) : await request.bytes();
  const asked = held(op_xs_ask(stringify({ url, method, headers: [...request.headers] }), url, bytes));
  const { head, body } = parse(await unlessAborted(asked, signal));
  const { status, statusText, headers } = parse(head);
  const content = NO_BODY.has(status) ? null : Uint8Array.fromBase64(body);
  return Object.defineProperty(new Response(content, { status, statusText, headers }), "url", { value: url });
}

// An answer, or the reason of the signal if that comes first.
function unlessAborted(answer, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) return abort();
    signal.addEventListener("abort", abort, { once: true });
    answer.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

// Timers fire in order, one after another, at the time they were set for, and none while an answer
// is pending.
function timersOf(start) {
  const timers = new Map();
  let now = start, next = 1, pumping = false;
  const fire = () => {
    pumping = false;
    if (answering > 0) return;
    let first = null;
    for (const [id, timer] of timers) if (first === null || timer.at < timers.get(first).at) first = id;
    if (first === null) return;
    const timer = timers.get(first);
    timers.delete(first);
    now = Math.max(now, timer.at);
    op_xs_trial_now(now);
    if (timer.every !== null) timers.set(first, { ...timer, at: now + timer.every });
    pump();
    timer.run();
  };
  const pump = () => {
    if (pumping || answering > 0 || timers.size === 0) return;
    pumping = true;
    soon(fire, 0);
  };
  resume = pump;
  const set = (repeat) => (run, ms = 0, ...args) => {
    const wait = Math.max(0, Number(ms) || 0);
    timers.set(next, { at: now + wait, every: repeat ? Math.max(1, wait) : null, run: () => run(...args) });
    pump();
    return next++;
  };
  return { now: () => now, set, clear: (id) => void timers.delete(id) };
}

function clock(globalThis, start) {
  const { Date: RealDate, performance } = globalThis;
  const { now, set, clear } = timersOf(start);
  globalThis.setTimeout = set(false);
  globalThis.setInterval = set(true);
  globalThis.clearTimeout = globalThis.clearInterval = clear;
  // A function and not a class: called without `new` it gives the time as text.
  const Date = function Date(...args) {
    if (new.target === undefined) return new RealDate(now()).toString();
    return Reflect.construct(RealDate, args.length === 0 ? [now()] : args, new.target);
  };
  Date.prototype = RealDate.prototype;
  Date.prototype.constructor = Date;
  Date.now = now;
  Date.parse = RealDate.parse;
  Date.UTC = RealDate.UTC;
  globalThis.Date = Date;
  const own = (object, name, value) => Object.defineProperty(object, name, { value, configurable: true, writable: true });
  own(performance, "now", () => now() - start);
  own(performance, "timeOrigin", start);
  const { AbortSignal, setTimeout } = globalThis, { timeout } = AbortSignal;
  own(AbortSignal, "timeout", (ms) => {
    // Throws for an invalid time; the signal itself is not used.
    timeout.call(AbortSignal, ms);
    const giving = new AbortController();
    const over = () => giving.abort(new DOMException("The operation was aborted due to timeout", "TimeoutError"));
    setTimeout(over, ms);
    return giving.signal;
  });
}

function install(globalThis, start) {
  globalThis.fetch = fetch;
  clock(globalThis, start);
  core.loadExtScript("ext:xs_runtime/direct.js").inTrial();
}

return { install, prepare };
})();
