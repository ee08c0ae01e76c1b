// Local times according to the standard. The engine looks up the offset from UTC as if the local
// time were UTC, which is wrong in the hours around a clock change.
(function () {
const { defineProperty } = Object;
const { apply, construct } = Reflect;
const MINUTE = 60_000, DAY = 86_400_000;
// The setters of local parts; each has a counterpart for UTC.
const PARTS = ["Milliseconds", "Seconds", "Minutes", "Hours", "Date", "Month", "FullYear"];
// Years that show whether this zone ever changes its clock or differs from UTC.
const YEARS = [1970, 1980, 1990, 2000, 2010, 2020, 2030];
// ISO 8601 with a time of day but no offset; the next ones match dates without a time, and texts
// with a zone or an offset.
const ISO = /^(?:[+-]\d{2})?\d{4}(?:-\d\d(?:-\d\d)?)?T[\d:.,]+$/;
const ISO_DAY = /^(?:[+-]\d{2})?\d{4}(?:-\d\d(?:-\d\d)?)?$/;
const ZONED = /[+-]\d{2}:?\d{2}|[+-]\d+\s*$|\b(?:z|utc?|gmt|[ecmp][sd]t)\b|\dz\b|\(/i;

// Whether all times are those of UTC.
function isUtc(RealDate) {
  const is = (year, month) => new RealDate(RealDate.UTC(year, month)).getTimezoneOffset() === 0;
  return YEARS.every((year) => is(year, 0) && is(year, 6));
}

function install(globalThis) {
  const RealDate = globalThis.Date;
  if (isUtc(RealDate)) return;
  const { prototype, UTC, parse: parsed } = RealDate;
  const { getTime, setTime, getTimezoneOffset } = prototype;
  const offset = (at) => apply(getTimezoneOffset, new RealDate(at), []) * MINUTE;
  // The instant of local parts that are given as if they were UTC. A time that occurs twice means
  // the first occurrence; a skipped time takes the offset before the change.
  const instant = (local) => {
    const before = local + offset(local - DAY), after = local + offset(local + DAY);
    return offset(before) !== before - local && offset(after) === after - local ? after : before;
  };
  for (const part of PARTS) {
    const set = prototype[`setUTC${part}`], name = `set${part}`;
    put(prototype, name, {
      [name](...parts) {
        const at = apply(getTime, this, []);
        const local = new RealDate(at - offset(at));
        apply(set, local, parts);
        return apply(setTime, this, [instant(apply(getTime, local, []))]);
      },
    }[name], set.length);
  }
  put(prototype, "setYear", {
    setYear(year) {
      const number = Math.trunc(Number(year));
      return this.setFullYear(number >= 0 && number <= 99 ? 1900 + number : number);
    },
  }.setYear, 1);
  const parse = {
    parse(text) {
      const given = String(text), at = parsed(given), trimmed = given.trim();
      if (Number.isNaN(at) || ISO_DAY.test(trimmed)) return at;
      const isIso = ISO.test(trimmed);
      if (!isIso && ZONED.test(trimmed)) return at;
      const local = parsed(isIso ? `${trimmed}Z` : `${trimmed} UTC`);
      // Otherwise the text was not a local time after all.
      return at === local + offset(local) ? instant(local) : at;
    },
  }.parse;
  // A function and not a class: called without `new` it gives the time as text.
  const Date = function Date(...args) {
    if (new.target === undefined) return RealDate();
    if (args.length > 1) args = [instant(apply(UTC, RealDate, args))];
    else if (typeof args[0] === "string") args = [parse(args[0])];
    return construct(RealDate, args, new.target);
  };
  defineProperty(Date, "length", { value: 7, configurable: true });
  defineProperty(Date, "prototype", { value: prototype, writable: false });
  put(prototype, "constructor", Date);
  put(Date, "now", RealDate.now);
  put(Date, "parse", parse);
  put(Date, "UTC", UTC);
  put(globalThis, "Date", Date);
}

function put(object, name, value, length = value.length) {
  defineProperty(value, "length", { value: length, configurable: true });
  defineProperty(object, name, { value, configurable: true, enumerable: false, writable: true });
}

return { install };
})();
