// `fetch` and EventSource as modules have them: so many at a time, and with errors that name the line
// to add.
(function () {
const { core } = __bootstrap;
const { op_xs_collect, op_xs_requests, op_xs_why_not } = core.ops;
const { fetch: plain } = core.loadExtScript("ext:deno_fetch/26_fetch.js");
const { DOMException } = core.loadExtScript("ext:deno_web/01_dom_exception.js");
const { Request } = core.loadExtScript("ext:deno_fetch/23_request.js");
const { toInnerResponse } = core.loadExtScript("ext:deno_fetch/23_response.js");
const { setTimeout, clearTimeout, unrefTimer } = core.loadExtScript("ext:deno_web/02_timers.js");
const { AbortController, AbortSignal, add } = core.loadExtScript("ext:deno_web/03_abort_signal.js");
const { ReadableStream, errorReadableStream, getReadableStreamResourceBacking } = core.loadExtScript("ext:deno_web/06_streams.js");
const { excuse, whenCallsEnd } = core.loadExtScript("ext:xs_runtime/context.js");

// Requests that wait for their answer side by side; the next ones wait for a turn. An answer that
// takes longer gives its turn away: a server that never answers is not to hold up all others.
const TURNS_MAX = 64, TURN_MS_MAX = 30_000;
// Requests without an answer, and answers whose body was not read to its end, together.
const OPEN_MAX = 256;
// Time that a request has once the calls that were open when it began are over.
const LEFT_MS_MAX = 30_000;
// Time until they are collected again after that has freed none.
const VAIN_MS_MIN = 1_000;
// EventSources that are not closed.
const SOURCES_MAX = 64;

// With what the engine's names of a module's files begin.
const FILES = "file:///";

let taken = 0;
let collecting = null, inVain = -VAIN_MS_MIN;
const waiting = new Set();

// The turn of whoever has waited longest begins.
function pass() {
  for (const next of waiting) {
    waiting.delete(next);
    return next();
  }
  taken--;
}

function turn(signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const begin = () => {
      signal.removeEventListener("abort", leave);
      resolve();
    };
    const leave = () => {
      waiting.delete(begin);
      reject(signal.reason);
    };
    waiting.add(begin);
    signal.addEventListener("abort", leave, { once: true });
  });
}

// Answers that were let go of are collected some time: when their number matters, now, but not for
// every request of whoever keeps them.
function collect() {
  if (collecting !== null || performance.now() - inVain < VAIN_MS_MIN) return collecting;
  op_xs_collect();
  collecting = new Promise((done) => setTimeout(done, 1)).then(() => {
    collecting = null;
    if (op_xs_requests() >= OPEN_MAX) inVain = performance.now();
  });
  return collecting;
}

// deno_fetch speaks of Deno's flags; the author needs the line to add.
function told(error) {
  const named = /net access to "([^"]*)"/;
  const denied = named.exec(error?.message ?? "") ?? named.exec(error?.cause?.message ?? "");
  if (denied === null) return error;
  return Object.assign(new Error(op_xs_why_not(denied[1])), { name: "NotCapable" });
}

// What fails behind a wait has no frames of whoever waits in a generator's run: it gets those of
// the call, which is the line that its author looks for.
function placed(error, called) {
  const isOfFetch = error instanceof TypeError || error?.name === "NotCapable";
  if (isOfFetch && typeof error.stack === "string" && !error.stack.includes(FILES)) {
    const frames = called.stack.split("\n").filter((line) => line.includes(FILES));
    const stack = [error.stack, ...frames].join("\n");
    Object.defineProperty(error, "stack", { value: stack, configurable: true, writable: true });
  }
  return error;
}

// Bodies of answers to requests that end with calls, and what to forget once nobody has the body.
const bodies = new FinalizationRegistry((forget) => forget());

function cut(request) {
  const reason = new DOMException("the call is over", "AbortError");
  excuse(reason);
  request.abort(reason);
}

