// What is tried again over a connection that was lost or could not be made, and what is told when
// that is of no use.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import * as net from "node:net";
import { join } from "node:path";
import { describe, it } from "node:test";
import { setImmediate } from "node:timers/promises";
import * as tls from "node:tls";
import { Op } from "../src/coding.js";
import { connect, ConnectError, TlsError } from "../src/index.js";
import { Peer, QUICK } from "./peer.js";
import { CONFORMANCE, PATIENCE_MS } from "./support.js";

const pem = (name: string) => readFileSync(join(CONFORMANCE, "tls", `${name}.pem`));

/** A port on which nobody listens. */
async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

describe("a name with two addresses, over TLS", () => {
  let lookups = 0;
  const lookup = (_: string, __: object, done: (...found: unknown[]) => void) => {
    lookups++;
    done(null, [
      { address: "127.0.0.1", family: 4 },
      { address: "::1", family: 6 },
    ]);
  };
  const trusting = (ca: string) => ({ ca: pem(ca), lookup: lookup as net.LookupFunction });

  it("of a server that is away is tried again", async () => {
    const address = `xss://localhost:${await freePort()}`;
    await assert.rejects(
      connect(address, { tls: trusting("ca") }),
      (error) =>
        error instanceof ConnectError &&
        !(error instanceof TlsError) &&
        error.retryable &&
        /ECONNREFUSED; is a server running there/.test(error.message),
    );
  });

  it("of a server that comes later is waited for, unless it is another", async () => {
    const port = await freePort();
    const address = `xss://localhost:${port}`;
    const options = { waitMs: PATIENCE_MS, retry: QUICK };
    const waiting = connect(address, { ...options, tls: trusting("ca") });
    for (const end = lookups + 3; lookups < end; ) await Promise.race([waiting, setImmediate()]);
    const server = tls.createServer({ cert: pem("cert"), key: pem("key") }, async (socket) => {
      const peer = new Peer(socket);
      await peer.greet();
      peer.answer(await peer.expect(Op.PING));
    });
    server.listen(port, "127.0.0.1");
    server.on("tlsClientError", () => undefined);
    const client = await waiting;
    assert((await client.ping()) >= 0);
    await assert.rejects(connect(address, { ...options, tls: trusting("other") }), TlsError);
    await client.close();
    server.close();
  });
});
