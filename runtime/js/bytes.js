// Bytes in chunks: streams that pull from Rust, and bodies sent there, with only a few chunks in
// memory.
(function () {
const { core } = __bootstrap;
const {
  op_xs_blob_open, op_xs_bytes_close, op_xs_bytes_next, op_xs_upload, op_xs_upload_drop, op_xs_upload_end,
  op_xs_upload_write,
} = core.ops;
const { viewBytes, nameOf } = core.loadExtScript("ext:xs_runtime/values.js");

// Closes the source of a stream that was garbage collected.
const forgotten = new FinalizationRegistry((source) => {
  if (source.id !== null) op_xs_bytes_close(source.id);
});

// A stream over a byte source, which is opened on the first read. `unwanted` is called when the
// stream is cancelled before that.
function byteStream(open, unwanted = () => {}) {
  const source = { id: null, cancelled: false };
  const stream = new ReadableStream({
    type: "bytes",
    async pull(controller) {
      source.id ??= await open();
      if (source.cancelled) return op_xs_bytes_close(source.id);
      const bytes = await op_xs_bytes_next(source.id);
      if (source.cancelled) return;
      if (bytes.byteLength > 0) return controller.enqueue(bytes);
      forgotten.unregister(source);
      controller.close();
      controller.byobRequest?.respond(0);
    },
    cancel() {
      source.cancelled = true;
      forgotten.unregister(source);
      if (source.id !== null) op_xs_bytes_close(source.id);
      else unwanted();
    },
  }, { highWaterMark: 0 });
  forgotten.register(stream, source, source);
  return stream;
}

const blobStream = (hash) => byteStream(() => op_xs_blob_open(hash));

// Stores what a stream or a Blob yields and returns the hash. Only a few chunks are in memory at a
// time.
async function upload(body) {
  const stream = body instanceof Blob ? body.stream() : body;
  const id = op_xs_upload();
  let ended = false;
  try {
    for await (const chunk of stream) {
      if (!ArrayBuffer.isView(chunk)) throw new TypeError(`a body's stream yields bytes, not ${nameOf(chunk)}`);
      // A refusal by the store is reported at the end.
      if (!(await op_xs_upload_write(id, viewBytes(chunk)))) break;
    }
    ended = true;
    return await op_xs_upload_end(id);
  } finally {
    if (!ended) op_xs_upload_drop(id);
  }
}

return { byteStream, blobStream, upload };
})();
