// Checks values from users before any of them is sent: plain JavaScript has no types.

import { inspect } from "node:util";
import { InvalidValue } from "./errors.js";

const SHOWN = { depth: 0, breakLength: Infinity } as const;

/** A value as shown in errors. */
export function shown(value: unknown): string {
  const text =
    typeof value === "string" ? JSON.stringify(value) : inspect(value, SHOWN);
  return text.length > 80 ? `${text.slice(0, 80)}..` : text;
}

/** Text as sent. @throws {InvalidValue} for anything else */
export function textBytes(text: string, what: string): Buffer {
  if (typeof text !== "string") throw new InvalidValue(`${what} is text, not ${shown(text)}`);
  return Buffer.from(text);
}

/** The same bytes as a Buffer. @throws {InvalidValue} for anything else */
export function rawBytes(bytes: Uint8Array, what: string): Buffer {
  if (Buffer.isBuffer(bytes)) return bytes;
  if (!(bytes instanceof Uint8Array)) {
    throw new InvalidValue(`${what} is a Uint8Array, not ${shown(bytes)}`);
  }
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A list. @throws {InvalidValue} for anything else */
export function listOf<T>(values: readonly T[], what: string): readonly T[] {
  if (!Array.isArray(values)) throw new InvalidValue(`${what} are an array, not ${shown(values)}`);
  return values;
}

/** A number that may be a fraction. @throws {InvalidValue} for anything else, or below 0 */
export function numberOf(number: number, what: string): number {
  if (typeof number !== "number" || !(number >= 0)) {
    throw new InvalidValue(`${what} is a number from 0 on, not ${shown(number)}`);
  }
  return number;
}

/** Whether it is a number between the two, inclusive; other values cannot be compared. */
export function isWithin(number: unknown, least: number, most: number): boolean {
  const isNumber = typeof number === "number" || typeof number === "bigint";
  return isNumber && number >= least && number <= most;
}

/** The names that an object may have, and what such an object is called. */
export interface Keys {
  readonly what: string;
  readonly names: ReadonlySet<string>;
}

/** The names of a type: a list that lacks one, or has another, does not compile. */
export function keys<T extends object>(what: string, names: Record<keyof T, 1>): Keys {
  return { what, names: new Set(Object.keys(names)) };
}

/**
 * The object, if each of its names is known: one that is misspelt would be ignored, along with its
 * value. @throws {InvalidValue}
 */
export function checkKeys<T extends object>(given: T, { what, names }: Keys): T {
  if (typeof given !== "object" || given === null) {
    throw new InvalidValue(`${shown(given)} is no object, in which each ${what} is named`);
  }
  // Without an array of the names, because every append gets here.
  for (const name in given) {
    if (names.has(name) || !Object.hasOwn(given, name)) continue;
    throw new InvalidValue(`${shown(name)} is no ${what}: these are ${[...names].join(", ")}`);
  }
  return given;
}

/** The same for an object of one of several kinds, identified by the first name of each. */
export function checkKind<T extends object>(given: T, kinds: readonly Keys[], what: string): T {
  const firsts = kinds.map(({ names }) => [...names][0] ?? "");
  const kind = kinds[firsts.findIndex((name) => name in Object(given))];
  if (kind) return checkKeys(given, kind);
  throw new InvalidValue(`${what} has one of ${firsts.join(", ")}, unlike ${shown(given)}`);
}

/** Options whose names are known and whose `signal`, if there is one, is a signal. */
export function checkOptions<T extends { readonly signal?: AbortSignal | undefined }>(
  given: T,
  known: Keys,
): T {
  const { signal } = checkKeys(given, known);
  if (signal !== undefined && typeof signal?.addEventListener !== "function") {
    throw new InvalidValue(`signal is an AbortSignal, not ${shown(signal)}`);
  }
  return given;
}
