// Drives the web console in Chromium, as people do, on a real local-dev. Prints `ok …` or `not ok …` for each case, and asks
// tests/tests/e2e_console.rs, which started it, to kill and start local-dev by `please kill` and `please start`.
import { readFileSync } from "node:fs";
import { createServer, request as httpRequest } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const { FLEETCRON_URL: URL_, FLEETCRON_BROWSER, FLEETCRON_MODULES, FLEETCRON_PICTURES, FLEETCRON_WORKER: WORKER } = process.env;
const require = createRequire(`${FLEETCRON_MODULES}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const sources = new URL("../../functions/src/console/", import.meta.url);
const source = (name) => readFileSync(new URL(name, sources), "utf8");
const { faultsOf } = await import(`data:text/javascript,${encodeURIComponent(source("faults.js"))}`);

/** What pictures are called after: width, theme, language. */
let look = "1440-light-en";

// ---- how cases are told ----

let failed = 0;
async function check(name, body) {
  try {
    await body();
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`not ok ${name}: ${String(error.stack ?? error).split("\n").slice(0, 12).join(" | ")}`);
    // What is left open would fail the cases behind it, too.
    await page?.screenshot({ path: join(FLEETCRON_PICTURES, `failed-${failed}.png`) }).catch(() => {});
    await fresh?.().catch(() => {});
  }
}

function assert(holds, message) {
  if (!holds) throw new Error(message);
}
function equal(got, expected, message = "") {
  assert(JSON.stringify(got) === JSON.stringify(expected), `${message} ${JSON.stringify(got)} instead of ${JSON.stringify(expected)}`);
}

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function please(what) {
  console.log(`please ${what}`);
  await answers.next();
}

/** The token that `api` shows, once the API asks for one. */
let bearer = "";
async function api(path, body) {
  const headers = { ...(body && { "content-type": "application/json" }), ...(bearer && { authorization: `Bearer ${bearer}` }) };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const response = await fetch(URL_ + path, options);
  return response.json();
}
async function save(name, command, cronExpr = "0 0 1 1 *", options = {}) {
  const answer = await api("job/save", { name, command, cronExpr, ...options });
  assert(answer.errno === 0, `${name}: ${answer.msg}`);
}

// ---- the browser ----

const root = process.getuid?.() === 0;
const browser = await chromium.launch({
  executablePath: FLEETCRON_BROWSER,
  args: ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", ...(root ? ["--no-sandbox"] : [])],
});
/** What the browser complained about: scripts that broke, and what the policy stopped. */
const complaints = [];
const away = /ERR_CONNECTION|ERR_EMPTY_RESPONSE|status of (4|5)\d\d/;

async function open(settings = {}) {
  const context = await browser.newContext({ locale: "en-GB", viewport: { width: 1440, height: 900 }, bypassCSP: false, permissions: ["clipboard-read", "clipboard-write"], ...settings });
  await context.addInitScript(() => {
    window.ran = [];
    for (const name of ["alert", "confirm", "prompt"]) window[name] = (text) => window.ran.push(`${name} ${text}`);
    document.addEventListener("securitypolicyviolation", (event) => window.ran.push(`policy ${event.violatedDirective} ${event.sample}`));
  });
  const made = await context.newPage();
  made.setDefaultTimeout(30_000);
  made.on("pageerror", (error) => complaints.push(`${error.stack}`));
  made.on("console", (message) => message.type() === "error" && !away.test(message.text()) && complaints.push(message.text()));
  made.on("dialog", (dialog) => dialog.accept());
  return made;
}
let page = await open();
/** Begins anew, whatever a case has left open. */
const fresh = async () => {
  await page.unrouteAll({ behavior: "ignoreErrors" });
  await page.goto("about:blank");
  await page.goto(URL_);
  await page.evaluate(() => sessionStorage.clear());
  await page.goto("about:blank");
  await page.goto(URL_);
};
const go = async (hash) => {
  await page.evaluate((to) => (location.hash = to), hash);
};
const shown = (text, options) => page.getByText(text, options).first().waitFor();
const heading = (name) => page.getByRole("heading", { name, level: 1 }).waitFor();
const button = (name, exact = true) => page.getByRole("button", { name, exact });
const link = (name, exact = true) => page.getByRole("link", { name, exact });
const dialog = () => page.locator("dialog[open]");
const noDialog = () => page.locator("dialog[open]").waitFor({ state: "detached" });
const toast = (text) => page.locator(".toast", { hasText: text }).first().waitFor();
const fill = async (job) => {
  for (const [field, value] of Object.entries(job)) await page.locator(`#${field}`).fill(value);
};
const choose = async (choices) => {
  for (const [field, value] of Object.entries(choices)) await page.locator(`#${field}`).selectOption(value);
};
/** Opens every group of options of the form. */
const unfold = async () => {
  const folded = page.locator(".more details:not([open]) > summary");
  while (await folded.count()) await folded.first().click();
};
const noScript = async () => equal(await page.evaluate(() => window.ran), [], "a script ran, or the policy stopped something:");

// ---- without a browser; texts and vendored files are held by tests/tests/console_files.rs ----

await check("the API's message is taken apart without losing a part", () => {
  const names = ["name", "cronExpr", "command"];
  const rows = [
    ["cronExpr: a; name: b", { cronExpr: ["a"], name: ["b"] }, []],
    ["cronExpr: minute: \"61; or so\" is wrong; command: c", { cronExpr: ["minute: \"61; or so\" is wrong"], command: ["c"] }, []],
    ["others kept changing it", {}, ["others kept changing it"]],
    ["job: is not valid JSON; name: b", { name: ["b"] }, ["job: is not valid JSON"]],
    ["name: a; name: b", { name: ["a", "b"] }, []],
    ["name: ", { name: ["name: "] }, []],
    ["", {}, ["?"]],
  ];
  for (const [message, fields, rest] of rows) equal(faultsOf(message, names), { fields, rest }, message);
});

// ---- people's tasks ----

await check("the page loads and shows the sample jobs", async () => {
  await page.goto(URL_);
  await link("sample-hello").waitFor();
  await page.evaluate(() => (window.marker = "the same page"));
});

await check("a first job is made, and its runs appear by themselves", async () => {
  await link("New job").click();
  assert((await page.evaluate(() => document.activeElement.id)) === "name", "the form does not begin at the name");
  await fill({ name: "every second", cronExpr: "* * * * * * *", command: "echo tick; date" });
  await button("Save").click();
  await toast("Saved every second");
  await heading("every second");
  await page.locator(".runs .chip.good").first().waitFor();
  const before = await page.locator(".runs tbody tr").count();
  await page.waitForFunction((count) => document.querySelectorAll(".runs tbody tr").length > count, before);
  equal(await page.evaluate(() => window.marker), "the same page", "the page was loaded again:");
  equal(await page.evaluate(() => document.title), "every second · Fleetcron");
});

await check("a run is shown with its output and its times, and can be linked to", async () => {
  const show = page.getByRole("button", { name: /^Show the run of/ }).first();
  await show.click();
  await page.locator(".output pre", { hasText: "tick" }).waitFor();
  for (const fact of ["Planned", "Claimed", "Started", "Ended", "Exit code", "Run id"]) await page.locator("dt", { hasText: fact }).first().waitFor();
  const address = page.url();
  assert(address.includes("run="), address);
  await page.reload();
  await page.locator(".output pre", { hasText: "tick" }).waitFor();
  await button("Wrap lines").click();
  equal(await page.locator(".output pre").getAttribute("class"), "");
  await button("Copy").click();
  await shown("Copied");
  assert((await page.evaluate(() => navigator.clipboard.readText())).startsWith("tick\n"), "not the output was copied");
  await page.evaluate(() => (window.marker = "the same page"));
});

await check("a job is edited, and a warning of the API is shown", async () => {
  await link("Edit every second").click();
  await dialog().waitFor();
  assert(await page.locator("#name").getAttribute("readonly") !== null, "the name can be edited");
  equal(await page.locator("#command").inputValue(), "echo tick; date");
  await fill({ command: "echo tock\necho second line", cronExpr: "* * * * * *" });
  await button("Save").click();
  await toast("seconds first");
  await noDialog();
  await page.locator(".definition", { hasText: "* * * * * *" }).waitFor();
  equal((await api("job/list?prefix=every")).data[0].command, "echo tock\necho second line");
});

await check("a job is duplicated under another name", async () => {
  await link("Duplicate every second").click();
  await dialog().waitFor();
  equal(await page.locator("#name").inputValue(), "");
  equal(await page.locator("#cronExpr").inputValue(), "* * * * * *");
  await fill({ name: "the other one", cronExpr: "0 0 1 1 *" });
  await button("Save").click();
  await heading("the other one");
  await shown("No run is recorded yet");
});

await check("an existing name is not replaced unasked", async () => {
  await go("#/new");
  await fill({ name: "the other one", cronExpr: "@daily", command: "true" });
  await button("Save").click();
  await page.locator("#name-fault", { hasText: "already" }).waitFor();
  equal((await api("job/list?prefix=the other")).data[0].cronExpr, "0 0 1 1 *");
  await button("Replace").click();
  await toast("Saved the other one, in place of what was there");
  await noDialog();
  await heading("the other one");
  equal((await api("job/list?prefix=the other")).data[0].cronExpr, "@daily");
});

await check("what the API refuses is shown at the fields that it names, and nothing typed is lost", async () => {
  await go("#/new");
  await fill({ name: "a/b", cronExpr: "61 * * * *", command: "   " });
  await button("Save").click();
  await page.locator("#name-fault", { hasText: "leave out control characters" }).waitFor();
  await page.locator("#cronExpr-fault", { hasText: "61" }).waitFor();
  await page.locator("#command-fault", { hasText: "is missing" }).waitFor();
  equal(await page.evaluate(() => document.activeElement.id), "name", "focus");
  for (const id of ["name", "cronExpr", "command"]) {
    equal(await page.locator(`#${id}`).getAttribute("aria-invalid"), "true");
    assert((await page.locator(`#${id}`).getAttribute("aria-describedby")).includes(`${id}-fault`), id);
  }
  equal(await page.locator("#cronExpr").inputValue(), "61 * * * *");
  await picture("form-faults");
  await page.goBack();
  await noDialog();
  await page.goForward();
  await shown("and did not save, is back");
  equal(await page.locator("#cronExpr").inputValue(), "61 * * * *");
  await page.reload();
  await shown("and did not save, is back");
  equal(await page.locator("#name").inputValue(), "a/b");
  await page.keyboard.press("Escape");
  await shown("What you typed is not saved");
  await button("Discard it").click();
  await noDialog();
});

