// What plain JavaScript can give that TypeScript would not: it is told before anything is sent.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { checkKeys, checkOptions } from "../src/checking.js";
import {
  AddressError,
  addressText,
  blobHash,
  Client,
  connect,
  InvalidValue,
  parseResume,
  resumeText,
} from "../src/index.js";
import { append, checkSelection, maintain } from "../src/messages.js";
import { OPTIONS } from "../src/options.js";
import {
  checkResume,
  hashBytes,
  idBytes,
  jsonBytes,
  NEW_FRAME,
  patternsOf,
} from "../src/values.js";
import { PATIENCE_MS, Server } from "./support.js";

describe("what plain JavaScript gives", () => {
  const refuses = (what: () => unknown, why: RegExp) => {
    const isTold = (error: unknown) => error instanceof InvalidValue && why.test(error.message);
    assert.throws(what, isTold, String(why));
  };
  const any = (value: unknown) => value as never;

  it("a number that JSON does not have is refused", () => {
    const bad: [unknown, RegExp][] = [
      [{ a: [1, NaN] }, /^not JSON: 1 is NaN$/],
      [{ a: { b: -Infinity } }, /^not JSON: b is -Infinity$/],
      [NaN, /^not JSON: it is NaN$/],
    ];
    for (const [value, why] of bad) refuses(() => jsonBytes(value), why);
    const good = { a: null, b: undefined, c: "null", d: new Date(0) };
    assert.equal(String(jsonBytes(good)), JSON.stringify(good));
  });

  it("a misspelt name is told with those that are known", () => {
    const frame = any({ topic: "a", mta: {} });
    refuses(() => checkKeys(frame, NEW_FRAME), /^"mta" is no part of a frame: these are topic, /);
    const change = any({ name: "c", offset: 1, expct: 1 });
    refuses(() => append({ cursors: [change] }), /"expct" is no part of a change .* expect$/);
    const condition = any({ empty: "a", headIs: 1 });
    refuses(() => append({ conditions: [condition] }), /"headIs" is no part of a cond.* empty$/);
    refuses(() => append({ conditions: [any({ nope: 1 })] }), /lastAtMost, empty, headIs/);
    for (const [method, known] of Object.entries(OPTIONS)) {
      refuses(() => checkKeys(any({ sinc: "1h" }), known), /^"sinc" is no option.*: these are /);
      const good = Object.fromEntries([...known.names].map((name) => [name, undefined]));
      assert.equal(checkKeys(good, known), good, method);
    }
    for (const none of [null, 5, "x"]) {
      refuses(() => checkKeys(any(none), OPTIONS.append), /is no object, in which each option of/);
    }
    refuses(() => checkOptions({ signal: any(5) }, OPTIONS.plain), /signal is an AbortSignal, not/);
    // What an object inherits is not what was written.
    const inherits = Object.create({ other: 1 }) as object;
    assert.equal(checkKeys(inherits, OPTIONS.plain), inherits);
  });

  it("what cannot even be compared is told", async () => {
    const client = new Client(":1", { retry: { giveUpMs: 0 } });
    const start = (one: unknown) => any({ topics: ["*"], start: one });
    const calls: Array<(wrong: never) => unknown> = [
      (wrong) => client.read("*", { bodies: wrong }),
      (wrong) => client.read("*", { credit: wrong }),
      (wrong) => client.follow("*", { pulseMs: wrong }),
      (wrong) => client.follow("*", { resume: any({ store: wrong, epoch: 1n, offset: 1n }) }),
      (wrong) => client.fetch("*", { pageBytes: wrong }),
      (wrong) => client.fetch(start(wrong)),
      (wrong) => client.fetch(start({ at: wrong })),
      (wrong) => client.fetch(start({ at: "last", count: wrong })),
      (wrong) => client.fetch(any({ topics: ["*"], start: { at: "first" }, limit: wrong })),
      (wrong) => client.last("*", wrong),
      (wrong) => client.call("a", {}, { deadlineMs: wrong }),
      (wrong) => client.append("a", "", { ttl: wrong }),
      (wrong) => client.gc({ graceMs: wrong }),
      (wrong) => client.open(wrong),
      (wrong) => blobHash(wrong),
      (wrong) => resumeText(wrong),
      (wrong) => parseResume(wrong),
    ];
    for (const wrong of [Symbol("a"), Object.create(null), [], {}]) {
      for (const call of calls) {
        await assert.rejects(async () => call(any(wrong)), InvalidValue, String(call));
      }
      assert.throws(() => addressText(any(wrong)), AddressError);
    }
    await assert.rejects(client.gc({ graceMs: any(5n) }), InvalidValue);
    refuses(() => blobHash(any(undefined)), /what has a hash is a Uint8Array, not undefined/);
    refuses(() => resumeText(any(undefined)), /undefined is not a resume point/);
    const later = { topics: ["a"], start: { at: "from", bound: 3n }, limit: 2n, reverse: false };
    assert.deepEqual(checkSelection(any(later)), {
      ...later,
      before: undefined,
      sinceMs: undefined,
      untilMs: undefined,
      follow: false,
    });
    await client.close();
  });

  it("a value of another kind is told", () => {
    for (const wrong of [undefined, null, 5, Buffer.from("a")]) {
      refuses(() => append({ frames: [{ topic: any(wrong) }] }), /a topic is text, not /);
      refuses(() => idBytes(any(wrong)), /is not a frame id/);
      refuses(() => hashBytes(any(wrong)), /is not sha256-/);
      refuses(() => parseResume(any(wrong)), /is not a resume point/);
      refuses(() => checkResume(any(wrong)), /parseResume reads its text/);
    }
    for (const wrong of [null, 5, [1, 2]]) {
      refuses(() => append({ frames: [{ topic: "a", body: any(wrong) }] }), /is a Uint8Array/);
    }
    for (const wrong of [null, 5, [5], {}]) {
      refuses(() => patternsOf(any(wrong)), /topic pattern/);
    }
    for (const wrong of [5, {}]) {
      const batches = [{ frames: wrong }, { cursors: wrong }, { conditions: wrong }];
      for (const batch of [...batches, { remove: wrong }]) {
        refuses(() => append(any(batch)), / are an array, not /);
      }
    }
    refuses(() => append({ cursors: [{ name: "c", offset: any(undefined) }] }), /an offset is a/);
    refuses(() => append({ cursors: [{ name: "c", offset: 1, expect: any(null) }] }), /a revision/);
    refuses(() => append({ cursors: [{ name: "c", offset: 1, state: any("x") }] }), /Uint8Array/);
    refuses(() => maintain("gc", { deadPercent: 1.5 }), /no percentage/);
    refuses(() => maintain("backup", { path: any(5) }), /a path is text, not 5/);
  });

  it("every method tells it, and sends nothing", async () => {
    const server = new Server();
    const client = await connect(server.store, { waitMs: PATIENCE_MS });
    const frame = await client.get((await client.append("kinds", "x".repeat(5000))).id);
    assert(frame);
    type Call = (wrong: never) => unknown;
    const options: Call[] = [
      (wrong) => connect(server.store, wrong),
      (wrong) => connect(server.store, { retry: wrong }),
      (wrong) => client.append("kinds", "x", wrong),
      (wrong) => client.appendBatch({}, wrong),
      (wrong) => client.appendBatch(wrong),
      (wrong) => client.appendBatch({ frames: [wrong] }),
      (wrong) => client.remove([], wrong),
      (wrong) => client.importFrames([], wrong),
      (wrong) => client.read("kinds", wrong),
      (wrong) => client.follow("kinds", wrong),
      (wrong) => client.follow("kinds", { slow: wrong }).open(),
      (wrong) => client.fetch("kinds", wrong),
      (wrong) => client.get(0, wrong),
      (wrong) => client.last("kinds", 1, wrong),
      (wrong) => client.lastPerTopic("kinds", 1, wrong),
      (wrong) => client.topics("kinds", wrong),
      (wrong) => client.hasBlob(blobHash(Buffer.from("x")), wrong),
      (wrong) => client.putBlob("x", wrong),
      (wrong) => client.blobWriter(wrong),
      (wrong) => client.getBlob(frame, wrong),
      (wrong) => client.readBlob(frame, wrong),
      (wrong) => client.body(frame, wrong),
      (wrong) => client.cursorGet("kinds", wrong),
      (wrong) => client.cursorSet("kinds", 1, wrong),
      (wrong) => client.cursorRemove("kinds", wrong),
      (wrong) => client.cursorList(wrong),
      (wrong) => client.call("kinds", {}, wrong),
      (wrong) => client.stats(wrong),
      (wrong) => client.verify(wrong),
      (wrong) => client.compact(wrong),
      (wrong) => client.gc(wrong),
      (wrong) => client.backup("/nowhere", wrong),
      (wrong) => client.fork("/nowhere", wrong),
      (wrong) => client.ping(undefined, wrong),
    ];
    const values: Call[] = [
      (wrong) => connect(server.store, { token: wrong }),
      (wrong) => connect(server.store, { timeoutMs: wrong }),
      (wrong) => client.append("kinds", wrong),
      (wrong) => client.importFrames(wrong),
      (wrong) => client.importFrames([wrong]),
      (wrong) => client.follow("kinds", { resume: wrong }),
      (wrong) => client.fetch(wrong),
      (wrong) => client.hasBlob(wrong),
      (wrong) => client.putBlob(wrong),
      (wrong) => client.getBlob(wrong),
      (wrong) => client.body(wrong),
      (wrong) => client.cursorGet(wrong),
      (wrong) => client.cursorSet("kinds", wrong),
      (wrong) => client.cursorRemove(wrong),
      (wrong) => client.call("kinds", {}, { body: wrong }),
      (wrong) => client.ping(wrong),
      (wrong) => client.backup(wrong),
    ];
    const tells = async (call: Call, wrong: unknown) => {
      const made = async () => call(wrong as never);
      await assert.rejects(made, InvalidValue, `${call} of ${JSON.stringify(wrong)}`);
    };
    try {
      for (const call of options) {
        for (const wrong of [{ sinc: "1h" }, null]) await tells(call, wrong);
      }
      for (const call of values) for (const wrong of [null, true, {}]) await tells(call, wrong);
      // The connection is the same, and works.
      assert.equal((await client.body(frame)).length, 5000);
      assert.equal((await client.topics("kinds"))[0]?.count, 1n);
      assert.deepEqual(await client.cursorList(), []);
    } finally {
      await client.close();
      await server.close();
    }
  });
});
