// What all views stand on: observable values, the caller and the API, polling, the address, language, theme, and how times are written.
import { h } from "./preact.js";
import { useEffect, useLayoutEffect, useReducer, useRef, useState } from "./preact-hooks.js";
import htm from "./htm.js";
import { texts } from "./texts.js";

export const html = htm.bind(h);

// ---- values that views follow ----

/** A value that views follow. */
export function cell(value) {
  const followers = new Set();
  return {
    get value() {
      return value;
    },
    set(next) {
      value = next;
      for (const follower of [...followers]) follower();
    },
    follow(follower) {
      followers.add(follower);
      return () => followers.delete(follower);
    },
  };
}

/** The value of a cell; the view is drawn again when it changes. */
export function useCell(followed) {
  const [, draw] = useReducer((drawn) => drawn + 1, 0);
  useLayoutEffect(() => followed.follow(draw), [followed]);
  return followed.value;
}

// Storage may be forbidden by the browser: then a choice lasts as long as the page.
function remembered(key) {
  try {
    return localStorage.getItem(`fleetcron.${key}`);
  } catch {
    return null;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(`fleetcron.${key}`, value);
  } catch {
    // The choice holds until the page is left.
  }
}

// ---- language and theme ----

function firstLanguage() {
  const chosen = remembered("language");
  if (chosen in texts) return chosen;
  return navigator.languages.map((language) => language.slice(0, 2).toLowerCase()).find((language) => language in texts) ?? "en";
}

export const language = cell(firstLanguage());
const LOCALES = { en: "en-GB", zh: "zh-CN" };

export function chooseLanguage(chosen) {
  remember("language", chosen);
  language.set(chosen);
}

function showLanguage() {
  document.documentElement.lang = LOCALES[language.value];
}
language.follow(showLanguage);
showLanguage();

export const THEMES = ["system", "light", "dark"];
const chosenTheme = remembered("theme");
export const theme = cell(THEMES.includes(chosenTheme) ? chosenTheme : "system");

export function chooseTheme(chosen) {
  remember("theme", chosen);
  theme.set(chosen);
}

function showTheme() {
  document.documentElement.dataset.theme = theme.value;
}
theme.follow(showTheme);
showTheme();

/** The text of a key in the reader's language; `{name}` in it is replaced by the value of that name. */
export function t(key, values = {}) {
  return pattern(key, values).replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** Like `t`, but values may be parts of the page, too. */
export function rich(key, values) {
  return pattern(key, values).split(/\{(\w+)\}/).map((part, index) => (index % 2 === 0 ? part : values[part]));
}

// A text may have a form for one beside the form for many.
function pattern(key, values) {
  const found = texts[language.value][key];
  if (found === undefined) throw new Error(`there is no text ${key}`);
  return Array.isArray(found) ? found[values.count === 1 ? 0 : 1] : found;
}

// ---- times ----

const cache = new Map();
function formatter(kind, make) {
  const key = `${kind} ${language.value}`;
  if (!cache.has(key)) cache.set(key, make(LOCALES[language.value]));
  return cache.get(key);
}

/** Whether a stored time is one: records of fires that were never started have 0. */
export const isTime = (ms) => Number.isFinite(ms) && ms > 0 && ms < 8.64e15;

/** `2026-11-21 09:15:03`, in UTC: schedules are in UTC, too. */
export const utc = (ms) => utcExact(ms).slice(0, -4);

/** With milliseconds. */
export function utcExact(ms) {
  return isTime(ms) ? new Date(ms).toISOString().replace("T", " ").slice(0, -1) : "";
}

/** The reader's own time, with its zone. */
export function local(ms) {
  if (!isTime(ms)) return "";
  const time = formatter("local", (locale) => new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "medium" })).format(ms);
  // Behind the time in every language: some put it between date and time.
  const zone = formatter("zone", (locale) => new Intl.DateTimeFormat(locale, { timeZoneName: "short" }));
  return `${time} ${zone.formatToParts(ms).find(({ type }) => type === "timeZoneName")?.value ?? ""}`;
}