await check("options are shown, kept by an edit, changed, and their faults stand at their fields", async () => {
  const given = { misfire: "all", startDeadlineSeconds: 300, jitterSeconds: 7, selector: { gpu: "no", zone: "a=b" } };
  const job = { name: "with options", command: "true", cronExpr: "@yearly" };
  const stored = async (prefix) => (await api(`job/list?prefix=${prefix}`)).data[0];
  equal((await api("job/save", { ...job, ...given })).errno, 0);
  await go("#/jobs/with%20options");
  for (const text of ["all", "300", "7", '{"gpu":"no","zone":"a=b"}']) await page.locator(".definition dd", { hasText: text }).first().waitFor();
  await link("Edit with options").click();
  await fill({ command: "echo edited" });
  equal(await page.locator("#selector").inputValue(), "gpu=no, zone=a=b");
  await button("Save").click();
  await noDialog();
  equal(await stored("with"), { ...job, command: "echo edited", ...given });
  await link("Duplicate with options").click();
  await fill({ name: "other options", startDeadlineSeconds: "soon", jitterSeconds: "4000", selector: "zone" });
  await page.locator("#misfire").selectOption("");
  await button("Save").click();
  await page.locator("#startDeadlineSeconds-fault", { hasText: "from 0 to 604800" }).waitFor();
  await page.locator("#jitterSeconds-fault", { hasText: "from 0 to 3600" }).waitFor();
  await page.locator("#selector-fault", { hasText: '"zone"' }).waitFor();
  equal(await page.evaluate(() => document.activeElement.id), "startDeadlineSeconds", "focus");
  await fill({ startDeadlineSeconds: "0", jitterSeconds: "", selector: " zone = a " });
  await button("Save").click();
  await heading("other options");
  equal(await stored("other"), { ...job, name: "other options", command: "echo edited", startDeadlineSeconds: 0, selector: { zone: "a" } });
});

await check("a job that runs after others is typed without a schedule, shown so, and kept by an edit", async () => {
  const job = { name: "after others", command: "true", cronExpr: "", after: ["load it", "clean"] };
  const stored = async () => (await api("job/list?prefix=after")).data[0];
  for (const name of job.after) await save(name, "true");
  await go("#/new");
  await dialog().waitFor();
  await unfold();
  await fill({ name: job.name, command: job.command, after: " load it\nclean\n" });
  await button("Save").click();
  await heading("after others");
  equal(await stored(), job);
  await page.locator(".definition dd", { hasText: "load it" }).first().waitFor();
  await link("Edit after others").click();
  await fill({ command: "echo edited" });
  await button("Save").click();
  await noDialog();
  equal(await stored(), { ...job, command: "echo edited" });
  await go("#/jobs?prefix=after");
  await shown("after load it, clean");
  for (const name of [job.name, ...job.after]) await api("job/delete", { name });
});

await check("the words and the next times of a schedule are shown while it is typed", async () => {
  await go("#/new");
  await dialog().waitFor();
  await page.locator("#cronExpr").fill("47 6 * * 7");
  await page.locator("#preview", { hasText: "at 06:47 on Sunday" }).waitFor();
  await page.locator("#preview", { hasText: / 06:47:00Z/ }).waitFor();
  await picture("form-preview");
  await page.locator("#cronExpr").fill("47 25 * * 7");
  await page.locator("#preview", { hasText: "hour" }).waitFor();
  await fresh();
});

await check("a calendar is made from dates and from a file, chosen in a job, and not deleted while a job names it", async () => {
  const name = "holidays <b>";
  await link("Calendars").click();
  await heading("Calendars");
  await shown("There are no calendars yet");
  await button("New calendar").click();
  await page.locator("#calendar-name").fill(name);
  await page.locator("#calendar-dates").fill("2027-01-01\nsoon");
  await dialog().locator(".preview", { hasText: "is no date" }).waitFor();
  await button("Save").click();
  await page.locator("#calendar-dates-fault", { hasText: "is no date" }).waitFor();
  equal(await page.evaluate(() => document.activeElement.id), "calendar-dates", "focus");
  await page.locator("#calendar-dates").fill("2027-01-01\n2027-12-24/2027-12-26");
  await dialog().locator(".preview", { hasText: "4 days" }).waitFor();
  await button("Save").click();
  await toast("Saved holidays");
  await noDialog();
  await button("New calendar").click();
  await page.locator("#calendar-name").fill("of a file");
  const event = ["BEGIN:VEVENT", "UID:1", "DTSTAMP:20270101T000000Z", "DTSTART;VALUE=DATE:20270501", "DTEND;VALUE=DATE:20270503", "END:VEVENT"];
  const file = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//tests//EN", ...event, "END:VCALENDAR", ""].join("\r\n");
  await page.locator("#calendar-file").setInputFiles({ name: "none.ics", mimeType: "text/calendar", buffer: Buffer.from("no calendar") });
  await page.locator("#calendar-file-told .fault").waitFor();
  await page.locator("#calendar-file").setInputFiles({ name: "days.ics", mimeType: "text/calendar", buffer: Buffer.from(file) });
  await shown("2 days were read from days.ics");
  equal(await page.locator("#calendar-dates").inputValue(), "2027-05-01/2027-05-02");
  await picture("calendar-file");
  equal((await api("calendar/list")).data.map((calendar) => calendar.name), [name], "what was only looked at is saved:");
  await button("Save").click();
  await noDialog();
  equal((await api("calendar/list")).data, [{ name, dates: ["2027-01-01", "2027-12-24/2027-12-26"], days: 4 }, { name: "of a file", dates: ["2027-05-01/2027-05-02"], days: 2 }]);
  await button(`Show the days of ${name}`).click();
  await page.locator(".detail dd", { hasText: "Fri 2027-12-24" }).waitFor();
  await picture("calendars-mine");
  await go("#/new");
  await dialog().waitFor();
  await unfold();
  const choice = page.getByRole("group", { name: "Calendars to choose" }).first();
  for (const [chosen, text] of [[name, name], ["of a file", `${name}, of a file`], [name, "of a file"], [name, `of a file, ${name}`], ["of a file", name]]) {
    await choice.getByRole("button", { name: chosen }).click();
    equal(await page.locator("#calendars-exclude").inputValue(), text);
  }
  await fill({ name: "with calendar", cronExpr: "0 9 * * *", command: "true" });
  await page.locator("#preview", { hasText: "not on days of the calendar" }).waitFor();
  await page.locator("#calendars-exclude").scrollIntoViewIfNeeded();
  await picture("form-calendars");
  await button("Save").click();
  await heading("with calendar");
  equal((await api("job/list?prefix=with calendar")).data[0].calendars, { exclude: [name] });
  await go("#/calendars");
  await button(`Delete the calendar ${name}`).click();
  await button("Delete calendar").click();
  await dialog().getByText('"with calendar"').waitFor();
  await picture("calendar-named");
  await button("Cancel").click();
  await button("Delete the calendar of a file").click();
  await button("Delete calendar").click();
  await toast("Deleted of a file");
  await button(`Delete the calendar ${name}`).click();
  await button("Delete calendar").click();
  await button("Delete it all the same").click();
  await toast("with calendar");
  await shown("There are no calendars yet");
  await api("job/delete", { name: "with calendar" });
  equal(await page.locator("main b").count(), 0, "markup was made of a name:");
});

await check("every option is typed, stored as the API has it, shown, and kept by an edit", async () => {
  const job = { name: "all options", command: "true", cronExpr: "@yearly" };
  const stored = async () => (await api("job/list?prefix=all")).data[0];
  await go("#/new");
  await dialog().waitFor();
  await unfold();
  await fill({
    ...job, startAt: "2027-01-01T00:00:00+01:00", endAt: "2028-01-01T00:00:00Z", startDeadlineSeconds: "300", jitterSeconds: "7", timeoutSeconds: "3600", killGraceSeconds: "0",
    "retry-attempts": "3", "retry-backoff": "2", env: "EMPTY=\nGREETING=hello = you\n", workingDir: "/tmp", user: "1000", outputLimitBytes: "2097152",
    "limits-cpuSeconds": "10", "limits-openFiles": "64", selector: "zone=a", "notify-to": "ops, team", "notify-on": "failure", "notify-notSucceededForSeconds": "60", description: "Made\nby hand", labels: "team=ops, tier=",
  });
  await shown("= 2 MiB");
  await choose({ enabled: "false", misfire: "skip", concurrency: "allow", "retry-onLost": "true", fence: "true" });
  await button("Save").click();
  await heading("all options");
  await noDialog();
  const given = {
    enabled: false, startAt: "2027-01-01T00:00:00+01:00", endAt: "2028-01-01T00:00:00Z", misfire: "skip", startDeadlineSeconds: 300, jitterSeconds: 7, timeoutSeconds: 3600,
    killGraceSeconds: 0, concurrency: "allow", retry: { attempts: 3, backoff: 2, onLost: true }, fence: true, env: { EMPTY: "", GREETING: "hello = you" }, workingDir: "/tmp", user: "1000",
    outputLimitBytes: 2_097_152, limits: { cpuSeconds: 10, openFiles: 64 }, selector: { zone: "a" },
    notify: { on: ["failure"], notSucceededForSeconds: 60, to: ["ops", "team"] }, description: "Made\nby hand", labels: { team: "ops", tier: "" },
  };
  const sorted = (value) => Object.fromEntries(Object.entries(value).sort(([one], [other]) => (one < other ? -1 : 1)));
  equal(sorted(await stored()), sorted({ ...job, ...given }));
  for (const text of ["GREETING=hello = you", "1000", "cpuSeconds: 10"]) await page.locator(".definition dd", { hasText: text }).first().waitFor();
  await page.locator("main .bar .chip", { hasText: "paused" }).waitFor();
  await link("Edit all options").click();
  await fill({ command: "echo edited" });
  await button("Save").click();
  await noDialog();
  equal(sorted(await stored()), sorted({ ...job, ...given, command: "echo edited" }));
  // What is emptied is taken away; a line of variables can hold what is no line's.
  await api("job/save", { ...job, env: { LINES: "one\ntwo" }, retry: { attempts: 2 }, concurrency: "forbid" });
  await link("Edit all options").click();
  equal(await page.locator("#env").inputValue(), '{"LINES":"one\\ntwo"}');
  equal(await page.locator("#concurrency").inputValue(), "forbid");
  await fill({ "retry-attempts": "", "retry-backoff": "" });
  await button("Save").click();
  await noDialog();
  const { retry, ...left } = await stored();
  equal([retry, sorted(left)], [undefined, sorted({ ...job, concurrency: "forbid", env: { LINES: "one\ntwo" } })]);
});

