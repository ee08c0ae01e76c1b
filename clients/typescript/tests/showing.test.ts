// What people see of frames and other values: in JSON, and with console.log.

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { inspect } from "node:util";
import { type Client, connect, Frame, type Item } from "../src/index.js";
import { exact, jsonable } from "../src/showing.js";
import { PATIENCE_MS, record, Server } from "./support.js";

const parsed = (value: unknown): any => JSON.parse(JSON.stringify(value));

describe("in JSON", () => {
  it("numbers are numbers as long as that is exact", () => {
    assert.equal(exact(13n), 13);
    assert.equal(exact((1n << 53n) - 1n), 2 ** 53 - 1);
    assert.equal(exact(1n << 53n), "9007199254740992");
    const value = jsonable({ many: [1n, 1n << 60n], state: Buffer.from("ab"), none: null });
    assert.deepEqual(parsed(value), { many: [1, `${1n << 60n}`], state: "YWI=", none: null });
    // It is still equal to what was written down, and its copy too.
    const equal = { many: [1n, 1n << 60n], state: Buffer.from("ab"), none: null };
    assert.deepEqual(value, equal);
    assert.deepEqual(Object.keys(value), Object.keys(equal));
  });

  it("a frame is shown as it is", () => {
    const frame = new Frame(record("a.b", 0), 1n << 60n);
    const { id } = frame;
    const ttl = "forever";
    const plain = { kind: "frame", topic: "a.b", id, offset: `${1n << 60n}`, hash: null };
    assert.deepEqual(parsed(frame), { ...plain, bodyBytes: 0, meta: null, ttl });
    assert.equal(parsed(new Frame(record("a.b", 0), null)).offset, null);
    const shown = `Frame { topic: 'a.b', id: '${id}', offset: ${1n << 60n}n }`;
    assert.equal(inspect(frame, { breakLength: Infinity }), shown);
    assert.equal(inspect([[[frame]]]), "[ [ [ [Frame] ] ] ]");
    // One whose meta a server broke can still be looked at.
    const broken = new Frame(Buffer.concat([record("a", 0), Buffer.from("{")]), 1n);
    assert.match(inspect(broken), /meta: '\{'/);
  });
});

describe("of a server", () => {
  let server: Server;
  let client: Client;
  before(async () => {
    server = new Server();
    client = await connect(server.store, { waitMs: PATIENCE_MS });
  });
  after(async () => {
    await client.close();
    await server.close();
  });

  it("everything with a bigint can be written as JSON", async () => {
    const stamp = await client.append("seen", "some text", { meta: { a: 1 }, ttl: "last:5" });
    const offset = Number(stamp.offset);
    assert.deepEqual(parsed(stamp), { id: stamp.id, offset });
    const batch = await client.appendBatch({ cursors: [{ name: "c", offset: 1 }] });
    assert.deepEqual(parsed(batch).cursors, [1]);
    const items: Item[] = [];
    for await (const item of client.follow("seen", { bodies: 100 })) {
      items.push(item);
      if (item.kind === "caught_up") break;
    }
    const [frame, end] = items;
    assert.deepEqual(parsed(end), { kind: "caught_up", head: offset + 1 });
    const { hash } = await client.putBlob("some text");
    assert.deepEqual(parsed(frame), {
      kind: "frame",
      topic: "seen",
      id: stamp.id,
      offset,
      hash,
      bodyBytes: 9,
      meta: { a: 1 },
      ttl: "last:5",
    });
    const shown = inspect(frame, { breakLength: Infinity });
    const body = `hash: '${hash}', bodyBytes: 9n`;
    const all = `topic: 'seen', id: '${stamp.id}', offset: ${offset}n, meta: { a: 1 }, ${body}`;
    assert.equal(shown, `Frame { ${all}, ttl: 'last:5' }`);
    const cursor = parsed(await client.cursorGet("c"));
    assert.deepEqual([cursor.name, cursor.offset, cursor.revision, cursor.state], ["c", 1, 1, ""]);
    assert.equal(parsed(await client.cursorList())[0].stateBytes, 0);
    assert.equal(parsed(await client.topics("seen"))[0].lastOffset, offset);
    assert.equal(parsed(client.server).version, 1);
    assert.deepEqual(parsed(await client.putBlob("some text")), { hash, bytes: 9 });
    const [one] = await client.last("seen");
    assert.equal(parsed(await client.importFrames([one as Frame])).outcomes[0].kind, "there");
  });
});
