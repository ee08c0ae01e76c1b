// The standard WebSocket, and ctx.socket(), an async iterable over messages.
(function () {
const { core } = __bootstrap;
const {
  op_xs_socket, op_xs_socket_bytes, op_xs_socket_close, op_xs_socket_drop, op_xs_socket_leave, op_xs_socket_next,
  op_xs_socket_text,
} = core.ops;
const { parse, stringify } = JSON;
const { CloseEvent, ErrorEvent, Event, EventTarget, MessageEvent, defineEventHandler } = core.loadExtScript("ext:deno_web/02_event.js");
const { DOMException } = core.loadExtScript("ext:deno_web/01_dom_exception.js");
const { Blob } = core.loadExtScript("ext:deno_web/09_file.js");
const { left, viewBytes, nameOf } = core.loadExtScript("ext:xs_runtime/values.js");
const { whenCallsEnd } = core.loadExtScript("ext:xs_runtime/context.js");
const { setTimeout, clearTimeout } = core.loadExtScript("ext:deno_web/02_timers.js");

const TEXT = 0, BINARY = 1;
// Time limit for each message that is still to be sent before a close: a peer that accepts none of
// them must not keep the socket open.
const SEND_MS_MAX = 10_000;
const CLEAN = new Set([1000, 1001, 1005]);
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

async function open(url, headers, protocols) {
  return parse(await op_xs_socket(stringify({ url: String(url), headers: [...new Headers(headers)], protocols })));
}

// One message: its data, or how the socket ended.
async function next(id) {
  const message = await op_xs_socket_next(id);
  const rest = message.subarray(1);
  if (message[0] === TEXT) return { data: new TextDecoder().decode(rest) };
  if (message[0] === BINARY) return { data: rest };
  return { code: rest[0] + rest[1] * 256, reason: new TextDecoder().decode(rest.subarray(2)) };
}

async function send(id, data) {
  if (typeof data === "string") return await op_xs_socket_text(id, data);
  if (data instanceof Blob) return await op_xs_socket_bytes(id, await data.bytes());
  return await op_xs_socket_bytes(id, viewBytes(data));
}

// A copy of a message: the sender may change its bytes afterwards.
function taken(data) {
  if (typeof data === "string" || data instanceof Blob) return data;
  if (ArrayBuffer.isView(data)) return viewBytes(data).slice();
  return data instanceof ArrayBuffer ? new Uint8Array(data.slice()) : String(data);
}

function protocolsOf(protocols) {
  const list = typeof protocols === "string" ? [protocols] : [...protocols];
  if (list.some((name) => !TOKEN.test(name)) || new Set(list.map((name) => name.toLowerCase())).size !== list.length) {
    throw new DOMException("the protocols of a socket are different tokens", "SyntaxError");
  }
  return list;
}

class WebSocket extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;
  CONNECTING = 0;
  OPEN = 1;
  CLOSING = 2;
  CLOSED = 3;
  #state = 0;
  #id = null;
  #url;
  #protocol = "";
  #binaryType = "blob";
  #buffered = 0;
  #sending = Promise.resolve();
  // The number of messages sent, and the timer for those that precede a close.
  #sent = 0;
  #late = null;
  #closing = null;
  #forget = null;
  constructor(url, protocols = []) {
    super();
    let parsed;
    try {
      parsed = new URL(url);
    } catch {
      throw new DOMException(`${url} is not a URL`, "SyntaxError");
    }
    if (parsed.protocol === "http:") parsed.protocol = "ws:";
    if (parsed.protocol === "https:") parsed.protocol = "wss:";
    if (parsed.protocol !== "ws:" && parsed.protocol !== "wss:") {
      throw new DOMException(`a socket's URL begins with wss:, not ${parsed.protocol}`, "SyntaxError");
    }
    if (parsed.hash !== "") throw new DOMException("a socket's URL has no fragment", "SyntaxError");
    this.#url = parsed.href;
    protocols = protocolsOf(protocols);
    this.#forget = whenCallsEnd((wasCut) => {
      if (wasCut) this.#drop();
    });
    void this.#run(protocols);
  }
  get url() {
    return this.#url;
  }
  get readyState() {
    return this.#state;
  }
  get protocol() {
    return this.#protocol;
  }
  get extensions() {
    return "";
  }
  get bufferedAmount() {
    return this.#buffered;
  }
  get binaryType() {
    return this.#binaryType;
  }
  set binaryType(type) {
    if (type === "blob" || type === "arraybuffer") this.#binaryType = type;
  }
  async #run(protocols) {
    let end = { code: 1006, reason: "" };
    try {
      const { socket, protocol } = await open(this.#url, undefined, protocols);
      this.#id = socket;
      this.#protocol = protocol;
      if (this.#closing !== null) {
        op_xs_socket_drop(socket);
      } else {
        this.#state = 1;
        this.dispatchEvent(new Event("open"));
        end = await this.#receive(socket);
      }
    } catch (error) {
      if (this.#closing === null) this.dispatchEvent(new ErrorEvent("error", { error, message: error.message }));
    }
    const wasClean = end.code !== 1006;
    if (!wasClean && this.#id !== null && this.#closing === null) {
      this.dispatchEvent(new ErrorEvent("error", { error: new Error(end.reason), message: end.reason }));
    }
    this.#state = 3;
    clearTimeout(this.#late);
    this.#forget?.();
    this.dispatchEvent(new CloseEvent("close", { wasClean, code: end.code, reason: end.reason }));
  }
  // Closes it without a close handshake.
  #drop() {
    this.#closing ??= { code: 0, reason: "" };
    this.#state = 2;
    if (this.#id !== null) op_xs_socket_drop(this.#id);
  }
  async #receive(id) {
    for (;;) {
      const message = await next(id);
      if (message.code !== undefined) return message;
      if (this.#state !== 1) continue;
      let { data } = message;
      if (typeof data !== "string") {
        const bytes = data.slice();
        data = this.#binaryType === "blob" ? new Blob([bytes]) : bytes.buffer;
      }
      this.dispatchEvent(new MessageEvent("message", { data, origin: new URL(this.#url).origin }));
    }
  }
  send(data) {
    if (this.#state === 0) throw new DOMException("the socket is not open yet", "InvalidStateError");
    if (this.#state !== 1) return;
    const message = taken(data);
    const size = typeof message === "string" ? message.length : message.byteLength ?? message.size;
    this.#buffered += size;
    this.#sending = this.#sending
      .then(() => send(this.#id, message))
      .catch(() => {})
      .then(() => {
        this.#buffered -= size;
        this.#sent++;
      });
  }
  // Drops the socket if no message that precedes its close is sent in time.
  #press() {
    const sent = this.#sent;
    this.#late = setTimeout(() => (sent === this.#sent ? this.#drop() : this.#press()), SEND_MS_MAX);
  }
  close(code = 0, reason = "") {
    if (code !== 0 && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new DOMException(`${code} is not a code that closes a socket; use 1000 or 3000 to 4999`, "InvalidAccessError");
    }
    if (new TextEncoder().encode(reason).byteLength > 123) {
      throw new DOMException("the reason of a close has at most 123 bytes", "SyntaxError");
    }
    if (this.#state > 1) return;
    this.#closing = { code, reason };
    this.#state = 2;
    if (this.#id === null) return;
    if (this.#buffered > 0) this.#press();
    void this.#sending.then(() => {
      clearTimeout(this.#late);
      return op_xs_socket_close(this.#id, code, String(reason));
    });
  }
}
for (const name of ["open", "message", "error", "close"]) defineEventHandler(WebSocket.prototype, name);

function iteratorOf(source) {
  const open = source?.[Symbol.asyncIterator] ?? source?.[Symbol.iterator];
  if (typeof open !== "function") throw new TypeError(`socket({ send }) takes what yields messages, not ${nameOf(source)}`);
  return open.call(source);
}

// The messages one by one. Sends what `send` yields, whose end does not close the socket. Ends on a
// clean close and throws on any other. `held` tells the code that leaves the loop what to close.
async function* received(scope, url, options, held) {
  const protocols = protocolsOf(options.protocols ?? []);
  const { socket: id } = await open(url, options.headers, protocols);
  held.id = id;
  const drop = () => op_xs_socket_drop(id);
  const forget = scope.onEnd(drop);
  let failure = null, outgoing = null;
  const sending = async () => {
    for await (const data of { [Symbol.asyncIterator]: () => outgoing }) {
      if (typeof data !== "string" && !ArrayBuffer.isView(data)) {
        throw new TypeError(`socket({ send }) takes text and bytes, not ${nameOf(data)}`);
      }
      await send(id, data);
    }
  };
  try {
    if (held.left) return;
    if (options.send !== undefined) {
      outgoing = iteratorOf(options.send);
      sending().catch((error) => {
        failure ??= error;
        drop();
      });
    }
    for (;;) {
      const message = await next(id);
      if (held.left) return;
      if (message.code === undefined) {
        yield message.data;
        continue;
      }
      if (failure !== null) throw failure;
      if (CLEAN.has(message.code) || scope.over) return;
      throw new Error(`the socket ended with ${message.code} ${message.reason}`.trim());
    }
  } finally {
    forget();
    op_xs_socket_leave(id);
    void left(outgoing);
  }
}

// Like received(), but leaving the loop closes the socket even while a next() is pending: the
// finally block of the generator would run only after that.
function messages(scope, url, options = {}) {
  const held = { id: null, left: false };
  const source = received(scope, url, options, held);
  const leave = () => {
    held.left = true;
    if (held.id !== null) op_xs_socket_leave(held.id);
  };
  return {
    next: () => source.next(),
    return(value) {
      leave();
      return source.return(value);
    },
    throw(error) {
      leave();
      return source.throw(error);
    },
  };
}

return { WebSocket, messages };
})();
