// The conditions of the list: what the gateway filters by, and the same for the generations that the page knows.

import { now } from "./gateway.js";

/**
 * @typedef {{status?: string, model?: string, code?: string, upstream?: string, group?: string, tenant?: string,
 *   search?: string, since?: string, until?: string}} Filter
 *   "" for any; `since` is a span before now ("15m", "2h", "7d") or, as `until`, a time by ISO 8601
 */

const NAMES = ["status", "model", "code", "upstream", "group", "tenant", "search", "since", "until"];
const UNITS = { m: 60, h: 3600, d: 86400 };
const DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"; // of ids

/** Returns the query of a filter, which names it; "" for none. @param {Filter} filter */
export function queryOf(filter = {}) {
  return new URLSearchParams(NAMES.filter((name) => filter[name]).map((name) => [name, filter[name]])).toString();
}

/** Returns the unix seconds that `since` or `until` mean; NaN if they mean nothing. */
export function secondsOf(text) {
  const [, number, unit] = text.match(/^(\d{1,4})([mhd])$/) ?? [];
  return unit ? Math.floor(now() / 1000) - number * UNITS[unit] : Date.parse(text) / 1000;
}

/** Returns the filter as the gateway takes it: with the times as unix seconds. @param {Filter} filter */
export function conditionsOf(filter) {
  const given = NAMES.filter((name) => filter[name] && !(name === "search" && !filter.search.trim()));
  const value = (name) => (name === "since" || name === "until" ? secondsOf(filter[name]) : filter[name]);
  return Object.fromEntries(given.map((name) => [name, value(name)]).filter(([, one]) => !Number.isNaN(one)));
}

/** Returns the time in an id, unix ms. */
export function createdMs(id) {
  return [...id.slice(4, 14)].reduce((value, digit) => value * 32 + DIGITS.indexOf(digit), 0);
}

/** Returns a function that says whether a generation meets the conditions. @param {Filter} filter */
export function matcher(filter) {
  const { since = -Infinity, until = Infinity, search = "" } = conditionsOf(filter);
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const same = ["status", "model", "upstream", "group", "tenant"].filter((name) => filter[name]);
  return (one) =>
    same.every((name) => one[name] === filter[name]) &&
    (!filter.code || one.error?.code === filter.code) &&
    since <= one.created_at &&
    one.created_at < until &&
    (!words.length || has(one, words));
}

function has(one, words) {
  const { id, model, group, upstream, error, prompt, tenant, metadata } = one;
  const labels = Object.entries(metadata).map(([name, value]) => `${name}=${value}`);
  const text = [id, model, group, upstream, error?.code, prompt, tenant, ...labels].join("\n").toLowerCase();
  return words.every((word) => (word.startsWith("gen_") ? id.startsWith(word) : text.includes(word)));
}
