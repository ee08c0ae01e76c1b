// Timers for modules: a timer set by a call ends when that call is cut off.
(function () {
const { core } = __bootstrap;
const plain = core.loadExtScript("ext:deno_web/02_timers.js");
const { whenCallsLeave } = core.loadExtScript("ext:xs_runtime/context.js");
const { setTimeout: later, setInterval: often, clearTimeout: clear } = plain;

// The functions that forget the callbacks of timers set by calls, by the timer's id.
const kept = new Map();

function forget(id) {
  kept.get(id)?.();
  kept.delete(id);
}

// The timer ends once no code of the currently open calls runs any more, if the call that set it
// was cut off: code that waits for it then reaches its finally blocks. A timer left behind by a
// call that ends normally keeps running.
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
