// Runs the steps of clients/conformance/*.json. clients/conformance/README.md says what each verb
// does; every verb has an entry in `VERBS`.

import { createHash } from "node:crypto";
import { execFile } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import {
  blobHash,
  connect,
  Frame,
  parseResume,
  Refusal,
  resumeText,
  XsError,
  type BlobHash,
  type Client,
  type Condition,
  type Follow,
  type Item,
} from "../src/index.js";
import { Cutter } from "./cutter.js";
import { CONFORMANCE, PATIENCE_MS, Server, XS } from "./support.js";

const run = promisify(execFile);

type Json = any;
type Step = Record<string, Json>;

export interface Script {
  readonly about: string;
  readonly modules?: boolean;
  readonly tls?: boolean;
  readonly cases: ReadonlyArray<{ readonly name: string; readonly steps: readonly Step[] }>;
}

const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** A value as the steps write it: names in snake case, bytes as text, bigints as numbers. */
export function plain(value: unknown): Json {
  if (value === undefined || value === null) return null;
  if (typeof value === "bigint") return Number(value);
  if (value instanceof Uint8Array) return Buffer.from(value).toString("utf8");
  if (value instanceof Frame) {
    const { kind, topic, id, offset, meta, ttl, hash, body, bodyBytes, origin } = value;
    const all = { kind, topic, id, offset, ttl, hash, body, bodyBytes, origin };
    // The meta is the user's: its names stay as they are.
    return { ...plain(all), meta: meta ?? null };
  }
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [snake(name), plain(one)]));
}

/** Where what was found is not what was expected; undefined when it is. */
export function difference(expected: Json, found: Json, at = ""): string | undefined {
  const shown = JSON.stringify(found);
  const isWhole = typeof found === "number" && Number.isInteger(found);
  if (expected === "*any") return found !== null ? undefined : `${at}: nothing`;
  if (expected === "*int") return isWhole ? undefined : `${at}: ${shown} is no number`;
  if (expected === "*many") return isWhole && found > 1 ? undefined : `${at}: ${shown} is not many`;
  if (expected === "*id") {
    return /^[0-9a-z]{25}$/.test(found) ? undefined : `${at}: ${shown} is no id`;
  }
  if (Array.isArray(expected)) {
    if (!Array.isArray(found) || found.length !== expected.length) {
      return `${at}: wanted ${expected.length} of ${shown}`;
    }
    return expected.map((one, n) => difference(one, found[n], `${at}[${n}]`)).find(Boolean);
  }
  if (typeof expected === "object" && expected !== null) {
    if (typeof found !== "object" || found === null) return `${at}: ${shown} is no object`;
    return Object.entries(expected)
      .map(([key, one]) => difference(one, found[key] ?? null, `${at}.${key}`))
      .find(Boolean);
  }
  return expected === found
    ? undefined
    : `${at}: wanted ${JSON.stringify(expected)}, found ${shown}`;
}

const repeated = (pair: Json): string => (pair[0] as string).repeat(pair[1]);

function conditions(raw: Json[] = []): Condition[] {
  return raw.map((one) => {
    if ("last_at_most" in one) return { lastAtMost: one.last_at_most, topics: one.topics };
    return "empty" in one ? { empty: one.empty } : { headIs: one.head_is };
  });
}

function metasInOrder(metas: number[], reverse = false): boolean {
  const sorted = [...metas].sort((a, b) => (reverse ? b - a : a - b));
  return metas.every((meta, at) => meta === sorted[at]);
}

const counted = (metas: number[]): boolean => metas.every((meta, at) => meta === at);

async function all<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const one of stream) found.push(one);
  return found;
}

/** One server and the cases of one file. */
export class Runner {
  readonly used = new Set<string>();
  readonly streams = new Map<string, Follow>();
  readonly frames = new Map<string, Frame[]>();
  isUp = true;
  client!: Client;
  owner!: Client;
  readonly #saved = new Map<string, Json>();

  private constructor(
    readonly server: Server,
    private readonly modules: string | undefined,
  ) {}