await check("a request in the place of the command is typed, stored, shown and kept by an edit", async () => {
  const stored = async () => (await api("job/list?prefix=request")).data[0];
  await go("#/new");
  await dialog().waitFor();
  await unfold();
  await fill({
    name: "request", cronExpr: "@yearly", "http-url": "https://example.com/hook", "http-headers": "no colon", "http-body": "{}\n", "http-status": "200, 3xx", "http-contains": "/^ok/",
    "http-followRedirects": "2",
  });
  await choose({ "http-method": "POST" });
  await button("Save").click();
  await page.locator("#http-fault", { hasText: "has no “:”" }).waitFor();
  await fill({ "http-headers": "X-Token: a: b\nAccept: */*\n" });
  await button("Save").click();
  await heading("request");
  await noDialog();
  const http = {
    method: "POST", url: "https://example.com/hook", headers: { "X-Token": "a: b", Accept: "*/*" }, body: "{}\n", expect: { status: [200, "3xx"], body: "/^ok/" }, followRedirects: 2,
  };
  equal(await stored(), { name: "request", command: "", cronExpr: "@yearly", http });
  await page.locator(".command-text", { hasText: "POST https://example.com/hook" }).first().waitFor();
  await link("Edit request").click();
  await fill({ "http-status": "" });
  await button("Save").click();
  await noDialog();
  equal((await stored()).http, { ...http, expect: { body: "/^ok/" } });
});

await check("faults of options stand at their fields, those that the form finds itself, too", async () => {
  await go("#/new");
  await dialog().waitFor();
  await unfold();
  await fill({ name: "faulty", command: "true", cronExpr: "@yearly", env: "no value here" });
  for (const [env, says] of [["no value here", "has no “=”"], ["A=1\nA=2", "there twice"], ["{A", "begins like JSON"]]) {
    await fill({ env });
    await button("Save").click();
    await page.locator("#env-fault", { hasText: says }).waitFor();
    equal(await page.evaluate(() => document.activeElement.id), "env", "focus");
  }
  await fill({ env: "CRON_RUN_ID=mine", startAt: "tomorrow", timeoutSeconds: "soon", "limits-memoryBytes": "much", "retry-backoff": "5", workingDir: "here" });
  await button("Save").click();
  for (const option of ["env", "startAt", "timeoutSeconds", "limits", "retry", "workingDir"]) await page.locator(`#${option}-fault span`).waitFor();
  equal(await page.evaluate(() => document.activeElement.id), "startAt", "focus");
  for (const id of ["limits-memoryBytes", "retry-attempts"]) equal(await page.locator(`#${id}`).getAttribute("aria-invalid"), "true", id);
  await picture("option-faults");
  await button("Cancel").click();
  await button("Discard it").click();
  await noDialog();
  // A fold that the reader has closed opens for a fault in it.
  await go("#/jobs/all%20options/edit");
  await fill({ timeoutSeconds: "soon" });
  await page.locator(".more details", { has: page.locator("#timeoutSeconds") }).locator("summary").click();
  await button("Save").click();
  await page.locator("#timeoutSeconds-fault span").waitFor();
  equal(await page.evaluate(() => document.activeElement.id), "timeoutSeconds", "focus");
  await button("Cancel").click();
  await button("Discard it").click();
  await noDialog();
});

await check("a failure that belongs to no field stands at the top of the form", async () => {
  await go("#/new");
  await page.route("**/job/save", (route) => route.fulfill({ status: 503, json: { message: "Service Unavailable" } }));
  await fill({ name: "x", cronExpr: "@daily", command: "true" });
  await button("Save").click();
  await page.locator("#form-fault", { hasText: "Service Unavailable" }).waitFor();
  equal(await page.evaluate(() => document.activeElement.id), "form-fault", "focus");
  await page.unrouteAll();
  await button("Cancel").click();
  await button("Discard it").click();
  await noDialog();
});

await check("a change by others while the form is open is told", async () => {
  await save("contested", "echo mine");
  await page.evaluate(() => (location.hash = "#/jobs/contested/edit"));
  await fill({ command: "echo half typed" });
  await save("contested", "echo theirs");
  await shown("changed meanwhile by somebody else");
  await dialog().locator("pre", { hasText: "echo theirs" }).waitFor();
  equal(await page.locator("#command").inputValue(), "echo half typed");
  await api("job/delete", { name: "contested" });
  await shown("This job was deleted meanwhile");
  await button("Save").click();
  await toast("Saved contested");
  equal((await api("job/list?prefix=contested")).data[0].command, "echo half typed");
});

await check("a run that is going is killed", async () => {
  await save("long", "echo begun; sleep 1000", "* * * * * * *");
  await go("#/jobs/long");
  // Its second fire is skipped while the first runs: so the first is running.
  await page.locator(".runs .chip", { hasText: "skipped" }).first().waitFor();
  await button("Kill run of long").click();
  await dialog().getByRole("button", { name: "Kill run" }).click();
  await toast("Asked to kill the run of long");
  await page.locator(".runs .chip", { hasText: "killed" }).first().waitFor();
});

await check("killing what does not run says so", async () => {
  await save("idle", "true");
  await go("#/jobs/idle");
  await button("Kill run of idle").click();
  await dialog().getByRole("button", { name: "Kill run" }).click();
  await toast("there was nothing to kill");
  await page.locator(".toast button").last().click();
});

await check("a job is run by hand, with a variable of its own, and its page shows what it prints", async () => {
  await save("by hand", 'echo "<b>$GREETING</b> $CRON_ATTEMPT"; exit 3', "0 0 1 1 *", { env: { GREETING: "nobody" } });
  await go("#/jobs/by%20hand");
  await button("Run now: by hand").click();
  await dialog().getByLabel("Environment for this run").fill("GREETING");
  await dialog().getByRole("button", { name: "Run now" }).click();
  await dialog().locator(".note.bad", { hasText: "has no “=”" }).waitFor();
  await dialog().getByLabel("Environment for this run").fill("GREETING=hello");
  await dialog().getByRole("button", { name: "Run now" }).click();
  await page.locator(".toast", { hasText: "Asked for a run of by hand" }).getByRole("link", { name: "Watch" }).click();
  await heading("Run of by hand");
  await page.locator(".output pre", { hasText: "<b>hello</b> 1" }).waitFor();
  await page.locator("main .chip.bad", { hasText: "failed" }).waitFor();
  await page.locator(".facts", { hasText: "exit status 3" }).waitFor();
  const address = page.url();
  await page.goto("about:blank");
  await page.goto(address);
  await page.locator(".output pre", { hasText: "<b>hello</b> 1" }).waitFor();
  await link("← by hand").click();
  await page.locator(".runs .origin", { hasText: "by hand" }).waitFor();
  await noScript();
});

await check("an answer that was lost starts no second run", async () => {
  const keys = [];
  await page.route("**/job/run", async (route) => {
    keys.push(route.request().headers()["idempotency-key"]);
    if (keys.length > 1) return route.continue();
    await route.fetch();
    return route.abort("connectionreset");
  });
  const before = (await api("job/log?name=by%20hand")).data.length;
  await button("Run now: by hand").click();
  await dialog().getByRole("button", { name: "Run now" }).click();
  await dialog().locator(".note.bad", { hasText: "It is not known whether" }).waitFor();
  await dialog().getByRole("button", { name: "Run now" }).click();
  await toast("Asked for a run of by hand");
  await page.unrouteAll();
  assert(keys.length === 2 && keys[0] === keys[1] && keys[0].length >= 16, keys.join(" "));
  await page.waitForFunction((count) => document.querySelectorAll(".runs tbody tr").length > count, before);
  // A run that is asked for later is recorded later: when it is there, a second one of the lost answer would be, too.
  await api("job/run", { name: "by hand" });
  await page.waitForFunction((count) => document.querySelectorAll(".runs tbody tr").length >= count + 2, before);
  equal((await api("job/log?name=by%20hand")).data.length, before + 2);
  await api("job/delete", { name: "by hand" });
});

