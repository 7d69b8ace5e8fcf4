// The options of a job beyond its name, schedule and command: what stands for each in the form, and what the API gets of it.
import { t } from "./core.js";

/** A fault that the form finds itself, since the API could not tell it from what is sent. */
class Wrong extends Error {}

// What no field could hold stands there as JSON, and goes as it stands: the API says what is wrong with it.
const textOf = (value) => (value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value));
const isTexts = (value) => typeof value === "object" && value !== null && Object.values(value).every((one) => typeof one === "string");
const wholeNumber = (text) => (/^\s*\d+\s*$/.test(text) ? Number(text) : text);
const word = (text) => (text === "true" ? true : text === "false" ? false : text);

// ---- how an input looks ----

const line = (placeholder = "") => ({ placeholder, mono: true, write: (text) => text });
const number = (placeholder = "") => ({ placeholder, numeric: true, write: wholeNumber });
const bytes = (placeholder = "") => ({ ...number(placeholder), bytes: true });
/** A list of words; none at all is written `[]`. */
const words = (placeholder) => ({
  ...line(placeholder),
  read: (value) => (Array.isArray(value) && value.length && value.every((one) => typeof one === "string") ? value.join(", ") : textOf(value)),
  write: (text) => (text.trim() === "[]" ? [] : text.split(/[\s,]+/).filter(Boolean)),
});
/** `standard` is what is meant when nothing is given; `undefined` = the fleet's settings say. */
const choice = (standard, ...others) => ({ choices: ["", ...others], standard, write: word });

// ---- options ----

/** An option of one input. */
const one = (name, input) => ({ name, inputs: [{ ...input, id: name }], read: (value) => [textOf(value)], write: ([text]) => input.write(text) });

/** An option that is an object, with an input for each of its fields. A field that says what is meant anyway is as one that is left out. */
function several(name, parts) {
  const inputs = Object.entries(parts).map(([part, input]) => ({ ...input, part, id: `${name}-${part}` }));
  return {
    name,
    inputs,
    read: (value) => inputs.map(({ part, read = textOf }) => read(value?.[part])).map((text, index) => (text === inputs[index].standard ? "" : text)),
    write: (texts) => Object.fromEntries(inputs.map(({ part, write }, index) => [part, texts[index].trim() && write(texts[index])]).filter(([, value]) => value !== "")),
  };
}

