// Runs code that a user typed: a script, the lines of a prompt, a filter expression over frames.
// The entry module of such a graph calls one of these (run, prompt, where).
(function () {
const { core } = __bootstrap;
const { evalContext } = core;
const { op_xs_alive, op_xs_script_answer, op_xs_script_body, op_xs_script_cancelled, op_xs_script_next, op_xs_show, op_xs_show_bytes } = core.ops;
const { parse, stringify } = JSON;
const { Frame, frames } = core.loadExtScript("ext:xs_runtime/frame.js");
const { describe, viewBytes } = core.loadExtScript("ext:xs_runtime/values.js");
const api = core.loadExtScript("ext:xs_runtime/api.js");

// The value of a script, whose name is that of its file in stacks.
function evaluate(code, name) {
  const outcome = evalContext(code, name);
  if (outcome[1] !== null) throw outcome[1].thrown;
  return outcome[0];
}

// Number of frames evaluated between two signs of life to the watchdog.
const STRIDE = 16;

function isThenable(value) {
  return typeof value === "object" && value !== null && typeof value.then === "function";
}

// Converts values that JSON would show as {} although they have contents.
function filled(_key, value) {
  if (value instanceof Map) {
    const entries = [...value];
    return entries.every(([key]) => typeof key === "string") ? Object.fromEntries(entries) : entries;
  }
  if (value instanceof Set) return [...value];
  if (value instanceof Error) {
    const { name, message } = describe(value);
    return { name, message, ...value };
  }
  return typeof value === "bigint" ? String(value) : value;
}

function json(value) {
  const text = typeof value === "bigint" || typeof value === "symbol" ? String(value) : stringify(value, filled);
  return text ?? String(value);
}

// The turn of a run that is never cancelled.
const ALWAYS = { over: false, iterator: null };

// Text becomes a line, bytes are written unchanged, an iterable is shown value by value, until its
// turn is over.
async function show(value, text, turn = ALWAYS) {
  if (value === undefined || turn.over) return;
  if (typeof value === "string") return op_xs_show(value);
  if (typeof value === "object" && value !== null) {
    if (ArrayBuffer.isView(value)) return op_xs_show_bytes(viewBytes(value));
    if (value instanceof ArrayBuffer) return op_xs_show_bytes(new Uint8Array(value));
    if (value instanceof Blob) return await show(value.stream(), text, turn);
    if (typeof value[Symbol.asyncIterator] === "function") {
      if (turn !== ALWAYS) turn.iterator = value;
      for await (const item of value) {
        if (turn.over) break;
        await show(item, text, turn);
      }
      return;
    }
    // The iterator of a generator, not an array or a map.
    if (typeof value[Symbol.iterator] === "function" && typeof value.next === "function") {
      for (const item of value) await show(item, text, turn);
      return;
    }
  }
  op_xs_show(text(value));
}

function run(main) {
  const definition = { run: async (ctx) => show(await main(ctx), json) };
  // No more work arrives: anything it then awaits must come from elsewhere, or never does.
  return Object.defineProperty(definition, "once", { value: true });
}

function prompt() {
  return {
    async run(ctx) {
      const { inspect } = core.loadExtScript("ext:deno_web/01_console.js");
      const text = (value) => (value instanceof Frame ? stringify(value) : inspect(value));
      globalThis.ctx = ctx;
      const line = async ({ code, name }, turn) => {
        try {
          const value = await evaluate(code, name)(api);
          if (value !== undefined && !turn.over) globalThis._ = value;
          await show(value, text, turn);
          return "";
        } catch (error) {
          const { name, message, stack } = describe(error);
          return stringify({ name, message, stack });
        }
      };
      for (;;) {
        const work = parse(await op_xs_script_next());
        const turn = { over: false, iterator: null };
        const cancelled = op_xs_script_cancelled();
        // Unreferenced, so that a line that waits for nothing is still detected as stalled.
        core.unrefOpPromise(cancelled);
        const answer = await Promise.race([line(work, turn), cancelled.then(() => "cancelled")]);
        turn.over = true;
        if (answer === "cancelled" && typeof turn.iterator?.return === "function") {
          Promise.resolve(turn.iterator.return()).catch(() => {});
        }
        op_xs_script_answer(answer);
      }
    },
  };
}

// A frame whose body was delivered with it: it is read synchronously.
class Whole extends Frame {
  text() {
    if (this.hash === null) return "";
    const text = op_xs_script_body(this.hash);
    if (text === null) throw new RangeError("the body is too long to be read here");
    return text;
  }
  json() {
    return parse(this.text());
  }
}

// Answers 1 or 0 for each frame, and ! where the test throws; after a line feed comes the first
// error.
function where(test) {
  return {
    async run() {
      for (;;) {
        const list = frames(await op_xs_script_next(), Whole);
        let verdicts = "", thrown = "";
        for (let index = 0; index < list.length; index++) {
          if (index % STRIDE === 0) op_xs_alive();
          try {
            const result = test(list[index]);
            if (isThenable(result)) {
              // Its outcome does not matter either.
              Promise.resolve(result).catch(() => {});
              throw new TypeError("it returns a promise, which is not awaited");
            }
            verdicts += result ? "1" : "0";
          } catch (error) {
            verdicts += "!";
            if (thrown === "") {
              const { name, message } = describe(error);
              thrown = `\n${name}${name && ": "}${message}`;
            }
          }
        }
        op_xs_script_answer(verdicts + thrown);
      }
    },
  };
}

return { run, prompt, where };
})();
