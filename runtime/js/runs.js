// Runs generators and calls of commands: hands over each value as it arrives.
(function () {
const { core } = __bootstrap;
const { op_xs_drained, op_xs_finish, op_xs_full } = core.ops;
const { frames } = core.loadExtScript("ext:xs_runtime/frame.js");
const { emitStored, isLarge, isThenable, left, nameOf, output, Out, report } = core.loadExtScript("ext:xs_runtime/values.js");
const { callBegan, Scope, within } = core.loadExtScript("ext:xs_runtime/context.js");
const { generatorContext, commandContext } = core.loadExtScript("ext:xs_runtime/direct.js");

let definition = null;
let about = null;
let scopes = null;

function iteratorOf(value) {
  if (typeof value !== "object" || value === null) return null;
  if (typeof value[Symbol.asyncIterator] === "function") return value[Symbol.asyncIterator]();
  // An array is one (wrong) value; the iterator of a sync generator is a stream of values.
  if (typeof value[Symbol.iterator] === "function" && typeof value.next === "function") return value;
  return null;
}

// Hands over each value of an iterator. An error for a value that cannot be a frame, or that the
// store refused, is thrown into the iterator at its yield; an iterator without throw() is ended.
async function drain(scope, iterator) {
  let ending = null;
  const finished = scope.onEnd(() => {
    try {
      ending = iterator.return?.();
      void ending?.catch?.(() => {});
    } catch {
      // An error thrown while one run is being ended must not affect the others.
    }
  });
  try {
    let step = await iterator.next();
    // An iterator that cannot be ended is abandoned.
    while (!step.done && !scope.over) {
      try {
        await result(scope, step.value);
      } catch (error) {
        if (typeof iterator.throw !== "function") {
          await left(iterator);
          throw error;
        }
        step = await iterator.throw(error);
        continue;
      }
      step = await iterator.next();
    }
    await result(scope, step.value);
  } finally {
    finished();
    // Its finally blocks are part of the run.
    if (isThenable(ending)) await ending.then(() => {}, () => {});
  }
}

// Hands over one value, once there is room.
async function result(scope, value) {
  if (value === undefined || value === null || scope.over) return;
  if (op_xs_full(scope.run)) await op_xs_drained(scope.run);
  const content = Out.is(value) ? Out.content(value) : null;
  if (content !== null && isLarge(content.body)) {
    const stored = await core.loadExtScript("ext:xs_runtime/bytes.js").upload(content.body);
    emitStored(scope.run, content, stored);
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
  scope.end("the run is over", "AbortError");
  scope.leave();
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
    op_xs_finish(work.run, "ArgumentError", error.message, "");
    return;
  }
  Object.defineProperty(input, "args", { value: args, enumerable: true });
  callBegan(scope);
  const context = commandContext(scope, about, work.deadline);
  within(scope, () => void run(scope, () => definition.run(input, context)));
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

function generate(id) {
  const scope = new Scope(id);
  void run(scope, () => definition.run(generatorContext(scope, about)));
}

// The runs of this module; `all` holds their scopes.
function runsOf(module, all) {
  ({ definition, about } = module);
  scopes = all;
  return { call, generate };
}

return { runsOf };
})();
