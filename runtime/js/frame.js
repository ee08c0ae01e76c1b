// Frames as modules see them. They arrive many in one text: a JSON array of flat fields, a line
// feed, and the meta texts one behind the other; a meta is parsed when it is first looked at.
(function () {
const { core } = __bootstrap;
const { op_xs_id_time, op_xs_body_now, op_xs_blob_text, op_xs_blob_bytes } = core.ops;
const { blobStream } = core.loadExtScript("ext:xs_runtime/bytes.js");
const { parse } = JSON;
const FIELDS = 7;
const EMPTY = Object.freeze({});

class Frame {
  #metas;
  #start;
  #end;
  #meta;
  constructor(fields, at, metas, start) {
    this.id = fields[at];
    this.offset = fields[at + 1] ?? undefined;
    this.topic = fields[at + 2];
    this.ttl = fields[at + 3] || "forever";
    this.hash = fields[at + 4] || null;
    this.cause = fields[at + 6] || null;
    this.#metas = metas;
    this.#start = start;
    this.#end = start + fields[at + 5];
  }
  get meta() {
    if (this.#meta === undefined) {
      this.#meta = this.#end === this.#start ? EMPTY : parse(this.#metas.slice(this.#start, this.#end));
      this.#metas = null;
    }
    return this.#meta;
  }
  get time() {
    return new Date(op_xs_id_time(this.id));
  }
  async text() {
    if (this.hash === null) return "";
    return op_xs_body_now(this.hash) ?? (await op_xs_blob_text(this.hash));
  }
  async json() {
    return parse(await this.text());
  }
  async bytes() {
    return this.hash === null ? new Uint8Array(0) : await op_xs_blob_bytes(this.hash);
  }
  stream() {
    return this.hash === null ? new Blob([]).stream() : blobStream(this.hash);
  }
  toJSON() {
    const { id, offset, topic, ttl, hash, meta, cause } = this;
    return { id, offset, topic, ttl, hash, meta, cause };
  }
}

// All frames of one text.
function frames(text, Kind = Frame) {
  const end = text.indexOf("\n");
  const fields = parse(end < 0 ? text : text.slice(0, end));
  const list = [];
  let start = end + 1;
  for (let at = 0; at < fields.length; at += FIELDS) {
    list.push(new Kind(fields, at, text, start));
    start += fields[at + 5];
  }
  return list;
}

return { Frame, frames };
})();
