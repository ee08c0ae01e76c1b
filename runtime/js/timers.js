// Timers as modules have them: those that a call sets end with its code when it is cut off.
(function () {
const { core } = __bootstrap;
const plain = core.loadExtScript("ext:deno_web/02_timers.js");
const { whenCallsLeave } = core.loadExtScript("ext:xs_runtime/context.js");
const { setTimeout: later, setInterval: often, clearTimeout: clear } = plain;

// How to forget a timer that a call has set, by its number.
const kept = new Map();

function forget(id) {
  kept.get(id)?.();
  kept.delete(id);
}

// It ends with the code of all calls that are open now, if one of them was cut off: what waits for
// it is to go on to its finally blocks. One that calls leave behind which end by themselves goes on.
function keep(id) {
  const forgotten = whenCallsLeave((wasCut) => {
    kept.delete(id);
    if (wasCut) clear(id);
  });
  if (forgotten !== null) kept.set(id, forgotten);
  return id;
}

function setTimeout(callback, timeout = 0, ...args) {
  if (typeof callback !== "function") return keep(later(callback, timeout));
  const id = later(function () {
    forget(id);
    return Reflect.apply(callback, this, arguments);
  }, timeout, ...args);
  return keep(id);
}

const setInterval = (callback, timeout = 0, ...args) => keep(often(callback, timeout, ...args));

function clearTimeout(id = 0) {
  forget(id);
  clear(id);
}

return { setTimeout, setInterval, clearTimeout, clearInterval: clearTimeout };
})();
