// telemetry.js provides both parts.
(function () {
return {};
})();