const UNITS = [["day", 86400e3], ["hour", 3600e3], ["minute", 60e3], ["second", 1e3]];

/** `3 min ago`. */
export function ago(ms) {
  if (!isTime(ms)) return "";
  const make = (locale) => new Intl.RelativeTimeFormat(locale, { style: "short", numeric: "always" });
  const passed = ms - Date.now();
  const [unit, length] = UNITS.find(([, unitLength]) => Math.abs(passed) >= unitLength) ?? UNITS.at(-1);
  return formatter("ago", make).format(Math.trunc(passed / length), unit);
}

/** `1.2 s`, `3 min 20 s`. */
export function duration(ms) {
  if (!(ms >= 0)) return "";
  const plural = (number, unit, digits) => {
    const make = (locale) =>
      new Intl.NumberFormat(locale, { style: "unit", unit, unitDisplay: "narrow", maximumFractionDigits: digits });
    return formatter(`${unit} ${digits}`, make).format(number);
  };
  if (ms < 1000) return plural(ms, "millisecond", 0);
  if (ms < 60_000) return plural(ms / 1000, "second", 1);
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${plural(Math.floor(seconds / 60), "minute", 0)} ${plural(seconds % 60, "second", 0)}`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 48 * 60) return `${plural(Math.floor(minutes / 60), "hour", 0)} ${plural(minutes % 60, "minute", 0)}`;
  const hours = Math.round(minutes / 60);
  return `${plural(Math.floor(hours / 24), "day", 0)} ${plural(hours % 24, "hour", 0)}`;
}

/** The day of the week of a date like `2027-01-31`. */
export const weekday = (date) => formatter("weekday", (locale) => new Intl.DateTimeFormat(locale, { weekday: "short", timeZone: "UTC" })).format(Date.parse(date));

export function number(value) {
  return formatter("number", (locale) => new Intl.NumberFormat(locale)).format(value);
}

const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];

/** `1.5 MiB`: limits are set in powers of two. */
export function bytes(count) {
  const power = Math.min(Math.max(0, Math.floor(Math.log2(count) / 10)), BYTES.length - 1);
  const make = (locale) => new Intl.NumberFormat(locale, { maximumFractionDigits: 1 });
  return `${formatter("bytes", make).format(count / 1024 ** power)} ${BYTES[power]}`;
}

/** How long a text is. */
export function size(characters) {
  const make = (locale) => new Intl.NumberFormat(locale, { notation: "compact", maximumSignificantDigits: 3 });
  return t("characters", { number: formatter("compact", make).format(characters) });
}

// ---- the caller ----

const TOKEN = "fleetcron.token";
const stored = (storage) => {
  try {
    return window[storage].getItem(TOKEN);
  } catch {
    return null;
  }
};
// Kept for this tab alone, or for this browser when the reader asks for that. Never in an address: those are logged, remembered and sent on.
let token = stored("sessionStorage") ?? stored("localStorage") ?? "";

/** Who is signed in, as the API tells it; null: nobody, and the API asks for it; undefined: not known yet. */
export const caller = cell(undefined);
// Many views follow the caller: they are drawn again when something is new.
const learn = (who) => JSON.stringify(who) === JSON.stringify(caller.value) || caller.set(who);

/** What callers may do: each role may do what those before it may. */
export const ROLES = ["viewer", "operator", "editor", "admin"];

/** Whether the caller may do what takes `role`; what concerns the whole fleet is for those who have all jobs. The API asks the same, and means it. */
export const may = (role, fleet = false) => ROLES.indexOf(caller.value?.role) >= ROLES.indexOf(role) && !(fleet && caller.value.prefix);

/** Asks who the caller is. */
export async function whoAmI(signal) {
  const shown = token;
  const answer = await ask("token/self", { signal });
  if (shown === token) learn(answer.data);
  return answer;
}

/** Signs in by a token; `stay`: until somebody signs out, and not only in this tab. */
export async function signIn(typed, stay) {
  const { data } = await ask("token/self", { as: typed });
  forget();
  token = typed;
  try {
    window[stay ? "localStorage" : "sessionStorage"].setItem(TOKEN, token);
  } catch {
    // It is good until the page is left.
  }
  learn(data);
}

function forget() {
  token = "";
  for (const storage of ["sessionStorage", "localStorage"]) {
    try {
      window[storage].removeItem(TOKEN);
    } catch {
      // What could not be stored is not there.
    }
  }
}

/** Signs out: nothing that this reader has seen or typed stays in the page. */
export function signOut() {
  forget();
  try {
    sessionStorage.clear();
  } catch {
    // Nothing was stored.
  }
  location.reload();
}
// Signed out in another tab.
window.addEventListener("storage", ({ key, newValue }) => key === TOKEN && newValue === null && token !== "" && stored("sessionStorage") === null && signOut());

// ---- the API ----

/** Longer than the API itself waits for its stores. */
const ANSWER_MS = 15_000;

/** What went wrong with a call. `trouble`: the API or what is behind it is away, and trying again later may help. */
class Refused extends Error {
  constructor(message, status, trouble) {
    super(message);
    this.status = status;
    this.trouble = trouble;
  }
}

/**
 * Calls the API; addresses are relative, so that a stage before the path (`/prod/`) does not matter. Gives the envelope. With a `body` it
 * changes something: a `key` makes it safe to send again. `longer`: for how long the API may wait before it answers, in milliseconds. `as`: a token to
 * try in place of the caller's.
 */
export async function ask(path, { body, key, signal, longer = 0, as } = {}) {
  const shown = as ?? token;
  const end = AbortSignal.timeout(ANSWER_MS + longer);
  const options = { signal: signal ? AbortSignal.any([signal, end]) : end, cache: "no-store", credentials: "same-origin", headers: {} };
  if (shown) options.headers.authorization = `Bearer ${shown}`;
  if (body !== undefined) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    if (key) options.headers["idempotency-key"] = key;
    options.body = JSON.stringify(body);
  }
  let response, text;
  try {
    response = await fetch(path, options);
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(t(body === undefined ? "unreachable" : "unreachableWrite"), 0, true);
  }
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    answer = null;
  }
  if (response.ok && answer?.errno === 0) return { ...answer, length: text.length };
  // The token has expired or was revoked. What is shown and typed stays where it is, below the view that asks for another.
  if (response.status === 401 && as === undefined && shown === token) {
    forget();
    learn(null);
  }
  // A gateway that refuses by itself has its own words, or none.
  const said = answer?.msg || answer?.message || t("noEnvelope", { path, status: response.status });
  throw new Refused(String(said), response.status, response.status >= 500 || answer?.errno === undefined);
}

/** One job as it is now, or null. The first name with a prefix is the prefix itself, when there is a job of that name. */
export async function currentJob(name, signal) {
  const query = new URLSearchParams({ prefix: name, limit: 1 });
  const { data } = await ask(`job/list?${query}`, { signal });
  return data[0]?.name === name ? data[0] : null;
}

// ---- polling ----

const REFRESH_MS = 3000;
/** Large answers are asked for less often: a page of records may have megabytes of output. */
const REFRESH_MS_PER_BYTE = 1 / 50;
const REFRESH_MS_MAX = 30_000;

/** What the API's calls last met: by poll, why it fails. */
export const troubles = cell(new Map());
/** When an answer last came. */
export const answeredAt = cell(0);
/** Whether the reader has stopped the updates. */
export const paused = cell(false);

const polls = new Set();
const idle = () => document.hidden || paused.value || caller.value === null;

/** Asks everything that is shown anew, now. */
export function refresh() {
  for (const poll of polls) poll.now();
}
document.addEventListener("visibilitychange", () => !document.hidden && !paused.value && refresh());
paused.follow(() => !paused.value && refresh());
caller.follow(() => caller.value && refresh());

function setTrouble(id, message) {
  if (troubles.value.get(id) === message) return;
  const next = new Map(troubles.value);
  if (message === undefined) next.delete(id);
  else next.set(id, message);
  troubles.set(next);
}

/**
 * Calls `load(signal)` now and every few seconds; gives the last good answer and what is wrong now. `key` names what is asked for: under
 * another key the old answer is not shown. Stands still while the page is hidden or paused, and after an answer that is `settled`.
 */
export function usePoll(key, load, every = REFRESH_MS) {
  const [result, setResult] = useState({ key: null });
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    if (key === null) return undefined;
    const poll = { now: () => look() };
    let timer, control;
    async function look() {
      clearTimeout(timer);
      control?.abort();
      const mine = (control = new AbortController());
      let wait = every;
      try {
        const data = await latest.current(mine.signal);
        if (mine.signal.aborted) return;
        wait = data.settled ? Infinity : Math.min(Math.max(every, (data.length ?? 0) * REFRESH_MS_PER_BYTE), Math.max(every, REFRESH_MS_MAX));
        setTrouble(poll, undefined);
        answeredAt.set(Date.now());
        setResult({ key, data, error: null });
      } catch (error) {
        if (mine.signal.aborted) return;
        if (!(error instanceof Refused)) console.error(error);
        // Once somebody has signed in, everything is asked anew.
        if (error.status === 401) return setTrouble(poll, undefined);
        setTrouble(poll, error.trouble ? error.message : undefined);
        setResult((old) => ({ key, data: old.key === key ? old.data : undefined, error }));
        wait = Math.max(every, REFRESH_MS);
      }
      if (wait !== Infinity) timer = setTimeout(() => !idle() && look(), wait);
    }
    polls.add(poll);
    look();
    return () => {
      polls.delete(poll);
      clearTimeout(timer);
      control?.abort();
      setTrouble(poll, undefined);
    };
  }, [key]);
  return result.key === key ? result : { key, data: undefined, error: null };
}

// ---- the address ----

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** `#/jobs/a%20b/edit?x=1` as parts and query. */
function parseHash(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  return { parts: path.split("/").filter((part) => part !== "").map(decoded), query: new URLSearchParams(query) };
}

/** The address of a view; empty values of the query are left out. */
export function link(parts, query = {}) {
  const filled = Object.entries(query).filter(([, value]) => value !== "" && value !== undefined && value !== null && value !== 0);
  const search = new URLSearchParams(filled).toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${search ? `?${search}` : ""}`;
}

export const route = cell(parseHash(location.hash));
window.addEventListener("hashchange", () => route.set(parseHash(location.hash)));

/** Goes to a view; `replace`: without a step for Back. */
export function go(address, replace = false) {
  if (replace) location.replace(address);
  else location.hash = address;
}

// ---- what is said in passing ----

const SAID_MS = 6000;
export const said = cell([]);
let saidNext = 0;

/**
 * Says that something was done, with a `link` to where it is seen. With warnings it stays until it is dismissed; without, it makes room for the
 * next, so that what was said does not pile up over the buttons below.
 */
export function say(text, { warnings = [], link = "" } = {}) {
  const id = ++saidNext;
  said.set([...said.value.filter((toast) => toast.warnings.length).slice(-2), { id, text, warnings, link }]);
  if (warnings.length === 0) setTimeout(() => unsay(id), SAID_MS);
}

export function unsay(id) {
  said.set(said.value.filter((toast) => toast.id !== id));
}

/** The question that is open, if one is: `{ kind, name, runId, version }`. */
export const confirming = cell(null);
