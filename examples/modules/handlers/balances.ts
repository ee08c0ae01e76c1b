// The balance of each account, from transfers. One that would overdraw is refused with a frame of its
// own; balance and answer are one commit, so each transfer counts exactly once.
import { handler } from "xs";

export default handler({
  about: "balances of accounts",
  topics: ["account.deposit", "account.transfer"],
  start: "first",
  state: {} as Record<string, number>,
  run(frame, ctx) {
    const { from, to, cents } = frame.meta;
    if (!Number.isInteger(cents) || cents <= 0) throw new TypeError("cents is a whole number above 0");
    const balances = ctx.state;
    if (frame.topic === "account.transfer") {
      const left = (balances[from] ?? 0) - cents;
      if (left < 0) {
        ctx.append("account.refused", { meta: { from, to, cents, short: -left, of: frame.id } });
        return;
      }
      balances[from] = left;
    }
    balances[to] = (balances[to] ?? 0) + cents;
    return { [to]: balances[to], ...(from === undefined ? {} : { [from]: balances[from] }) };
  },
});
