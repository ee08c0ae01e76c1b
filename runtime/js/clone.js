// structuredClone as the standard defines it: the engine's own clones neither errors nor a
// DataView, fills the holes of arrays, and detaches nothing.
(function () {
const { core } = __bootstrap;
const { DOMException } = core.loadExtScript("ext:deno_web/01_dom_exception.js");
const { brand } = core.loadExtScript("ext:deno_webidl/00_webidl.js");
const { nameOf } = core.loadExtScript("ext:xs_runtime/values.js");
const { defineProperty, getOwnPropertyDescriptor, getPrototypeOf, hasOwn, keys, prototype: objectPrototype } = Object;
const { apply } = Reflect;
const { isView } = ArrayBuffer;

const VIEWS = {
  BigInt64Array, BigUint64Array, Float16Array, Float32Array, Float64Array, Int16Array, Int32Array, Int8Array, Uint16Array,
  Uint32Array, Uint8Array, Uint8ClampedArray,
};
const viewKind = getOwnPropertyDescriptor(getPrototypeOf(Uint8Array).prototype, Symbol.toStringTag).get;
// Objects whose contents are in internal slots and that no other check here recognizes, by their
// string tag.
const OPAQUE = /^\[object (?:(?:Async)?Generator|.+ Iterator|Iterator .+|Temporal\..+|FinalizationRegistry|(?:Async)?DisposableStack)\]$/;
const ERRORS = { Error, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };

const webEvents = () => core.loadExtScript("ext:deno_web/02_event.js");

const refused = (value, why = "cannot be cloned") => {
  const name = typeof value === "symbol" ? String(value) : nameOf(value);
  return new DOMException(`${name} ${why}`, "DataCloneError");
};

function put(object, key, value, enumerable = true) {
  defineProperty(object, key, { value, configurable: true, enumerable, writable: true });
}

// Clones an object of a web class: only blobs and exceptions can be cloned.
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

// The kinds of contents to fill in later.
const OWN = 0, MAP = 1, SET = 2, CAUSE = 3;

// Whether an object is of a class whose content cannot be cloned.
function isOpaque(value) {
  if (core.isPromise(value) || core.isWeakMap(value) || core.isWeakSet(value) || value instanceof WeakRef) return true;
  if (core.isSymbolObject(value) || core.isModuleNamespaceObject(value)) return true;
  return OPAQUE.test(apply(objectPrototype.toString, value, []));
}

// Clones values. `known` maps objects to their clones. `places` keeps the offset and the length of
// views, which are lost once their buffer has been transferred.
class Cloning {
  #known;
  #places;
  // The clones to fill, three entries each: the kind of contents, the clone, and the original. A
  // list instead of a recursion, so that deep nesting is no problem and an object takes little more
  // space than its entry.
  #todo = [];
  constructor(known, places) {
    this.#known = known;
    this.#places = places;
  }
  all(value) {
    const made = this.#copy(value), todo = this.#todo;
    while (todo.length > 0) {
      const from = todo.pop(), into = todo.pop();
      this.#fill(todo.pop(), into, from);
    }
    return made;
  }
  #copy(value) {
    if (typeof value === "symbol" || typeof value === "function") throw refused(value);
    if (typeof value !== "object" || value === null) return value;
    const before = this.#known.get(value);
    if (before !== undefined) return before;
    const made = this.#begin(value);
    this.#known.set(value, made);
    return made;
  }
  #later(how, made, value) {
    this.#todo.push(how, made, value);
    return made;
  }
  #fill(how, made, value) {
    switch (how) {
      case OWN:
        for (const key of keys(value)) {
          if (key === "__proto__") put(made, key, this.#copy(value[key]));
          else made[key] = this.#copy(value[key]);
        }
        break;
      case MAP:
        for (const [key, item] of [...value]) made.set(this.#copy(key), this.#copy(item));
        break;
      case SET:
        for (const item of [...value]) made.add(this.#copy(item));
        break;
      case CAUSE:
        put(made, "cause", this.#copy(value.cause), false);
    }
  }
  #error(value) {
    const made = new (hasOwn(ERRORS, value.name) ? ERRORS[value.name] : Error)();
    const message = getOwnPropertyDescriptor(value, "message")?.value;
    if (message !== undefined) put(made, "message", String(message), false);
    if (typeof value.stack === "string") put(made, "stack", value.stack, false);
    return hasOwn(value, "cause") ? this.#later(CAUSE, made, value) : made;
  }
  #view(value) {
    const isData = core.isDataView(value);
    const place = this.#places.get(value) ?? [value.byteOffset, isData ? value.byteLength : value.length];
    this.#places.set(value, place);
    const made = this.#copy(value.buffer);
    return isData ? new DataView(made, ...place) : new VIEWS[viewKind.call(value)](made, ...place);
  }
  #begin(value) {
    if (core.isProxy(value)) throw refused(value);
    if (Array.isArray(value)) return this.#later(OWN, new Array(value.length), value);
    if (getPrototypeOf(value) === objectPrototype) return this.#later(OWN, {}, value);
    if (core.isDate(value)) return new Date(value.getTime());
    if (core.isRegExp(value)) return new RegExp(value.source, value.flags);
    if (core.isArrayBuffer(value)) return buffer(value);
    if (isView(value)) return this.#view(value);
    if (core.isMap(value)) return this.#later(MAP, new Map(), value);
    if (core.isSet(value)) return this.#later(SET, new Set(), value);
    if (isOpaque(value)) throw refused(value);
    if (core.isBoxedPrimitive(value)) return Object(value.valueOf());
    if (value instanceof DOMException || value[brand] === brand || value instanceof webEvents().Event) return ofTheWeb(value);
    return core.isNativeError(value) ? this.#error(value) : this.#later(OWN, {}, value);
  }
}

const clone = (value, known, places = new Map()) => new Cloning(known, places).all(value);

// Transfers a value: returns its replacement and detaches the original.
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
  // Values that cannot be cloned throw before anything is transferred.
  const places = new Map();
  clone(value, new Map(transfer.map((item) => [item, item])), places);
  return clone(value, new Map(transfer.map((item) => [item, handOver(item)])), places);
}

return { structuredClone };
})();
