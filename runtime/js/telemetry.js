// A stub for Deno's telemetry, which deno_fetch expects and xs does not have: it is off.
(function () {
const { internals } = __bootstrap;
internals.__telemetry = {
  TRACING_ENABLED: false,
  PROPAGATORS: [],
  DID_NOT_ENTER: null,
  ContextManager: { active: () => null },
  builtinTracer: () => null,
  enterSpan: () => null,
  exitSpan: () => {},
};
internals.__telemetryUtil = {
  updateSpanFromClientResponse: () => {},
  updateSpanFromError: () => {},
  updateSpanFromRequest: () => {},
};
return {};
})();
