// The `ctx` of generators and commands, which append immediately.
(function () {
const { core } = __bootstrap;
const {
  op_xs_append, op_xs_append_bytes, op_xs_append_if, op_xs_append_stored, op_xs_blob_put, op_xs_cron_next, op_xs_input,
  op_xs_is_over, op_xs_left, op_xs_remove, op_xs_tail, op_xs_watch,
} = core.ops;
const { parse } = JSON;
const { frames } = core.loadExtScript("ext:xs_runtime/frame.js");
const { APPEND_KEYS, duration, isLarge, optionsText, written } = core.loadExtScript("ext:xs_runtime/values.js");
const { base, bytesOf, checkAppend, excuse, iterable, stream, topicsText } = core.loadExtScript("ext:xs_runtime/context.js");

const bytes = () => core.loadExtScript("ext:xs_runtime/bytes.js");

// `append` of generators and commands: resolves to the frame once it is stored.
async function append(scope, topic, options) {
  // Checked as given: destructuring could leave nothing of a value that is not a plain object.
  checkAppend(topic, options, APPEND_KEYS);
  const { key, expect, ...content } = options;
  const { meta, ttl, body } = written(content, "append()");
  if (key !== undefined || expect !== undefined) {
    const hash = body === "" ? "" : isLarge(body) ? await bytes().upload(body) : await op_xs_blob_put(bytesOf(body, "append({ body })"));
    const of = expect?.of === undefined ? undefined : topicsText(expect.of, "expect.of");
    const terms = { expect: of === undefined ? expect : { ...expect, of }, key: key === undefined ? undefined : String(key) };
    const text = await op_xs_append_if(scope.run, topic, meta, ttl, hash, optionsText(terms, "append()"));
    if (text.startsWith("!")) throw Object.assign(new Error(text.slice(1)), { name: "Conflict" });
    return frames(text)[0];
  }
  if (isLarge(body)) {
    return frames(await op_xs_append_stored(scope.run, topic, meta, ttl, await bytes().upload(body)))[0];
  }
  const text = typeof body === "string"
    ? await op_xs_append(scope.run, topic, meta, ttl, body)
    : await op_xs_append_bytes(scope.run, topic, meta, ttl, bytesOf(body, "append({ body })"));
  return frames(text)[0];
}

// Code that a run leaves behind may append or remove too late, when nothing awaits it. A call may
// be cut off before this thread hears of it, with a timer due in between.
async function inTime(scope, work) {
  try {
    return await work();
  } catch (error) {
    if (scope.over || op_xs_is_over(scope.run)) excuse(error);
    throw error;
  }
}

function immediate(scope) {
  return {
    append: (topic, options = {}) => inTime(scope, () => append(scope, topic, options)),
    remove: (id) => inTime(scope, () => op_xs_remove(scope.run, String(id))),
  };
}

// The longest delay of a timer is 24.8 days; longer ones fire at once.
const TIMER_MS_MAX = 86_400_000;
// Interval for re-reading a clock that may be set. The clock of a trial never is.
let lookMs = 60_000;

// Dates at a steady pace, the first one at once. A slow consumer skips beats and never gets two for
// the same beat.
function every(scope, interval) {
  const asked = duration(interval, "every()");
  if (asked === 0) throw new TypeError("every() is 0; use milliseconds or text such as \"500ms\", \"30s\", \"5m\"");
  const ms = Math.max(1, asked);
  const started = performance.now();
  let beat = -1, wake = null, timer = null, over = false;
  const stop = () => {
    over = true;
    clearTimeout(timer);
    wake?.();
  };
  const forget = scope.onEnd(stop);
  const iterator = {
    async next() {
      if (over) return { value: undefined, done: true };
      const passed = performance.now() - started;
      beat = Math.max(beat + 1, Math.floor(passed / ms));
      let wait = beat * ms - passed;
      while (!over && wait > 0) {
        const piece = Math.min(wait, TIMER_MS_MAX);
        await new Promise((resolve) => {
          wake = resolve;
          timer = setTimeout(resolve, piece);
        });
        wait = piece < wait ? beat * ms - (performance.now() - started) : 0;
      }
      return over ? { value: undefined, done: true } : { value: new Date(), done: false };
    },
    async return(value) {
      stop();
      forget();
      return { value, done: true };
    },
  };
  return iterable(iterator);
}

// The times of a cron expression. A time that passes while the loop is busy is skipped.
function cron(scope, expression, zone = "") {
  let wake = null, timer = null, over = false, last = Date.now();
  const next = () => op_xs_cron_next(String(expression), String(zone), Math.max(last, Date.now()));
  const stop = () => {
    over = true;
    clearTimeout(timer);
    wake?.();
  };
  next();
  const forget = scope.onEnd(stop);
  return iterable({
    async next() {
      if (over) return { value: undefined, done: true };
      const at = next();
      // In steps: the clock may be set meanwhile, and a timer has a maximum delay.
      while (!over && Date.now() < at) {
        await new Promise((resolve) => {
          wake = resolve;
          timer = setTimeout(resolve, Math.min(at - Date.now(), lookMs));
        });
      }
      last = at;
      return over ? { value: undefined, done: true } : { value: new Date(at), done: false };
    },
    async return(value) {
      stop();
      forget();
      return { value, done: true };
    },
  });
}

const now = () => undefined;

function generatorContext(scope, definition) {
  return Object.freeze(Object.defineProperties({}, {
    ...Object.getOwnPropertyDescriptors(base(scope, definition, now)),
    ...Object.getOwnPropertyDescriptors(immediate(scope)),
    ...Object.getOwnPropertyDescriptors({
      input: {
        [Symbol.asyncIterator]: () =>
          stream(scope, async () => op_xs_input(scope.run), frames, (taken, id) => op_xs_left(id, taken)),
      },
      every: (interval) => every(scope, interval),
      cron: (expression, zone) => cron(scope, expression, zone),
      watch: (path) => stream(scope, () => op_xs_watch(String(path)), parse),
      socket: (url, options) =>
        iterable(core.loadExtScript("ext:xs_runtime/socket.js").messages(scope, url, options)),
      tail: (path, options = {}) =>
        stream(
          scope, async () => op_xs_tail(scope.run, String(path), options.first === "start"), parse,
          (taken, id) => op_xs_left(id, taken),
          // In this case it is unknown whether the last line was handled.
          (taken, id) => op_xs_left(id, Math.max(0, taken - 1)),
        ),
    }),
  }));
}

function commandContext(scope, definition, deadline) {
  return Object.freeze(Object.defineProperties({}, {
    ...Object.getOwnPropertyDescriptors(base(scope, definition, now)),
    ...Object.getOwnPropertyDescriptors(immediate(scope)),
    deadline: { value: new Date(deadline), enumerable: true },
  }));
}

const inTrial = () => {
  lookMs = TIMER_MS_MAX;
};

return { generatorContext, commandContext, inTrial };
})();
