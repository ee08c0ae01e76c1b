// Running statistics that fit into a handler's state: plain objects, no history kept.

export interface Running { n: number; mean: number; variance: number }

export const fresh = (): Running => ({ n: 0, mean: 0, variance: 0 });

/** Takes one more value in. Old values fade once there are more than `memory` of them. */
export function take(running: Running, value: number, memory = Infinity): void {
  running.n++;
  const weight = 1 / Math.min(running.n, memory);
  const off = value - running.mean;
  running.mean += weight * off;
  running.variance = (1 - weight) * (running.variance + weight * off * off);
}

export const deviation = (running: Running): number => Math.sqrt(running.variance);

export const rounded = (value: number): number => Math.round(value * 1000) / 1000;
