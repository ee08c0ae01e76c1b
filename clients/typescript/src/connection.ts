// One connection: a socket around a Session. It ends with the first error and never reconnects;
// that is up to the client.

import { closeSync, constants, openSync } from "node:fs";
import * as net from "node:net";
import { basename, dirname } from "node:path";
import * as tls from "node:tls";
import { addressText, isLocal, type Address } from "./address.js";
import { CHANGES, Op } from "./coding.js";
import {
  AccessError,
  AddressError,
  ClientClosed,
  ConnectError,
  ConnectionLost,
  NotSent,
  ProtocolError,
  ProtocolRefused,
  TlsError,
  XsError,
} from "./errors.js";
import { FREE_WAITING_MAX } from "./limits.js";
import * as messages from "./messages.js";
import { Flow, Session, type Event, type Push } from "./session.js";
import type { ServerInfo } from "./values.js";
import { Settle, sleep, timer, until } from "./waiting.js";

const SOCKET_PATH_MAX = 107;
const CLOSE_WAIT_MS = 2000;
/** After this time without data the server is probed, and after as much again given up. */
const SILENCE_MS = 90_000;

const PAID: readonly number[] = [Op.DELIVER, Op.BLOB_CHUNK];

/**
 * A stream as the connection sees it: the messages that arrived for it and were not taken yet. The
 * credit granted bounds how many, and the server is held to it.
 */
export class Line {
  /** The server knows that the stream has ended. */
  isOver = false;
  readonly #items: Push[] = [];
  #waiter: Settle<void> | undefined;
  #failure: { readonly why: unknown } | undefined;
  readonly #flow: Flow;
  /** Messages among the items that cost no credit. */
  #free = 0;
  #isEnded = false;

  constructor(
    readonly connection: Connection,
    /** The op of the request that opens it. */
    readonly op: number,
    readonly sub: number,
    credit: number,
  ) {
    this.#flow = new Flow(credit);
  }

