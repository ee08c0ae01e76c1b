// Programs that modules run: their streams and their status, over plain ops.
(function () {
const { core } = __bootstrap;
const {
  op_xs_child_close, op_xs_child_kill, op_xs_child_output, op_xs_child_status, op_xs_child_unwanted, op_xs_child_write,
  op_xs_spawn,
} = core.ops;
const { parse } = JSON;
const { byteStream } = core.loadExtScript("ext:xs_runtime/bytes.js");
const { optionsText, viewBytes, nameOf } = core.loadExtScript("ext:xs_runtime/values.js");

function bytesOf(chunk) {
  if (typeof chunk === "string") return new TextEncoder().encode(chunk);
  if (ArrayBuffer.isView(chunk)) return viewBytes(chunk);
  if (chunk instanceof ArrayBuffer) return new Uint8Array(chunk);
  throw new TypeError(`stdin takes text and bytes, not ${nameOf(chunk)}`);
}

// Starts a program in a scope; it is killed when the scope ends.
function spawn(scope, command, args = [], options = {}) {
  const { cwd, env, stdin: input } = options;
  const request = { command: String(command), args: [...args].map(String), cwd, env };
  const child = op_xs_spawn(optionsText(request, "spawn()"));
  const forget = scope.onEnd(() => op_xs_child_kill(child, "SIGKILL"));
  const status = op_xs_child_status(child).then((text) => {
    forget();
    return parse(text);
  });
  const stdin = new WritableStream({
    write: (chunk) => op_xs_child_write(child, bytesOf(chunk)),
    close: () => op_xs_child_close(child),
    abort: () => op_xs_child_close(child),
  });
  if (input !== undefined) {
    const source = input instanceof ReadableStream ? input : new Blob([input]).stream();
    // A program may end without reading all of its input; that is no error.
    source.pipeTo(stdin).catch(() => {});
  }
  const output = (which) =>
    byteStream(async () => op_xs_child_output(child, which), () => op_xs_child_unwanted(child, which));
  return Object.freeze({
    stdin,
    stdout: output(1),
    stderr: output(2),
    status,
    kill: (signal = "SIGTERM") => op_xs_child_kill(child, String(signal)),
  });
}

return { spawn };
})();
