// Calls of commands: a stream of result frames.

import { Op, Reader } from "./coding.js";
import type { Connection, Line } from "./connection.js";
import { ClientClosed, CommandFailed, ProtocolError, XsError } from "./errors.js";
import type { Frame } from "./frames.js";
import { call, readEvent, readList, type CallRequest } from "./messages.js";
import type { Push } from "./session.js";
import { Stream } from "./streams.js";
import type { FrameId } from "./values.js";

type Try = <T>(once: (connection: Connection) => Promise<T>) => Promise<T>;

/**
 * The results of a call. The frame `<name>.complete` ends it and is kept in `complete`;
 * `<name>.error` throws CommandFailed. Closing it before the end cancels the call. It is never
 * repeated automatically.
 */
export class Call extends Stream<Frame> {
  /** Id of the frame `<name>.call`, once the server has accepted the call. */
  id: FrameId | undefined;
  /** The frame `<name>.complete`, once it has arrived. */
  complete: Frame | undefined;
  readonly #body: Buffer[];
  #opening: Promise<FrameId> | undefined;
  #frames: Frame[] = [];
  /** All of its frames have arrived. */
  #isOver = false;

  constructor(
    private readonly tryOnce: Try,
    private readonly request: CallRequest,
    signal: AbortSignal | undefined,
  ) {
    super(signal);
    this.#body = call(request);
  }

  /** Makes the call, unless it was made already, and returns the id of `<name>.call`. */
  open(): Promise<FrameId> {
    if (!this.#opening && this.isClosed) {
      return Promise.reject(new ClientClosed("the call was closed before it was made"));
    }
    this.#opening ??= this.#open();
    return this.#opening;
  }

  async #open(): Promise<FrameId> {
    const { credit } = this.request;
    const { line, parts } = await this.tryOnce(async (connection) => {
      // It may have been closed while there was no connection for it.
      if (this.isClosed) throw new ClientClosed("the call was closed before it was made");
      return connection.askStream(Op.CALL, this.#body, credit, this.signal);
    });
    this.hold(line);
    if (this.isClosed) this.drop();
    this.id = new Reader(parts[0] ?? Buffer.alloc(0)).id("id");
    return this.id;
  }

  override close(): void {
    this.#frames = [];
    super.close();
  }

  next(): Promise<IteratorResult<Frame, undefined>> {
    return this.inTurn(() => this.#next());
  }

  async #next(): Promise<IteratorResult<Frame, undefined>> {
    try {
      if (!this.#isOver && !this.isClosed) await this.unlessClosed(this.open());
      for (;;) {
        const frame = this.#frames.shift();
        if (frame?.topic === `${this.request.name}.error`) {
          throw new CommandFailed(this.request.name, objectOf(frame));
        }
        if (frame?.topic === `${this.request.name}.complete`) this.complete = frame;
        else if (frame) return { done: false, value: frame };
        else if (this.#isOver || !this.line) {
          this.close();
          return { done: true, value: undefined };
        } else await this.#more(this.line);
      }
    } catch (error) {
      if (this.isClosed) return { done: true, value: undefined };
      this.close();
      throw error;
    }
  }

  async #more(line: Line): Promise<void> {
    if (this.taken) line.took(this.taken);
    this.taken = undefined;
    let push: Push;
    try {
      push = await line.item(this.signal);
    } catch (error) {
      if (!this.complete || !(error instanceof XsError)) throw error;
      // Only the notice of the end is lost: after an error, a caller would repeat the call.
      this.#isOver = true;
      return;
    }
    if (push.op === Op.DELIVER) {
      this.taken = push;
      this.#frames = readList(push.body).frames;
      return;
    }
    if (push.op !== Op.SUB_EVENT) {
      throw new ProtocolError(`op ${push.op} does not belong on a call`);
    }
    const event = readEvent(push.code, push.body);
    if (event.kind === "dropped") {
      line.isOver = true;
      if (!this.complete) throw event.refusal;
      this.#isOver = true;
    }
    if (event.kind === "ended") line.isOver = this.#isOver = true;
  }
}

function objectOf(frame: Frame): Record<string, unknown> {
  const meta: unknown = frame.meta;
  return typeof meta === "object" && meta !== null ? (meta as Record<string, unknown>) : {};
}