await check("a run is watched while it prints, the view stays where the reader scrolls to, and that run is killed", async () => {
  await save("talker", 'for n in $(seq 100000); do echo "line $n <i>of many</i>"; sleep 0.02; done');
  await api("job/run", { name: "talker" });
  await go("#/jobs/talker");
  await page.locator(".running tbody tr").first().waitFor();
  await page.getByRole("link", { name: /^Watch run/ }).click();
  await heading("Run of talker");
  await page.locator("main .chip", { hasText: "running" }).waitFor();
  const output = page.locator(".output pre.live");
  await output.filter({ hasText: "line 100 <i>" }).waitFor();
  const at = () => output.evaluate((box) => ({ top: box.scrollTop, end: box.scrollHeight - box.clientHeight - box.scrollTop }));
  assert((await at()).end < 30, "the view does not follow the end");
  await output.evaluate((box) => (box.scrollTop = 0));
  await shown("You scrolled up");
  const length = (await output.textContent()).length;
  await page.waitForFunction((known) => document.querySelector("pre.live").textContent.length > known, length);
  equal((await at()).top, 0, "the view moved under the reader:");
  await button("Follow the end").click();
  await page.waitForFunction(() => { const box = document.querySelector("pre.live"); return box.scrollHeight - box.clientHeight - box.scrollTop < 30; });
  await picture("live");
  await page.getByRole("button", { name: /^Kill run (?!of)/ }).click();
  await dialog().getByRole("button", { name: "Kill run" }).click();
  await toast("Asked to kill the run of talker");
  await page.locator("main .chip", { hasText: "killed" }).waitFor();
  await shown("The run has ended");
  for (const fact of ["Killed by", "Kill asked for"]) await page.locator("dt", { hasText: fact }).waitFor();
  await button("Show it as it was recorded").click();
  await page.locator(".output pre:not(.live)", { hasText: "line 100 <i>" }).waitFor();
  await noScript();
});

await check("a page that is left open on a run that prints without end does not grow", async () => {
  const id = "made-up";
  let from = 0;
  await page.route("**/run/get?*", (route) => route.fulfill({ json: { errno: 0, msg: "success", data: { open: { runId: id, job: "talker", planTime: Date.now(), attempt: 1, trigger: "schedule" }, record: null } } }));
  await page.route("**/run/output?*", (route) => {
    equal(new URL(route.request().url()).searchParams.get("after"), String(from), "it asks for");
    // Some is left out between two answers, as of a run that prints faster than anybody reads.
    const begins = from === 0 ? 0 : from + 1000;
    const output = "0123456789abcde\n".repeat(5000);
    from = begins + output.length;
    return route.fulfill({ json: { errno: 0, msg: "success", data: { from: begins, output, next: from, ended: from > 800_000 } } });
  });
  await go(`#/jobs/talker/runs/${id}`);
  await page.waitForFunction(() => document.querySelector(".output-tools .dim")?.textContent === "790 KiB");
  const drawn = await page.locator("pre.live").evaluate((box) => ({ characters: box.textContent.length, nodes: box.childNodes.length }));
  assert(drawn.characters <= 220_000 && drawn.nodes < 50, JSON.stringify(drawn));
  await page.locator(".left-out", { hasText: "1,000 B left out" }).first().waitFor();
  await shown("Shown: the newest");
  await page.unrouteAll({ behavior: "ignoreErrors" });
  await api("job/delete", { name: "talker" });
});

await check("a job is paused and resumed, and the list shows it", async () => {
  await save("resting", "true", "* * * * * * *");
  await go("#/jobs/resting");
  await page.locator(".runs .chip.good").first().waitFor();
  await button("Pause resting").click();
  await toast("Paused resting");
  await page.locator("main .bar .chip", { hasText: "paused" }).waitFor();
  equal((await api("job/list?prefix=resting")).data[0].enabled, false);
  await go("#/jobs?prefix=resting");
  await page.locator("td.name .chip", { hasText: "paused" }).waitFor();
  await go("#/jobs/resting");
  await button("Resume resting").click();
  await toast("Resumed resting");
  await button("Pause resting").waitFor();
  assert((await api("job/list?prefix=resting")).data[0].enabled !== false, "it is still paused");
  await page.route("**/job/pause", (route) => route.fulfill({ status: 409, json: { errno: -1, msg: "being changed by others", data: null } }));
  await button("Pause resting").click();
  await toast("being changed by others");
  await page.unrouteAll();
  await api("job/delete", { name: "resting" });
  await fresh();
});

await check("the fleet is paused with a reason that every view shows, and resumed", async () => {
  await go("#/workers");
  await button("Pause the fleet").click();
  await dialog().getByLabel("Reason").fill("the <b>database</b> moves house");
  await dialog().getByRole("button", { name: "Pause the fleet" }).click();
  await noDialog();
  const banner = page.locator(".banner.doubt");
  await banner.filter({ hasText: "the <b>database</b> moves house" }).waitFor();
  equal((await api("fleet/status")).data.paused.reason, "the <b>database</b> moves house");
  await go("#/jobs");
  await banner.getByRole("button", { name: "Resume the fleet" }).click();
  await dialog().getByRole("button", { name: "Resume the fleet" }).click();
  await banner.waitFor({ state: "detached" });
  equal((await api("fleet/status")).data.paused, null);
  await noScript();
});

await check("a run that took too long is recorded as timed out, and found by that", async () => {
  await save("endless", "echo begun; sleep 1000", "0 0 1 1 *", { timeoutSeconds: 1 });
  await api("job/run", { name: "endless" });
  await go("#/jobs/endless?status=timedOut");
  await page.locator(".runs .chip", { hasText: "timed out" }).waitFor();
  await api("job/delete", { name: "endless" });
});

await check("all that runs in the fleet is in one view", async () => {
  await save("going", "sleep 1000");
  await api("job/run", { name: "going" });
  await go("#/running");
  await heading("Running");
  await page.locator(".running tbody tr", { hasText: "going" }).getByRole("button", { name: /^Kill run/ }).click();
  await dialog().getByRole("button", { name: "Kill run" }).click();
  await toast("Asked to kill the run of going");
  await page.locator(".running tbody tr", { hasText: "going" }).waitFor({ state: "detached" });
  await api("job/delete", { name: "going" });
});

await check("a job is deleted after a question, and a refusal is shown in the question", async () => {
  await go("#/jobs/idle");
  await button("Delete idle").click();
  await page.route("**/job/delete", (route) => route.fulfill({ status: 409, json: { errno: -1, msg: "being changed by others", data: null } }));
  await dialog().getByRole("button", { name: "Delete job" }).click();
  await dialog().locator(".note", { hasText: "being changed by others" }).waitFor();
  await page.unrouteAll();
  await dialog().getByRole("button", { name: "Delete job" }).click();
  await toast("Deleted idle");
  await heading("Jobs");
  equal((await api("job/list?prefix=idle")).data, []);
});

await check("the records can be held to one status", async () => {
  await go("#/jobs/long");
  await page.getByLabel("Status").selectOption("killed");
  await page.waitForFunction(() => location.hash.includes("status=killed"));
  await page.waitForFunction(() => [...document.querySelectorAll(".runs .chip")].every((chip) => chip.textContent.includes("killed")));
  await page.getByLabel("Status").selectOption("lost");
  await shown("No run is so");
  await api("job/delete", { name: "long" });
});

await check("the records can be held to those with a text", async () => {
  await save("speaker", 'test -e /nowhere && echo yes || echo "<i>needle</i> $CRON_PLAN_TIME"', "* * * * * * *");
  await go("#/jobs/speaker");
  await page.locator(".runs .chip.good").nth(1).waitFor();
  await page.getByLabel("Contains").fill("no such <b>text</b>");
  await page.waitForFunction(() => location.hash.includes("text="));
  await shown("No run is so");
  await page.getByLabel("Contains").fill("<i>needle</i>");
  await page.locator(".runs td.outcome", { hasText: "<i>needle</i>" }).nth(1).waitFor();
  await link("← Jobs").click();
  await api("job/delete", { name: "speaker" });
});

await check("workers are shown with their detail, labels as text", async () => {
  await link("Workers", false).click();
  await button(`Show the worker ${WORKER}`).click();
  for (const fact of ["Process id", "Session", "Instance", "Started"]) await page.locator("dt", { hasText: fact }).first().waitFor();
  await shown("zone=<img src=x onerror=alert(1)>");
  await shown('gpu="><script>alert(2)</script>');
  await noScript();
});

// ---- text that would be something else ----

const NASTY = [
  "<img src=x onerror=alert(3)>",
  '"><script>alert(4)<\\script>',
  "javascript:alert(5)",
  "{{7*7}}${alert(6)}<%= 1 %>",
  "a?b=c&d#e%41+f",
  "\u202egnp.tfel-ot-thgir",
  "אבג عربي 任务 🚀",
  "zero\u200bwidth\u2060name",
  "&lt;b&gt;&amp;",
  "..",
  "W".repeat(255),
];
await check("names, commands and outputs are text, whatever they look like", async () => {
  for (const name of NASTY) {
    await save(name, `echo '<img src=x onerror=alert(7)><script>alert(8)</script>'; echo '<svg onload=alert(9)>' >&2; exit 3`);
    await go("#/jobs");
    await page.getByLabel("Name begins with").fill(name);
    await page.waitForFunction((wanted) => document.querySelector("td.name bdi")?.textContent === wanted, name);
    await page.locator("td.name a").first().click();
    await page.waitForFunction((wanted) => document.querySelector("main h1 bdi")?.textContent === wanted, name);
    // Its address names it, whatever has to be escaped.
    const address = page.url();
    await page.goto("about:blank");
    await page.goto(address);
    await page.waitForFunction((wanted) => document.querySelector("main h1 bdi")?.textContent === wanted, name);
    await shown("<img src=x onerror=alert(7)><script>alert(8)</script>", { exact: false });
    await button(`Delete ${name}`).click();
    equal(await dialog().locator("bdi").textContent(), name);
    await button("Cancel").click();
    await noDialog();
    await noScript();
  }
  for (const name of NASTY.slice(2)) await api("job/delete", { name });
});

await check("a name with characters that are not seen is marked, and the mark names each of them", async () => {
  const rows = [
    ["a b 任务 🚀", null],
    ["zero\u200bwidth\u2060name", "zero\\u{200b}width\\u{2060}name"],
    ["no\u00a0break\u2003em", "no\\u{a0}break\\u{2003}em"],
    ["two  spaces", "two \\u{20}spaces"],
    [" outside ", "\\u{20}outside\\u{20}"],
    ["line\nbreak\u3164", "line\\u{a}break\\u{3164}"],
  ];
  for (const [name, told] of rows) {
    await go(`#/jobs/${encodeURIComponent(name)}`);
    await page.waitForFunction((wanted) => document.querySelector("main h1 bdi")?.textContent === wanted, name);
    const titles = await page.locator("main h1 .chip").evaluateAll((marks) => marks.map((mark) => mark.title));
    equal(titles.map((title) => title.includes(told)), told === null ? [] : [true], `${JSON.stringify(name)} ${titles}`);
  }
});

