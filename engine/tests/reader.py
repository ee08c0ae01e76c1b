#!/usr/bin/env python3
"""Lists the frames of a store that was closed in order, one a line, from docs/format.md alone.

    reader.py STORE

Nothing here is shared with the engine: what the two say about one store must be the same, so the
page says enough to read a store without the engine. Blobs in zstd are named, not read: the standard
library has no zstd. Any byte that is not as the page says ends the listing with an error.

A line: offset, id, topic, ttl, SHA-256 of the meta, length and SHA-256 of the body, origin, old
id, separated by tabs, ids and hashes in hex, "-" where there is none. A last line counts the
blobs.
"""
import hashlib
import os
import struct
import sys
import zlib

FILE_HEADER = 64
BATCH_HEADER = 64
ENTRY_HEADER = 72
CHUNK = 65536
SEGMENT, PACK = 1, 2
UNMARKED, SEALED, DROPPED = 1, 2, 3
FRAME, TOMBSTONE, FLOOR = 1, 2, 7
RAW, ZSTD, BLOCK = 1, 2, 3


def need(true, what):
    if not true:
        raise SystemExit("reader.py: " + what)


def align8(n):
    return (n + 7) // 8 * 8


def zeros(data):
    return not any(data)


def file_header(data, magic, where):
    """Salt, store, file, base and generation."""
    need(data[:8] == magic, where + ": magic")
    version, salt = struct.unpack_from("<II", data, 8)
    base, generation, crc = struct.unpack_from("<QII", data, 48)
    need(crc == zlib.crc32(data[:60]), where + ": header crc")
    need(version == 1, where + ": version")
    return salt, data[16:32], data[32:48], base, generation


