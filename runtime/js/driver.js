// The one loop that drives a module: takes work from Rust, calls the module, hands results back as
// strings. It never calls Rust through promises it would have to resolve per frame.
(function () {
const { core } = __bootstrap;
const {
  op_xs_alive, op_xs_attempt, op_xs_control, op_xs_committed, op_xs_drained, op_xs_fail, op_xs_finish,
  op_xs_full, op_xs_next, op_xs_places, op_xs_reply, op_xs_undo, op_xs_waits,
} = core.ops;
const { parse, stringify } = JSON;
const { Batch, Frame, frames } = core.loadExtScript("ext:xs_runtime/frame.js");
const { isLarge, upload } = core.loadExtScript("ext:xs_runtime/bytes.js");
const { buffer, drop, flush, output, emit, Out, stateText, duration, describe, nameOf } = core.loadExtScript("ext:xs_runtime/values.js");
const { Scope, generatorContext, commandContext, handlerContext } = core.loadExtScript("ext:xs_runtime/context.js");

// Microtask turns granted to a promise before it counts as waiting.
const TURNS = 16;

const scopes = new Map();
let definition = null;
let about = null;

function isThenable(value) {
  return typeof value === "object" && value !== null && typeof value.then === "function";
}

function iteratorOf(value) {
  if (typeof value !== "object" || value === null) return null;
  if (typeof value[Symbol.asyncIterator] === "function") return value[Symbol.asyncIterator]();
  // An array is one (wrong) value; the iterator of a sync generator is a stream of values.
  if (typeof value[Symbol.iterator] === "function" && typeof value.next === "function") return value;
  return null;
}

function report(op, first, error) {
  const { name, message, stack } = describe(error);
  op(first, name, message, stack);
}

// ---- handlers

const HANDLER = 0;

class HandlerLoop {
  state = undefined;
  index = 0;
  #saved = "null";
  // What the store has; not the same after a migration that is not committed yet.
  #stored = "null";
  #asyncRun = false;
  // The first input that no reply covers yet, and how many there are.
  #from = 0;
  #count = 0;
  // Resolves when the last reply, of this batch or the one before, is committed.
  #barrier = null;
  #readers = [];
  #stride = 1;
  #scope = new Scope(HANDLER);
  #context;
  constructor() {
    scopes.set(HANDLER, this.#scope);
    this.#context = handlerContext(this.#scope, about, this);
    this.#asyncRun = Object.prototype.toString.call(definition.run) === "[object AsyncFunction]";
  }
  attempt() {
    return op_xs_attempt(this.index);
  }
  // Before anything is read: what earlier calls appended has to be in the store.
  async ready() {
    if (this.#from < this.index) await new Promise((resolve) => this.#readers.push(resolve));
    if (this.#barrier !== null) await this.#barrier;
  }
  load(text, foreign) {
    let state = text === "" ? definition.state : parse(text);
    if (foreign && definition.migrate !== undefined) state = definition.migrate(state);
    this.#saved = stateText(state ?? null);
    this.#stored = text === "" ? this.#saved : text;
    // A copy of its own: the definition's object must not change with the first call.
    this.state = parse(this.#saved);
  }
  // The state's text when it is not the saved one.
  #changed() {
    const text = stateText(this.state ?? null);
    return text === this.#stored ? "" : text;
  }
  // Answers for the next calls. Until that is committed nothing later is read or answered.
  async #reply(done, text) {
    if (this.#barrier !== null) await this.#barrier;
    flush();
    op_xs_reply(done, text);
    if (text !== "") this.#saved = this.#stored = text;
    buffer.full = false;
    this.#from += done;
    this.#barrier = this.#from < this.#count ? op_xs_committed() : null;
  }
  async #fail(index, error) {
    if (this.#barrier !== null) await this.#barrier;
    const { name, message, stack, verdict, after } = describe(error);
    drop();
    op_xs_undo();
    this.state = parse(this.#saved);
    op_xs_fail(index, verdict, after, name, message, stack);
  }
  // `ahead`: what came of the batch before is not committed yet.
  async batch(batch, ahead) {
    const started = performance.now();
    const count = batch.count;
    this.#from = 0;
    this.#count = count;
    this.#barrier = ahead ? op_xs_committed() : null;
    buffer.full = false;
    for (let index = 0; index < count; index++) {
      if (index % this.#stride === 0) op_xs_alive();
      this.index = index;
      let before = "";
      try {
        // A call that waits commits what came before it: that state has to be known by then.
        if (this.#asyncRun && index > this.#from) before = this.#changed();
        const result = definition.run(new Frame(batch, index), this.#context);
        if (result !== undefined && result !== null) {
          if (isThenable(result)) {
            await this.#settle(result, index, before);
          } else {
            output(HANDLER, index, result, about.asBody);
          }
        }
        const last = index + 1 === count;
        if ((last || buffer.full) && index >= this.#from) {
          await this.#reply(index + 1 - this.#from, this.#changed());
        }
      } catch (error) {
        return await this.#fail(index, error);
      }
    }
    this.#stride = performance.now() - started < 0.2 * count ? 16 : 1;
  }
  // Waits for a call's promise. One that is not settled by then is a call that waits: what came
  // before it is committed first, and it is committed alone.
  async #settle(result, index, before) {
    const outcome = { settled: false, failed: false, value: undefined };
    Promise.resolve(result).then(
      (value) => (outcome.settled = true, outcome.value = value),
      (error) => (outcome.settled = true, outcome.failed = true, outcome.value = error),
    );
    for (let turn = 0; turn < TURNS && !outcome.settled; turn++) await null;
    const waits = !outcome.settled;
    if (waits) {
      // The first promise of a plain function: the state before this call is not known, so the
      // earlier calls cannot be committed apart from it. All are repeated, each alone.
      if (index > this.#from && !this.#asyncRun) throw new Error("a call waits in a shared group");
      this.#asyncRun = true;
      if (index > this.#from) await this.#reply(index - this.#from, before);
      op_xs_waits(index);
      for (const release of this.#readers.splice(0)) release();
      try {
        outcome.value = await result;
      } finally {
        op_xs_waits(-1);
      }
    } else if (outcome.failed) {
      throw outcome.value;
    }
    output(HANDLER, index, outcome.value, about.asBody);
    if (waits) await this.#reply(1, this.#changed());
  }
  async tick() {
    this.index = this.#from = this.#count = 0;
    this.#barrier = null;
    try {
      let result = definition.tick(this.#context);
      if (isThenable(result)) {
        op_xs_waits(0);
        try {
          result = await result;
        } finally {
          op_xs_waits(-1);
        }
      }
      output(HANDLER, 0, result, about.asBody);
      await this.#reply(0, this.#changed());
    } catch (error) {
      await this.#fail(0, error);
    }
  }
}

// ---- generators and commands

// Hands over each value of an iterator. A value that cannot be a frame, or that the store refused,
// is thrown into the iterator at its yield.
async function drain(scope, iterator) {
  const finished = scope.onEnd(() => void iterator.return?.()?.catch?.(() => {}));
  try {
    let step = await iterator.next();
    while (!step.done) {
      try {
        await result(scope, step.value);
      } catch (error) {
        if (typeof iterator.throw !== "function") throw error;
        step = await iterator.throw(error);
        continue;
      }
      step = await iterator.next();
    }
    await result(scope, step.value);
  } finally {
    finished();
  }
}

// One value, once there is room for it.
async function result(scope, value) {
  if (value === undefined || value === null || scope.over) return;
  if (op_xs_full(scope.run)) await op_xs_drained(scope.run);
  const content = Out.is(value) ? Out.content(value) : null;
  if (content !== null && isLarge(content.body)) {
    const stored = await upload(content.body);
    emit(scope.run, 0, content.topic ?? "", { ...content, body: undefined, stored }, "frame()");
  } else {
    output(scope.run, 0, value, about.asBody);
  }
}

async function run(scope, start) {
  scopes.set(scope.run, scope);
  let failure = null;
  try {
    let value = start();
    if (isThenable(value)) value = await value;
    const iterator = iteratorOf(value);
    if (iterator !== null) await drain(scope, iterator);
    else await result(scope, value);
  } catch (error) {
    failure = { error };
  }
  scopes.delete(scope.run);
  scope.end(new DOMException("the run is over", "AbortError"));
  if (failure === null) op_xs_finish(scope.run, "", "", "");
  else report(op_xs_finish, scope.run, failure.error);
}

function call(work) {
  const scope = new Scope(work.run);
  const input = frames(work.frame)[0];
  let args;
  try {
    args = Object.freeze(checkArgs(input.meta.args ?? {}));
  } catch (error) {
    report(op_xs_finish, work.run, error);
    return;
  }
  Object.defineProperty(input, "args", { value: args, enumerable: true });
  const context = commandContext(scope, about, work.deadline);
  void run(scope, () => definition.run(input, context));
}

const WORDS = { true: true, false: false };

function checkArgs(given) {
  const wanted = definition.args;
  if (wanted === undefined) return given;
  if (typeof given !== "object" || given === null || Array.isArray(given)) throw new TypeError("args must be an object");
  const args = {};
  for (const key of Object.keys(given)) {
    if (!Object.hasOwn(wanted, key)) {
      throw new TypeError(`unknown argument "${key}"; ${about.name} takes ${Object.keys(wanted).join(", ") || "none"}`);
    }
  }
  for (const [key, spec] of Object.entries(wanted)) {
    const value = given[key];
    if (value === undefined || value === null) {
      if (!spec.endsWith("?") && !(spec === "json" && value === null)) {
        throw new TypeError(`argument "${key}" is missing (${spec})`);
      }
      if (value === null && spec.startsWith("json")) args[key] = null;
      continue;
    }
    args[key] = argument(key, spec.replace("?", ""), value);
  }
  return args;
}

function argument(key, type, value) {
  if (type === "json" || typeof value === type) return value;
  if (type === "number" && typeof value === "string" && value.trim() !== "" && Number.isFinite(Number(value))) {
    return Number(value);
  }
  if (type === "boolean" && typeof value === "string" && Object.hasOwn(WORDS, value)) return WORDS[value];
  if (type === "string" && (typeof value === "number" || typeof value === "boolean")) return String(value);
  throw new TypeError(`argument "${key}" is ${nameOf(value)}, not a ${type}`);
}

// ---- the definition

const TYPES = ["string", "number", "boolean", "json"];

// Checks what only JavaScript can see and gives Rust the rest as JSON.
function define(namespace, kind, name) {
  const found = namespace.default;
  if (typeof found !== "object" || found === null) {
    throw new TypeError(`the module has no default export that is a definition; write: export default ${kind}({ run(...) {...} })`);
  }
  if (typeof found.run !== "function") throw new TypeError(`the definition has no run function; write: export default ${kind}({ run(...) {...} })`);
  for (const key of ["tick", "migrate"]) {
    if (found[key] !== undefined && typeof found[key] !== "function") throw new TypeError(`${key} must be a function`);
  }
  const plain = {};
  for (const key of Object.keys(found)) {
    if (typeof found[key] !== "function") plain[key] = found[key];
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
  definition = found;
  about = { name, kind, asBody: found.output?.as === "body" };
  return stringify({ ...plain, tick: found.tick !== undefined, migrate: found.migrate !== undefined });
}

// ---- work

async function control() {
  for (;;) {
    const pending = op_xs_control();
    core.unrefOpPromise(pending);
    const { run: id, name, message } = parse(await pending);
    const reason = new DOMException(message, name);
    for (const [key, scope] of id === -1 ? [...scopes] : [[id, scopes.get(id)]]) {
      scope?.end(reason);
      if (id !== -1) scopes.delete(key);
    }
  }
}

async function work() {
  let handling = null;
  for (;;) {
    const text = await op_xs_next();
    switch (text[0]) {
      case "S":
        try {
          handling ??= new HandlerLoop();
          handling.load(text.slice(2), text[1] === "F");
          op_xs_finish(HANDLER, "", "", "");
        } catch (error) {
          report(op_xs_finish, HANDLER, error);
        }
        break;
      case "A":
      case "B": {
        handling ??= new HandlerLoop();
        const places = new Uint32Array(op_xs_places().buffer);
        await handling.batch(new Batch(text, 1, places), text[0] === "A");
        break;
      }
      case "T":
        handling ??= new HandlerLoop();
        await handling.tick();
        break;
      case "R": {
        const scope = new Scope(Number(text.slice(1)));
        void run(scope, () => definition.run(generatorContext(scope, about)));
        break;
      }
      case "C":
        call(parse(text.slice(1)));
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
