// The console: shows the jobs, the workers and a job's records, asking again every few seconds; saves, deletes and kills.
// Everything that comes from outside is inserted as text, never as markup.
"use strict";

const REFRESH_MS = 3000;
const SAID_MS = 8000;
const JOBS_SHOWN = 200;
const RECORDS_SHOWN = 20;
const RECORDS_SHOWN_MAX = 200;
const FIELDS = ["name", "cronExpr", "command"];

const at = (id) => document.getElementById(id);
let chosen = null; // the job whose records are shown
let after = ""; // the page of jobs begins behind this name
let jobsNext = null;
let recordsLimit = RECORDS_SHOWN;
let asking = false;
const jobRows = new Map(); // the rows on the page, by what they show
const recordRows = new Map();

async function ask(path, fields) {
  const options = fields ? { method: "POST", body: new URLSearchParams(fields) } : { cache: "no-store" };
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(15000) });
  } catch {
    throw new Error("The API does not answer. Is it still running?");
  }
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Error(`${path} answered ${response.status}, and no JSON`);
  }
  // A gateway that refuses by itself has its own words.
  if (answer?.errno !== 0) throw new Error(answer?.msg ?? answer?.message ?? `${path} answered ${response.status}`);
  return answer;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function button(text, label, className, act) {
  const made = element("button", text, className);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

// A row of cells, each with the label that it has where there is no room for columns.
function row(cells) {
  const made = element("tr");
  for (const [label, content, className] of cells) {
    const cell = element("td", undefined, className);
    cell.dataset.label = label;
    cell.append(...[].concat(content));
    made.append(cell);
  }
  return made;
}

// Shows `items` in a table. Rows that stay are left where they are: focus, selection and scrolled output survive the refresh.
function place(table, rows, items, make) {
  const body = table.tBodies[0];
  const wanted = items.map((item) => {
    const key = JSON.stringify(item);
    return [key, rows.get(key) ?? make(item)];
  });
  rows.clear();
  for (const [key, made] of wanted) rows.set(key, made);
  const staying = new Set(rows.values());
  for (const old of [...body.rows]) if (!staying.has(old)) old.remove();
  wanted.forEach(([, made], index) => {
    if (body.rows[index] !== made) body.insertBefore(made, body.rows[index] ?? null);
  });
  table.hidden = items.length === 0;
}

let saying;
function say(text, bad) {
  clearTimeout(saying);
  at("said").textContent = text;
  at("said").className = bad ? "bad" : "good";
  saying = setTimeout(() => (at("said").textContent = ""), SAID_MS);
}

function jobRow(job) {
  const name = job.name;
  const made = row([
    ["Name", button(name, `Show the runs of ${name}`, "link", () => choose(name)), "name"],
    ["Schedule", element("code", job.cronExpr), "schedule"],
    ["Command", element("code", job.command, "box"), "text"],
    ["", [
      button("Edit", `Edit ${name}`, "", () => edit(job)),
      button("Kill run", `Kill the run of ${name}`, "", () => kill(name)),
      button("Delete", `Delete ${name}`, "bad", () => remove(name)),
    ], "actions"],
  ]);
  made.dataset.name = name;
  return made;
}

function showChosen() {
  for (const made of at("jobs").tBodies[0].rows) made.setAttribute("aria-current", String(made.dataset.name === chosen));
}

async function showJobs() {
  const answer = await ask(`job/list?limit=${JOBS_SHOWN}&after=${encodeURIComponent(after)}`);
  jobsNext = answer.next ?? null;
  at("no-jobs").hidden = answer.data.length > 0 || after !== "";
  at("jobs-more").hidden = jobsNext === null && after === "";
  at("jobs-next").textContent = jobsNext === null ? "first page" : "next page";
  place(at("jobs"), jobRows, answer.data, jobRow);
  showChosen();
  return answer.warnings ?? [];
}

async function showWorkers() {
  const answer = await ask("worker/list");
  const count = answer.data.length;
  at("workers").textContent =
    count === 0 ? "No worker is alive: nothing will run." : `${count} ${count === 1 ? "worker" : "workers"}: ${answer.data.join(", ")}`;
  at("workers").className = count === 0 ? "bad" : "";
}

// Schedules are in UTC, so that is what is shown; the reader's own time is in the hint.
function time(ms) {
  const date = new Date(ms || NaN);
  if (Number.isNaN(date.getTime())) return "";
  const made = element("time", date.toISOString().replace("T", " ").slice(0, -5));
  made.dateTime = date.toISOString();
  made.title = `${date.toISOString()}, here ${date.toLocaleString()}`;
  return made;
}

function duration(ms) {
  if (!(ms >= 0)) return "";
  if (ms < 1000) return `${ms} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${seconds % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// A skip is no failure, and nothing is known of how a lost run ended.
const LOOKS = { succeeded: "good", skipped: "dim", lost: "doubt" };

function recordRow(record) {
  const status = record.status ?? (record.err ? "failed" : "succeeded");
  const look = LOOKS[status] ?? "bad";
  const ran = status !== "skipped" && status !== "lost";
  const texts = [];
  if (record.err) texts.push(element("div", record.err, look === "good" ? "" : look));
  if (record.output) texts.push(element("pre", record.output, "box"));
  if (record.outputTruncated) texts.push(element("div", "The output was longer than is kept.", "dim"));
  return row([
    ["Started (UTC)", time(record.startTime || record.planTime), "when"],
    ["Took", ran ? duration(record.endTime - record.startTime) : "", "when"],
    ["Late by", ran ? duration(Math.max(0, record.startTime - record.planTime)) : "", "when"],
    ["Status", element("span", status, `status ${look}`), ""],
    ["Worker", record.worker ?? "", "worker"],
    ["", texts, "text"],
  ]);
}

async function showRecords() {
  if (chosen === null) return [];
  const name = chosen;
  const answer = await ask(`job/log?name=${encodeURIComponent(name)}&limit=${recordsLimit}`);
  if (name !== chosen) return []; // another job was clicked meanwhile
  at("log").hidden = false;
  at("log-title").textContent = `Runs of ${name}`;
  at("no-records").hidden = answer.data.length > 0;
  at("records-more").hidden = answer.next === undefined;
  at("records-next").hidden = recordsLimit === RECORDS_SHOWN_MAX;
  place(at("records"), recordRows, answer.data, recordRow);
  return answer.warnings ?? [];
}

async function refresh() {
  if (asking) return;
  asking = true;
  const results = await Promise.allSettled([showJobs(), showWorkers(), showRecords()]);
  asking = false;
  const troubles = results.flatMap((r) => (r.status === "rejected" ? [r.reason.message] : (r.value ?? [])));
  const text = [...new Set(troubles)].join(" · ");
  // An alert that is written again is read out again.
  if (at("trouble").textContent !== text) at("trouble").textContent = text;
  at("trouble").hidden = text === "";
}

async function choose(name) {
  chosen = name;
  recordsLimit = RECORDS_SHOWN;
  showChosen();
  try {
    await showRecords();
    at("log").scrollIntoView({ block: "start" });
  } catch (error) {
    say(error.message, true);
  }
}

function edit(job) {
  const form = at("save");
  for (const field of FIELDS) form.elements[field].value = job[field];
  showFault("");
  at("save-title").scrollIntoView({ block: "start" });
  form.elements.command.focus({ preventScroll: true });
}

async function act(path, fields, done) {
  try {
    const answer = await ask(path, fields);
    say([done(answer.data), ...(answer.warnings ?? [])].filter(Boolean).join(" · "), false);
    await refresh();
  } catch (error) {
    say(error.message, true);
  }
}

async function remove(name) {
  if (window.confirm(`Delete the job "${name}"? Its records stay.`)) {
    await act("job/delete", { name }, (job) => (job ? `Deleted ${name}.` : `There was no job ${name} any more.`));
  }
}

async function kill(name) {
  if (window.confirm(`Kill the run of "${name}" that is going now?`)) {
    // When no run is named, the answer's warning says why.
    await act("job/kill", { name }, (data) => (data.runIds.length > 0 ? `Asked to kill the run of ${name}.` : ""));
  }
}

// The API's message, in the form; it begins with the field that is wrong, or names several.
function showFault(text) {
  at("fault").textContent = text;
  at("fault").hidden = text === "";
  for (const field of FIELDS) {
    at("save").elements[field].setAttribute("aria-invalid", String(new RegExp(`\\b${field}: `).test(text)));
  }
}

at("save").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  // Not by FormData, which may give a command's lines CRLF ends; the shell would take the CR for a part of them.
  const job = Object.fromEntries(FIELDS.map((field) => [field, form.elements[field].value]));
  try {
    const answer = await ask("job/save", { job: JSON.stringify(job) });
    showFault("");
    say([`Saved ${job.name}.`, ...(answer.warnings ?? [])].join(" · "), false);
    form.reset();
    await refresh();
  } catch (error) {
    showFault(error.message);
  }
});

at("jobs-next").addEventListener("click", () => {
  after = jobsNext ?? "";
  refresh();
});

at("records-next").addEventListener("click", () => {
  recordsLimit = RECORDS_SHOWN_MAX;
  refresh();
});

refresh();
setInterval(() => {
  if (!document.hidden) refresh();
}, REFRESH_MS);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