/** Labels like `gpu=yes, zone=a`, or as JSON where they have commas or outer blanks. */
const labels = (name, placeholder) => ({
  name,
  inputs: [{ ...line(placeholder), id: name }],
  read(value) {
    const given = isTexts(value) ? Object.entries(value) : [];
    const fits = ([label, text]) => !/[,={]/.test(label) && !text.includes(",") && text === text.trim();
    return [given.length && given.every(fits) ? given.map((pair) => pair.join("=")).join(", ") : textOf(value)];
  },
  write([text]) {
    if (text.trim().startsWith("{")) {
      try {
        return JSON.parse(text);
      } catch {
        throw new Wrong(t("labelsNotJson"));
      }
    }
    const pairs = text.split(",").map((pair) => pair.split("="));
    return Object.fromEntries(pairs.map(([label, ...value]) => [label.trim(), value.length ? value.join("=").trim() : null]));
  },
});

/** Names and values, one pair a line, or as JSON where a line could not hold them. `told` are the texts of what may be wrong. */
const pairs = (separator, told) => ({
  read(value) {
    const given = isTexts(value) ? Object.entries(value) : [];
    const fits = ([name, text]) => name === name.trim() && name !== "" && !name.includes(separator.trim()) && !/[{\r\n]/.test(name) && !/[\r\n]/.test(text);
    return given.length && given.every(fits) ? given.map((pair) => pair.join(separator)).join("\n") : textOf(value);
  },
  write(text) {
    if (text.trim().startsWith("{")) {
      try {
        return JSON.parse(text);
      } catch {
        throw new Wrong(t(told.notJson));
      }
    }
    const found = new Map();
    for (const written of text.split("\n").filter((one) => one.trim())) {
      const at = written.indexOf(separator.trim());
      const name = written.slice(0, at).trim();
      if (at < 0) throw new Wrong(t(told.noValue, { line: written.trim() }));
      if (found.has(name)) throw new Wrong(t(told.twice, { name }));
      const value = written.slice(at + separator.trim().length);
      found.set(name, separator.endsWith(" ") ? value.trim() : value);
    }
    return Object.fromEntries(found);
  },
});

const variables = pairs("=", { notJson: "envNotJson", noValue: "envNoValue", twice: "envTwice" });

/** Variables like `NAME=value`. */
export const environment = {
  name: "env",
  inputs: [{ id: "env", rows: 4, placeholder: "NAME=value" }],
  read: (value) => [variables.read(value)],
  write: ([text]) => variables.write(text),
};

const headers = pairs(": ", { notJson: "headersNotJson", noValue: "headerNoValue", twice: "headerTwice" });
const statuses = {
  read: (value) => (Array.isArray(value) ? value.map(textOf).join(", ") : textOf(value)),
  write: (text) => text.split(",").map((one) => wholeNumber(one.trim())),
};

/** The request that is sent in place of running a command. What the answer must be has two inputs among the others. */
const request = {
  name: "http",
  inputs: [
    { ...choice("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"), part: "method", id: "http-method" },
    { ...line("https://example.com/hook"), part: "url", id: "http-url" },
    { rows: 2, placeholder: "Content-Type: application/json", part: "headers", id: "http-headers" },
    { rows: 3, part: "body", id: "http-body" },
    { ...line("2xx"), part: "status", id: "http-status" },
    { ...line(), part: "contains", id: "http-contains" },
    { ...number("0"), part: "followRedirects", id: "http-followRedirects" },
  ],
  read(value) {
    const given = typeof value === "object" && value !== null ? value : { url: value };
    const method = given.method === "GET" ? "" : textOf(given.method);
    const [status, contains] = [statuses.read(given.expect?.status), textOf(given.expect?.body)];
    return [method, textOf(given.url), headers.read(given.headers), textOf(given.body), status, contains, textOf(given.followRedirects)];
  },
  write([method, url, head, body, status, contains, redirects]) {
    const expect = { ...(status.trim() && { status: statuses.write(status) }), ...(contains && { body: contains }) };
    return {
      ...(method && { method }),
      ...(url.trim() && { url: url.trim() }),
      ...(head.trim() && { headers: headers.write(head) }),
      ...(body && { body }),
      ...(Object.keys(expect).length && { expect }),
      ...(redirects.trim() && { followRedirects: wholeNumber(redirects) }),
    };
  },
};

/** What a job does, in a text: its command, or the request that it sends. */
export const workOf = ({ command, http }) => command || (http?.url ? `${textOf(http.method) || "GET"} ${textOf(http.url)}` : "");

/** Names of jobs, one a line. */
const predecessors = {
  name: "after",
  inputs: [{ id: "after", rows: 2, placeholder: "extract" }],
  read: (value) => [Array.isArray(value) && value.every((one) => typeof one === "string" && one === one.trim() && !one.includes("\n")) ? value.join("\n") : textOf(value)],
  write: ([text]) => text.split("\n").map((one) => one.trim()).filter(Boolean),
};

/** Names of calendars, which may have blanks: typed, or chosen among those that there are. */
const calendars = (placeholder) => ({
  ...line(placeholder),
  calendars: true,
  read: (value) => (Array.isArray(value) && value.every((one) => typeof one === "string") ? value.join(", ") : textOf(value)),
  write: (text) => text.split(",").map((one) => one.trim()).filter(Boolean),
});

/** Every option, in the groups in which the form shows them. */
export const GROUPS = {
  request: [request],
  times: [
    one("enabled", choice("true", "false")),
    predecessors,
    one("startAt", line("2027-01-01T00:00:00Z")),
    one("endAt", line("2027-12-31T00:00:00Z")),
    one("timezone", line("Europe/Berlin")),
    one("dst", choice(undefined, "debian", "skip", "twice")),
    one("dialect", choice(undefined, "standard", "seed")),
    several("calendars", { exclude: calendars("holidays"), only: calendars("working days") }),
    one("misfire", choice(undefined, "once", "skip", "all")),
    one("startDeadlineSeconds", number("60")),
    one("jitterSeconds", number("0")),
  ],
  ends: [
    one("timeoutSeconds", number()),
    one("killGraceSeconds", number("5")),
    one("concurrency", choice("forbid", "allow", "replace")),
    several("retry", { attempts: number("1"), backoff: number("10"), onLost: choice("", "true", "false") }),
    one("fence", choice("false", "true")),
    several("notify", { to: words("ops"), on: words("failure, timeout, lost, misfire, recovery"), notSucceededForSeconds: number() }),
  ],
  surroundings: [
    environment,
    one("workingDir", line()),
    one("user", line()),
    one("outputLimitBytes", bytes("1048576")),
    several("limits", { cpuSeconds: number(), memoryBytes: bytes(), openFiles: number(), fileBytes: bytes(), processes: number() }),
  ],
  workers: [labels("selector", "gpu=yes, zone=a"), one("mode", choice("single", "broadcast"))],
  about: [{ ...one("description", { write: (text) => text }), inputs: [{ id: "description", rows: 3, plain: true }] }, labels("labels", "team=ops")],
};

const OPTIONS = Object.values(GROUPS).flat();

/** What the API calls the fields, for its faults. */
export const NAMES = ["name", "cronExpr", "command", ...OPTIONS.map(({ name }) => name)];

/** Where in the form the option's fault is mended first. */
export const firstInput = (name) => OPTIONS.find((option) => option.name === name)?.inputs[0].id ?? name;

/** A job as it stands in the form: a text for each input. */
export function fieldsOf(job) {
  const fields = { name: job.name ?? "", cronExpr: job.cronExpr ?? "", command: job.command ?? "" };
  for (const option of OPTIONS) {
    const texts = option.read(job[option.name]);
    option.inputs.forEach(({ id }, index) => (fields[id] = texts[index]));
  }
  return fields;
}

const textsOf = (option, fields) => option.inputs.map(({ id }) => fields[id] ?? "");

/** Whether an option is given in the form. */
export const isGiven = (option, fields) => textsOf(option, fields).some((text) => text.trim());

/** The names of what differs between two forms. */
export function differing(some, others) {
  const differs = (ids) => ids.some((id) => (some[id] ?? "") !== (others[id] ?? ""));
  const plain = ["name", "cronExpr", "command"].filter((id) => differs([id]));
  return [...plain, ...OPTIONS.filter(({ inputs }) => differs(inputs.map(({ id }) => id))).map(({ name }) => name)];
}

/** The value of an option as the API takes it, from the texts of its inputs; `{ fault }` when they say none. */
export function valueOf(option, texts) {
  try {
    return { value: option.write(texts) };
  } catch (error) {
    if (!(error instanceof Wrong)) throw error;
    return { fault: error.message };
  }
}

/** The form as the API takes it, with the faults that the form itself knows of. What is left empty is left out. */
export function toSend(fields) {
  const job = { name: fields.name, cronExpr: fields.cronExpr, command: fields.command };
  const faults = {};
  for (const option of OPTIONS.filter((option) => isGiven(option, fields))) {
    const { value, fault } = valueOf(option, textsOf(option, fields));
    if (fault) faults[option.name] = [fault];
    else job[option.name] = value;
  }
  return { job, faults };
}

/** What a stored job gives: `[name, text]` for each option that this version knows, and what else it has. */
export function given({ name, command, cronExpr, ...stored }) {
  const known = OPTIONS.filter((option) => stored[option.name] !== undefined).map((option) => {
    const value = stored[option.name];
    if (option === environment || option === predecessors) return [option.name, option.read(value)[0]];
    const parts = option.inputs[0].part && typeof value === "object" && Object.entries(value ?? {}).map(([part, one]) => `${part}: ${textOf(one)}`);
    return [option.name, parts?.length ? parts.join("\n") : textOf(value)];
  });
  const unknown = Object.fromEntries(Object.entries(stored).filter(([field]) => !OPTIONS.some((option) => option.name === field)));
  return { known, unknown };
}
