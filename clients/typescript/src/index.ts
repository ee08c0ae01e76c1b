// A client of xs, the event stream store.

export { addressText, parseAddress, type Address } from "./address.js";
export { BlobReader, BlobWriter, type Source } from "./blobs.js";
export { Call } from "./calls.js";
export { Client, connect, VERSION } from "./client.js";
export * from "./errors.js";
export { Frame } from "./frames.js";
export type {
  Batch,
  GcOptions,
  ImportOptions,
  Page,
  ReadOptions,
  RemoveOptions,
  Selection,
} from "./messages.js";
export type {
  AppendOptions,
  CallOptions,
  ConnectOptions,
  CursorOptions,
  CursorSetOptions,
  FetchOptions,
  FollowOptions,
  Signal,
  StreamOptions,
} from "./options.js";
export type { Item, Retry } from "./reading.js";
export { Follow, Read } from "./streams.js";
export { blobHash, idTimeMs, parseResume, resumeText } from "./values.js";
export type {
  Appended,
  Blob,
  BlobHash,
  BlobRef,
  Body,
  Bound,
  CaughtUp,
  Condition,
  Cursor,
  CursorChange,
  CursorSummary,
  FrameId,
  Gap,
  Imported,
  NewFrame,
  Origin,
  Outcome,
  Pulse,
  Resumed,
  ResumePoint,
  ServerInfo,
  Slow,
  Stamp,
  Time,
  Topics,
  TopicSummary,
  Ttl,
} from "./values.js";
