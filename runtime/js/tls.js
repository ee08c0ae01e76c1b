// A stub for deno_net's TLS module, of which deno_fetch needs one function, for client
// certificates; modules cannot create clients, so nothing calls it.
(function () {
return { loadTlsKeyPair: () => undefined };
})();
