// Waiting that a signal ends.

/** The longest time of a timer of Node, which takes a longer one for 1 ms: 24 days. */
const TIMER_MS_MAX = 2 ** 31 - 1;

/** A timer, also of a time that is longer than a timer takes. */
export function timer(work: () => void, ms: number): NodeJS.Timeout {
  return setTimeout(work, Math.min(ms, TIMER_MS_MAX));
}

/** @throws the reason of a signal that was aborted */
export function check(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw signal.reason;
}

/** Who waits for a signal, and the listener that tells them. */
interface Waiting {
  readonly all: Set<() => void>;
  readonly tell: () => void;
}

const waiting = new WeakMap<AbortSignal, Waiting>();

/**
 * Has a signal call `abort`. Node warns of a leak when a signal has more than ten listeners, and a
 * program has one signal for all that it does, so that each signal gets one listener.
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
 * Takes `abort` back. Nobody waits any more with the last one: Node keeps a signal that is made of
 * others, and all it holds, for as long as it has a listener.
 */
export function ignore(signal: AbortSignal, abort: () => void): void {
  const found = waiting.get(signal);
  if (!found?.all.delete(abort) || found.all.size > 0) return;
  signal.removeEventListener("abort", found.tell);
  waiting.delete(signal);
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
    listen(signal, abort);
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    ignore(signal, abort);
  }
}

/** Waits so many milliseconds, until the first of some signals is aborted at most. */
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
    // Whoever waits for it within listens to the other signals until it is settled.
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
    // It may be settled before or after somebody waits.
    this.promise.catch(() => undefined);
  }
}