  /** @throws {ProtocolError} when the server sends more than it may */
  put(push: Push): void {
    if (this.#isEnded) return;
    const before = this.#items.at(-1);
    // Pulses cost no credit; of several in a row, one is kept.
    if (before && messages.isPulse(push) && messages.isPulse(before)) return;
    if (PAID.includes(push.op)) {
      this.#flow.came(push);
    } else if (++this.#free > FREE_WAITING_MAX) {
      throw new ProtocolError("the server sent more events than anybody can want");
    }
    this.#isEnded = messages.isLast(push);
    this.#items.push(push);
    this.#waiter?.resolve();
  }

  fail(why: unknown): void {
    this.#failure = { why };
    this.#waiter?.resolve();
  }

  /** The next message. @throws what ended the connection once all earlier messages were taken */
  async item(signal?: AbortSignal): Promise<Push> {
    for (;;) {
      const item = this.#items.shift();
      if (item) {
        if (!PAID.includes(item.op)) this.#free--;
        return item;
      }
      if (this.#failure) throw this.#failure.why;
      this.#waiter = new Settle<void>();
      await until(this.#waiter.promise, signal);
    }
  }

  /** The contents of a message were used up: the server may send that much more. */
  took(push: Push): void {
    const grant = this.#flow.took(push.body.length);
    if (grant > 0 && !this.isOver) {
      this.connection.tell(Op.CREDIT, this.sub, messages.credit(grant));
    }
  }

  /** Ends the stream, from this side if necessary; its waiting caller gets `why`. */
  close(why: unknown = new ClientClosed("the stream was closed")): void {
    this.connection.forget(this, !this.isOver);
    this.isOver = true;
    this.#items.length = 0;
    this.fail(why);
  }
}

/** A connection that has sent HELLO, answered or not. */
export class Connection {
  /** Why it has ended. */
  failure: XsError | undefined;
  /** Why the server is stopping; new requests belong on another connection. */
  draining: string | undefined;
  readonly #socket: net.Socket;
  readonly #session: Session;
  readonly #pending = new Map<number, { op: number; answer: Settle<readonly Buffer[]> }>();
  readonly #lines = new Map<number, Line>();
  readonly #welcome = new Settle<ServerInfo>();
  readonly #ended = new Settle<void>();
  /** Callers that wait, in order, until the server takes more. */
  readonly #queue: Array<Settle<void>> = [];
  #isFull = false;
  #isFlushDue = false;
  #silence: NodeJS.Timeout | undefined;
  #isAsked = false;

  constructor(socket: net.Socket, name: string, token: string | undefined) {
    this.#socket = socket;
    this.#session = new Session(name, token);
    socket.setNoDelay(true);
    socket.on("data", (data: Buffer) => this.#received(data));
    socket.on("drain", () => this.#drained());
    socket.on("error", (error) => this.#end(new ConnectionLost(error.message, { cause: error })));
    socket.on("end", () => this.#end(new ConnectionLost("the server ended the connection")));
    socket.on("close", () => {
      this.#end(new ConnectionLost("the connection to the server ended"));
      this.#ended.resolve();
    });
  }

  /** Sends HELLO; the socket is connected. */
  greet(signal?: AbortSignal): Promise<ServerInfo> {
    this.#flush();
    return until(this.#welcome.promise, signal);
  }

  /** Notices a peer that vanished silently, which TCP may not report for a long time. */
  watch(): void {
    this.#socket.setKeepAlive(true, SILENCE_MS);
    this.#silence = setTimeout(() => this.silent(), SILENCE_MS).unref();
  }

  /** After a long silence, probes the server; ends the connection if that was in vain. */
  silent(): void {
    if (this.failure) return;
    if (this.#isAsked) {
      this.#end(new ConnectionLost("the server does not answer any more"));
      this.#socket.destroy();
      return;
    }
    this.#isAsked = true;
    void this.send(Op.PING);
    this.#silence?.refresh();
  }

  get info(): ServerInfo {
    if (!this.#session.info) throw new ProtocolError("HELLO was not answered");
    return this.#session.info;
  }

  /** Whether it takes new requests. */
  get isUsable(): boolean {
    return this.failure === undefined && this.draining === undefined;
  }

  /**
   * Sends a request and waits for all parts of its answer. @throws {Refusal}, {NotSent},
   * {ConnectionLost}, {InvalidValue}
   */
  async ask(
    op: number,
    body: readonly Buffer[] = [],
    signal?: AbortSignal,
  ): Promise<readonly Buffer[]> {
    await this.writable(signal);
    return until(this.send(op, body), signal);
  }

  /** Sends a request at once; the answer arrives later. */
  send(op: number, body: readonly Buffer[] = [], line?: Line): Promise<readonly Buffer[]> {
    const answer = new Settle<readonly Buffer[]>();
    // A caller that waited until it was writable resumes a little later, when it may have ended.
    const unsent = this.#unsent();
    if (unsent) {
      answer.reject(unsent);
      return answer.promise;
    }
    const corr = this.#session.request(op, body, line?.sub ?? 0);
    this.#pending.set(corr, { op, answer });
    this.#flushSoon();
    return answer.promise;
  }

  /** Opens a stream and waits until the server has accepted it. */
  async askStream(
    op: number,
    body: readonly Buffer[],
    credit: number,
    signal?: AbortSignal,
  ): Promise<{ line: Line; parts: readonly Buffer[] }> {
    await this.writable(signal);
    const line = this.open(op, credit);
    try {
      return { line, parts: await until(this.send(op, body, line), signal) };
    } catch (error) {
      // A caller that stops waiting takes the stream back; one that was refused does not exist.
      line.isOver = error instanceof XsError;
      line.close();
      throw error;
    }
  }

  /**
   * Waits in order until the server takes more. @throws {NotSent}, or the error that rules out
   * another connection
   */
  async writable(signal?: AbortSignal): Promise<void> {
    if (!this.failure && (this.#isFull || this.#queue.length > 0)) {
      const turn = new Settle<void>();
      this.#queue.push(turn);
      try {
        await until(turn.promise, signal);
      } finally {
        const at = this.#queue.indexOf(turn);
        if (at >= 0) this.#queue.splice(at, 1);
        // The next one follows once this one has sent.
        if (!this.#isFull) setImmediate(() => this.#drained());
      }
    }
    const unsent = this.#unsent();
    if (unsent) throw unsent;
  }

  /** The error for a request after the end of the connection. */
  #unsent(): XsError | undefined {
    if (!this.failure) return undefined;
    const why = told(this.failure);
    return why instanceof ConnectionLost ? new NotSent(why.message, { cause: why }) : why;
  }

  #drained(): void {
    this.#isFull = this.#socket.writableNeedDrain && this.failure === undefined;
    if (!this.#isFull) this.#queue.shift()?.resolve();
  }

  /** Returns a new stream; the request that opens it must be sent next. */
  open(op: number, credit: number): Line {
    const line = new Line(this, op, this.#session.stream(), credit);
    if (this.#session.streamsLeft === 0) this.draining ??= "its stream numbers are used up";
    this.#lines.set(line.sub, line);
    return line;
  }

  /** Sends a chunk of an upload. */
  async sendChunk(line: Line, chunk: Buffer, flags: number, signal?: AbortSignal): Promise<void> {
    await this.writable(signal);
    if (line.isOver) throw new ClientClosed("the upload is over");
    this.#session.tell(Op.BLOB_CHUNK, line.sub, [chunk], flags);
    this.#flush();
  }

  /** Sends a small one-way message; no effect if the connection has ended. */
  tell(op: number, sub: number, body: readonly Buffer[] = []): void {
    if (this.failure) return;
    this.#session.tell(op, sub, body);
    this.#flushSoon();
  }

  /** Delivers nothing more to a stream. */
  forget(line: Line, tell: boolean): void {
    if (this.#lines.delete(line.sub) && tell) this.tell(Op.UNSUBSCRIBE, line.sub);
  }

  /** Ends the connection if nothing is in progress on it. */
  closeWhenIdle(): void {
    if (this.#pending.size === 0 && this.#lines.size === 0) {
      this.abandon(new ConnectionLost("the connection is not used any more"));
    }
  }

  /** Ends the connection; what was sent before is still delivered. */
  abandon(why: XsError): void {
    this.#flush();
    this.#end(why);
  }

  /** Waits until the socket is closed; gives up on data that the server does not take. */
  async closed(): Promise<void> {
    const late = new AbortController();
    await Promise.race([this.#ended.promise, sleep(CLOSE_WAIT_MS, late.signal)]);
    late.abort();
    this.#socket.destroy();
  }

  #received(data: Buffer): void {
    this.#isAsked = false;
    this.#silence?.refresh();
    if (this.#socket.writableLength === 0) this.#session.written();
    try {
      for (const event of this.#session.receive(data)) this.#happened(event);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#end(error);
    }
    this.#flush();
  }

  #happened(event: Event): void {
    switch (event.kind) {
      case "push":
        this.#lines.get(event.sub)?.put(event);
        break;
      case "answer": {
        const answer = this.#pending.get(event.corr)?.answer;
        this.#pending.delete(event.corr);
        if (event.refusal && !this.#session.info) this.#end(event.refusal);
        if (event.refusal) answer?.reject(event.refusal);
        else answer?.resolve(event.parts);
        break;
      }
      case "welcome":
        this.#welcome.resolve(event.info);
        break;
      case "goaway":
        this.draining = event.reason;
        break;
      case "closed":
        this.#end(event.refusal);
    }
  }

  #end(why: XsError): void {
    if (this.failure) return;
    this.failure = why;
    clearTimeout(this.#silence);
    this.#silence = undefined;
    this.#socket.end();
    this.#welcome.reject(why);
    // Whatever the code of CLOSE, a request that changes something may have been done.
    const ending = (op: number) => (CHANGES.has(op) ? lost(why) : told(why));
    for (const { op, answer } of this.#pending.values()) answer.reject(ending(op));
    this.#pending.clear();
    for (const line of this.#lines.values()) line.fail(ending(line.op));
    for (const turn of this.#queue.splice(0)) turn.resolve();
    // The peer may never close its side; nothing more is expected from it.
    const isOrderly = why instanceof ConnectionLost || why instanceof ClientClosed;
    if (!isOrderly) this.#socket.destroySoon();
  }

  /** Sends the requests of one iteration of the event loop together. */
  #flushSoon(): void {
    if (this.#isFlushDue) return;
    this.#isFlushDue = true;
    process.nextTick(() => this.#flush());
  }

  #flush(): void {
    this.#isFlushDue = false;
    const out = this.#session.outgoing();
    if (out.length === 0 || !this.#socket.writable) return;
    this.#socket.cork();
    for (const piece of out) this.#socket.write(piece);
    this.#socket.uncork();
    this.#isFull = this.#socket.writableNeedDrain;
  }
}

/**
 * The error for requests and streams that only read, and for later ones, when the connection ends.
 * A protocol violation, a lost permission and a close by the user are final.
 */
function told(why: XsError): XsError {
  if (why instanceof AccessError) return why;
  if (why instanceof ProtocolRefused && !isLate(why)) return why;
  return lost(why);
}

/** Whether the connection was closed only because the network was too slow. */
function isLate(why: unknown): why is ProtocolRefused {
  return why instanceof ProtocolRefused && (why.code === 104 || why.code === 106);
}

/** The error for a request or a call that changes something: it is unknown what was done. */
function lost(why: XsError): XsError {
  if (why instanceof ProtocolError) return why;
  if (why instanceof ClientClosed) return new ClientClosed(why.message, { cause: why });
  return new ConnectionLost(why.message, { cause: why });
}

/** How a connection is made. */
export interface Dial {
  readonly address: Address;
  readonly name: string;
  readonly token: string | undefined;
  readonly tls: tls.ConnectionOptions | undefined;
  readonly timeoutMs: number;
}

/** Connects and sends HELLO. @throws {ConnectError}, {Refusal}, {ProtocolError}, {AddressError} */
export async function openConnection(dial: Dial, signal?: AbortSignal): Promise<Connection> {
  const { address, timeoutMs } = dial;
  const text = addressText(address);
  if (dial.token && !isLocal(address) && !("tls" in address && address.tls)) {
    throw new AddressError(`${text}: a token goes to another machine over TLS only (xss://)`);
  }
  const timeout = new AbortController();
  const late = new ConnectError(`${text}: no answer within ${timeoutMs} ms`);
  const ending = timer(() => timeout.abort(late), timeoutMs);
  const stop = signal ? AbortSignal.any([signal, timeout.signal]) : timeout.signal;
  let socket: net.Socket | undefined;
  try {
    const { dialed, isReady, release } = dialSocket(dial);
    socket = dialed;
    await until(isReady, stop).finally(release);
    const connection = new Connection(socket, dial.name, dial.token);
    await connection.greet(stop);
    if (!("path" in address)) connection.watch();
    return connection;
  } catch (error) {
    socket?.on("error", () => undefined);
    socket?.destroy();
    if (error instanceof ConnectionLost || isLate(error)) {
      throw new ConnectError(`${text}: ${error.message}`, { cause: error });
    }
    throw error;
  } finally {
    clearTimeout(ending);
  }
}

interface Dialed {
  readonly dialed: net.Socket;
  readonly isReady: Promise<void>;
  readonly release: () => void;
}

function dialSocket(dial: Dial): Dialed {
  const { address } = dial;
  let release = () => undefined as void;
  let socket: net.Socket;
  let event = "connect";
  if ("path" in address) {
    const short = shortPath(address.path);
    release = short.release;
    socket = net.connect({ path: short.path });
  } else if (address.tls) {
    const { host, port } = address;
    const named = net.isIP(host) ? {} : { servername: host };
    try {
      socket = tls.connect({ ...named, ...dial.tls, host, port });
    } catch (cause) {
      // The given certificates or keys are invalid.
      throw new TlsError(`${addressText(address)}: ${(cause as Error).message}`, { cause });
    }
    event = "secureConnect";
  } else {
    socket = net.connect({ host: address.host, port: address.port });
  }
  // Until it is connected, TLS was not tried: after an earlier failure, a later attempt may
  // succeed.
  let isReached = !socket.connecting;
  socket.once("connect", () => (isReached = true));
  const isReady = new Promise<void>((resolve, reject) => {
    socket.once(event, () => {
      socket.removeListener("error", fail);
      resolve();
    });
    const fail = (cause: NodeJS.ErrnoException) => {
      const nobody = cause.code === "ENOENT" || cause.code === "ECONNREFUSED";
      const advice = nobody ? "; is a server running there (xs serve)?" : "";
      const text = `${addressText(address)}: ${cause.message || cause.code}${advice}`;
      const speaksTls = "tls" in address && address.tls && isReached;
      const isTls = speaksTls && !cause.syscall && cause.code !== "ECONNRESET";
      reject(isTls ? new TlsError(text, { cause }) : new ConnectError(text, { cause }));
    };
    socket.once("error", fail);
  });
  isReady.catch(() => undefined);
  return { dialed: socket, isReady, release };
}

/** The kernel takes no long path, but one through an open directory is short. */
function shortPath(path: string): { path: string; release: () => void } {
  if (Buffer.byteLength(path) <= SOCKET_PATH_MAX) return { path, release: () => undefined };
  let directory: number;
  try {
    directory = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  } catch (cause) {
    throw new ConnectError(`${path}: ${(cause as Error).message}`, { cause });
  }
  const short = `/proc/self/fd/${directory}/${basename(path)}`;
  if (Buffer.byteLength(short) > SOCKET_PATH_MAX) {
    closeSync(directory);
    throw new AddressError(`${path}: the name of the socket is too long`);
  }
  return { path: short, release: () => closeSync(directory) };
}

/** The one part of an answer. */
export function only(parts: readonly Buffer[]): Buffer {
  const [part] = parts;
  if (!part || parts.length > 1) throw new ProtocolError("the answer has too many parts");
  return part;
}
