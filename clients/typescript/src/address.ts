// The address of a server, as people write it.

import { statSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { shown } from "./checking.js";
import { AddressError } from "./errors.js";

const SOCKET_NAME = "xs.sock";

/** A Unix socket, or a host and a port, with TLS or without. */
export type Address =
  | { readonly path: string }
  | { readonly host: string; readonly port: number; readonly tls: boolean };

/** The address as text. @throws {AddressError} for anything else */
export function addressText(address: Address): string {
  const { path, host: name } = Object(address) as { path?: unknown; host?: unknown };
  if (typeof path !== "string" && typeof name !== "string") {
    throw new AddressError(`${shown(address)} is no address; parseAddress reads one`);
  }
  if ("path" in address) return address.path;
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  return `${address.tls ? "xss://" : ""}${host}:${address.port}`;
}

/** Whether only this machine can listen in. */
export function isLocal(address: Address): boolean {
  if ("path" in address) return true;
  return ["localhost", "::1"].includes(address.host) || /^127(\.\d+){3}$/.test(address.host);
}

/**
 * Reads a store directory (its `xs.sock`), the path of a socket, `:port`, `host:port` or
 * `xss://host:port` (TLS). Text that contains `/`, or begins with `.` or `~`, is a path.
 *
 * @throws {AddressError}
 */
export function parseAddress(text: string): Address {
  // A missing command-line argument is undefined.
  if (text === "" || text === undefined || text === null) {
    throw new AddressError(
      "the address is empty; give a store directory, a socket, :port or host:port",
    );
  }
  if (typeof text !== "string") throw new AddressError(`an address is text, not ${shown(text)}`);
  if (text.startsWith("xss://")) return ofHost(text.slice(6).replace(/\/$/, ""), text, true);
  if (text.includes("://")) throw new AddressError(`"${text}": only xss:// is known`);
  if (text.includes("/") || /^[.~]/.test(text) || !text.includes(":")) {
    return ofPath(text === "~" || text.startsWith("~/") ? join(homedir(), text.slice(1)) : text);
  }
  return ofHost(text, text, false);
}

function ofPath(path: string): Address {
  // An unpaired surrogate would become another character.
  if (/[\0\p{Surrogate}]/u.test(path)) throw new AddressError(`${shown(path)} names no file`);
  const isSocket = path.endsWith(".sock") && !isDirectory(path);
  return { path: isSocket ? path : join(path, SOCKET_NAME) };
}

function isDirectory(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

function ofHost(text: string, whole: string, tls: boolean): Address {
  const colon = text.lastIndexOf(":");
  const port = text.slice(colon + 1);
  if (colon < 0 || !/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535) {
    throw new AddressError(`"${whole}" has no port from 1 to 65535`);
  }
  let host = text.slice(0, colon);
  if (host.startsWith("[") && host.endsWith("]")) host = host.slice(1, -1);
  else if (host.includes(":")) {
    throw new AddressError(`"${whole}": an IPv6 address is written in brackets`);
  }
  if (tls && host === "") throw new AddressError(`"${whole}" names no host`);
  return { host: host === "" ? "127.0.0.1" : host, port: Number(port), tls };
}
