// The console: shows the jobs, the workers and a job's records, asking again every few seconds; saves, deletes and kills.
// Everything that comes from outside is inserted as text, never as markup.
"use strict";

const REFRESH_MS = 3000;
const JOBS_SHOWN = 200;

const at = (id) => document.getElementById(id);
let chosen = null; // the job whose records are shown
let after = ""; // the page of jobs begins behind this name
let jobsNext = null;
let jobsShown = "";
let recordsShown = "";
let asking = false;

async function ask(path, fields) {
  const options = fields ? { method: "POST", body: new URLSearchParams(fields) } : { cache: "no-store" };
  const response = await fetch(path, { ...options, signal: AbortSignal.timeout(15000) });
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Error(`${path} answered ${response.status}, and no JSON`);
  }
  if (answer.errno !== 0) throw new Error(answer.msg);
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

function row(cells) {
  const made = element("tr");
  for (const [content, className] of cells) {
    const cell = element("td", undefined, className);
    cell.append(...[].concat(content));
    made.append(cell);
  }
  return made;
}

function say(text, bad) {
  at("said").textContent = text;
  at("said").className = bad ? "bad" : "good";
}

function jobRow(job) {
  const name = job.name;
  const made = row([
    [button(name, `Show the runs of ${name}`, "link", () => choose(name)), "name"],
    [element("code", job.cronExpr), "when"],
    [element("code", job.command), ""],
    [[
      button("Edit", `Edit ${name}`, "", () => edit(job)), " ",
      button("Kill run", `Kill the run of ${name}`, "", () => kill(name)), " ",
      button("Delete", `Delete ${name}`, "", () => remove(name)),
    ], "actions"],
  ]);
  made.setAttribute("aria-current", String(name === chosen));
  return made;
}

async function showJobs() {
  const answer = await ask(`job/list?limit=${JOBS_SHOWN}&after=${encodeURIComponent(after)}`);
  jobsNext = answer.next ?? null;
  at("no-jobs").hidden = answer.data.length > 0 || after !== "";
  at("jobs").hidden = answer.data.length === 0;
  at("jobs-more").hidden = jobsNext === null && after === "";
  at("jobs-next").textContent = jobsNext === null ? "first page" : "next page";
  // Rebuilt only when it changed: a click or a selection must survive the refresh.
  const key = JSON.stringify([answer.data, chosen]);
  if (key !== jobsShown) {
    jobsShown = key;
    at("jobs").tBodies[0].replaceChildren(...answer.data.map(jobRow));
  }
  return answer.warnings ?? [];
}

async function showWorkers() {
  const answer = await ask("worker/list");
  const count = answer.data.length;
  at("workers").textContent =
    count === 0 ? "No worker is alive: nothing will run." : `${count} ${count === 1 ? "worker" : "workers"}: ${answer.data.join(", ")}`;
}

const time = (ms) => (ms ? new Date(ms).toLocaleString([], { dateStyle: "short", timeStyle: "medium" }) : "");
const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10000 ? 3 : 1)} s`;

function recordRow(record) {
  const status = record.status ?? (record.err ? "failed" : "succeeded");
  const ran = status !== "skipped" && status !== "lost";
  const texts = [];
  if (record.err) texts.push(element("div", record.err, "bad"));
  if (record.output) texts.push(element("pre", record.output));
  if (record.outputTruncated) texts.push(element("div", "The output was longer than is kept.", ""));
  return row([
    [time(record.startTime), "when"],
    [ran ? seconds(record.endTime - record.startTime) : "", "when"],
    [ran ? seconds(Math.max(0, record.startTime - record.planTime)) : "", "when"],
    [status, status === "succeeded" ? "good" : "bad"],
    [record.worker ?? "", ""],
    [texts, ""],
  ]);
}

async function showRecords() {
  if (chosen === null) return;
  const name = chosen;
  const answer = await ask(`job/log?name=${encodeURIComponent(name)}`);
  if (name !== chosen) return; // another job was clicked meanwhile
  at("log").hidden = false;
  at("log-title").textContent = `Runs of ${name}`;
  at("no-records").hidden = answer.data.length > 0;
  at("records").hidden = answer.data.length === 0;
  const key = JSON.stringify([name, answer.data]);
  if (key !== recordsShown) {
    recordsShown = key;
    at("records").tBodies[0].replaceChildren(...answer.data.map(recordRow));
  }
}

async function refresh() {
  if (asking) return;
  asking = true;
  const results = await Promise.allSettled([showJobs(), showWorkers(), showRecords()]);
  asking = false;
  const troubles = results.filter((r) => r.status === "rejected").map((r) => r.reason.message);
  const warnings = results[0].status === "fulfilled" ? results[0].value : [];
  at("trouble").textContent = [...new Set([...troubles, ...warnings])].join(" · ");
  at("trouble").hidden = at("trouble").textContent === "";
}

async function choose(name) {
  chosen = name;
  await refresh();
  at("log").scrollIntoView({ block: "nearest" });
}

function edit(job) {
  const form = at("save");
  for (const field of ["name", "cronExpr", "command"]) form.elements[field].value = job[field];
  form.elements.command.focus();
}

async function act(done, path, fields) {
  try {
    const answer = await ask(path, fields);
    say([done, ...(answer.warnings ?? [])].join(" · "), false);
    await refresh();
    return true;
  } catch (error) {
    say(error.message, true);
    return false;
  }
}

async function remove(name) {
  if (window.confirm(`Delete the job "${name}"? Its records stay.`)) {
    await act(`Deleted ${name}.`, "job/delete", { name });
  }
}

async function kill(name) {
  if (window.confirm(`Kill the run of "${name}" that is going now?`)) {
    await act(`Asked for the kill of ${name}.`, "job/kill", { name });
  }
}

at("save").addEventListener("submit", async (event) => {
  event.preventDefault();
  const job = Object.fromEntries(new FormData(event.target));
  const saved = await act(`Saved ${job.name}.`, "job/save", { job: JSON.stringify(job) });
  if (saved) event.target.reset();
});

at("jobs-next").addEventListener("click", () => {
  after = jobsNext ?? "";
  refresh();
});

refresh();
setInterval(() => {
  if (!document.hidden) refresh();
}, REFRESH_MS);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