def manifest(store):
    """The newest copy that verifies: sequence, store uuid, flags and files."""
    best = None
    for name in ("super.a", "super.b"):
        try:
            with open(os.path.join(store, name), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            continue
        try:
            salt, uuid, _, sequence, _ = file_header(data, b"XSSUPER1", name)
            need(salt == 0, name + ": salt")
            need(struct.unpack_from("<I", data, len(data) - 8)[0] ==
                 zlib.crc32(data[FILE_HEADER:-8]), name + ": crc")
        except SystemExit:
            continue
        flags, epochs, files, reserved = struct.unpack_from("<IIII", data, FILE_HEADER)
        need(reserved == 0, name + ": reserved")
        at = FILE_HEADER + 16 + 24 * epochs
        need(len(data) == at + 64 * files + 8, name + ": length")
        entries = []
        for n in range(files):
            kind, state, r1, generation, base, file, length, crc, _gone, count, _tail = (
                struct.unpack_from("<BBHIQ16sQIIQQ", data, at + 64 * n))
            need(r1 == 0, name + ": reserved")
            entries.append((kind, state, generation, base, file, length, crc, count))
        if best is None or sequence > best[0]:
            best = (sequence, uuid, flags, entries)
    need(best is not None, "no manifest verifies")
    return best


def contents(store, uuid, entry, magic, path):
    """The salt and bytes of a file as far as it is used."""
    kind, state, generation, base, file, length, crc, count = entry
    with open(os.path.join(store, path), "rb") as opened:
        data = opened.read()
    salt, of, own, named, nth = file_header(data, magic, path)
    need((of, own, named, nth) == (uuid, file, base, generation), path + ": another file")
    if state == SEALED:
        need(len(data) == length and zlib.crc32(data) == crc, path + ": length or crc")
    return salt, data[:length]


def records(data, salt, path, seq, compacted):
    """The records of a segment, each with its batch's base offset; then the next seq. In one that
    was compacted the seq may leap, and stay."""
    at, previous, first = FILE_HEADER, 0, None
    while at < len(data) and not zeros(data[at:at + 8]):
        where = "%s: batch at %d" % (path, at)
        need(data[at:at + 4] == b"XSB1", where)
        (header_crc, length, count, base, epoch, durable, own_salt, records_crc, number, prev_crc,
         reserved) = struct.unpack_from("<IIIQQQIIQII", data, at + 4)
        need(header_crc == zlib.crc32(data[at + 8:at + BATCH_HEADER]), where + ": header crc")
        need((own_salt, prev_crc, reserved) == (salt, previous, 0), where + ": chain")
        leaps = compacted and number >= seq[0] - 1 if seq[0] is not None else True
        need(leaps or number == seq[0], where + ": seq")
        need(durable <= number, where + ": durable_upto")
        need(length <= 4 << 20 and 1 <= count <= min(4096, length // 16), where + ": limits")
        first = number if previous == 0 else first
        if data[at + BATCH_HEADER + 8] == 5:
            need(count == 1 and durable in (number, first), where + ": mark")
        seq[0], previous = number + 1, header_crc
        at += BATCH_HEADER
        end, crcs = at + length, b""
        while at < end:
            crc, size = struct.unpack_from("<II", data, at)
            need(crc == zlib.crc32(data[at + 4:at + size]), where + ": record crc")
            need(16 <= size <= 128 << 10 and 1 <= data[at + 8] <= 7, where + ": record")
            need(zeros(data[at + size:at + align8(size)]), where + ": padding")
            crcs += data[at:at + 4]
            count -= 1
            yield base, data[at:at + size]
            at += align8(size)
        need((at, count) == (end, 0) and zlib.crc32(crcs) == records_crc, where + ": records")


def frame(base, record):
    """A FRAME: offset, id, topic, ttl, meta, body, origin, old id."""
    flags, name_len, ttl, delta = struct.unpack_from("<BBBI", record, 9)
    at, value, body, origin, old_id = 32, None, None, None, None
    need(not flags & ~7, "flags of a frame")
    if ttl in (2, 3):
        value, = struct.unpack_from("<Q", record, at)
        at += 8
    if flags & 1:
        body = struct.unpack_from("<Q32s", record, at)
        at += 40
    if flags & 2:
        origin = struct.unpack_from("<16s16sQII", record, at)
        need(origin[4] == 0, "reserved field of an origin")
        at += 48
    if flags & 4:
        old_id = record[at:at + 16]
        at += 16
    topic = record[at:at + name_len].decode()
    meta = record[at + name_len:]
    return base + delta, record[16:32], topic, (ttl, value), meta, body, origin, old_id


def lengths(stored, count):
    """The table of a BLOCK: LEB128 numbers."""
    at = 0
    for _ in range(count):
        length = shift = 0
        while True:
            byte = stored[at]
            at, length, shift = at + 1, length | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        yield length


def index(store, uuid, entry, name, sizes):
    """The index of a sealed pack: beginning of a hash to the length of the blob."""
    path = "blobs/%s.pidx" % name
    with open(os.path.join(store, path), "rb") as file:
        data = file.read()
    _, of_store, of_file, base, generation = file_header(data, b"XSPKIDX1", path)
    need((of_store, of_file, base, generation) == (uuid, entry[4], entry[3], entry[2]), path)
    count, blocks, filter_crc, entries_crc, places, _, crc = struct.unpack_from("<QIIIIII", data, 64)
    need(crc == zlib.crc32(data[64:92]) and count == len(sizes), path + ": head")
    at = 96 + 32 * blocks
    need(filter_crc == zlib.crc32(data[96:at]), path + ": filter")
    need(entries_crc == zlib.crc32(data[at:]), path + ": entries")
    need(len(data) == at + 11 * count + 8 * places, path + ": length")
    for n in range(at, at + 11 * count, 11):
        number = int.from_bytes(data[n + 8:n + 11], "little")
        yield data[n:n + 8][::-1], sizes[number]


def blobs(data, salt, path):
    """The blobs of a pack: beginning of the hash to length, and the lengths of all in order. Those
    that are RAW are read and hashed; the hashes of those in a BLOCK only the index tells."""
    at, found, sizes, read = FILE_HEADER, {}, [], 0
    while at < len(data) and not zeros(data[at:at + 4]):
        where = "%s: entry at %d" % (path, at)
        need(data[at:at + 4] == b"XSE1", where)
        header_crc, kind, own_salt, stored_len, raw_len, sha, stored_crc, count = (
            struct.unpack_from("<IB3xIQQ32sII", data, at + 4))
        need(header_crc == zlib.crc32(data[at + 8:at + ENTRY_HEADER]), where + ": header crc")
        need(own_salt == salt, where + ": salt")
        at += ENTRY_HEADER
        stored = data[at:at + stored_len]
        at += align8(stored_len)
        if stored_len <= CHUNK:
            need(zlib.crc32(stored) == stored_crc, where + ": stored crc")
        else:
            chunks = range(0, stored_len, CHUNK)
            crcs = b"".join(struct.pack("<I", zlib.crc32(stored[n:n + CHUNK])) for n in chunks)
            need(data[at:at + len(crcs)] == crcs, where + ": crc list")
            need(zlib.crc32(crcs) == stored_crc, where + ": crc of the list")
            at += align8(len(crcs))
        if kind == RAW:
            need(hashlib.sha256(stored).digest() == sha, where + ": SHA-256")
            read += 1
        if kind in (RAW, ZSTD):
            found[sha[:8]] = raw_len
            sizes.append(raw_len)
        else:
            need(kind == BLOCK, where + ": kind")
            rows = list(lengths(stored, count))
            need(sum(rows) == raw_len, where + ": lengths in the table")
            sizes.extend(rows)
    return found, sizes, read


def visible(happened):
    """The frames that no later one, no tombstone and no floor has removed."""
    kept = {}
    for kind, what in happened:
        if kind == TOMBSTONE:
            kept.pop(what, None)
        elif kind == FLOOR:
            topic, floor = what
            for offset in [other for other in kept if kept[other][2] == topic and other < floor]:
                del kept[offset]
        else:
            kept[what[0]] = what
            ttl, value = what[3]
            if ttl == 3:
                same = sorted(other for other in kept if kept[other][2] == what[2])
                for other in same[:-value]:
                    del kept[other]
    return [kept[offset] for offset in sorted(kept)]


def main(store):
    _, uuid, flags, entries = manifest(store)
    need(flags & 1, "the store was not closed in order")
    happened, seq, found, read = [], [None], {}, 0
    entries = [entry for entry in entries if entry[1] != DROPPED]
    for entry in sorted(entries, key=lambda entry: entry[:1] + entry[3:4]):
        name = "%020d.%d" % (entry[3], entry[2])
        if entry[0] == SEGMENT:
            path = "log/%s.seg" % name
            salt, data = contents(store, uuid, entry, b"XSSEGMT1", path)
            for base, record in records(data, salt, path, seq, entry[2] > 0):
                kind, name_len = record[8], record[10]
                if kind == FRAME:
                    happened.append((kind, frame(base, record)))
                elif kind == TOMBSTONE:
                    happened.append((kind, struct.unpack_from("<Q", record, 32)[0]))
                elif kind == FLOOR:
                    floor, = struct.unpack_from("<Q", record, 16)
                    happened.append((kind, (record[24:24 + name_len].decode(), floor)))
        else:
            need(entry[0] == PACK, "kind of a file")
            path = "blobs/%s.pack" % name
            salt, data = contents(store, uuid, entry, b"XSPACKS1", path)
            more, sizes, raw = blobs(data, salt, path)
            found.update(more)
            if entry[1] == SEALED:
                found.update(index(store, uuid, entry, name, sizes))
            read += raw
    for offset, frame_id, topic, (ttl, value), meta, body, origin, old_id in visible(happened):
        need(body is None or found.get(body[1][:8]) == body[0], "body of frame %d" % offset)
        ttls = {0: "forever", 2: "time:%s" % value, 3: "last:%s" % value}
        body = "-" if body is None else "%d:%s" % (body[0], body[1].hex())
        origin = "-" if origin is None else "%s,%s,%d,%d" % (
            origin[0].hex(), origin[1].hex(), origin[2], origin[3])
        meta = hashlib.sha256(meta).hexdigest()
        old_id = "-" if old_id is None else old_id.hex()
        print(offset, frame_id.hex(), topic, ttls[ttl], meta, body, origin, old_id, sep="\t")
    print("%d blobs, %d read" % (len(found), read))


main(sys.argv[1])
