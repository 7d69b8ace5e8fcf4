// Drives the web console in Chromium, as people do, on a real local-dev. Prints `ok …` or `not ok …` for each case, and asks
// tests/tests/e2e_console.rs, which started it, to kill and start local-dev by `please kill` and `please start`.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { createServer, request as httpRequest } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const { FLEETCRON_URL: URL_, FLEETCRON_BROWSER, FLEETCRON_MODULES, FLEETCRON_PICTURES } = process.env;
const require = createRequire(`${FLEETCRON_MODULES}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const sources = new URL("../../functions/src/console/", import.meta.url);
const source = (name) => readFileSync(new URL(name, sources), "utf8");
const texts = await import(`data:text/javascript,${encodeURIComponent(source("texts.js"))}`).then((module) => module.texts);
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

async function api(path, body) {
  const options = body ? { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) } : {};
  const response = await fetch(URL_ + path, options);
  return response.json();
}
async function save(name, command, cronExpr = "0 0 1 1 *") {
  const answer = await api("job/save", { name, command, cronExpr });
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
const noScript = async () => equal(await page.evaluate(() => window.ran), [], "a script ran, or the policy stopped something:");

// ---- without a browser: texts and files ----

await check("both languages have the same texts with the same gaps", () => {
  const shape = (language) => Object.entries(texts[language]).map(([key, text]) => [key, [text].flat().map((one) => [...one.matchAll(/\{\w+\}/g)].map(String).sort())]).sort();
  const [en, zh] = [shape("en"), shape("zh")];
  equal(en.map(([key]) => key), zh.map(([key]) => key), "keys");
  for (const [index, [key, gaps]] of en.entries()) equal(zh[index][1], gaps, key);
});

await check("every text that the code asks for exists, and every text is asked for", () => {
  const code = readdirSync(sources).filter((name) => name.endsWith(".js") && name !== "texts.js").map(source).join("\n");
  const asked = [...code.matchAll(/\b(?:t|rich)\(\s*(?:[^"`(),]*\? *)?"([^"]+)"(?: *: *"([^"]+)")?/g)].flatMap(([, one, other]) => [one, other]).filter(Boolean);
  for (const key of asked) assert(key in texts.en, `no text ${key}`);
  const made = ["theme.", "fresh.", "status.", "reason.", "example."];
  for (const key of Object.keys(texts.en)) {
    assert(code.includes(`"${key}"`) || made.some((start) => key.startsWith(start)) || /^(kill|delete)(Title|Question|Help|Do)$/.test(key), `nobody asks for ${key}`);
  }
});

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

await check("the vendored libraries are the bytes that their table says", () => {
  const sum = (text) => createHash("sha256").update(text).digest("hex");
  const rows = [...source("vendor/README.md").matchAll(/^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$/gm)];
  equal(rows.map(([, name]) => name).sort(), readdirSync(new URL("vendor/", sources)).filter((name) => name.endsWith(".js")).sort());
  for (const [, name, recorded] of rows) equal(sum(source(`vendor/${name}`)), recorded, name);
  const published = source("vendor/preact-hooks.js").replace('from"./preact.js"', 'from"preact"');
  assert(source("vendor/README.md").includes(sum(published)), "preact-hooks.js differs by more than its import");
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
  await fill({ command: "echo tock\necho second line", cronExpr: "*/2 * * * * *" });
  await button("Save").click();
  await toast("seconds first");
  await noDialog();
  await page.locator(".definition", { hasText: "*/2 * * * * *" }).waitFor();
  equal((await api("job/list?prefix=every")).data[0].command, "echo tock\necho second line");
});