await check("output and errors of runs are text", async () => {
  const name = NASTY[0];
  await save(name, `echo '<img src=x onerror=alert(7)><script>alert(8)</script>'; printf '\\033[31mred\\033[0m\\r\\n'; exit 3`, "* * * * * * *");
  await go(`#/jobs/${encodeURIComponent(name)}`);
  await page.getByRole("button", { name: /^Show the run of/ }).first().click();
  await page.locator(".output pre", { hasText: "<img src=x onerror=alert(7)><script>alert(8)</script>" }).waitFor();
  await shown("exit status 3");
  equal(await page.locator(".output img, .output script, .clip img").count(), 0);
  await noScript();
  await api("job/delete", { name });
});

await check("records of every kind, and of the system before, are shown", async () => {
  const T = Date.now() - 3_600_000;
  const base = { jobName: "made", command: "true", err: "", output: "", planTime: T, scheduleTime: T - 40, startTime: T + 2, endTime: T + 65_000 };
  const data = [
    { ...base, _id: "made/1/1", status: "succeeded", exitCode: 0, worker: "<b>w</b>" },
    { ...base, _id: "made/2/1", status: "failed", err: "<script>alert(10)</script>", exitCode: 1 },
    { ...base, _id: "made/3/1", status: "killed", err: "signal: killed", signal: 9 },
    { ...base, _id: "made/4/1", status: "lost", startTime: 0, endTime: 0, err: "the worker went away" },
    { ...base, _id: "made/5/1", status: "skipped", startTime: 0, endTime: 0, err: "skipped", skipped: { from: T, to: T + 9e5, count: 1000, more: true, reason: "misfire" } },
    { ...base, _id: "5f0c", err: "exit status 2", output: "of the seed" },
    { ...base, _id: "5f0d", output: "x".repeat(1_048_576), outputTruncated: true },
    { ...base, _id: "made/8/1", status: "somethingNew" },
    { ...base, _id: "made/9/1", status: "timedOut", err: "signal: terminated", signal: 15, outputBytes: 5_000_000_000, outputTruncated: true, killedBy: "<i>10.0.0.7</i> (a browser)", killedAt: T + 60_000 },
    { ...base, _id: "made/10/3", status: "failed", err: "exit status 1", exitCode: 1, attempt: 3, trigger: "retry" },
  ];
  await page.route("**/job/log?*", (route) => route.fulfill({ json: { errno: 0, msg: "success", data, next: "20", warnings: ["<i>a warning</i>"] } }));
  await go("#/jobs/made");
  const chips = async () => (await page.locator(".runs .status .chip").allTextContents()).map((text) => text.split(" ").at(-1));
  await page.locator(".runs .status .chip").nth(9).waitFor();
  equal(await chips(), ["succeeded", "failed", "killed", "lost", "skipped", "failed", "succeeded", "somethingNew", "out", "failed"]);
  await shown("by <i>10.0.0.7</i> (a browser)");
  await page.locator(".runs tr", { hasText: "timed out" }).getByText("output cut").waitFor();
  await shown("retry · attempt 3");
  await shown("more than 1,000 times skipped: no worker could start it in time");
  await shown("<script>alert(10)</script>");
  await shown("<i>a warning</i>");
  for (const index of [3, 4]) {
    await page.locator(".runs .actions button").nth(index).click();
    await page.locator(".detail").waitFor();
    await page.locator(".runs .actions button").nth(index).click();
  }
  await page.locator(".runs .actions button").nth(8).click();
  for (const text of ["Killed by", "Kill asked for", "4.7 GiB (5,000,000,000 B)"]) await page.locator(".detail .facts", { hasText: text }).waitFor();
  await page.locator(".runs .actions button").nth(6).click();
  await shown("The command wrote more than is kept");
  equal((await page.locator(".output pre").textContent()).length, 100_000);
  await page.getByRole("button", { name: /^Show all/ }).click();
  await page.waitForFunction(() => document.querySelector(".output pre").textContent.length === 1_048_576);
  await link("Older").click();
  await page.waitForFunction(() => location.hash.includes("after=20"));
  await shown("10 older runs");
  await page.unrouteAll();
  await noScript();
});

// ---- many jobs, and the address ----

await check("hundreds of jobs are found by pages and by the beginning of their names", async () => {
  for (let from = 0; from < 300; from += 20) {
    await Promise.all(Array.from({ length: 20 }, (_, index) => save(`bulk-${String(from + index).padStart(3, "0")}`, "true")));
  }
  await go("#/jobs");
  await page.getByLabel("Name begins with").fill("bulk-");
  await page.waitForFunction(() => location.hash.includes("prefix=bulk-") && document.querySelector("td.name")?.textContent === "bulk-000");
  await link("bulk-000").waitFor();
  equal(await page.locator("td.name").count(), 25);
  await link("Next page").click();
  await link("bulk-025").waitFor();
  await page.goBack();
  await link("bulk-000").waitFor();
  await page.goForward();
  await link("bulk-025").waitFor();
  await page.getByLabel("Name begins with").fill("bulk-29");
  await link("bulk-299").waitFor();
  equal(await page.locator("td.name").count(), 10);
  await page.getByLabel("Name begins with").fill("nothing like it");
  await shown("No job’s name begins with");
  for (let from = 0; from < 300; from += 20) {
    await Promise.all(Array.from({ length: 20 }, (_, index) => api("job/delete", { name: `bulk-${String(from + index).padStart(3, "0")}` })));
  }
});

await check("Back closes a form and leads to the view before", async () => {
  await go("#/jobs");
  await link("every second").click();
  await heading("every second");
  await link("Edit every second").click();
  await dialog().waitFor();
  await page.goBack();
  await noDialog();
  await heading("every second");
  await page.goBack();
  await heading("Jobs");
  await go("#/jobs/%E0%A4%A/edit/more/parts");
  await shown("There is no such page in the console");
});

// ---- by keyboard alone ----

/** What has the focus: its name, whether it is seen to have it, and whether it is in the dialog, if one is open. */
const focused = () =>
  page.evaluate(() => {
    const at = document.activeElement;
    const style = getComputedStyle(at);
    const open = document.querySelector("dialog[open]");
    return {
      label: (at.getAttribute("aria-label") ?? at.labels?.[0]?.innerText ?? (at === document.body ? "" : at.innerText) ?? at.id).trim(),
      id: at.id,
      seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
      inside: !open || open.contains(at) || at === document.body,
    };
  });
const names = (wanted, label) => (wanted instanceof RegExp ? wanted.test(label) : label === wanted);

/** Presses Tab until the focus is on what `wanted` names. No script moves the focus here: what Tab does not come to fails. */
async function tabTo(wanted, key = "Tab") {
  const passed = [];
  for (let presses = 0; presses < 200; presses += 1) {
    await page.keyboard.press(key);
    const at = await focused();
    assert(at.inside, `the focus left the dialog, for ${at.label}`);
    if (names(wanted, at.label)) return assert(at.seen, `the focus on ${wanted} cannot be seen`);
    passed.push(at.label.slice(0, 30));
  }
  throw new Error(`${key} never comes to ${wanted}, only to ${[...new Set(passed)].join(" | ")}`);
}
const press = (key) => page.keyboard.press(key);
const write = (text) => page.keyboard.type(text);
const pressOn = async (wanted, key = "Enter", tab = "Tab") => {
  await tabTo(wanted, tab);
  await press(key);
};
const focusOn = async (wanted) => {
  const at = await focused();
  assert(names(wanted, at.label), `the focus is on ${at.label}, not on ${wanted}`);
};
/** Once around the open dialog: `tabTo` fails where the focus is outside of it. */
async function trapped(first) {
  await tabTo(first);
  await press("Tab");
  await tabTo(first);
  await tabTo(first, "Shift+Tab");
}

await check("by keyboard: the skip link, search, pages, and a job is opened", async () => {
  for (let index = 0; index < 30; index += 1) await save(`pager-${String(index).padStart(2, "0")}`, "true");
  await fresh();
  await heading("Jobs");
  await pressOn("Skip to the content");
  equal((await focused()).id, "main");
  await tabTo(/^Name begins with/);
  await write("pager-");
  await page.waitForFunction(() => document.querySelector("td.name")?.textContent === "pager-00");
  await pressOn("Next page");
  await link("pager-25").waitFor();
  await pressOn("Back");
  await link("pager-00").waitFor();
  await pressOn("Next page");
  await link("pager-25").waitFor();
  await pressOn("First page");
  await link("pager-00").waitFor();
  await pressOn("pager-00");
  await heading("pager-00");
  equal(await page.evaluate(() => document.activeElement.tagName), "H1", "the view does not begin at its title:");
  await pressOn("← Jobs", "Enter", "Shift+Tab");
  await heading("Jobs");
  for (let index = 0; index < 30; index += 1) await api("job/delete", { name: `pager-${String(index).padStart(2, "0")}` });
});

await check("by keyboard: a job is made with every field, a fault mended, and what was typed is not left by mistake", async () => {
  await pressOn("New job");
  await dialog().waitFor();
  equal((await focused()).id, "name", "the form does not begin at the name:");
  await trapped("Save");
  await tabTo("Name");
  await write("keys");
  await tabTo("Schedule");
  await write("61 * * * *");
  await tabTo("Command");
  await write("echo by keys");
  await pressOn("Save");
  await page.locator("#cronExpr-fault span").waitFor();
  equal((await focused()).id, "cronExpr", "the fault does not take the focus:");
  await press("Escape");
  await shown("What you typed is not saved");
  await pressOn("Keep editing");
  await page.getByText("What you typed is not saved").waitFor({ state: "detached" });
  await pressOn("Examples");
  await pressOn("Use 30 2 * * *: every day at 02:30", "Space");
  await pressOn("Save");
  await heading("keys");
  await noDialog();
  equal((await api("job/list?prefix=keys")).data, [{ name: "keys", command: "echo by keys", cronExpr: "30 2 * * *" }]);
});

