// Builds the global object of a module: the web platform, loaded on first use, and nothing that
// leads to ops. Everything not on the committed list (globals.txt) is deleted before user code
// runs. This is a block, not a called function: the engine parses parenthesized code twice.
"use strict";
{
const { core } = __bootstrap;
const { op_xs_log } = core.ops;
const load = core.loadExtScript;

const PERFORMANCE = "ext:deno_web/15_performance.js";
const WEB = {
  "ext:deno_web/00_url.js": ["URL", "URLSearchParams"],
  "ext:deno_web/01_dom_exception.js": ["DOMException", "QuotaExceededError"],
  "ext:deno_web/01_urlpattern.js": ["URLPattern"],
  "ext:deno_web/02_event.js": ["CloseEvent", "CustomEvent", "ErrorEvent", "Event", "EventTarget", "MessageEvent", "ProgressEvent", "PromiseRejectionEvent"],
  "ext:deno_web/03_abort_signal.js": ["AbortController", "AbortSignal"],
  "ext:deno_web/05_base64.js": ["atob", "btoa"],
  "ext:deno_web/06_streams.js": [
    "ByteLengthQueuingStrategy", "CountQueuingStrategy", "ReadableByteStreamController", "ReadableStream",
    "ReadableStreamBYOBReader", "ReadableStreamBYOBRequest", "ReadableStreamDefaultController",
    "ReadableStreamDefaultReader", "TransformStream", "TransformStreamDefaultController", "WritableStream",
    "WritableStreamDefaultController", "WritableStreamDefaultWriter",
  ],
  "ext:deno_web/08_text_encoding.js": ["TextDecoder", "TextDecoderStream", "TextEncoder", "TextEncoderStream"],
  "ext:deno_web/09_file.js": ["Blob", "File"],
  "ext:deno_web/13_message_port.js": ["MessageChannel", "MessagePort"],
  "ext:deno_web/14_compression.js": ["CompressionStream", "DecompressionStream"],
  [PERFORMANCE]: ["Performance", "PerformanceEntry", "PerformanceMark", "PerformanceMeasure", "performance"],
  "ext:deno_fetch/20_headers.js": ["Headers"],
  "ext:deno_fetch/21_formdata.js": ["FormData"],
  "ext:deno_fetch/23_request.js": ["Request"],
  "ext:deno_fetch/23_response.js": ["Response"],
  "ext:xs_runtime/clone.js": ["structuredClone"],
  "ext:xs_runtime/socket.js": ["WebSocket"],
  "ext:xs_runtime/timers.js": ["clearInterval", "clearTimeout", "setInterval", "setTimeout"],
};

const { defineProperty } = Object;

const lazily = (name, get) => {
  defineProperty(globalThis, name, {
    configurable: true,
    enumerable: false,
    get() {
      const value = get();
      defineProperty(globalThis, name, { value, configurable: true, enumerable: false, writable: true });
      return value;
    },
    set(value) {
      defineProperty(globalThis, name, { value, configurable: true, enumerable: false, writable: true });
    },
  });
};

// Reports an exception in an event listener like any uncaught error. There is no event for it: a
// module's global object has no listeners.
let heeded = false;
const heed = () => {
  if (heeded) return;
  heeded = true;
  load("ext:deno_web/02_event.js").saveGlobalThisReference({ dispatchEvent: () => true });
};

// Scripts without events.
const QUIET = ["00_url", "01_dom_exception", "01_urlpattern", "timers", "05_base64", "08_text_encoding"];

// The time origin of `performance` is the start of the module, and must be set explicitly.
let isTimed = false;
const time = () => {
  if (!isTimed) load(PERFORMANCE).setTimeOrigin();
  isTimed = true;
};

for (const [script, names] of Object.entries(WEB)) {
  const isQuiet = QUIET.some((name) => script.includes(name));
  for (const name of names) {
    lazily(name, () => {
      if (!isQuiet) heed();
      if (script === PERFORMANCE) time();
      return load(script)[name];
    });
  }
}

lazily("fetch", () => (heed(), load("ext:xs_runtime/fetch.js").fetch));
lazily("EventSource", () => (heed(), load("ext:xs_runtime/fetch.js").eventSource()));

// A plain value: v8x reads globalThis.console while it restores a snapshot.
const LEVELS = { debug: 0, log: 1, info: 1, dir: 1, table: 1, trace: 2, warn: 2, error: 3, assert: 3 };
const METHODS = [...Object.keys(LEVELS), "count", "countReset", "group", "groupCollapsed", "groupEnd", "time", "timeEnd", "timeLog"];
let printer = null;
const printing = () => {
  if (printer === null) {
    const { Console, setNoColorFns } = load("ext:deno_web/01_console.js");
    setNoColorFns(() => true, () => true);
    printer = new Console((message, level) => op_xs_log(level, message.replace(/\n$/, ""), ""));
  }
  return printer;
};
const console = {};
for (const method of METHODS) console[method] = (...args) => printing()[method](...args);
defineProperty(globalThis, "console", { value: console, configurable: true, enumerable: false, writable: true });

// The errors that ops throw for which the language has no class. One that is not listed here would
// be caught as `undefined`.
const DOM = ["IndexSizeError", "InvalidCharacterError", "InvalidStateError", "NotSupportedError", "OperationError", "SyntaxError"];
const SYSTEM = [
  "AddrInUse", "AddrNotAvailable", "AlreadyExists", "BrokenPipe", "Busy", "ConnectionAborted", "ConnectionRefused",
  "ConnectionReset", "FilesystemLoop", "InvalidData", "IsADirectory", "NetworkUnreachable", "NotADirectory", "NotConnected",
  "NotFound", "NotSupported", "PermissionDenied", "TimedOut", "UnexpectedEof", "WouldBlock", "WriteZero",
];
const exceptions = () => load("ext:deno_web/01_dom_exception.js");
for (const name of DOM) {
  core.registerErrorBuilder(`DOMException${name}`, (message) => new (exceptions().DOMException)(message, name));
}
core.registerErrorBuilder("DOMExceptionQuotaExceededError", (message) => new (exceptions().QuotaExceededError)(message));
for (const name of SYSTEM) {
  core.registerErrorBuilder(name, (message) => {
    const error = new Error(message);
    defineProperty(error, "name", { value: name, configurable: true, enumerable: false, writable: true });
    return error;
  });
}

lazily("crypto", () => load("ext:xs_runtime/crypto.js"));
defineProperty(globalThis, "self", { value: globalThis, configurable: true, enumerable: false, writable: true });

// Deletes everything not on the list and returns the driver, once. `trial` is the start time of a
// module under trial.
globalThis.__xs_boot = (list, trial) => {
  const allowed = new Set(list.split("\n").filter((name) => name !== ""));
  if (trial !== null) load("ext:xs_runtime/trial.js").prepare();
  const driver = load("ext:xs_runtime/driver.js");
  load("ext:xs_runtime/locales.js").install(globalThis);
  load("ext:xs_runtime/dates.js").install(globalThis);
  for (const key of Reflect.ownKeys(globalThis)) {
    if (!allowed.has(typeof key === "symbol" ? key.toString() : key)) delete globalThis[key];
  }
  if (trial !== null) load("ext:xs_runtime/trial.js").install(globalThis, trial);
  return driver;
};
}
