// Waiting that a signal ends.

/** @throws the reason of a signal that was aborted */
export function check(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw signal.reason;
}

/** What is to be told when a signal is aborted. */
const waiting = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Who waits for a signal. Node warns of a leak when a signal has more than ten listeners, and a
 * program has one signal for all that it does, so that each signal gets one listener.
 */
function waitingFor(signal: AbortSignal): Set<() => void> {
  const found = waiting.get(signal);
  if (found) return found;
  const all = new Set<() => void>();
  waiting.set(signal, all);
  const tell = () => {
    for (const abort of [...all]) abort();
  };
  signal.addEventListener("abort", tell, { once: true });
  return all;
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
    waitingFor(signal).add(abort);
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    waitingFor(signal).delete(abort);
  }
}

/** Waits so many milliseconds, until the first of some signals is aborted at most. */
export async function sleep(
  ms: number,
  ...signals: ReadonlyArray<AbortSignal | undefined>
): Promise<void> {
  for (const signal of signals) check(signal);
  let timer: NodeJS.Timeout | undefined;
  let over = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)));
  for (const signal of signals) over = until(over, signal);
  try {
    await over;
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
