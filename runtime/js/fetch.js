// `fetch` and EventSource for modules: limited in number, with errors that name the line to add.
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

// Concurrent requests that wait for their response; more wait for a slot. A request that takes
// longer gives up its slot: a server that never answers must not hold up all others.
const TURNS_MAX = 64, TURN_MS_MAX = 30_000;
// Requests without a response plus responses whose body was not read to its end.
const OPEN_MAX = 256;
// Time left to a request after the calls that were open when it began have ended.
const LEFT_MS_MAX = 30_000;
// Time until the next collection after one that freed nothing.
const VAIN_MS_MIN = 1_000;
// Maximum number of open EventSources.
const SOURCES_MAX = 64;

// The prefix of the engine's names for a module's files.
const FILES = "file:///";

let taken = 0;
let collecting = null, inVain = -VAIN_MS_MIN;
const waiting = new Set();

// Gives the slot to the request that has waited longest.
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

// Abandoned responses are garbage collected eventually; when their number matters, collection is
// forced, but not for every request of a module that keeps its responses.
function collect() {
  if (collecting !== null || performance.now() - inVain < VAIN_MS_MIN) return collecting;
  op_xs_collect();
  collecting = new Promise((done) => setTimeout(done, 1)).then(() => {
    collecting = null;
    if (op_xs_requests() >= OPEN_MAX) inVain = performance.now();
  });
  return collecting;
}

// deno_fetch mentions Deno's flags; the author needs the line to add.
function told(error) {
  const named = /net access to "([^"]*)"/;
  const denied = named.exec(error?.message ?? "") ?? named.exec(error?.cause?.message ?? "");
  if (denied === null) return error;
  return Object.assign(new Error(op_xs_why_not(denied[1])), { name: "NotCapable" });
}

// An error raised after a wait lacks the stack frames of an awaiting generator run: it gets those
// of the fetch call, which contain the line the author looks for.
function placed(error, called) {
  const isOfFetch = error instanceof TypeError || error?.name === "NotCapable";
  if (isOfFetch && typeof error.stack === "string" && !error.stack.includes(FILES)) {
    const frames = called.stack.split("\n").filter((line) => line.includes(FILES));
    const stack = [error.stack, ...frames].join("\n");
    Object.defineProperty(error, "stack", { value: stack, configurable: true, writable: true });
  }
  return error;
}

// The bodies of responses whose requests end with calls, each with a function that forgets the
// request once the body is collected.
const bodies = new FinalizationRegistry((forget) => forget());

function cut(request) {
  const reason = new DOMException("the call is over", "AbortError");
  excuse(reason);
  request.abort(reason);
}

// A request ends with the last of the calls that were open when it was made, since others may wait
// for it, too: at once if the call that made it was cut off, otherwise after a time limit.
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

// The key under which a body holds the signal that ends it.
const ENDS = Symbol("ends");

// Ends a response's body when a signal fires; returns the body if more of it is to come.
// deno_fetch's own means for that is no longer referenced once there is a response, and is garbage
// collected. This signal lives as long as the body, which lives as long as something holds it or
// its reader, or waits for a read: the response itself need not be kept.
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

// The signal given by the caller of a request.
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
    // A new signal: the caller's may live long, and must not keep everything it was passed to
    // alive.
    if (signal !== null) endWith(AbortSignal.any([signal]), answer);
    return answer;
  }
  try {
    // A Request may be given as `init` too, and is not a plain object.
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
    // Copied as it is now: the caller may change it during the wait.
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

// Loaded on demand: most modules that fetch do not need it.
function eventSource() {
  const { EventSource: Plain } = core.loadExtScript("ext:deno_fetch/27_eventsource.js");
  const sources = new Set();
  return class EventSource extends Plain {
    #forget = null;
    constructor(url, init = undefined) {
      for (const source of sources) if (source.readyState === Plain.CLOSED) sources.delete(source);
      if (sources.size >= SOURCES_MAX) {
        throw new RangeError(`${SOURCES_MAX} EventSources are already open; close one first`);
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