await check("a job is duplicated under another name", async () => {
  await link("Duplicate every second").click();
  await dialog().waitFor();
  equal(await page.locator("#name").inputValue(), "");
  equal(await page.locator("#cronExpr").inputValue(), "*/2 * * * * *");
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

await check("a job is deleted after a question, and a refusal is shown in the question", async () => {
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
  await shown("No run ended so");
  await api("job/delete", { name: "long" });
});

await check("workers are shown with their detail, labels as text", async () => {
  await link("Workers", false).click();
  await button("Show the worker worker-one").click();
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
  await go(`#/jobs/${encodeURIComponent("zero\u200bwidth\u2060name")}`);
  await shown("hidden characters");
  for (const name of NASTY.slice(2)) await api("job/delete", { name });
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
  ];
  await page.route("**/job/log?*", (route) => route.fulfill({ json: { errno: 0, msg: "success", data, next: "20", warnings: ["<i>a warning</i>"] } }));
  await go("#/jobs/made");
  const chips = async () => (await page.locator(".runs .chip").allTextContents()).map((text) => text.split(" ").at(-1));
  await page.locator(".runs .chip").nth(7).waitFor();
  equal(await chips(), ["succeeded", "failed", "killed", "lost", "skipped", "failed", "succeeded", "somethingNew"]);
  await shown("more than 1,000 times skipped: no worker could start it in time");
  await shown("<script>alert(10)</script>");
  await shown("<i>a warning</i>");
  for (const index of [3, 4]) {
    await page.locator(".runs .actions button").nth(index).click();
    await page.locator(".detail").waitFor();
    await page.locator(".runs .actions button").nth(index).click();
  }
  await page.locator(".runs .actions button").nth(6).click();
  await shown("The command wrote more than is kept");
  equal((await page.locator(".output pre").textContent()).length, 100_000);
  await page.getByRole("button", { name: /^Show all/ }).click();
  await page.waitForFunction(() => document.querySelector(".output pre").textContent.length === 1_048_576);
  await link("Older").click();
  await page.waitForFunction(() => location.hash.includes("skip=20"));
  await shown("21 to 28, newest first");
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

/** Presses Tab until the focus is on what `wanted` names. */
async function tabTo(wanted, key = "Tab") {
  for (let presses = 0; presses < 120; presses += 1) {
    await page.keyboard.press(key);
    const label = await page.evaluate(() => {
      const at = document.activeElement;
      return at.getAttribute("aria-label") ?? at.labels?.[0]?.innerText ?? at.innerText ?? at.id;
    });
    if (label?.trim() === wanted) {
      const seen = await page.evaluate(() => {
        const style = getComputedStyle(document.activeElement);
        return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
      });
      assert(seen, `the focus on ${wanted} cannot be seen`);
      return;
    }
  }
  throw new Error(`Tab never comes to ${wanted}`);
}

await check("every action can be done by keyboard alone", async () => {
  await fresh();
  await heading("Jobs");
  await tabTo("Skip to the content");
  await page.keyboard.press("Enter");
  await tabTo("New job");
  await page.keyboard.press("Enter");
  await dialog().waitFor();
  await page.keyboard.type("keys");
  await tabTo("Schedule (UTC)");
  await page.keyboard.type("@daily");
  await tabTo("Examples");
  await page.keyboard.press("Enter");
  await tabTo("Use 30 2 * * *: every day at 02:30");
  await page.keyboard.press("Space");
  await tabTo("Command");
  await page.keyboard.type("echo by keys");
  await tabTo("Save");
  await page.keyboard.press("Enter");
  await heading("keys");
  equal((await api("job/list?prefix=keys")).data, [{ name: "keys", command: "echo by keys", cronExpr: "30 2 * * *" }]);
  await noDialog();
  await tabTo("Edit keys");
  await page.keyboard.press("Enter");
  await dialog().waitFor();
  await page.waitForFunction(() => document.activeElement.id === "cronExpr");
  await page.keyboard.press("Control+A");
  await page.keyboard.type("* * * * * * *");
  await page.keyboard.press("Enter");
  await toast("Saved keys");
  await noDialog();
  equal(await page.evaluate(() => document.activeElement.innerText), "Edit", "the focus went elsewhere:");
  await page.locator(".runs .chip.good").first().waitFor();
  await tabTo("All", "Tab").catch(() => {});
  await page.getByRole("button", { name: /^Show the run of/ }).first().focus();
  await page.keyboard.press("Enter");
  await page.locator(".detail").waitFor();
  await tabTo("Wrap lines");
  await page.keyboard.press("Space");
  await tabTo("Duplicate keys", "Shift+Tab");
  await page.keyboard.press("Enter");
  await dialog().waitFor();
  await page.waitForFunction(() => document.activeElement.id === "name");
  await page.keyboard.press("Escape");
  await noDialog();
  await tabTo("Kill run of keys");
  await page.keyboard.press("Enter");
  await dialog().waitFor();
  await tabTo("Kill run");
  await page.keyboard.press("Enter");
  await noDialog();
  await tabTo("Delete keys");
  await page.keyboard.press("Enter");
  await dialog().waitFor();
  await page.keyboard.press("Escape");
  await noDialog();
  equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Delete keys", "the focus went elsewhere:");
  await page.keyboard.press("Enter");
  await dialog().waitFor();
  await tabTo("Delete job");
  await page.keyboard.press("Enter");
  await heading("Jobs");
  equal((await api("job/list?prefix=keys")).data, []);
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

const VIEWS = [
  ["jobs", "#/jobs", async () => page.locator("td.name").first().waitFor()],
  ["jobs-empty", "#/jobs?prefix=none", async () => page.locator(".empty").waitFor()],
  ["job", "#/jobs/every%20second", async () => {
    await page.locator(".runs .actions button").first().click();
    await page.locator(".output pre").waitFor();
  }],
  ["job-none", "#/jobs/the%20other%20one", async () => page.locator(".empty").waitFor()],
  ["workers", "#/workers?worker=worker-one", async () => page.locator(".detail dd").first().waitFor()],
  ["form", "#/new", async () => {
    await page.locator("dialog summary").click();
    await page.locator("dialog button[type=submit]").click();
    await page.locator("#name-fault span").waitFor();
  }],
  ["form-edit", "#/jobs/every%20second/edit", async () => page.locator("dialog.drawer[open]").waitFor()],
  ["confirm", "#/jobs/every%20second", async () => {
    await page.locator(".bar .danger").click();
    await page.locator("dialog[open]").waitFor();
  }],
];

await check("nasty jobs for the pictures", async () => {
  await save("x".repeat(255), `${"long ".repeat(400)}`);
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
        for (const [name, hash, ready] of VIEWS) {
          await page.goto("about:blank");
          await page.goto(URL_ + hash);
          await ready();
          await picture(name);
          faults.push(...(await axeFinds(name)), ...(await overflow(name)));
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

await check("without the API a banner says so, what was typed stays, and it recovers by itself", async () => {
  await go("#/jobs");
  await link("every second").waitFor();
  await page.evaluate(() => (window.marker = "the same page"));
  await go("#/new");
  await fill({ name: "typed while away", cronExpr: "@daily", command: "true" });
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

await check("updates stand still when paused, and go on when resumed", async () => {
  let asked = 0;
  page.on("request", (request) => (asked += request.url().includes("/worker/list") ? 1 : 0));
  const next = () => page.waitForRequest(/worker\/list/);
  await next();
  await button("Pause").click();
  await shown("Paused");
  const before = asked;
  await go("#/workers");
  await heading("Workers");
  assert(asked - before <= 1, "it goes on asking");
  await Promise.all([next(), button("Resume").click()]);
  await shown("Live");
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

await check("an unchanged file is not sent again", async () => {
  const first = await fetch(`${URL_}console/app.js`);
  const again = await fetch(`${URL_}console/app.js`, { headers: { "if-none-match": first.headers.get("etag") } });
  equal([first.status, again.status, (await again.text()).length], [200, 304, 0]);
});

await check("the browser complained about nothing", () => equal(complaints, []));

await browser.close();
process.exit(failed === 0 ? 0 : 1);
