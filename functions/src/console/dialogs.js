// What is done with a job, a run or the fleet: buttons, and the questions before what cannot be undone. Each question shows in itself what the
// API says against it.
import { html, ask, confirming, go, link, may, refresh, rich, route, say, t, useCell } from "./core.js";
import { environment, valueOf } from "./options.js";
import { Dialog, Name } from "./parts.js";
import { useState } from "./preact-hooks.js";

/** What the caller may do with a job; on its own page (`whole`) more than in a list. */
export function Actions({ job, whole }) {
  const { name } = job;
  const resting = job.enabled === false;
  return html`
    ${whole && may("operator") ? html`<button type="button" class="small" aria-label=${t("runJob", { name })} onClick=${() => confirming.set({ kind: "run", name })}>${t("run")}</button>
      <${Turn} name=${name} to=${resting ? "resume" : "pause"} />` : null}
    ${may("editor") ? html`<a class="button small" href=${link(["jobs", name, "edit"])} aria-label=${t("editJob", { name })}>${t("edit")}</a>` : null}
    ${whole && may("editor") ? html`<a class="button small" href=${link(["jobs", name, "copy"])} aria-label=${t("duplicateJob", { name })}>${t("duplicate")}</a>` : null}
    ${may("operator") ? html`<button type="button" class="small" aria-label=${t("killJob", { name })} onClick=${() => confirming.set({ kind: "kill", name })}>${t("kill")}</button>` : null}
    ${may("editor") ? html`<button type="button" class="small danger" aria-label=${t("deleteJob", { name })} onClick=${() => confirming.set({ kind: "delete", name })}>${t("delete")}</button>` : null}
  `;
}

// Pausing a job is undone by the same button: nobody is asked before.
function Turn({ name, to }) {
  const [busy, setBusy] = useState(false);
  const turn = async () => {
    if (busy) return;
    setBusy(true);
    try {
      const { warnings } = await ask(`job/${to}`, { body: { name } });
      say(t(to === "pause" ? "jobPaused" : "jobResumed", { name }), { warnings });
      refresh();
    } catch (error) {
      say(t(to === "pause" ? "jobNotPaused" : "jobNotResumed", { name }), { warnings: [error.message] });
    }
    setBusy(false);
  };
  const label = t(to === "pause" ? "pauseJob" : "resumeJob", { name });
  return html`<button type="button" class="small" aria-disabled=${String(busy)} aria-label=${label} onClick=${turn}>${t(to === "pause" ? "pause" : "resume")}</button>`;
}

// ---- questions ----

async function run({ name, typed, key }) {
  const { value: env, fault } = typed.trim() ? valueOf(environment, [typed]) : {};
  if (fault) throw new Error(fault);
  // The same key with every try: an answer that was lost starts no second run.
  const { data, warnings } = await ask("job/run", { body: env ? { name, env } : { name }, key });
  say(t("runAsked", { name }), { warnings, link: link(["jobs", name, "runs", data.runId]) });
}

async function kill({ name, runId }) {
  const { data, warnings } = await ask("job/kill", { body: runId ? { name, runId } : { name } });
  say(data.runIds.length ? t("killed", { name, runs: data.runIds.join(", ") }) : t("killedNone", { name }), { warnings });
}

async function remove({ name }) {
  const { data, warnings } = await ask("job/delete", { body: { name } });
  say(t(data ? "deleted" : "deletedNone", { name }), { warnings });
  if (route.value.parts[0] === "jobs" && route.value.parts[1] === name) go("#/jobs");
}

async function rollback({ name, version, key }) {
  const { warnings } = await ask("job/rollback", { body: { name, version }, key });
  say(t("rolledBack", { name }), { warnings, link: link(["jobs", name]) });
}

async function pauseFleet({ typed }) {
  const { warnings } = await ask("fleet/pause", { body: typed.trim() ? { reason: typed.trim() } : {} });
  say(t("fleetPauseDone"), { warnings });
}

async function resumeFleet() {
  const { warnings } = await ask("fleet/resume", { body: {} });
  say(t("fleetResumeDone"), { warnings });
}

async function revoke({ name, id, insist }) {
  const { data, warnings } = await ask("token/revoke", { body: { id, ...insist } });
  say(t(data ? "revoked" : "revokedNone", { name }), { warnings });
}

async function deleteCalendar({ name, insist }) {
  const { data, warnings } = await ask("calendar/delete", { body: { name, ...insist } });
  say(t(data ? "deleted" : "deletedNone", { name }), { warnings });
}

/** By kind: what is done, and whether something may be typed before. `insist`: the field by which the API does what it refuses at first, and says so. */
const QUESTIONS = {
  run: { act: run, typed: { label: "runEnvironment", help: "runEnvironmentHelp", rows: 4, placeholder: "NAME=value" } },
  kill: { act: kill, danger: true },
  delete: { act: remove, danger: true },
  rollback: { act: rollback },
  fleetPause: { act: pauseFleet, danger: true, typed: { label: "fleetPauseReason", help: "fleetPauseReasonHelp", rows: 2 } },
  fleetResume: { act: resumeFleet },
  revoke: { act: revoke, danger: true, insist: "last" },
  calendarDelete: { act: deleteCalendar, danger: true, insist: "force" },
};

/** The question that is open. */
export function Confirmation() {
  const asked = useCell(confirming);
  return asked ? html`<${Confirm} key=${JSON.stringify(asked)} ...${asked} />` : null;
}

const randomKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function Confirm({ kind, name, runId, id, version }) {
  const { act, danger, typed: input, insist } = QUESTIONS[kind];
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState("");
  const [insisting, setInsisting] = useState(false);
  const [typed, setTyped] = useState("");
  const [key, setKey] = useState(randomKey);
  const close = () => confirming.set(null);
  const type = (event) => {
    setTyped(event.target.value);
    setKey(randomKey());
  };
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setFault("");
    try {
      await act({ name, runId, id, version, typed, key, insist: insisting ? { [insist]: "true" } : {} });
      close();
      refresh();
    } catch (error) {
      setFault(error.message);
      // What stands against it was read; who goes on after that means it.
      setInsisting(insist !== undefined && error.status === 409 && error.message.includes(`${insist}=true`));
      setBusy(false);
    }
  };
  const values = { name: html`<strong><${Name} name=${name ?? ""} /></strong>`, run: html`<code>${runId}</code>` };
  return html`<${Dialog} label="confirm-title" className="confirm" onClose=${close}>
    <form onSubmit=${submit}>
      <h2 id="confirm-title">${t(`${kind}Title`)}</h2>
      <p>${rich(runId ? "killOneQuestion" : `${kind}Question`, values)}</p>
      <p class="dim">${t(`${kind}Help`)}</p>
      ${input
        ? html`<div class="field"><label for="typed">${t(input.label)}</label>
            <textarea id="typed" aria-describedby="typed-help" rows=${input.rows} placeholder=${input.placeholder} class=${input.placeholder ? "mono" : ""}
              value=${typed} onInput=${type} spellcheck=${false}></textarea>
            <p class="help" id="typed-help">${t(input.help)}</p></div>`
        : null}
      <p class="note bad" role="alert" hidden=${!fault}>${fault}</p>
      <div class="buttons">
        <button type="button" onClick=${close}>${t("cancel")}</button>
        <button type="submit" class=${danger ? "danger solid" : "primary"} aria-disabled=${String(busy)}>${t(busy ? "working" : insisting ? `${kind}Insist` : `${kind}Do`)}</button>
      </div>
    </form>
  <//>`;
}
