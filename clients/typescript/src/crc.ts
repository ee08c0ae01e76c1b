// CRC-32 (ISO-HDLC). Node has it since 20.15; before that it is computed here.

import * as zlib from "node:zlib";

type Crc32 = (data: Uint8Array) => number;

const TABLE = Int32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** The JavaScript implementation. */
export const crc32InJs: Crc32 = (data) => {
  let crc = -1;
  for (const byte of data) crc = (crc >>> 8) ^ (TABLE[(crc ^ byte) & 0xff] ?? 0);
  return ~crc >>> 0;
};

/** The CRC-32 of some bytes. */
export const crc32: Crc32 = (zlib as { crc32?: Crc32 }).crc32 ?? crc32InJs;
