// Corrects what the engine says about languages and time zones. It has no locale data: its `Intl`
// is a stub with made-up results, and methods that take a locale or options ignore them.
(function () {
const { defineProperty, getPrototypeOf } = Object;
const { apply } = Reflect;

const KINDS = ["Duration", "Instant", "PlainDate", "PlainDateTime", "PlainMonthDay", "PlainTime", "PlainYearMonth", "ZonedDateTime"];
// The methods of Temporal.Now that take a zone.
const ZONED = ["plainDateISO", "plainDateTimeISO", "plainTimeISO", "zonedDateTimeISO"];

const replace = (object, name, value) => {
  defineProperty(object, name, { value, configurable: true, enumerable: false, writable: true });
};

// Makes a method refuse a locale and options: any arguments after the first `own`.
function plain(prototype, name, own = 0, method = prototype[name]) {
  replace(prototype, name, {
    [name](...args) {
      if (args.slice(own).some((given) => given !== undefined)) {
        throw new TypeError(`${name}() takes no locale and no options in a module, which has no language data; ` +
          "use Temporal for time zones, toFixed() and the like for numbers, or bundle a package that brings its data");
      }
      return apply(method, this, args.slice(0, own));
    },
  }[name]);
}

// The server's zone as its current offset from UTC, which is all that the engine knows of it.
function zoneHere() {
  const minutes = -new Date().getTimezoneOffset();
  if (minutes === 0) return "UTC";
  const two = (number) => String(Math.trunc(number)).padStart(2, "0");
  return `${minutes < 0 ? "-" : "+"}${two(Math.abs(minutes) / 60)}:${two(Math.abs(minutes) % 60)}`;
}

// The function that Temporal asks for time zone rules returns a year that is one too high for years
// BC.
function mendRules(globalThis) {
  const rules = globalThis.__v8xTemporalTimeZone;
  replace(globalThis, "__v8xTemporalTimeZone", (ms, zone) => {
    const parts = rules(Number(ms), String(zone));
    if (parts.era === "BC") parts.year -= 1;
    return parts;
  });
}

// Must run while Intl still exists.
function install(globalThis) {
  const { Temporal } = globalThis;
  mendRules(globalThis);
  for (const name of ["toLocaleString", "toLocaleDateString", "toLocaleTimeString"]) plain(Date.prototype, name);
  for (const kind of [Number, BigInt, Array, getPrototypeOf(Uint8Array)]) plain(kind.prototype, "toLocaleString");
  for (const name of ["toLocaleLowerCase", "toLocaleUpperCase"]) plain(String.prototype, name);
  plain(String.prototype, "localeCompare", 1);
  for (const kind of KINDS) {
    const { prototype } = Temporal[kind];
    plain(prototype, "toLocaleString", 0, prototype.toString);
  }
  const now = Temporal.Now;
  // Temporal looks for Intl for the last time when the first zone is named.
  now.zonedDateTimeISO("Etc/UTC");
  replace(now, "timeZoneId", () => zoneHere());
  for (const name of ZONED) {
    const at = now[name];
    replace(now, name, (zone = zoneHere()) => at(zone));
  }
}

return { install };
})();
