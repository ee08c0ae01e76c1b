// The differences for a module under trial: requests go to the test, and time advances as fast as
// it is waited for.
(function () {
const { core } = __bootstrap;
const { op_xs_ask } = core.ops;
const { parse, stringify } = JSON;
const NO_BODY = new Set([101, 204, 205, 304]);

async function fetch(input, init = undefined) {
  const request = new Request(input, init);
  request.signal.throwIfAborted();
  const { url, method, signal } = request;
  const bytes = request.body === null ? new Uint8Array(0) : await request.bytes();
  const asked = op_xs_ask(stringify({ url, method, headers: [...request.headers] }), bytes);
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

// Timers fire in order, one after the other, at the time they were set for.
function clock(globalThis, start) {
  const { setTimeout: soon, Date: RealDate } = globalThis;
  const timers = new Map();
  let now = start, next = 1, pumping = false;
  const pump = () => {
    pumping = true;
    soon(() => {
      let first = null;
      for (const [id, timer] of timers) if (first === null || timer.at < timers.get(first).at) first = id;
      pumping = false;
      if (first === null) return;
      const timer = timers.get(first);
      timers.delete(first);
      now = Math.max(now, timer.at);
      if (timer.every !== null) timers.set(first, { ...timer, at: now + timer.every });
      if (timers.size > 0) pump();
      timer.run();
    }, 0);
  };
  const set = (repeat) => (run, ms = 0, ...args) => {
    const wait = Math.max(0, Number(ms) || 0);
    timers.set(next, { at: now + wait, every: repeat ? Math.max(1, wait) : null, run: () => run(...args) });
    if (!pumping) pump();
    return next++;
  };
  const clear = (id) => void timers.delete(id);
  globalThis.setTimeout = set(false);
  globalThis.setInterval = set(true);
  globalThis.clearTimeout = globalThis.clearInterval = clear;
  // A function and not a class: called without `new` it gives the time as text.
  const Date = function Date(...args) {
    if (new.target === undefined) return new RealDate(now).toString();
    return Reflect.construct(RealDate, args.length === 0 ? [now] : args, new.target);
  };
  Date.prototype = RealDate.prototype;
  Date.prototype.constructor = Date;
  Date.now = () => now;
  Date.parse = RealDate.parse;
  Date.UTC = RealDate.UTC;
  globalThis.Date = Date;
  Object.defineProperty(globalThis.performance, "now", { value: () => now - start, configurable: true });
}

function install(globalThis, start) {
  globalThis.fetch = fetch;
  clock(globalThis, start);
  core.loadExtScript("ext:xs_runtime/direct.js").inTrial();
}

return { install };
})();
