// structuredClone as the standard has it: the engine's own knows neither errors nor a DataView, fills
// the holes of arrays, and detaches nothing.
(function () {
const { core } = __bootstrap;
const { DOMException } = core.loadExtScript("ext:deno_web/01_dom_exception.js");
const { brand } = core.loadExtScript("ext:deno_webidl/00_webidl.js");
const { nameOf } = core.loadExtScript("ext:xs_runtime/values.js");
const { defineProperty, getOwnPropertyDescriptor, getPrototypeOf, keys } = Object;
const { isView } = ArrayBuffer;

const VIEWS = {
  BigInt64Array, BigUint64Array, Float16Array, Float32Array, Float64Array, Int16Array, Int32Array, Int8Array, Uint16Array,
  Uint32Array, Uint8Array, Uint8ClampedArray,
};
const viewKind = getOwnPropertyDescriptor(getPrototypeOf(Uint8Array).prototype, Symbol.toStringTag).get;
const ERRORS = { Error, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };

const refused = (value, why = "cannot be cloned") => {
  const name = typeof value === "symbol" ? String(value) : nameOf(value);
  return new DOMException(`${name} ${why}`, "DataCloneError");
};

function put(object, key, value, enumerable = true) {
  defineProperty(object, key, { value, configurable: true, enumerable, writable: true });
}

// What is a class of the web: of those only blobs and exceptions are cloned.
function ofTheWeb(value) {
  if (value instanceof DOMException) {
    const made = new DOMException(value.message, value.name);
    if (typeof value.stack === "string") put(made, "stack", value.stack, false);
    return made;
  }
  const { Blob, File } = core.loadExtScript("ext:deno_web/09_file.js");
  if (value instanceof File) {
    return new File([value], value.name, { type: value.type, lastModified: value.lastModified });
  }
  if (value instanceof Blob) return value.slice(0, value.size, value.type);
  throw refused(value);
}

function buffer(value) {
  if (value.detached) throw refused(value, "is detached");
  if (!value.resizable) return value.slice(0);
  const made = new ArrayBuffer(value.byteLength, { maxByteLength: value.maxByteLength });
  new Uint8Array(made).set(new Uint8Array(value));
  return made;
}

// Clones a value. What is in `known` stands for its key. `places` has where in their buffers views
// lie: one whose buffer was handed over does not know any more. `todo` has what is to be filled:
// nested as deep as it may be, it is no recursion.
function clone(value, known, places = new Map()) {
  const todo = [];
  const copy = (value) => {
    if (typeof value === "symbol" || typeof value === "function") throw refused(value);
    if (typeof value !== "object" || value === null) return value;
    if (known.has(value)) return known.get(value);
    const made = begin(value);
    known.set(value, made);
    return made;
  };
  // An object and what is filled in later.
  const filled = (made, fill) => (todo.push(fill), made);
  const own = (made, value) => filled(made, () => {
    for (const key of keys(value)) {
      if (key === "__proto__") put(made, key, copy(value[key]));
      else made[key] = copy(value[key]);
    }
  });
  const error = (value) => {
    const made = new (Object.hasOwn(ERRORS, value.name) ? ERRORS[value.name] : Error)();
    const message = getOwnPropertyDescriptor(value, "message")?.value;
    if (message !== undefined) put(made, "message", String(message), false);
    if (typeof value.stack === "string") put(made, "stack", value.stack, false);
    return filled(made, () => {
      if (Object.hasOwn(value, "cause")) put(made, "cause", copy(value.cause), false);
    });
  };
  const view = (value) => {
    const isData = core.isDataView(value);
    const place = places.get(value) ?? [value.byteOffset, isData ? value.byteLength : value.length];
    places.set(value, place);
    const made = copy(value.buffer);
    return isData ? new DataView(made, ...place) : new VIEWS[viewKind.call(value)](made, ...place);
  };
  const begin = (value) => {
    if (core.isProxy(value)) throw refused(value);
    if (Array.isArray(value)) return own(new Array(value.length), value);
    if (getPrototypeOf(value) === Object.prototype) return own({}, value);
    if (core.isPromise(value) || core.isWeakMap(value) || core.isWeakSet(value)) throw refused(value);
    if (core.isSymbolObject(value) || value instanceof WeakRef) throw refused(value);
    if (core.isBoxedPrimitive(value)) return Object(value.valueOf());
    if (core.isDate(value)) return new Date(value.getTime());
    if (core.isRegExp(value)) return new RegExp(value.source, value.flags);
    if (core.isArrayBuffer(value)) return buffer(value);
    if (isView(value)) return view(value);
    if (core.isMap(value)) {
      const made = new Map(), entries = [...value];
      return filled(made, () => entries.forEach(([key, item]) => made.set(copy(key), copy(item))));
    }
    if (core.isSet(value)) {
      const made = new Set(), items = [...value];
      return filled(made, () => items.forEach((item) => made.add(copy(item))));
    }
    if (value instanceof DOMException || value[brand] === brand) return ofTheWeb(value);
    return core.isNativeError(value) ? error(value) : own({}, value);
  };
  const made = copy(value);
  while (todo.length > 0) todo.pop()();
  return made;
}

// What takes the place of what is handed over, which is of no use any more from then on.
function handOver(value) {
  if (core.isArrayBuffer(value)) return value.transfer();
  const { structuredClone: plain } = core.loadExtScript("ext:deno_web/13_message_port.js");
  return plain(value, { transfer: [value] });
}

function structuredClone(value, options = undefined) {
  if (arguments.length === 0) throw new TypeError("structuredClone() takes a value");
  const transfer = [...options?.transfer ?? []];
  if (transfer.length === 0) return clone(value, new Map());
  const { MessagePort } = core.loadExtScript("ext:deno_web/13_message_port.js");
  for (const [index, item] of transfer.entries()) {
    if (!core.isArrayBuffer(item) && !(item instanceof MessagePort)) throw refused(item, "cannot be transferred");
    if (transfer.indexOf(item) < index) throw refused(item, "is transferred twice");
    if (item.detached) throw refused(item, "is detached");
  }
  // What cannot be cloned is told before anything is handed over.
  const places = new Map();
  clone(value, new Map(transfer.map((item) => [item, item])), places);
  return clone(value, new Map(transfer.map((item) => [item, handOver(item)])), places);
}

return { structuredClone };
})();
