// Stands in for deno_net's TLS face, of which deno_fetch needs one function for client certificates;
// modules cannot make clients of their own, so nothing calls it.
(function () {
return { loadTlsKeyPair: () => undefined };
})();