  static async open(script: Script): Promise<Runner> {
    let modules: string | undefined;
    if (script.modules) {
      // The server keeps files of its own beside the modules.
      modules = mkdtempSync(join(tmpdir(), "xs-ts-modules-"));
      cpSync(join(CONFORMANCE, "modules"), modules, { recursive: true });
    }
    const server = new Server(modules ? ["--modules", modules] : [], script.tls);
    const runner = new Runner(server, modules);
    runner.client = await connect(runner.server.store, { waitMs: PATIENCE_MS });
    runner.owner = runner.client;
    if (modules) await runner.#awaitModules(modules);
    return runner;
  }

  async close(): Promise<void> {
    await this.client.close();
    await this.server.close();
    if (this.modules) rmSync(this.modules, { recursive: true });
  }

  async #awaitModules(modules: string): Promise<void> {
    const names = readdirSync(join(modules, "commands")).map((file) => file.replace(".ts", ""));
    const wanted = new Set(names);
    for await (const item of this.client.follow("xs.command.*")) {
      if (item.kind !== "frame" || !item.topic.endsWith(".active")) continue;
      wanted.delete(item.topic.split(".")[2] ?? "");
      if (wanted.size === 0) return;
    }
  }

  async run(steps: readonly Step[]): Promise<void> {
    for (const [at, raw] of steps.entries()) {
      try {
        await this.#step(this.#filled(raw) as Step);
      } catch (error) {
        throw new Error(`step ${at + 1}, ${JSON.stringify(raw)}: ${String(error)}`, {
          cause: error,
        });
      }
    }
  }

  async #step(step: Step): Promise<void> {
    const { do: name, error, expect, save, field, count, ...rest } = step;
    this.used.add(name);
    const verb = VERBS[name];
    if (!verb) throw new Error(`no verb ${name}`);
    const options = name === "call" || count === undefined ? rest : { ...rest, count };
    let found: Json;
    try {
      found = plain(await verb(this, options));
    } catch (caught) {
      if (!error || !(caught instanceof XsError)) throw caught;
      const what: Json = { type: caught.name, retryable: caught.retryable };
      if (caught instanceof Refusal) {
        what.code = caught.code;
        what.details = plain(caught.details);
      }
      const why = difference(error, what);
      if (why) throw new Error(`${why} in ${String(caught)}`);
      return;
    }
    if (error) throw new Error(`wanted ${JSON.stringify(error)}, found ${JSON.stringify(found)}`);
    if (field) found = found.map((one: Json) => one[field]);
    if (name === "call" && count !== undefined && found.length !== count) {
      throw new Error(`wanted ${count}, found ${found.length}`);
    }
    if (save) this.#saved.set(save, found);
    const why = "expect" in step ? difference(expect, found) : undefined;
    if (why) throw new Error(why);
  }

  /** The value with what was saved in place of `$name.path`. */
  #filled(value: Json): Json {
    if (Array.isArray(value)) return value.map((one) => this.#filled(one));
    if (typeof value === "object" && value !== null) {
      const filled = Object.entries(value).map(([key, one]) => [key, this.#filled(one)]);
      return Object.fromEntries(filled);
    }
    if (typeof value !== "string" || !value.includes("$")) return value;
    const whole = /^\$([a-z_.0-9]+)$/.exec(value);
    if (whole) return this.#at(whole[1] ?? "");
    return value.replace(/\$([a-z_.0-9]+)/g, (_, path: string) => String(this.#at(path)));
  }

  #at(path: string): Json {
    const [name = "", ...keys] = path.split(".");
    return keys.reduce((found, key) => found[key], this.#saved.get(name));
  }
}

type Verb = (runner: Runner, step: Step) => Promise<unknown>;

async function append({ client }: Runner, step: Step): Promise<unknown> {
  const { topic_repeat, body_repeat, body_hash, stream_repeat, meta_json, meta_repeat } = step;
  const topic = topic_repeat ? repeated(topic_repeat) : step["topic"];
  const meta = meta_repeat ? repeated(meta_repeat) : step["meta"];
  let body = body_repeat ? repeated(body_repeat) : step["body"];
  if (body_hash) body = { blob: body_hash };
  if (stream_repeat) body = new Array(stream_repeat[1]).fill(Buffer.from(stream_repeat[0]));
  const { json, ttl, key, durable } = step;
  const options = { meta, json, ttl, key, durable, conditions: conditions(step["conditions"]) };
  return client.append(topic, body, { ...options, metaJson: meta_json });
}

function cursorSet(client: Client, step: Step): Promise<bigint> {
  const { name, offset, state = "", expect_revision: expect, again } = step;
  return client.cursorSet(name, offset, { state: Buffer.from(state), expect, again });
}

/** Every verb that is known here. */
export const VERBS: Readonly<Record<string, Verb>> = {
  async connect({ server, isUp }) {
    await (await connect(server.store, { waitMs: isUp ? PATIENCE_MS : 0 })).close();
  },
  async login(runner, { trust, token }) {
    const address = `localhost:${await runner.server.tlsPort()}`;
    if (!trust) {
      runner.client = await connect(address, { token, timeoutMs: 2000 });
      return;
    }
    const ca = readFileSync(join(CONFORMANCE, "tls", `${trust}.pem`));
    runner.client = await connect(`xss://${address}`, { token, tls: { ca } });
  },
  async logout(runner) {
    await runner.client.close();
    runner.client = runner.owner;
  },
  async token({ server }, { args }) {
    const { stdout } = await run(XS, ["token", "create", "-a", server.store, ...args]);
    return stdout.trim();
  },
  async revoke_token({ server }, { name }) {
    await run(XS, ["token", "revoke", "-a", server.store, name]);
  },
  async server({ client }) {
    return client.server;
  },
  async ping({ client }, { data, data_repeat }) {
    return (await client.ping(Buffer.from(data_repeat ? repeated(data_repeat) : data))) >= 0;
  },
  append,
  async append_batch({ client }, step) {
    const { frames, cursors = [], key, durable, remove, conditions: wanted } = step;
    const changes = cursors.map((one: Json) => ({ ...one, state: Buffer.from(one.state ?? "") }));
    const where = { conditions: conditions(wanted), remove };
    const batch = { frames, cursors: changes, key, durable, ...where };
    return client.appendBatch(batch);
  },
  async append_many({ client }, { topic, count, first = 0 }) {
    const frames = Array.from({ length: count }, (_, n) => ({ topic, meta: first + n }));
    await client.appendBatch({ frames });
  },
  async read({ client }, { topics, ...options }) {
    return all(client.read(topics, options));
  },
  async read_over_restart(runner, { topics, restart_after, ...options }) {
    const metas: number[] = [];
    for await (const frame of runner.client.read(topics, options)) {
      metas.push(frame.meta);
      if (metas.length !== restart_after) continue;
      await runner.server.end("SIGKILL");
      runner.server.start();
    }
    return { count: metas.length, metasInOrder: metasInOrder(metas, options["reverse"]) };
  },
  async fetch_all({ client }, { topics, page_bytes: pageBytes, ...options }) {
    let page = await client.fetch(topics, { ...options, pageBytes });
    const metas: number[] = page.frames.map((frame) => frame.meta);
    let pages = 1;
    for (; page.next; pages++) {
      page = await client.fetch(page.next, { pageBytes });
      metas.push(...page.frames.map((frame) => frame.meta));
    }
    const isOrdered = metasInOrder(metas, options["reverse"]);
    return { count: metas.length, pages, metasInOrder: isOrdered };
  },
  async get({ client }, { bound }) {
    return client.get(bound);
  },
  async body({ client }, { bound }) {
    return client.body((await client.get(bound)) as Frame);
  },
  async last({ client }, { topics, n }) {
    return client.last(topics, n);
  },
  async last_per_topic({ client }, { topics, n }) {
    return client.lastPerTopic(topics, n);
  },
  async topics({ client }, { topics }) {
    return client.topics(topics);
  },
  async follow({ client, streams }, { as, topics, above_head: above, ...options }) {
    const { pulse_ms: pulseMs, resume, ...begin } = options;
    if (above) begin.from = BigInt((await client.stats()).store.head) + BigInt(above);
    const point = resume ? parseResume(resume) : undefined;
    const follow = client.follow(topics, { ...begin, pulseMs, resume: point });
    await follow.open();
    streams.set(as, follow);
    return begin.from;
  },
  async take({ streams }, { from, count, pulses }) {
    const follow = streams.get(from) as Follow;
    const found: Item[] = [];
    while (found.length < count) {
      const { done, value } = await follow.next();
      if (done) break;
      if (pulses || value.kind !== "pulse") found.push(value);
    }
    return found;
  },
  async take_counted({ streams }, { from }) {
    const items = await all(streams.get(from) as Follow);
    const metas = items.flatMap((item) => (item.kind === "frame" ? [item.meta] : []));
    const caughtUp = items.filter((item) => item.kind === "caught_up").length;
    return { frames: metas.length, caughtUp, metasInOrder: counted(metas) };
  },
  async point({ streams }, { from }) {
    const point = streams.get(from)?.point;
    return point && resumeText(point);
  },
  async close({ streams }, { from }) {
    streams.get(from)?.close();
    streams.delete(from);
  },
  async put_blob({ client }, { repeat, pieces }) {
    const data = Buffer.from(repeated(repeat));
    if (!pieces) return client.putBlob(data);
    const cut = function* () {
      for (let at = 0; at < data.length; at += pieces) yield data.subarray(at, at + pieces);
    };
    return client.putBlob(cut());
  },
  async abandon_upload({ client }, { repeat }) {
    const writer = client.blobWriter();
    await writer.write(Buffer.from(repeated(repeat)));
    writer.close();
  },
  async has_blob({ client }, { hash }) {
    return client.hasBlob(hash);
  },
  async get_blob({ client }, { hash, credit }) {
    const sum = createHash("sha256");
    let bytes = 0;
    for await (const piece of client.getBlob(hash as BlobHash, { credit })) {
      sum.update(piece);
      bytes += piece.length;
    }
    return { bytes, hash: `sha256-${sum.digest("base64")}` };
  },
  async cursor_get({ client }, { name }) {
    return client.cursorGet(name);
  },
  async cursor_set({ client }, step) {
    return cursorSet(client, step);
  },
  async cursor_set_cut({ server }, { cut, others = [], ...change }) {
    const cutter = await Cutter.open(join(server.store, "xs.sock"), cut, async () => {
      for (const offset of others) {
        await run(XS, ["cursor", "set", "-a", server.store, change["name"], String(offset)]);
      }
    });
    const client = await connect(cutter.path, { waitMs: PATIENCE_MS });
    try {
      return await cursorSet(client, change);
    } finally {
      await client.close();
      await cutter.close();
    }
  },
  async cursor_remove({ client }, { name, expect_revision: expect }) {
    await client.cursorRemove(name, { expect });
  },
  async cursor_list({ client }, { prefix }) {
    return (await client.cursorList()).filter((one) => one.name.startsWith(prefix));
  },
  async call({ client }, { name, args, deadline_ms: deadlineMs, ...options }) {
    return all(client.call(name, args, { ...options, deadlineMs }));
  },
  async cancel_call({ client }, { name }) {
    const call = client.call(name);
    const { value } = await call.next();
    call.close();
    return value;
  },
  async remove({ client }, { bounds, ...options }) {
    return client.remove(bounds, options);
  },
  async export({ client, frames }, { topics, as }) {
    const found = await all(client.read(topics, { bodies: 1 << 20 }));
    frames.set(as, found);
    return found.length;
  },
  async export_body({ client, frames }, { from }) {
    const body = await client.body(frames.get(from)?.[0] as Frame);
    return { bytes: body.length, hash: blobHash(body) };
  },
  async import({ client, frames }, { from, new_ids: newIds, durable }) {
    return client.importFrames(frames.get(from) ?? [], { newIds, durable });
  },
  async import_many({ client, frames }, { from, count }) {
    return client.importFrames(new Array(count).fill(frames.get(from)?.[0]));
  },
  async verify({ client }) {
    return client.verify();
  },
  async compact({ client }, { dead_percent: deadPercent }) {
    return client.compact({ deadPercent });
  },
  async gc({ client }, { grace_ms: graceMs, dead_percent: deadPercent, dry_run: dryRun }) {
    return client.gc({ graceMs, deadPercent, dryRun });
  },
  async backup({ client, server }, { to, link }) {
    return client.backup(join(server.dir, to), { link });
  },
  async fork({ client, server }, { to }) {
    return client.fork(join(server.dir, to));
  },
  async stats({ client }) {
    return client.stats();
  },
  async kill(runner) {
    await runner.server.end("SIGKILL");
    runner.isUp = false;
  },
  async stop(runner) {
    await runner.server.end("SIGTERM");
    runner.isUp = false;
  },
  async start(runner) {
    runner.server.start();
    runner.isUp = true;
  },
};