// A request is over with the call that made it. Which one that was nobody can tell where several are
// open: then with the last of those that are open now. At once when one of them was cut off; what
// calls leave behind that end by themselves has some time.
function untilCallsEnd(request) {
  let timer = null;
  const forget = whenCallsEnd((wasCut) => {
    if (wasCut) return cut(request);
    timer = setTimeout(() => cut(request), LEFT_MS_MAX);
    unrefTimer(timer);
  });
  return forget && (() => {
    forget();
    clearTimeout(timer);
  });
}

// Of a body: the signal that ends it.
const ENDS = Symbol("ends");

// Ends the body of an answer with a signal; the body, if it has one that is still to come. What
// deno_fetch has for that is held by nobody once there is an answer: it is gone when garbage is
// collected. This signal lives as long as the body, which lives as long as somebody has it or its
// reader, or waits for a read: the answer itself is not needed for that.
function endWith(signal, answer) {
  const body = toInnerResponse(answer).body?.streamOrStatic;
  const backing = body instanceof ReadableStream ? getReadableStreamResourceBacking(body) : null;
  if (!backing) return null;
  const end = () => {
    errorReadableStream(body, signal.reason);
    core.tryClose(backing.rid);
  };
  if (signal.aborted) end();
  else signal[add](end);
  Object.defineProperty(body, ENDS, { value: signal });
  return body;
}

// The signal that whoever makes a request gives it.
function signalOf(input, init) {
  const given = init?.signal;
  const signal = given === undefined && input instanceof Request ? input.signal : given;
  return signal instanceof AbortSignal ? signal : null;
}

async function fetch(input, init = undefined) {
  const called = new Error();
  const gone = new AbortController();
  const forget = untilCallsEnd(gone);
  if (forget === null) {
    const signal = signalOf(input, init);
    let answer;
    try {
      answer = await request(input, init);
    } catch (error) {
      throw placed(error, called);
    }
    // One of its own: the caller's may live long, and is not to keep all that it was given to.
    if (signal !== null) endWith(AbortSignal.any([signal]), answer);
    return answer;
  }
  try {
    // A Request may be given as `init` too, and is no plain object.
    input = new Request(input, init);
    const signal = AbortSignal.any([input.signal, gone.signal]);
    const answer = await request(input, { signal });
    const body = endWith(signal, answer);
    if (body === null) forget();
    else bodies.register(body, forget);
    return answer;
  } catch (error) {
    forget();
    throw placed(error, called);
  }
}

async function request(input, init) {
  if (taken < TURNS_MAX) {
    taken++;
  } else {
    // As it is now: whoever waits may go on to change it.
    input = new Request(input, init);
    init = undefined;
    await turn(input.signal);
  }
  let over = false;
  const end = () => {
    if (!over) pass();
    over = true;
  };
  const timer = setTimeout(end, TURN_MS_MAX);
  try {
    if (op_xs_requests() >= OPEN_MAX) await collect();
    if (op_xs_requests() >= OPEN_MAX) {
      throw new RangeError(`${OPEN_MAX} requests are under way or were not read; read or cancel the body of each response`);
    }
    return await plain(input, init);
  } catch (error) {
    throw told(error);
  } finally {
    clearTimeout(timer);
    end();
  }
}

// Loaded when somebody asks for it: most who fetch do not.
function eventSource() {
  const { EventSource: Plain } = core.loadExtScript("ext:deno_fetch/27_eventsource.js");
  const sources = new Set();
  return class EventSource extends Plain {
    #forget = null;
    constructor(url, init = undefined) {
      for (const source of sources) if (source.readyState === Plain.CLOSED) sources.delete(source);
      if (sources.size >= SOURCES_MAX) {
        throw new RangeError(`${SOURCES_MAX} EventSources are open at once; close one first`);
      }
      super(...arguments);
      sources.add(this);
      this.#forget = whenCallsEnd((wasCut) => {
        if (wasCut) super.close();
      });
    }
    close() {
      this.#forget?.();
      super.close();
    }
  };
}

return { fetch, eventSource };
})();
