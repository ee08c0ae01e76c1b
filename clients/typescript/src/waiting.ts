// Waiting that a signal ends.

/** @throws the reason of a signal that was aborted */
export function check(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw signal.reason;
}

/** The same promise, given up when the signal is aborted. */
export async function until<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  // What is given up may still fail; then nobody asks.
  promise.catch(() => undefined);
  check(signal);
  let abort: () => void = () => undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason as Error);
    signal.addEventListener("abort", abort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** Waits so many milliseconds. */
export async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  check(signal);
  let timer: NodeJS.Timeout | undefined;
  try {
    await until(new Promise<void>((resolve) => (timer = setTimeout(resolve, ms))), signal);
  } finally {
    clearTimeout(timer);
  }
}

/** A promise and what settles it. */
export class Settle<T> {
  readonly promise: Promise<T>;
  resolve!: (value: T) => void;
  reject!: (reason: unknown) => void;

  constructor() {
    this.promise = new Promise<T>((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    // It may be settled before or after somebody waits.
    this.promise.catch(() => undefined);
  }
}
