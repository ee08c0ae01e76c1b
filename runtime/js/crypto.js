// `crypto`: random numbers, and of SubtleCrypto only what digests and HMAC need. Anything else is a
// NotSupportedError that names what is supported.
(function () {
const { core } = __bootstrap;
const { op_xs_digest, op_xs_hmac, op_xs_hmac_verify, op_xs_random, op_xs_uuid } = core.ops;
const { DOMException } = core.loadExtScript("ext:deno_web/01_dom_exception.js");
const { viewBytes, nameOf } = core.loadExtScript("ext:xs_runtime/values.js");

const VIEWS = [Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array, Uint32Array, BigInt64Array, BigUint64Array];
// Block size of each hash in bytes: the default length of a generated key.
const BLOCKS = { "SHA-1": 64, "SHA-256": 64, "SHA-384": 128, "SHA-512": 128 };
const JWK = { "SHA-1": "HS1", "SHA-256": "HS256", "SHA-384": "HS384", "SHA-512": "HS512" };
const USAGES = ["sign", "verify"];

function unsupported(what) {
  return new DOMException(`${what} is not supported; there are SHA-1, SHA-256, SHA-384, SHA-512 and HMAC`, "NotSupportedError");
}

function bytesOf(data, what) {
  if (ArrayBuffer.isView(data)) return viewBytes(data);
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  throw new TypeError(`${what} is ${nameOf(data)}; use an ArrayBuffer or a view of one`);
}

function hashOf(algorithm) {
  const name = String(typeof algorithm === "object" ? algorithm?.name : algorithm).toUpperCase();
  if (!Object.hasOwn(BLOCKS, name)) throw unsupported(`the hash ${name}`);
  return name;
}

function requireHmac(algorithm) {
  const name = typeof algorithm === "object" ? algorithm?.name : algorithm;
  if (String(name).toUpperCase() !== "HMAC") throw unsupported(`the algorithm ${name}`);
}

function usagesOf(usages) {
  const list = [...usages];
  const odd = list.find((usage) => !USAGES.includes(usage));
  if (odd !== undefined || list.length === 0) {
    throw new DOMException(`the usages of an HMAC key are "sign" and "verify", not ${odd ?? "none"}`, "SyntaxError");
  }
  return USAGES.filter((usage) => list.includes(usage));
}

class CryptoKey {
  #bytes;
  constructor(bytes, hash, extractable, usages) {
    this.#bytes = bytes;
    this.type = "secret";
    this.extractable = extractable;
    this.algorithm = Object.freeze({ name: "HMAC", hash: Object.freeze({ name: hash }), length: bytes.byteLength * 8 });
    this.usages = Object.freeze(usages);
    Object.freeze(this);
  }
  static bytes(key, usage) {
    if (typeof key !== "object" || key === null || !(#bytes in key)) throw new TypeError("the key is not a CryptoKey");
    if (usage !== null && !key.usages.includes(usage)) {
      throw new DOMException(`the key may not be used to ${usage}`, "InvalidAccessError");
    }
    return key.#bytes;
  }
}

const subtle = Object.freeze({
  async digest(algorithm, data) {
    return op_xs_digest(hashOf(algorithm), bytesOf(data, "data")).buffer;
  },
  async importKey(format, data, algorithm, extractable, usages) {
    requireHmac(algorithm);
    const hash = hashOf(algorithm.hash);
    let bytes;
    if (format === "raw") {
      bytes = bytesOf(data, "the key").slice();
    } else if (format === "jwk") {
      if (data?.kty !== "oct" || typeof data.k !== "string" || (data.alg !== undefined && data.alg !== JWK[hash])) {
        throw new DOMException(`a JWK of HMAC has kty "oct", k and alg "${JWK[hash]}"`, "DataError");
      }
      bytes = Uint8Array.fromBase64(data.k, { alphabet: "base64url" });
    } else {
      throw unsupported(`the key format ${format}`);
    }
    if (bytes.byteLength === 0) throw new DOMException("the key is empty", "DataError");
    return new CryptoKey(bytes, hash, Boolean(extractable), usagesOf(usages));
  },
  async exportKey(format, key) {
    const bytes = CryptoKey.bytes(key, null);
    if (!key.extractable) throw new DOMException("the key is not extractable", "InvalidAccessError");
    if (format === "raw") return bytes.slice().buffer;
    if (format !== "jwk") throw unsupported(`the key format ${format}`);
    const k = bytes.toBase64({ alphabet: "base64url", omitPadding: true });
    return { kty: "oct", k, alg: JWK[key.algorithm.hash.name], key_ops: [...key.usages], ext: true };
  },
  async generateKey(algorithm, extractable, usages) {
    requireHmac(algorithm);
    const hash = hashOf(algorithm.hash);
    const bits = algorithm.length ?? BLOCKS[hash] * 8;
    if (!Number.isInteger(bits) || bits <= 0 || bits % 8 !== 0 || bits > 65_536 * 8) {
      throw new DOMException("the length of a key is a number of bits that makes whole bytes", "OperationError");
    }
    const bytes = new Uint8Array(bits / 8);
    op_xs_random(bytes);
    return new CryptoKey(bytes, hash, Boolean(extractable), usagesOf(usages));
  },
  async sign(algorithm, key, data) {
    requireHmac(algorithm);
    return op_xs_hmac(key.algorithm?.hash.name, CryptoKey.bytes(key, "sign"), bytesOf(data, "data")).buffer;
  },
  async verify(algorithm, key, signature, data) {
    requireHmac(algorithm);
    const bytes = CryptoKey.bytes(key, "verify");
    return op_xs_hmac_verify(key.algorithm.hash.name, bytes, bytesOf(signature, "the signature"), bytesOf(data, "data"));
  },
});

return Object.freeze({
  getRandomValues(array) {
    if (!VIEWS.some((View) => array instanceof View)) {
      throw new TypeError("crypto.getRandomValues takes an array of integers such as a Uint8Array");
    }
    op_xs_random(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
    return array;
  },
  randomUUID: () => op_xs_uuid(),
  subtle,
});
})();
