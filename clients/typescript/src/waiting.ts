// Waits that a signal ends.

/** The longest time that a Node timer accepts: 24 days; it treats a longer one as 1 ms. */
const TIMER_MS_MAX = 2 ** 31 - 1;

/** A timer; a time beyond the maximum is cut to it. */
export function timer(work: () => void, ms: number): NodeJS.Timeout {
  return setTimeout(work, Math.min(ms, TIMER_MS_MAX));
}

/** @throws the reason of an aborted signal */
export function check(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw signal.reason;
}

/** Callbacks that wait for a signal, and the listener that calls them. */
interface Waiting {
  readonly all: Set<() => void>;
  readonly tell: () => void;
}

const waiting = new WeakMap<AbortSignal, Waiting>();

/**
 * Makes a signal call `abort`. Node warns of a leak when a signal has more than ten listeners, and
 * a program uses one signal for everything, so each signal gets one listener.
 */
export function listen(signal: AbortSignal, abort: () => void): void {
  const found = waiting.get(signal);
  if (found) {
    found.all.add(abort);
    return;
  }
  const all = new Set([abort]);
  const tell = () => {
    for (const one of [...all]) one();
  };
  waiting.set(signal, { all, tell });
  signal.addEventListener("abort", tell, { once: true });
}

/**
 * Removes `abort`, and the listener with the last one: Node keeps a signal that is composed of
 * others, and all that it holds, as long as it has a listener.
 */
export function ignore(signal: AbortSignal, abort: () => void): void {
  const found = waiting.get(signal);
  if (!found?.all.delete(abort) || found.all.size > 0) return;
  signal.removeEventListener("abort", found.tell);
  waiting.delete(signal);
}

/** The same promise, abandoned when the signal is aborted. */
export async function until<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  // An abandoned promise may still fail, when no one waits for it any more.
  promise.catch(() => undefined);
  check(signal);
  let abort: () => void = () => undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason as Error);
    listen(signal, abort);
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    ignore(signal, abort);
  }
}

/** Waits for this many milliseconds, at most until one of the signals is aborted. */
export async function sleep(
  ms: number,
  ...signals: ReadonlyArray<AbortSignal | undefined>
): Promise<void> {
  for (const signal of signals) check(signal);
  const timed = new Settle<void>();
  const waking = timer(timed.resolve, ms);
  let over = timed.promise;
  for (const signal of signals) over = until(over, signal);
  try {
    await over;
  } finally {
    clearTimeout(waking);
    // Inner waits listen to the other signals until this is settled.
    timed.resolve();
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
    // It may be settled before or after anyone waits.
    this.promise.catch(() => undefined);
  }
}
