// The loop that drives a module: takes work from Rust, calls the module, returns results as
// strings. Avoids promises that Rust would have to resolve per frame.
(function () {
const { core } = __bootstrap;
const { op_xs_control, op_xs_finish, op_xs_next, op_xs_places } = core.ops;
const { parse, stringify } = JSON;
const { Batch } = core.loadExtScript("ext:xs_runtime/frame.js");
const { stateText, duration, nameOf, optionsText, report } = core.loadExtScript("ext:xs_runtime/values.js");
const { HandlerLoop } = core.loadExtScript("ext:xs_runtime/handler.js");

const HANDLER = 0;
// The name that stands for the end of the time of a run that was cut off, instead of an abort
// reason: see runtime/src/ext/bridge.rs.
const LEFT = "";

const scopes = new Map();
// The definition and facts about it, once known.
let module = null;

// The options that are functions.
const FUNCTIONS = ["run", "tick", "migrate"];
const TYPES = ["string", "number", "boolean", "json"];

// Checks what only JavaScript can see and returns the rest as JSON for Rust.
function define(namespace, kind, name) {
  const found = namespace.default;
  if (typeof found !== "object" || found === null) {
    throw new TypeError(`the module has no default export that is a definition; write: export default ${kind}({ run(...) {...} })`);
  }
  if (typeof found.run !== "function") throw new TypeError(`the definition has no run function; write: export default ${kind}({ run(...) {...} })`);
  for (const key of ["tick", "migrate"]) {
    if (found[key] !== undefined && typeof found[key] !== "function") throw new TypeError(`${key} must be a function`);
  }
  for (const key of ["about", "topics", "config"]) {
    if (typeof found[key] === "function") throw new TypeError(`${key} is a function; give its result instead`);
  }
  const plain = {};
  for (const key of Object.keys(found)) {
    if (!FUNCTIONS.includes(key)) plain[key] = found[key];
  }
  for (const key of ["timeout", "pulse"]) {
    if (plain[key] !== undefined) plain[key] = duration(plain[key], key);
  }
  if (plain.onError !== undefined && typeof plain.onError === "object") {
    plain.onError = { ...plain.onError };
    for (const key of ["backoff", "max"]) {
      if (plain.onError[key] !== undefined) plain.onError[key] = duration(plain.onError[key], `onError.${key}`);
    }
  }
  for (const [key, spec] of Object.entries(plain.args ?? {})) {
    if (typeof spec !== "string" || !TYPES.includes(spec.replace(/\?$/, ""))) {
      throw new TypeError(`args.${key} is ${stringify(spec) ?? nameOf(spec)}; use "string", "number", "boolean" or "json", with ? when optional`);
    }
  }
  if (plain.state !== undefined) stateText(plain.state);
  // A script has a space in its name ("the script"), which no processor can have; it needs no
  // permissions.
  const asked = name.includes(" ") ? null : plain.permissions?.env ?? [];
  const once = name.includes(" ") && found.once === true;
  module = { definition: found, once, about: { name, kind, asBody: found.output?.as === "body", asked } };
  // JSON would omit a function here, and the option would silently have no effect.
  for (const key of Object.keys(plain)) if (typeof plain[key] === "function") plain[key] = "a function";
  return optionsText({ ...plain, tick: found.tick !== undefined, migrate: found.migrate !== undefined });
}

// The pending request for work, and whether there will be no more: all runs were told to end.
let waiting = null, stopping = false;

async function control() {
  for (;;) {
    const pending = op_xs_control();
    core.unrefOpPromise(pending);
    const { run: id, name, message } = parse(await pending);
    if (id === -1) {
      stopping = true;
      if (waiting !== null) core.unrefOpPromise(waiting);
    }
    for (const [key, scope] of id === -1 ? [...scopes] : [[id, scopes.get(id)]]) {
      if (scope === undefined) continue;
      scope.mark.cut = true;
      scope.end(message, name);
      if (name !== LEFT) continue;
      scopes.delete(key);
      scope.leave();
    }
  }
}

// Loaded on demand: handlers, which are most modules, do not need it.
const loadRuns = () => core.loadExtScript("ext:xs_runtime/runs.js").runsOf(module, scopes);

async function work() {
  let handling = null, runs = null;
  for (;;) {
    waiting = op_xs_next();
    // Something that runs once must not wait forever for work that never comes.
    if (stopping || (runs !== null && module.once)) core.unrefOpPromise(waiting);
    const text = await waiting;
    waiting = null;
    switch (text[0]) {
      case "S":
        try {
          handling ??= new HandlerLoop(module, scopes);
          handling.load(text.slice(2), text[1] === "F");
          op_xs_finish(HANDLER, "", "", "");
        } catch (error) {
          report(op_xs_finish, HANDLER, error);
        }
        break;
      case "A":
      case "B": {
        handling ??= new HandlerLoop(module, scopes);
        const places = new Uint32Array(op_xs_places().buffer);
        await handling.batch(new Batch(text, 1, places), text[0] === "A");
        break;
      }
      case "T":
        handling ??= new HandlerLoop(module, scopes);
        await handling.tick();
        break;
      case "R":
        runs ??= loadRuns();
        runs.generate(Number(text.slice(1)));
        break;
      case "C":
        runs ??= loadRuns();
        runs.call(parse(text.slice(1)));
        break;
    }
  }
}

function start() {
  void control();
  void work();
}

return { define, start };
})();
