// The errors, by who caused them. `retryable` says whether the same request may be sent again,
// unchanged and without checking; nothing here retries.

/** The base of everything that this package throws, except for the reason of an aborted signal. */
export class XsError extends Error {
  override get name(): string {
    return this.constructor.name;
  }

  /** Whether the same request may be sent again, unchanged and without checking. */
  get retryable(): boolean {
    return false;
  }
}

/** Text that names no server, or one that may not be used in this way. */
export class AddressError extends XsError {}

/**
 * An argument that can never be sent because it violates a rule of the protocol; or a frame without
 * the requested content: its body was not delivered with it, or is not JSON.
 */
export class InvalidValue extends XsError {}

/** What the system says of an address that no waiting mends. */
const FINAL = new Set<unknown>(["EACCES", "EPERM", "EINVAL", "ENAMETOOLONG", "ENOTDIR"]);

/**
 * No connection could be made; nothing was done. It is retryable unless there can be no server at
 * the address, as below a file, or this user may not use its socket.
 */
export class ConnectError extends XsError {
  override get retryable(): boolean {
    return !FINAL.has((this.cause as { code?: unknown } | undefined)?.code);
  }
}

/** The server could not prove its identity, or does not speak TLS. */
export class TlsError extends ConnectError {
  override get retryable(): boolean {
    return false;
  }
}

/**
 * The connection ended before the answer: the request may or may not have been done. Requests that
 * change nothing, and appends with a key, are repeated by the client itself. If the outcome of the
 * first attempt is unknown, it stays unknown when the last one fails; the error of that one is the
 * cause.
 */
export class ConnectionLost extends XsError {}

/** The connection was over before the request was sent: nothing was done. */
export class NotSent extends ConnectionLost {
  override get retryable(): boolean {
    return true;
  }
}

/**
 * The client, a stream or an upload was closed. Work that the close interrupted may or may not have
 * been done, and a read or a download is incomplete; later requests are not done.
 */
export class ClientClosed extends XsError {}

/** The server violated the protocol; the connection is closed. */
export class ProtocolError extends XsError {}

/** Bytes that do not match their CRC or their hash. */
export class IntegrityError extends ProtocolError {}

/**
 * Stored frames that the server cannot read, from `first` to before `end`. `resume` is the offset
 * to continue from, which is `end`; for a backward read, the one to continue before, which is
 * `first`.
 */
export class CorruptRange extends XsError {
  readonly resume: bigint;

  constructor(
    readonly first: bigint,
    readonly end: bigint,
    readonly reverse = false,
  ) {
    const way = reverse ? `before ${first}` : `from ${end}`;
    const what = end - 1n > first ? `frames ${first} to ${end - 1n}` : `frame ${first}`;
    super(`${what} cannot be read; go on ${way}`);
    this.resume = reverse ? first : end;
  }
}

/** A command answered with `<name>.error`. */
export class CommandFailed extends XsError {
  /** The command's name for the failure, if any. */
  readonly code: string | undefined;

  constructor(
    readonly command: string,
    /** Everything that the command says about it. */
    readonly meta: Record<string, unknown>,
  ) {
    super(`${command}: ${String(meta["message"] ?? "failed without a message")}`);
    this.code = typeof meta["code"] === "string" ? meta["code"] : undefined;
  }
}

/** What a refusal says besides its message. */
export interface Details {
  retryAfterMs?: number;
  cursor?: string;
  revision?: bigint;
  limit?: bigint;
  offset?: bigint;
  extension?: number;
  condition?: number;
  found?: bigint;
  frame?: string;
}

export const CODES: Readonly<Record<number, string>> = {
  100: "Malformed",
  101: "VersionMismatch",
  102: "TooLarge",
  103: "HelloExpected",
  104: "HelloTimeout",
  105: "FlowControl",
  106: "Stalled",
  200: "Unauthenticated",
  201: "Denied",
  202: "OwnHost",
  300: "InvalidValue",
  301: "UnknownOp",
  302: "OpVersion",
  303: "UnknownExtension",
  304: "BatchTooLarge",
  305: "InvalidRead",
  306: "TooManyStreams",
  307: "KeyReused",
  308: "ImportOrder",
  309: "TooManyCursors",
  400: "CursorConflict",
  401: "CursorAhead",
  402: "ConditionFailed",
  403: "OtherStore",
  500: "Busy",
  501: "Draining",
  502: "StorageFull",
  503: "TooSlow",
  504: "OtherHost",
  600: "ReadOnly",
  601: "Corrupt",
  602: "Closed",
  603: "Internal",
  604: "Unreadable",
  700: "UnknownBlob",
  701: "UnknownCommand",
  702: "DeadlinePassed",
  800: "Indeterminate",
};

/** The server refused a request. The subclass corresponds to the class of its code. */
export class Refusal extends XsError {
  constructor(
    readonly code: number,
    /** The message without the code. */
    readonly text: string,
    readonly details: Details = {},
  ) {
    super(`${code} ${CODES[code] ?? "Other"}: ${text}`);
  }

  /** The name of the code as docs/wire.md spells it; `Other` if it is unknown. */
  get codeName(): string {
    return CODES[this.code] ?? "Other";
  }
}

/** 1xx: what this client sent broke the protocol; the connection closes. */
export class ProtocolRefused extends Refusal {}

/** 2xx: the token is missing or wrong, or the role does not allow it. */
export class AccessError extends Refusal {}

/** 3xx: the request cannot succeed as it is. */
export class InvalidRequest extends Refusal {}

/** 4xx: a condition does not hold: read the current state, then make a new request. */
export class ConditionFailed extends Refusal {}

/** 400: the cursor has another revision, `details.revision`. */
export class CursorConflict extends ConditionFailed {}

/**
 * 401: frames that were seen are lost, so an offset may belong to another frame now.
 * `details.offset` is the offset to continue from.
 */
export class CursorAhead extends ConditionFailed {}

/** 403: the position belongs to another store. */
export class OtherStore extends ConditionFailed {}

/** 5xx: not now, and nothing was done: the same request may be sent later. */
export class Unavailable extends Refusal {
  override get retryable(): boolean {
    return true;
  }
}

/** 6xx: the store needs its operator. */
export class StorageError extends Refusal {}

/** 7xx: the requested item does not exist. */
export class NotFound extends Refusal {}

/** 8xx: it may or may not have been done: check before repeating it. */
export class Indeterminate extends Refusal {}

const CLASSES: Readonly<Record<number, typeof Refusal>> = {
  1: ProtocolRefused,
  2: AccessError,
  3: InvalidRequest,
  4: ConditionFailed,
  5: Unavailable,
  6: StorageError,
  7: NotFound,
  8: Indeterminate,
};

const SPECIAL: Readonly<Record<number, typeof Refusal>> = {
  400: CursorConflict,
  401: CursorAhead,
  403: OtherStore,
};

/** The error for a code. An unknown class is as final as any. */
export function refusalOf(code: number, text: string, details: Details = {}): Refusal {
  const kind = SPECIAL[code] ?? CLASSES[Math.floor(code / 100)] ?? Refusal;
  return new kind(code, text, details);
}

/** Whether it is unknown what was done. */
export function isUnknown(error: unknown): error is ConnectionLost | Indeterminate {
  const isLost = error instanceof ConnectionLost && !(error instanceof NotSent);
  return isLost || error instanceof Indeterminate;
}
