// The `ctx` that every kind of processor shares, over plain ops, and the handler's own. Each run (a
// handler, a generator, one call) has a scope: its signal, its streams, and whether it is over.
(function () {
const { core } = __bootstrap;
const {
  op_xs_blob_bytes, op_xs_blob_put, op_xs_call, op_xs_config, op_xs_env, op_xs_env_line, op_xs_fs_bytes, op_xs_fs_list,
  op_xs_fs_stat, op_xs_fs_text, op_xs_get, op_xs_last, op_xs_last_per_topic, op_xs_log, op_xs_read,
  op_xs_remove_later, op_xs_stream_close, op_xs_stream_next, op_xs_topics, op_xs_watch_signal,
} = core.ops;
const { parse, stringify } = JSON;
const { frames } = core.loadExtScript("ext:xs_runtime/frame.js");
const { buffer, emit, checkContent, duration, isLarge, optionsText, viewBytes, nameOf, written } = core.loadExtScript("ext:xs_runtime/values.js");

// The async context of a call. Holds no references: code that waits keeps it and may outlive the
// call, and what a call holds may hold that code.
class Mark {
  // Whether the call was cut off from outside.
  cut = false;
}

class Scope {
  run;
  over = false;
  mark = new Mark();
  #controller = null;
  #why = null;
  #closers = new Set();
  #leavers = new Set();
  // The index of the current input, for a handler.
  input = () => 0;
  constructor(run) {
    this.run = run;
  }
  get signal() {
    if (this.#controller === null) {
      this.#controller = new AbortController();
      if (this.over) this.#controller.abort(this.#reason());
      // Waiting only for the signal is legitimate: such a run is not stalled.
      else op_xs_watch_signal(this.run);
    }
    return this.#controller.signal;
  }
  #reason() {
    return new DOMException(this.#why.message, this.#why.name);
  }
  // Closes everything opened in this scope.
  end(message, name) {
    if (this.over) return;
    this.over = true;
    this.#why = { message, name };
    for (const close of this.#closers) close();
    this.#closers.clear();
    if (this.#controller === null) return;
    const reason = this.#reason();
    if (this.mark.cut) excuse(reason);
    this.#controller.abort(reason);
  }
  onEnd(close) {
    if (this.over) close();
    else this.#closers.add(close);
    return () => this.#closers.delete(close);
  }
  // Called when the code has finished, or when the time it had for that is over.
  leave() {
    for (const tell of this.#leavers) tell();
    this.#leavers.clear();
  }
  onLeave(tell) {
    this.#leavers.add(tell);
    return () => this.#leavers.delete(tell);
  }
}

// Errors raised because a run is over. If nothing handles them, they are not unhandled rejections.
const excused = new WeakSet();
let isExcusing = false;

function excuse(error) {
  if (typeof error !== "object" || error === null) return;
  excused.add(error);
  if (!isExcusing) core.setUnhandledPromiseRejectionHandler((_promise, reason) => excused.has(reason));
  isExcusing = true;
}

// The open calls, and the callbacks for when they have ended, or when none of their code runs any
// more: one shared list for all callbacks registered since a call last began or ended.
const calls = new Set();
const lists = { onEnd: null, onLeave: null };

function callBegan(call) {
  calls.add(call);
  newLists();
  call.onEnd(() => {
    calls.delete(call);
    newLists();
  });
}

function newList(event) {
  const made = { backs: new Set(), forgets: [] };
  let left = calls.size, cut = false;
  for (const call of calls) {
    made.forgets.push(call[event](() => {
      cut ||= call.mark.cut;
      if (--left > 0) return;
      for (const back of made.backs) back(cut);
    }));
  }
  return made;
}

// Callbacks registered from now on belong to a different set of calls.
function newLists() {
  for (const event of ["onEnd", "onLeave"]) {
    const before = lists[event];
    lists[event] = null;
    if (before !== null) letGo(before);
  }
}

// Drops a list without callbacks that gets no new ones: a call that stays open need not keep it.
function letGo(list) {
  if (list === lists.onEnd || list === lists.onLeave || list.backs.size > 0) return;
  for (const forget of list.forgets) forget();
}

// Calls back once all currently open calls have ended: others may wait for something that one of
// them began. Tells the callback whether the current call was cut off or, if there is none, whether
// any of the open ones was. Returns a function that cancels this, or null when no call is open.
function whenCallsEnd(back) {
  return join("onEnd", back);
}

// Like whenCallsEnd, once no code of these calls runs any more.
function whenCallsLeave(back) {
  return join("onLeave", back);
}

function join(event, back) {
  if (calls.size === 0) return null;
  const list = lists[event] ??= newList(event);
  const owner = caller();
  const told = owner === null ? back : () => back(owner.cut);
  list.backs.add(told);
  return () => {
    list.backs.delete(told);
    letGo(list);
  };
}

// The call to which the running code belongs, including what it awaits and the timers that it sets.
// Code started by something else, such as a message of a socket, may belong to none.
function caller() {
  const mark = core.getAsyncContext();
  return mark instanceof Mark ? mark : null;
}

// Begins code that belongs to a call.
function within(scope, begin) {
  const before = core.getAsyncContext();
  core.setAsyncContext(scope.mark);
  try {
    begin();
  } finally {
    core.setAsyncContext(before);
  }
}

function topicsText(topics, what) {
  if (typeof topics === "string") return topics;
  if (Array.isArray(topics) && topics.every((topic) => typeof topic === "string")) return topics.join(",");
  throw new TypeError(`${what} takes a topic pattern or an array of them, not ${nameOf(topics)}`);
}

function time(value, what) {
  if (value instanceof Date) return value.getTime();
  return Date.now() - duration(value, what);
}

function readText(options = {}) {
  const request = { ...options };
  if (options.topics !== undefined) request.topics = topicsText(options.topics, "read({ topics })");
  if (options.since !== undefined) request.since = time(options.since, "since");
  if (options.until !== undefined) request.until = time(options.until, "until");
  return optionsText(request, "read()");
}

// Makes an iterator usable with `for await` and `await using`.
function iterable(iterator) {
  iterator[Symbol.asyncIterator] = () => iterator;
  iterator[Symbol.asyncDispose] = async () => void (await iterator.return());
  return iterator;
}

// The items of a stream in Rust. It is opened on the first next(), closed by return() and with the
// scope, after which it has simply ended. `left` and `ended` are called in these two cases, with
// the number of items taken from the last decoded ones, and the stream.
function stream(scope, open, decode, left = () => {}, ended = () => {}) {
  let id = null, ready = [], at = 0, over = false, pulling = null, forget = () => {};
  const close = () => {
    over = true;
    if (id !== null) op_xs_stream_close(id);
  };
  // While more is being pulled, all earlier items have been taken.
  const leave = (told) => {
    if (!over && id !== null) told(pulling === null ? at : 0, id);
    close();
  };
  const pull = async () => {
    if (id === null) {
      id = await open();
      // Closed while it was being opened: only this code knows the stream.
      if (over) return op_xs_stream_close(id);
      forget = scope.onEnd(() => leave(ended));
      if (over) return;
    }
    const text = await op_xs_stream_next(id);
    if (over) return;
    if (text === "") {
      over = true;
      forget();
      return;
    }
    ready = decode(text);
    at = 0;
  };
  const iterator = {
    // Of several concurrent waiters one pulls; then each takes its item in turn.
    async next() {
      for (;;) {
        if (at < ready.length) return { value: ready[at++], done: false };
        if (over) return { value: undefined, done: true };
        if (pulling !== null) {
          await pulling.catch(() => {});
          continue;
        }
        pulling = pull();
        try {
          await pulling;
        } catch (error) {
          if (scope.over) excuse(error);
          throw error;
        } finally {
          pulling = null;
        }
      }
    },
    async return(value) {
      if (!over) leave(left);
      forget();
      ready = [];
      return { value, done: true };
    },
  };
  return iterable(iterator);
}

// The results of a call: its end is not a result, and a failure is thrown.
function results(name, answers) {
  return iterable({
    async next() {
      const step = await answers.next();
      if (step.done) return step;
      const frame = step.value;
      if (frame.topic === `${name}.complete`) return answers.return();
      if (frame.topic !== `${name}.error`) return step;
      await answers.return();
      const { message = "failed without a message", code } = frame.meta ?? {};
      throw Object.assign(new Error(`${name}: ${message}`), { name: "CommandFailed", command: name, code, frame });
    },
    return: (value) => answers.return(value),
  });
}

// An async iterable over items that arrive all at once.
async function* listed(load) {
  yield* await load();
}

// The bytes of a body that is not large. An op takes them when it is called, which must happen
// before anything is awaited: the caller may change its buffer afterwards.
function bytesOf(body, what) {
  if (typeof body === "string") return new TextEncoder().encode(body);
  if (ArrayBuffer.isView(body)) return viewBytes(body);
  if (body instanceof ArrayBuffer) return new Uint8Array(body);
  throw new TypeError(`${what} takes text, bytes, a Blob or a ReadableStream, not ${nameOf(body)}`);
}

// The bytes of any body, for a caller that must wait before it uses them.
async function collect(body, what) {
  if (!isLarge(body)) return bytesOf(body, what).slice();
  return body instanceof Blob ? await body.bytes() : await new Response(body).bytes();
}

function logger(run) {
  const at = (level) => (message, fields) => {
    op_xs_log(level, String(message), fields === undefined ? "" : stringify(fields) ?? "");
  };
  return Object.freeze({ debug: at(0), info: at(1), warn: at(2), error: at(3) });
}

// The granted environment variables. Reading one that the module did not ask for, or that its own
// process was not given, is usually a mistake, so it is logged once. A script has all variables and
// asks for none.
function variables(asked) {
  const env = Object.freeze(parse(op_xs_env()));
  if (asked === null) return env;
  const told = new Set();
  const why = (key) => {
    if (!asked.includes(key)) return `was not asked for; add permissions: { env: ["${key}"] } to the definition`;
    const line = op_xs_env_line(key);
    return line === "" ? "" : `was not given to its own process; add ${line}`;
  };
  return new Proxy(env, {
    get(env, key) {
      const isName = typeof key === "string" && /^[A-Z][A-Z0-9_]*$/.test(key);
      if (isName && !Object.hasOwn(env, key) && !told.has(key)) {
        told.add(key);
        const text = why(key);
        if (text !== "") op_xs_log(2, `ctx.env.${key} ${text}`, "");
      }
      return env[key];
    },
  });
}

// The part shared by all kinds. `ready` is awaited before anything is read from the store.
function base(scope, definition, ready) {
  const config = parse(op_xs_config());
  const env = variables(definition.asked);
  const one = async (text) => (text === "" ? undefined : frames(text)[0]);
  return {
    name: definition.name,
    config,
    env,
    get signal() {
      return scope.signal;
    },
    log: logger(scope.run),
    read: (options) =>
      stream(scope, async () => (await ready(), op_xs_read(readText(options))), frames),
    get: async (id) => (await ready(), one(await op_xs_get(String(id)))),
    last: async (topics) => (await ready(), one(await op_xs_last(topicsText(topics, "last()")))),
    lastPerTopic: (topics) =>
      listed(async () => (await ready(), frames(await op_xs_last_per_topic(topicsText(topics, "lastPerTopic()"))))),
    topics: (topics = "*") =>
      listed(async () => (await ready(), parse(await op_xs_topics(topicsText(topics, "topics()"))))),
    blob: Object.freeze({
      put: async (body) => (isLarge(body) ? bytes().upload(body) : op_xs_blob_put(bytesOf(body, "blob.put()"))),
      get: async (hash) => op_xs_blob_bytes(String(hash)),
      stream: (hash) => bytes().blobStream(String(hash)),
    }),
    call: (name, options = {}) => {
      const input = scope.input();
      return results(String(name), stream(scope, async () => {
        const args = optionsText(options.args ?? {}, "call()", "args");
        const body = options.body === undefined ? new Uint8Array(0) : await collect(options.body, "call({ body })");
        const timeout = options.timeout === undefined ? -1 : duration(options.timeout, "call({ timeout })");
        await ready();
        return op_xs_call(String(name), args, body, timeout, scope.run, input);
      }, frames));
    },
    fs: Object.freeze({
      text: async (path) => op_xs_fs_text(String(path)),
      bytes: async (path) => op_xs_fs_bytes(String(path)),
      list: async (path) => parse(await op_xs_fs_list(String(path))),
      stat: async (path) => {
        const { size, modified, kind } = parse(await op_xs_fs_stat(String(path)));
        return { size, modified: new Date(modified), kind };
      },
    }),
    spawn: (command, args, options) =>
      core.loadExtScript("ext:xs_runtime/child.js").spawn(scope, command, args, options),
  };
}

const bytes = () => core.loadExtScript("ext:xs_runtime/bytes.js");

function checkAppend(topic, content, keys = undefined) {
  checkContent(content, "append()", keys);
  if (typeof topic !== "string" || topic === "") throw new TypeError("append() needs a topic: append(\"my.topic\", { ... })");
  if (content.topic !== undefined) throw new TypeError("append() takes the topic as its first argument only");
}

// The handler's context: outputs are buffered, the state belongs to the driver.
function handlerContext(scope, definition, call) {
  return Object.freeze(Object.defineProperties({}, {
    ...Object.getOwnPropertyDescriptors(base(scope, definition, () => call.ready())),
    ...Object.getOwnPropertyDescriptors({
      get state() {
        return call.state;
      },
      set state(value) {
        call.state = value;
      },
      get attempt() {
        return call.attempt();
      },
      append(topic, content = {}) {
        checkAppend(topic, content);
        if (isLarge(content.body)) {
          throw new TypeError("a handler's append() is buffered and cannot wait: await the text or bytes first");
        }
        emit(scope.run, call.index, topic, written(content, "append()"), "append()");
      },
      remove(id) {
        if (op_xs_remove_later(call.index, String(id))) buffer.full = true;
      },
    }),
  }));
}

return {
  Scope, base, bytesOf, callBegan, checkAppend, excuse, handlerContext, iterable, stream, topicsText, whenCallsEnd,
  whenCallsLeave, within,
};
})();
