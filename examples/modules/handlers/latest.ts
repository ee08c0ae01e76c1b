// A materialised view: the newest frame of `users.<id>` holds the user as it is now. Read it with
// `xs last users.ada`, list all with `xs last --per-topic users.`
import { handler } from "xs";

const NAME = /^[A-Za-z0-9_-]{1,64}$/;

export default handler({
  about: "users as they are now, by their id",
  topics: "user.changed",
  start: "first",
  async run(frame, ctx) {
    const { id, ...changes } = frame.meta;
    if (typeof id !== "string" || !NAME.test(id)) throw new TypeError("user.changed needs an id");
    const before = (await ctx.last(`users.${id}`))?.meta ?? {};
    ctx.append(`users.${id}`, { meta: { ...before, ...changes, at: frame.time }, ttl: "last:1" });
  },
});