await check("by keyboard: a job is edited, and the focus comes back", async () => {
  await pressOn("Edit keys");
  await page.waitForFunction(() => document.activeElement.id === "cronExpr");
  await trapped("Save");
  await press("Escape");
  await noDialog();
  await focusOn("Edit keys");
  await press("Enter");
  await page.waitForFunction(() => document.activeElement.id === "cronExpr");
  await press("Control+A");
  await write("* * * * * * *");
  await press("Enter");
  await toast("Saved keys");
  await noDialog();
  await focusOn("Edit keys");
});

await check("by keyboard: runs are shown, wrapped, copied, hidden, and held to one status", async () => {
  await page.locator(".runs .chip.good").first().waitFor();
  await pressOn(/^Show the run of/);
  await page.locator(".detail .output pre").waitFor();
  await pressOn("Wrap lines", "Space");
  equal(await page.locator(".output pre").getAttribute("class"), "");
  await pressOn("Copy");
  await shown("Copied");
  equal(await page.evaluate(() => navigator.clipboard.readText()), "by keys\n");
  await pressOn("Command that ran");
  await page.getByRole("region", { name: "Command that ran" }).waitFor();
  await pressOn(/^Hide the run of/, "Enter", "Shift+Tab");
  await page.locator(".detail").waitFor({ state: "detached" });
  await focusOn(/^Show the run of/);
  await tabTo(/^Status/, "Shift+Tab");
  await press("ArrowDown");
  await page.waitForFunction(() => location.hash.includes("status=succeeded"));
  await press("ArrowUp");
  await page.waitForFunction(() => !location.hash.includes("status"));
  await focusOn(/^Status/);
});

await check("by keyboard: a job is duplicated; deleted after a question that can be declined", async () => {
  await pressOn("Duplicate keys", "Enter", "Shift+Tab");
  await page.waitForFunction(() => document.activeElement.id === "name");
  await press("Escape");
  await noDialog();
  await focusOn("Duplicate keys");
  await press("Enter");
  await page.waitForFunction(() => document.activeElement.id === "name");
  await write("keys too");
  await tabTo("Schedule");
  await press("Control+A");
  await write("@daily");
  await press("Enter");
  await heading("keys too");
  await noDialog();
  await pressOn("Delete keys too");
  await dialog().waitFor();
  await trapped("Delete job");
  await pressOn("Cancel");
  await noDialog();
  await focusOn("Delete keys too");
  await press("Enter");
  await dialog().waitFor();
  await press("Escape");
  await noDialog();
  await focusOn("Delete keys too");
  equal((await api("job/list?prefix=keys too")).data.length, 1);
  await press("Space");
  await pressOn("Delete job");
  await heading("Jobs");
  await noDialog();
  equal((await api("job/list?prefix=keys too")).data, []);
});

await check("by keyboard: a run is killed after a question, and what was said is dismissed", async () => {
  await save("keys", "sleep 1000", "* * * * * * *");
  await tabTo(/^Name begins with/);
  await write("keys");
  await press("Enter");
  await pressOn("keys");
  await heading("keys");
  await page.locator(".runs .chip", { hasText: "skipped" }).first().waitFor();
  await pressOn("Kill run of keys");
  await dialog().waitFor();
  await trapped("Kill run");
  await press("Escape");
  await noDialog();
  await focusOn("Kill run of keys");
  await press("Enter");
  await pressOn("Kill run");
  await noDialog();
  await focusOn("Kill run of keys");
  await toast("Asked to kill the run of keys");
  await pressOn(/^Dismiss: Asked to kill/);
  await page.locator(".toast", { hasText: "Asked to kill" }).waitFor({ state: "detached" });
  await page.locator(".runs .chip", { hasText: "killed" }).first().waitFor();
  await api("job/delete", { name: "keys" });
});

await check("by keyboard: older and newer runs, and a run that is linked to is shown though newer ones push it away", async () => {
  await pressOn("Jobs");
  await heading("Jobs");
  await pressOn("every second");
  await heading("every second");
  await pressOn("Older");
  await shown(/^\d+ older runs?$/);
  // Newer runs do not push it on.
  const first = await page.locator(".runs .when time").first().getAttribute("datetime");
  await page.waitForResponse(/job\/log/);
  await page.waitForResponse(/job\/log/);
  equal(await page.locator(".runs .when time").first().getAttribute("datetime"), first);
  await pressOn("Back");
  await shown("The newest 20 runs");
  await pressOn("Older");
  await shown(/^\d+ older runs?$/);
  await pressOn("Newest");
  await shown("The newest 20 runs");
  const old = (await api("job/log?name=every%20second&limit=1&skip=22")).data[0];
  await page.goto(`${URL_}#/jobs/every%20second?run=${encodeURIComponent(old._id)}`);
  await page.locator(".pinned .output pre", { hasText: old.output.split("\n")[0] }).waitFor();
  await page.locator(".pinned", { hasText: old._id }).waitFor();
  await pressOn(/^Hide the run of/);
  await page.locator(".pinned").waitFor({ state: "detached" });
  assert(!page.url().includes("run="), page.url());
});

await check("by keyboard: a job is paused and resumed, run by hand, and its run is watched and killed", async () => {
  await save("handy", 'echo "<b>$GREETING</b>"; sleep 1000');
  await go("#/jobs/handy");
  await heading("handy");
  await pressOn("Pause handy");
  await toast("Paused handy");
  await button("Resume handy").waitFor();
  await focusOn("Resume handy");
  await press("Space");
  await toast("Resumed handy");
  await button("Pause handy").waitFor();
  await focusOn("Pause handy");
  await pressOn("Run now: handy", "Enter", "Shift+Tab");
  await dialog().waitFor();
  await trapped("Run now");
  await tabTo("Environment for this run");
  await write("GREETING=by keys");
  await pressOn("Run now");
  await noDialog();
  await focusOn("Run now: handy");
  await page.locator(".running tbody tr a").first().waitFor(); // until it is claimed there is nothing to watch
  await pressOn(/^Watch run/);
  await heading("Run of handy");
  equal(await page.evaluate(() => document.activeElement.tagName), "H1", "the view does not begin at its title:");
  await page.locator("pre.live", { hasText: "<b>by keys</b>" }).waitFor();
  await pressOn("Follow the end", "Space");
  equal(await button("Follow the end").getAttribute("aria-pressed"), "false");
  await tabTo("Output");
  await pressOn(/^Kill run (?!of)/, "Enter", "Shift+Tab");
  await pressOn("Kill run");
  await page.locator("main .chip", { hasText: "killed" }).waitFor();
  await pressOn("Show it as it was recorded");
  await page.locator(".output pre:not(.live)", { hasText: "<b>by keys</b>" }).waitFor();
  await pressOn("← handy", "Enter", "Shift+Tab");
  await heading("handy");
  await api("job/delete", { name: "handy" });
});

await check("by keyboard: a calendar is made, its days are shown, and it is deleted after a question", async () => {
  await pressOn("Calendars", "Enter", "Shift+Tab");
  await heading("Calendars");
  await pressOn("New calendar");
  await dialog().waitFor();
  equal((await focused()).id, "calendar-name", "the form does not begin at the name:");
  await trapped("Save");
  await tabTo("Name");
  await write("keys");
  await tabTo("Days");
  await write("2027-01-01");
  await press("Escape");
  await shown("What you typed is not saved");
  await pressOn("Keep editing");
  await pressOn("Save");
  await noDialog();
  await focusOn("New calendar");
  await pressOn("Show the days of keys");
  await page.locator(".detail dd", { hasText: "2027-01-01" }).waitFor();
  await focusOn("Hide the days of keys");
  await press("Space");
  await page.locator(".detail").waitFor({ state: "detached" });
  await pressOn("Delete the calendar keys");
  await dialog().waitFor();
  await trapped("Delete calendar");
  await pressOn("Delete calendar");
  await shown("There are no calendars yet");
  await pressOn("Audit", "Enter", "Shift+Tab");
  await heading("Audit");
  await page.locator(".version", { hasText: "calendar_delete" }).first().waitFor();
  await pressOn("Jobs", "Enter", "Shift+Tab");
  await pressOn("every second");
  await heading("every second");
});

await check("by keyboard: workers and their detail", async () => {
  await page.locator(".runs td.worker a").first().waitFor();
  await pressOn(WORKER);
  await heading("Workers");
  await page.locator(".detail dd").first().waitFor();
  await pressOn(/^Hide the worker/);
  await page.locator(".detail").waitFor({ state: "detached" });
  await press("Space");
  await page.locator(".detail dd").first().waitFor();
  await focusOn(/^Hide the worker/);
});

await check("by keyboard: updates, language and theme", async () => {
  await pressOn("Stop updates", "Space", "Shift+Tab");
  await shown("Not updating");
  await focusOn("Resume updates");
  await press("Enter");
  await shown("Live");
  await tabTo(/^Language/);
  await press("ArrowDown");
  await page.getByRole("heading", { name: "工作节点", level: 1 }).waitFor();
  await press("ArrowUp");
  await heading("Workers");
  await tabTo(/^Theme/);
  await press("ArrowDown");
  await press("ArrowDown");
  equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
  await press("ArrowUp");
  await press("ArrowUp");
  equal(await page.evaluate(() => document.documentElement.dataset.theme), "system");
});

// ---- language and theme ----

await check("language and theme are chosen and remembered", async () => {
  const other = await open({ locale: "zh-CN", colorScheme: "dark" });
  await other.goto(URL_);
  await other.getByRole("heading", { name: "任务", level: 1 }).waitFor();
  equal(await other.evaluate(() => document.documentElement.lang), "zh-CN");
  const ground = () => other.evaluate(() => getComputedStyle(document.body).backgroundColor);
  equal(await ground(), "rgb(19, 23, 27)", "the system's theme");
  await other.getByLabel("主题").selectOption("light");
  equal(await ground(), "rgb(246, 247, 249)", "light");
  await other.getByLabel("语言").selectOption("en");
  await other.getByRole("heading", { name: "Jobs", level: 1 }).waitFor();
  await other.reload();
  await other.getByRole("heading", { name: "Jobs", level: 1 }).waitFor();
  equal(await ground(), "rgb(246, 247, 249)", "remembered");
  equal(await other.evaluate(() => document.documentElement.lang), "en-GB");
  await other.context().close();
});

