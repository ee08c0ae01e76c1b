// What can go wrong, by whose doing it is. `retryable` says whether the same request may be made
// again, unchanged and without looking; nothing here retries.

/** Everything this package throws, but for the reason of a signal that was aborted. */
export class XsError extends Error {
  override get name(): string {
    return this.constructor.name;
  }

  /** Whether the same request may be made again, unchanged and without looking. */
  get retryable(): boolean {
    return false;
  }
}

/** Text that names no server, or one that may not be spoken to so. */
export class AddressError extends XsError {}

/**
 * An argument that can never be sent: it breaks a rule of the protocol. Or a frame does not hold
 * what it is asked for: its body did not come with it, or is no JSON.
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

/** The server could not show who it is, or does not speak TLS. */
export class TlsError extends ConnectError {
  override get retryable(): boolean {
    return false;
  }
}

/**
 * The connection ended before the answer: what was asked for may or may not have been done.
 * Requests that change nothing, and appends with a key, are made again by the client itself. If the
 * outcome of the first attempt is unknown, it stays so when the last one comes to nothing; what
 * ended that is the cause.
 */
export class ConnectionLost extends XsError {}

/** The connection was over before the request was sent: nothing was done. */
export class NotSent extends ConnectionLost {
  override get retryable(): boolean {
    return true;
  }
}

/**
 * The client, a stream or an upload was closed. What the closing cut short may or may not have been
 * done, and a read or a download is not whole; what comes after it is not done.
 */
export class ClientClosed extends XsError {}

/** The server sent what the protocol does not allow; the connection is given up. */
export class ProtocolError extends XsError {}

/** Bytes that do not match their CRC or their hash. */
export class IntegrityError extends ProtocolError {}

/**
 * Stored frames that the server cannot read, from `first` to before `end`. `resume` is the offset
 * to go on from, which is `end`; for a read backwards the one to go on before, `first`.
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
  /** What the command calls the failure, if anything. */
  readonly code: string | undefined;

  constructor(
    readonly command: string,
    /** All that the command says of it. */
    readonly meta: Record<string, unknown>,
  ) {
    super(`${command}: ${String(meta["message"] ?? "failed without a message")}`);
    this.code = typeof meta["code"] === "string" ? meta["code"] : undefined;
  }
}

/** What a refusal says beside its message. */
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

/** The server refused a request. The subclass is the class of its code. */
export class Refusal extends XsError {
  constructor(
    readonly code: number,
    /** The message without the code. */
    readonly text: string,
    readonly details: Details = {},
  ) {
    super(`${code} ${CODES[code] ?? "Other"}: ${text}`);
  }

  /** The name of the code as docs/wire.md spells it; `Other` for one not known here. */
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

/** 4xx: a condition does not hold: read the present state, then make a new request. */
export class ConditionFailed extends Refusal {}

/** 400: the cursor has another revision, `details.revision`. */
export class CursorConflict extends ConditionFailed {}

/**
 * 401: frames that were seen are lost, so an offset may stand for another frame now.
 * `details.offset` is the offset to go on from.
 */
export class CursorAhead extends ConditionFailed {}

/** 403: the position belongs to another store. */
export class OtherStore extends ConditionFailed {}

/** 5xx: not now, and nothing was done: the same request may be made later. */
export class Unavailable extends Refusal {
  override get retryable(): boolean {
    return true;
  }
}

/** 6xx: the store needs its operator. */
export class StorageError extends Refusal {}

/** 7xx: what was asked for is not there. */
export class NotFound extends Refusal {}

/** 8xx: it may or may not have been done: read before repeating it. */
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

/** The error for a code. A class that is not known is as final as any. */
export function refusalOf(code: number, text: string, details: Details = {}): Refusal {
  const kind = SPECIAL[code] ?? CLASSES[Math.floor(code / 100)] ?? Refusal;
  return new kind(code, text, details);
}

/** Whether it is not known what was done. */
export function isUnknown(error: unknown): error is ConnectionLost | Indeterminate {
  const isLost = error instanceof ConnectionLost && !(error instanceof NotSent);
  return isLost || error instanceof Indeterminate;
}
