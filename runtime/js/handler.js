// Calls a handler with one frame after the other, keeps its state, and replies in groups that are
// committed together.
(function () {
const { core } = __bootstrap;
const { op_xs_alive, op_xs_attempt, op_xs_committed, op_xs_fail, op_xs_reply, op_xs_undo, op_xs_waits } = core.ops;
const { parse } = JSON;
const { Frame } = core.loadExtScript("ext:xs_runtime/frame.js");
const { buffer, drop, flush, isThenable, output, stateText, describe } = core.loadExtScript("ext:xs_runtime/values.js");
const { Scope, handlerContext } = core.loadExtScript("ext:xs_runtime/context.js");

// Microtask turns granted to a promise before the call counts as waiting.
const TURNS = 16;
const HANDLER = 0;

let definition = null;
let about = null;

class HandlerLoop {
  state = undefined;
  index = 0;
  #saved = "null";
  // The state in the store; differs from #saved after a migration that is not committed yet.
  #stored = "null";
  #asyncRun = false;
  // Whether what is thrown is thrown by the current call, not by what was buffered before it.
  #ofCall = false;
  // The first input that no reply covers yet, and the number of inputs.
  #from = 0;
  #count = 0;
  // Resolves when the last reply, of this batch or the previous one, is committed.
  #barrier = null;
  #readers = [];
  #stride = 1;
  #scope = new Scope(HANDLER);
  #context;
  constructor(module, scopes) {
    ({ definition, about } = module);
    scopes.set(HANDLER, this.#scope);
    this.#scope.input = () => this.index;
    this.#context = handlerContext(this.#scope, about, this);
    this.#asyncRun = Object.prototype.toString.call(definition.run) === "[object AsyncFunction]";
  }
  attempt() {
    return op_xs_attempt(this.index);
  }
  // Awaited before any read: what earlier calls appended must be in the store.
  async ready() {
    if (this.#from < this.index) await new Promise((resolve) => this.#readers.push(resolve));
    if (this.#barrier !== null) await this.#barrier;
  }
  load(text, foreign) {
    let state = text === "" ? definition.state ?? null : parse(text);
    if (foreign && definition.migrate !== undefined) state = definition.migrate(state);
    this.#saved = stateText(state);
    this.#stored = text === "" ? this.#saved : text;
    // A separate copy: the first call must not change the definition's object.
    this.state = parse(this.#saved);
  }
  // The state's text if it differs from the stored one, else "".
  #changed() {
    const text = stateText(this.state);
    return text === this.#stored ? "" : text;
  }
  // Replies for the next calls. Until that is committed nothing later is read or replied.
  async #reply(done, text) {
    if (this.#barrier !== null) await this.#barrier;
    flush();
    op_xs_reply(done, text);
    if (text !== "") this.#saved = this.#stored = text;
    buffer.full = false;
    this.#from += done;
    this.#barrier = this.#from < this.#count ? op_xs_committed() : null;
  }
  async #fail(index, error) {
    if (this.#barrier !== null) await this.#barrier;
    const { name, message, stack, verdict, after } = describe(error);
    drop();
    op_xs_undo();
    this.state = parse(this.#saved);
    op_xs_fail(index, this.#ofCall, verdict, after, name, message, stack);
  }
  // `ahead`: the output of the previous batch is not committed yet.
  async batch(batch, ahead) {
    const started = performance.now();
    const count = batch.count;
    this.#from = 0;
    this.#count = count;
    this.#barrier = ahead ? op_xs_committed() : null;
    buffer.full = false;
    for (let index = 0; index < count; index++) {
      this.index = index;
      this.#ofCall = false;
      let before = "";
      try {
        const isLate = index % this.#stride === 0 && op_xs_alive();
        if (isLate && index > this.#from) await this.#reply(index - this.#from, this.#changed());
        // A call that waits commits the calls before it, so the state at this point must be known.
        if (this.#asyncRun && index > this.#from) before = this.#changed();
        this.#ofCall = true;
        const result = definition.run(new Frame(batch, index), this.#context);
        this.#ofCall = false;
        if (result !== undefined && result !== null) {
          if (isThenable(result)) {
            await this.#settle(result, index, before);
          } else {
            output(HANDLER, index, result, about.asBody);
          }
        }
        const last = index + 1 === count;
        if ((last || buffer.full) && index >= this.#from) {
          await this.#reply(index + 1 - this.#from, this.#changed());
        }
      } catch (error) {
        return await this.#fail(index, error);
      }
    }
    this.#stride = performance.now() - started < 0.2 * count ? 16 : 1;
  }
  // Waits for a call's promise. If it does not settle soon, the call is waiting: earlier calls are
  // committed first, and it is committed alone.
  async #settle(result, index, before) {
    const outcome = { settled: false, failed: false, value: undefined };
    // Resolved once: a custom thenable may start its work in `then`.
    const promise = Promise.resolve(result);
    promise.then(
      (value) => (outcome.settled = true, outcome.value = value),
      (error) => (outcome.settled = true, outcome.failed = true, outcome.value = error),
    );
    for (let turn = 0; turn < TURNS && !outcome.settled; turn++) await null;
    const waits = !outcome.settled;
    if (waits) {
      // The first promise of a plain function: the state before this call is unknown, so the
      // earlier calls cannot be committed apart from it. All are repeated, each alone.
      if (index > this.#from && !this.#asyncRun) throw new Error("a call waits in a shared group");
      this.#asyncRun = true;
      if (index > this.#from) await this.#reply(index - this.#from, before);
      op_xs_waits(index);
      for (const release of this.#readers.splice(0)) release();
      try {
        outcome.value = await promise;
      } finally {
        op_xs_waits(-1);
      }
    } else if (outcome.failed) {
      this.#ofCall = true;
      throw outcome.value;
    }
    output(HANDLER, index, outcome.value, about.asBody);
    if (waits) await this.#reply(1, this.#changed());
  }
  async tick() {
    this.#ofCall = false;
    this.index = this.#from = this.#count = 0;
    this.#barrier = null;
    try {
      let result = definition.tick(this.#context);
      if (isThenable(result)) {
        op_xs_waits(0);
        try {
          result = await result;
        } finally {
          op_xs_waits(-1);
        }
      }
      output(HANDLER, 0, result, about.asBody);
      await this.#reply(0, this.#changed());
    } catch (error) {
      await this.#fail(0, error);
    }
  }
}

return { HandlerLoop };
})();
