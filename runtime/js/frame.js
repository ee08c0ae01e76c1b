// Frames as modules see them. Many arrive in one text, with the positions of their parts beside it:
// see runtime/src/ext/frames.rs. A frame that nothing looks into is never parsed; one that is
// copies its own part, so that it does not keep the others alive.
(function () {
const { core } = __bootstrap;
const { op_xs_id_time, op_xs_body_now, op_xs_blob_text, op_xs_blob_bytes } = core.ops;
const { parse } = JSON;
const EMPTY = Object.freeze({});
const ID_CHARS = 25;
// Numbers per frame in the positions.
const PLACES = 4;

// The frames of one text.
class Batch {
  text;
  places;
  topics;
  count;
  constructor(text, from, places) {
    const line = text.indexOf("\n", from);
    this.text = text;
    this.places = places;
    this.topics = parse(text.slice(from, line));
    this.count = places.length / PLACES;
  }
}

class Frame {
  // The batch, until the frame is first looked into.
  #batch;
  // The index in the batch, or the copied parts.
  #own;
  constructor(batch, index) {
    this.#batch = batch;
    this.#own = index;
  }
  #take() {
    if (this.#batch === null) return this.#own;
    const { text, places, topics } = this.#batch;
    const at = this.#own * PLACES, id = places[at], meta = places[at + 1];
    this.#batch = null;
    return this.#own = {
      id: text.slice(id - ID_CHARS, id),
      topic: topics[places[at + 3]],
      rest: text.slice(id, meta),
      meta: text.slice(meta, places[at + 2]),
    };
  }
  #rest() {
    const own = this.#take();
    return typeof own.rest === "string" ? own.rest = parse(own.rest) : own.rest;
  }
  get id() {
    return this.#take().id;
  }
  get topic() {
    return this.#take().topic;
  }
  get offset() {
    return this.#rest()[0] ?? undefined;
  }
  get ttl() {
    return this.#rest()[1] || "forever";
  }
  get hash() {
    return this.#rest()[2] || null;
  }
  get cause() {
    return this.#rest()[3] || null;
  }
  get meta() {
    const own = this.#take();
    if (typeof own.meta === "string") own.meta = own.meta === "" ? EMPTY : parse(own.meta);
    return own.meta;
  }
  get time() {
    return new Date(op_xs_id_time(this.id));
  }
  async text() {
    const hash = this.hash;
    if (hash === null) return "";
    return op_xs_body_now(hash) ?? (await op_xs_blob_text(hash));
  }
  async json() {
    const text = await this.text();
    try {
      return parse(text);
    } catch (error) {
      const what = text === "" ? "it is empty" : error.message;
      throw new SyntaxError(`the body of ${this.topic} ${this.id} is not JSON: ${what}`);
    }
  }
  async bytes() {
    return this.hash === null ? new Uint8Array(0) : await op_xs_blob_bytes(this.hash);
  }
  stream() {
    if (this.hash === null) return new Blob([]).stream();
    return core.loadExtScript("ext:xs_runtime/bytes.js").blobStream(this.hash);
  }
  toJSON() {
    const { id, offset, topic, ttl, hash, meta, cause } = this;
    return { id, offset, topic, ttl, hash, meta, cause };
  }
  // The output of console.log.
  [Symbol.for("Deno.customInspect")](inspect, options) {
    return `Frame ${inspect(this.toJSON(), options)}`;
  }
}

// All frames of a text that begins with their positions.
function frames(text, Kind = Frame) {
  const line = text.indexOf("\n");
  const batch = new Batch(text.slice(line + 1), 0, parse(text.slice(0, line)));
  const list = [];
  for (let index = 0; index < batch.count; index++) list.push(new Kind(batch, index));
  return list;
}

return { Batch, Frame, frames };
})();
