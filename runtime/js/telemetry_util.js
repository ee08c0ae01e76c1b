// telemetry.js fills in both halves.
(function () {
return {};
})();