// ---- pictures and axe ----

async function picture(name) {
  await page.screenshot({ path: join(FLEETCRON_PICTURES, `${name}-${look}.png`) });
}

async function axeFinds(where) {
  await page.evaluate(async () => Promise.all(document.getAnimations().map((animation) => animation.finished.catch(() => {}))));
  const found = await page.evaluate(async () => {
    const result = await window.axe.run(document, { resultTypes: ["violations"] });
    return result.violations.map((fault) => `${fault.impact} ${fault.id}: ${fault.nodes.slice(0, 3).map((node) => node.html.slice(0, 140)).join(" ; ")}`);
  });
  return found.map((fault) => `${where}: ${fault}`);
}

async function overflow(where) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  return wide > 0 ? [`${where}: scrolls sideways by ${wide} px`] : [];
}

/** What the pictures of callers, of a paused fleet, of runs that are going and of one of them show: the real ones have another look in every picture. */
const PICTURED = {
  "job/running": [
    { runId: "694d9acb-12", job: "every second", worker: WORKER, planTime: Date.now() - 65_000, scheduleTime: Date.now() - 65_100, attempt: 1, trigger: "schedule" },
    { runId: "694d9acb-15", job: "x".repeat(255), worker: "10.0.0.5", planTime: Date.now() - 6_000, attempt: 2, trigger: "retry" },
  ],
  "run/get": {
    open: { runId: "694d9acb-12", job: "every second", worker: WORKER, planTime: Date.now() - 65_000, scheduleTime: Date.now() - 65_100, attempt: 2, trigger: "manual", command: "echo begun" },
    record: null,
  },
  "run/output": { from: 9_000_000, output: "a line of what is printed\n".repeat(100), next: 9_002_600, ended: true },
  "fleet/status": { paused: { since: Date.now() - 600_000, by: "10.0.0.7 (Mozilla/5.0)", reason: "<b>the database moves house</b> ".repeat(4) }, resumedAt: null },
  "token/self": { name: `someone <b>with a long name</b> ${"x".repeat(60)}`, role: "admin", prefix: "team-", means: "token", id: "0123456789ab", expiresAt: Date.now() + 2.5 * 86_400_000 },
  "token/list": [
    { id: "0123456789ab", name: "someone <b>with a long name</b>", role: "admin", prefix: "team-", createdAt: Date.now() - 86_400_000, createdBy: "first admin from 10.0.0.7 (Mozilla/5.0)", expiresAt: null, usedAt: Date.now() - 5_000 },
    { id: "ba9876543210", name: "任务".repeat(16), role: "viewer", prefix: "", createdAt: Date.now() - 95 * 86_400_000, createdBy: "local-dev", expiresAt: Date.now() - 86_400_000, usedAt: null },
  ],
};
PICTURED["calendar/list"] = [
  { name: "holidays", description: "Days on which nobody works <b>at all</b>, ".repeat(6), dates: ["2026-12-25", "2027-01-01", "2027-03-26/2027-03-29", "2031-05-01", "2032-12-24/2032-12-26"], days: 10 },
  { name: "节假日".repeat(10), dates: [], days: 0 },
];
PICTURED["audit/list"] = [
  { id: "3", at: Date.now() - 5_000, action: "calendar_save", by: { name: "someone <b>with a long name</b>", role: "admin" }, from: "10.0.0.7 (Mozilla/5.0)", thing: "calendar", name: "", details: { calendar: "holidays" }, changes: { dates: { before: ["2027-01-01"], after: ["2027-01-01", "2027-12-24/2027-12-26"] } } },
  { id: "2", at: Date.now() - 65_000, action: "token_refused", by: null, from: "192.0.2.7 (curl/8.5.0)", thing: "token", name: "", details: { count: 23, addresses: { "192.0.2.7": 20, "2001:db8::1": 3 } }, changes: {} },
  { id: "1", at: Date.now() - 95_000, action: "save", by: { name: "ci", role: "editor" }, from: "10.0.0.8", thing: "job", name: "x".repeat(255), changes: { command: { before: "true", after: `${"long ".repeat(40)}` } } },
];
const NOBODY = { status: 401, json: { errno: -2, msg: "show a token", data: null } };
const pictured = async (path) => page.route(`**/${path}*`, (route) => route.fulfill(PICTURED[path] === null ? NOBODY : { json: { errno: 0, msg: "success", data: PICTURED[path] } }));

const VIEWS = [
  ["jobs", "#/jobs", async () => page.locator("td.name").first().waitFor()],
  ["jobs-empty", "#/jobs?prefix=none", async () => page.locator(".empty").waitFor()],
  ["job", "#/jobs/every%20second", async () => {
    await page.locator(".runs .actions button").first().click();
    await page.locator(".output pre").waitFor();
  }],
  ["job-none", "#/jobs/the%20other%20one", async () => page.locator(".empty").waitFor()],
  ["workers", `#/workers?worker=${encodeURIComponent(WORKER)}`, async () => page.locator(".detail dd").first().waitFor()],
  ["form", "#/new", async () => {
    await page.locator("dialog summary").first().click();
    await page.locator("dialog button[type=submit]").click();
    await page.locator("#name-fault span").waitFor();
  }],
  ["form-options", "#/new", async () => {
    await dialog().waitFor();
    await unfold();
    await fill({ outputLimitBytes: "1048576", timeoutSeconds: "0", env: "A=b" });
    await page.locator("dialog button[type=submit]").click();
    await page.locator("#name-fault span").waitFor();
  }],
  ["running", "#/running", async () => page.locator(".running td.name").first().waitFor(), ["job/running"]],
  ["run", "#/jobs/every%20second/runs/694d9acb-12", async () => page.locator(".live .left-out").waitFor(), ["run/get", "run/output"]],
  ["paused", "#/jobs/paused", async () => page.locator(".banner.doubt").waitFor(), ["fleet/status"]],
  ["run-now", "#/jobs/every%20second", async () => {
    await button("Run now: every second").or(button("立即执行：every second")).click();
    await dialog().waitFor();
  }],
  ["tokens", "#/tokens", async () => page.locator(".tokens td.name").nth(1).waitFor(), ["token/self", "token/list"]],
  ["token-new", "#/tokens", async () => {
    await page.locator(".bar .primary").click();
    await dialog().waitFor();
  }, ["token/self", "token/list"]],
  ["calendars", "#/calendars?calendar=holidays", async () => page.locator(".detail dd").first().waitFor(), ["calendar/list"]],
  ["calendar-new", "#/calendars", async () => {
    await page.locator(".bar .primary").click();
    await page.locator("#calendar-dates").fill("2027-01-01\n2027-12-24/2027-12-26");
    await dialog().locator(".preview strong").waitFor();
  }, ["calendar/list"]],
  ["audit", "#/audit", async () => page.locator(".version").nth(2).waitFor(), ["audit/list"]],
  ["form-edit", "#/jobs/every%20second/edit", async () => page.locator("dialog.drawer[open]").waitFor()],
  ["confirm", "#/jobs/every%20second", async () => {
    await page.locator(".bar .danger").click();
    await page.locator("dialog[open]").waitFor();
  }],
];

await check("nasty jobs for the pictures", async () => {
  await save("x".repeat(255), `${"long ".repeat(400)}`);
  await save("paused", "true", "@daily", { enabled: false });
  await save("\u202ereversed <b>name", "echo 任务 && echo '👩‍🚀'", "0 9-17/2 1,15 jan-jun mon-fri");
});

for (const width of [375, 768, 1440]) {
  for (const colorScheme of ["light", "dark"]) {
    for (const lang of ["en", "zh"]) {
      look = `${width}-${colorScheme}-${lang}`;
      await check(`axe finds nothing and nothing is cut off at ${width} px, ${colorScheme}, ${lang}`, async () => {
        await page.context().close();
        page = await open({ locale: lang === "zh" ? "zh-CN" : "en-GB", colorScheme, viewport: { width, height: width === 375 ? 812 : 900 } });
        await page.addInitScript(axe);
        const faults = [];
        for (const [name, hash, ready, answers = []] of VIEWS) {
          await page.goto("about:blank");
          for (const path of answers) await pictured(path);
          await page.goto(URL_ + hash);
          await ready();
          await picture(name);
          faults.push(...(await axeFinds(name)), ...(await overflow(name)));
          await page.unrouteAll({ behavior: "ignoreErrors" });
        }
        assert(faults.length === 0, faults.join(" || "));
        await noScript();
      });
    }
  }
}
look = "1440-light-en";
await page.context().close();
page = await open();
await page.goto(URL_);

// ---- the API away, and below a stage ----

/** Its run is going when the worker is killed: a record of the store, not one made here. */
const LOST = "<b>lost<img src=x onerror=alert(12)>";

await check("without the API a banner says so, what was typed stays, and it recovers by itself", async () => {
  await go("#/jobs");
  await link("every second").waitFor();
  await page.evaluate(() => (window.marker = "the same page"));
  await go("#/new");
  await fill({ name: "typed while away", cronExpr: "@daily", command: "true" });
  await save(LOST, "echo begun; sleep 1000", "* * * * * * *");
  for (let records = []; records.length === 0; ) ({ data: records } = await api(`job/log?${new URLSearchParams({ name: LOST })}`));
  await please("kill");
  await button("Save").click();
  await page.locator("#form-fault", { hasText: "The API d" }).waitFor();
  await page.locator(".banner", { hasText: "The API does not answer" }).waitFor();
  await picture("away-form");
  equal(await page.locator("#command").inputValue(), "true");
  await page.goBack();
  await noDialog();
  await link("every second").waitFor();
  await picture("away");
  await please("start");
  await page.locator(".banner").waitFor({ state: "detached" });
  await page.goForward();
  await shown("and did not save, is back");
  await button("Save").click();
  await heading("typed while away");
  equal(await page.evaluate(() => window.marker), "the same page", "the page was loaded again:");
});

