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
    read: (value) => inputs.map(({ part }) => textOf(value?.[part])).map((text, index) => (text === inputs[index].standard ? "" : text)),
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

/** Variables, one `NAME=value` a line, or as JSON where a line could not hold them. */
export const environment = {
  name: "env",
  inputs: [{ id: "env", rows: 4, placeholder: "NAME=value" }],
  read(value) {
    const given = isTexts(value) ? Object.entries(value) : [];
    const fits = ([name, text]) => name === name.trim() && name !== "" && !/[={\r\n]/.test(name) && !/[\r\n]/.test(text);
    return [given.length && given.every(fits) ? given.map((pair) => pair.join("=")).join("\n") : textOf(value)];
  },
  write([text]) {
    if (text.trim().startsWith("{")) {
      try {
        return JSON.parse(text);
      } catch {
        throw new Wrong(t("envNotJson"));
      }
    }
    const variables = new Map();
    for (const written of text.split("\n").filter((one) => one.trim())) {
      const at = written.indexOf("=");
      const name = written.slice(0, at).trim();
      if (at < 0) throw new Wrong(t("envNoValue", { line: written.trim() }));
      if (variables.has(name)) throw new Wrong(t("envTwice", { name }));
      variables.set(name, written.slice(at + 1));
    }
    return Object.fromEntries(variables);
  },
};

/** Every option, in the groups in which the form shows them. */
export const GROUPS = {
  times: [
    one("enabled", choice("true", "false")),
    one("startAt", line("2027-01-01T00:00:00Z")),
    one("endAt", line("2027-12-31T00:00:00Z")),
    one("timezone", line("Europe/Berlin")),
    one("dst", choice(undefined, "debian", "skip", "twice")),
    one("dialect", choice(undefined, "standard", "seed")),
    one("misfire", choice(undefined, "once", "skip", "all")),
    one("startDeadlineSeconds", number("60")),
    one("jitterSeconds", number("0")),
  ],
  ends: [
    one("timeoutSeconds", number()),
    one("killGraceSeconds", number("5")),
    one("concurrency", choice("forbid", "allow", "replace")),
    several("retry", { attempts: number("1"), backoff: number("10"), onLost: choice("false", "true") }),
    one("fence", choice("false", "true")),
  ],
  surroundings: [
    environment,
    one("workingDir", line()),
    one("user", line()),
    one("outputLimitBytes", bytes("1048576")),
    several("limits", { cpuSeconds: number(), memoryBytes: bytes(), openFiles: number(), fileBytes: bytes(), processes: number() }),
  ],
  workers: [labels("selector", "gpu=yes, zone=a")],
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
    if (option === environment) return [option.name, option.read(value)[0]];
    const parts = option.inputs[0].part && typeof value === "object" && Object.entries(value ?? {}).map(([part, one]) => `${part}: ${textOf(one)}`);
    return [option.name, parts?.length ? parts.join("\n") : textOf(value)];
  });
  const unknown = Object.fromEntries(Object.entries(stored).filter(([field]) => !OPTIONS.some((option) => option.name === field)));
  return { known, unknown };
}
