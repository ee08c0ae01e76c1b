// Brings orders of several shops into one form. What is no order is parked with the reason.
import { handler, Park } from "xs";

interface Order { id: string; customer: string; cents: number; items: number }

export default handler({
  about: "orders of all shops in one form",
  topics: ["shop.a", "shop.b"],
  start: "first",
  async run(frame): Promise<{ [K in keyof Order]: Order[K] }> {
    const given = await frame.json<any>().catch(() => {
      throw new Park("the body is not JSON");
    });
    const order = frame.topic === "shop.a"
      ? { id: `a${given.number}`, customer: given.user, cents: Math.round(given.total * 100), items: given.lines?.length }
      : { id: given.order_id, customer: given.customer?.email, cents: given.amount_cents, items: given.count };
    if (typeof order.customer !== "string" || !Number.isInteger(order.cents)) {
      throw new Park("the order names no customer or no total");
    }
    return { ...order, items: order.items ?? 0 };
  },
});