await check("a run whose worker went away is told as lost, its names as text", async () => {
  await go(`#/jobs/${encodeURIComponent(LOST)}?status=lost`);
  await page.locator(".runs .chip", { hasText: "lost" }).first().waitFor();
  await button(/^Show the run of/, false).first().click();
  await shown("Whether the command finished is not known");
  await page.locator(".detail bdi", { hasText: WORKER }).waitFor();
  equal(await page.locator("main img, main b").count(), 0, "markup was made of names:");
  await noScript();
  await api("job/delete", { name: LOST });
});

await check("updates stand still when paused, and go on when resumed", async () => {
  let asked = 0;
  page.on("request", (request) => (asked += request.url().includes("/worker/list") ? 1 : 0));
  const next = () => page.waitForRequest(/worker\/list/);
  await next();
  await button("Stop updates").click();
  await shown("Not updating");
  const before = asked;
  await go("#/workers");
  await heading("Workers");
  assert(asked - before <= 1, "it goes on asking");
  await Promise.all([next(), button("Resume updates").click()]);
  await shown("Live");
});

await check("updates stand still while the page is hidden, and go on when it is seen", async () => {
  const made = await open();
  let asked = 0;
  made.on("request", (request) => (asked += request.url().includes("/worker/list") ? 1 : 0));
  // The page's clock is moved by hand, so that a minute takes no time. A browser without a screen hides no tab: the state is set by hand, too.
  await made.clock.install();
  await made.goto(URL_);
  await made.locator("td.name").first().waitFor();
  const see = (state) =>
    made.evaluate((to) => {
      Object.defineProperty(document, "visibilityState", { value: to, configurable: true });
      Object.defineProperty(document, "hidden", { value: to === "hidden", configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, state);
  const minute = async () => {
    await made.clock.runFor(60_000);
    // An answer that was on its way has come, now that a later one has.
    await made.evaluate(async () => (await fetch("job/list?limit=1")).text());
  };
  await minute();
  assert(asked > 1, "it does not go on by itself");
  await see("hidden");
  await minute();
  const before = asked;
  await minute();
  await minute();
  equal(asked, before, "it asks while nobody sees it:");
  await Promise.all([made.waitForRequest(/worker\/list/), see("visible")]);
  await made.context().close();
});

await check("the console works below a stage of a gateway", async () => {
  const to = new URL(URL_);
  const gateway = createServer((request, response) => {
    if (!request.url.startsWith("/prod/")) return response.writeHead(403).end();
    const onward = httpRequest({ host: to.hostname, port: to.port, method: request.method, path: request.url.slice(5), headers: { ...request.headers, host: to.host } }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    onward.on("error", () => response.destroy());
    return request.pipe(onward);
  });
  await new Promise((listening) => gateway.listen(0, "127.0.0.1", listening));
  try {
    await page.goto(`http://127.0.0.1:${gateway.address().port}/prod/#/jobs/${encodeURIComponent("every second")}`);
    await heading("every second");
    await page.locator(".runs .chip").first().waitFor();
  } finally {
    gateway.closeAllConnections();
    gateway.close();
  }
});

await check("every file comes with the policy", async () => {
  for (const path of ["", "console/app.js", "console/style.css"]) {
    const policy = (await fetch(URL_ + path)).headers.get("content-security-policy") ?? "";
    for (const rule of ["default-src 'none'", "script-src 'self'", "style-src 'self'", "base-uri 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'"]) {
      assert(policy.split("; ").includes(rule), `${path}: no ${rule} in ${policy}`);
    }
  }
});

await check("an unchanged file is not sent again", async () => {
  const first = await fetch(`${URL_}console/app.js`);
  const again = await fetch(`${URL_}console/app.js`, { headers: { "if-none-match": first.headers.get("etag") } });
  equal([first.status, again.status, (await again.text()).length], [200, 304, 0]);
});

// ---- tokens: from here on the API asks for one ----

/** Makes a token by the API. */
const token = async (name, role, prefix = "") => {
  const answer = await api("token/create", { name, role, prefix, days: "1" });
  assert(answer.errno === 0, `${name}: ${answer.msg}`);
  return answer.data;
};
const TOKEN = "admin <img src=x onerror=alert(21)>";
const signIn = async (text) => {
  await dialog().getByLabel("Token").fill(text);
  await button("Sign in").click();
};
const kept = () => page.evaluate(() => [sessionStorage.getItem("fleetcron.token"), localStorage.getItem("fleetcron.token")]);

await check("an open API says so, and makes the first token, which is shown once", async () => {
  await fresh();
  await page.locator(".who", { hasText: "open to everybody" }).waitFor();
  await link("Tokens").click();
  await heading("Tokens");
  await button("New token").click();
  await page.locator("#token-name").fill(TOKEN);
  await page.locator("#token-role").selectOption("admin");
  await picture("token-new");
  await button("Make the token").click();
  await dialog().getByText("cannot be shown again").waitFor();
  bearer = await dialog().locator("pre").textContent();
  assert(/^fct_[0-9a-f]{12}_/.test(bearer), bearer);
  // It does not go by mistake.
  await page.keyboard.press("Escape");
  await dialog().locator("pre").waitFor();
  await picture("token-made");
  await button("I have it").click();
  await page.locator("table.tokens td.name", { hasText: TOKEN }).waitFor();
  assert(!(await page.content()).includes(bearer), "the token is still in the page");
  equal(await page.locator("main img").count(), 0, "markup was made of a name:");
});

await check("a viewer signs in, looks, and is offered nothing that a viewer may not", async () => {
  const { token: viewer } = await token("a viewer", "viewer");
  await please("start with tokens");
  await page.goto("about:blank");
  await page.goto(URL_);
  await dialog().getByRole("heading", { name: "Sign in to Fleetcron" }).waitFor();
  equal(await page.locator("main").count(), 0, "there is a view before anybody has signed in:");
  await picture("signin");
  await signIn("not a token");
  await dialog().getByText("That is no token").waitFor();
  await signIn(`${viewer.slice(0, -4)}AAAA`);
  await dialog().getByText("not known, has expired, or was revoked").waitFor();
  await signIn(`Bearer ${viewer} `);
  await link("sample-hello").waitFor();
  await noDialog();
  equal(await kept(), [viewer, null], "kept:");
  assert(!page.url().includes("fct_"), page.url());
  await page.locator(".who", { hasText: "viewer" }).waitFor();
  await page.locator(".who .chip", { hasText: /^expires in/ }).waitFor();
  for (const name of ["New job", "Tokens", "Audit", /^Edit /]) equal(await link(name).count(), 0, `${name}:`);
  for (const name of [/^Delete /, /^Kill /]) equal(await button(name).count(), 0, `${name}:`);
  await picture("signed-in-viewer");
  await go("#/new");
  await dialog().getByText("You are signed in as viewer").waitFor();
  await button("Close").click();
  await noDialog();
  await go("#/tokens");
  await shown("Tokens are for admins to see.");
  await go("#/audit");
  await shown("The audit is for admins with all jobs to see.");
  await link("Calendars").click();
  await shown("There are no calendars yet");
  equal(await button("New calendar").count(), 0, "a viewer is offered to make a calendar:");
  await go("#/tokens");
  await page.reload();
  await heading("Tokens");
  equal(await dialog().count(), 0, "it asks again after a reload:");
  await button("Sign out").click();
  await dialog().getByText("Sign in to Fleetcron").waitFor();
  equal(await kept(), [null, null], "kept after signing out:");
});

await check("an editor whose token is revoked signs in again, and what was typed is still there", async () => {
  const { token: first, id } = await token("an editor", "editor", "team");
  const { token: second } = await token("an editor again", "editor", "team");
  await dialog().getByLabel("Stay signed in").check();
  await signIn(first);
  await page.locator(".who", { hasText: "team" }).waitFor();
  equal(await kept(), [null, first], "kept:");
  await go("#/jobs");
  await link("New job").first().click();
  await shown("Yours must begin with");
  await fill({ name: "team <b>a", cronExpr: "0 0 1 1 *", command: "echo '<img src=x onerror=alert(22)>'" });
  await unfold();
  await page.locator("#description").fill("<script>alert(23)</script>");
  equal((await api("token/revoke", { id })).errno, 0);
  await dialog().getByRole("heading", { name: "Sign in to Fleetcron" }).waitFor();
  await picture("signin-again");
  await signIn(second);
  await page.locator(".who", { hasText: "an editor again" }).waitFor();
  equal(await page.locator("#description").inputValue(), "<script>alert(23)</script>");
  await button("Save").click();
  await toast("Saved");
  await heading("team <b>a");
  await shown("<script>alert(23)</script>");
  equal(await page.locator("main img, main b, main script").count(), 0, "markup was made of what was typed:");
  await picture("signed-in-editor");
  await button("Sign out").click();
  await dialog().getByText("Sign in to Fleetcron").waitFor();
});

await check("an admin revokes a token after a question", async () => {
  await signIn(bearer);
  await go("#/tokens");
  await page.locator("table.tokens td.name", { hasText: TOKEN }).getByText("yours").waitFor();
  await picture("tokens");
  await button("Revoke the token a viewer").click();
  await button("Revoke token").click();
  await toast("Revoked a viewer");
  await page.locator("td.name", { hasText: /^a viewer$/ }).waitFor({ state: "detached" });
  await page.locator("header select").first().selectOption("zh");
  await shown("新建令牌");
  await picture("tokens-zh");
  await noScript();
});

await check("the last token of an admin with all jobs goes only when that is said twice", async () => {
  await page.locator("header select").first().selectOption("en");
  await button(`Revoke the token ${TOKEN}`).click();
  await button("Revoke token").click();
  await dialog().getByText("this is the last token of an admin").waitFor();
  await picture("token-last");
  await button("Revoke the last one").click();
  await dialog().getByText("Sign in to Fleetcron").waitFor();
});

await check("the browser complained about nothing", () => equal(complaints, []));

await browser.close();
process.exit(failed === 0 ? 0 : 1);
