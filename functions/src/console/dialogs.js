// What changes something: the form of a job, and the confirmations of delete and kill. Each shows what the API says against it, in itself.
import { html, ask, confirming, currentJob, go, link, refresh, rich, route, say, t, useCell, usePoll } from "./core.js";
import { faultsOf } from "./faults.js";
import { Dialog, Name } from "./parts.js";
import { useEffect, useLayoutEffect, useRef, useState } from "./preact-hooks.js";

/** What can be done with a job. */
export function Actions({ job, whole }) {
  const { name } = job;
  return html`
    <a class="button small" href=${link(["jobs", name, "edit"])} aria-label=${t("editJob", { name })}>${t("edit")}</a>
    ${whole ? html`<a class="button small" href=${link(["jobs", name, "copy"])} aria-label=${t("duplicateJob", { name })}>${t("duplicate")}</a>` : null}
    <button type="button" class="small" aria-label=${t("killJob", { name })} onClick=${() => confirming.set({ kind: "kill", name })}>${t("kill")}</button>
    <button type="button" class="small danger" aria-label=${t("deleteJob", { name })} onClick=${() => confirming.set({ kind: "delete", name })}>${t("delete")}</button>
  `;
}

// ---- confirmations ----

async function kill(name) {
  const { data, warnings = [] } = await ask("job/kill", { name });
  say(data.runIds.length ? t("killed", { name, runs: data.runIds.join(", ") }) : t("killedNone", { name }), warnings);
}

async function remove(name) {
  const { data, warnings = [] } = await ask("job/delete", { name });
  say(t(data ? "deleted" : "deletedNone", { name }), warnings);
  if (route.value.parts[0] === "jobs" && route.value.parts[1] === name) go("#/jobs");
}

/** The confirmation that is open. */
export function Confirmation() {
  const asked = useCell(confirming);
  return asked ? html`<${Confirm} key=${`${asked.kind} ${asked.name}`} ...${asked} />` : null;
}

function Confirm({ kind, name }) {
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState("");
  const close = () => confirming.set(null);
  const act = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setFault("");
    try {
      await (kind === "kill" ? kill : remove)(name);
      close();
      refresh();
    } catch (error) {
      setFault(error.message);
      setBusy(false);
    }
  };
  return html`<${Dialog} label="confirm-title" className="confirm" onClose=${close}>
    <form onSubmit=${act}>
      <h2 id="confirm-title">${t(`${kind}Title`)}</h2>
      <p>${rich(`${kind}Question`, { name: html`<strong><${Name} name=${name} /></strong>` })}</p>
      <p class="dim">${t(`${kind}Help`)}</p>
      <p class="note bad" role="alert" hidden=${!fault}>${fault}</p>
      <div class="buttons">
        <button type="button" onClick=${close}>${t("cancel")}</button>
        <button type="submit" class="danger solid" aria-disabled=${String(busy)}>${t(busy ? "working" : `${kind}Do`)}</button>
      </div>
    </form>
  <//>`;
}

// ---- the form ----

const OPTIONS = ["misfire", "startDeadlineSeconds", "jitterSeconds", "selector"];
const FIELDS = ["name", "cronExpr", "command", ...OPTIONS];
const fieldsOf = (job) => Object.fromEntries(FIELDS.map((field) => [field, typed(job[field])]));
const EMPTY = fieldsOf({});
const same = (one, other) => FIELDS.every((field) => (one?.[field] ?? "") === (other?.[field] ?? ""));

/** The value of a field as it stands in the form: labels like `gpu=yes, zone=a`. */
function typed(value) {
  if (typeof value === "string") return value;
  if (value === undefined) return "";
  const labels = typeof value === "object" && !Array.isArray(value) ? Object.entries(value ?? {}) : [];
  return labels.length && labels.every(([, one]) => typeof one === "string") ? labels.map((pair) => pair.join("=")).join(", ") : JSON.stringify(value);
}

/** The form as the API takes it. What is left empty is left out; what is no number goes as it is, so that the API says what is wrong. */
function toSend({ name, cronExpr, command, selector, ...others }) {
  const job = { name, cronExpr, command };
  for (const [option, text] of Object.entries(others)) {
    if (text.trim()) job[option] = /^\s*\d+\s*$/.test(text) ? Number(text) : text;
  }
  if (selector.trim() === "{}") job.selector = {};
  else if (selector.trim()) {
    const pairs = selector.split(",").map((pair) => pair.split("="));
    job.selector = Object.fromEntries(pairs.map(([label, ...value]) => [label.trim(), value.length ? value.join("=").trim() : null]));
  }
  return job;
}

/** What was typed and not saved, by form: it outlives Back, and a reload of the page. */
const drafts = {
  get(key) {
    try {
      return JSON.parse(sessionStorage.getItem(`fleetcron.draft.${key}`));
    } catch {
      return null;
    }
  },
  set(key, draft) {
    try {
      if (draft) sessionStorage.setItem(`fleetcron.draft.${key}`, JSON.stringify(draft));
      else sessionStorage.removeItem(`fleetcron.draft.${key}`);
    } catch {
      // Without storage it lives as long as the form is open.
    }
  },
};

const EXAMPLES = ["*/5 * * * *", "30 2 * * *", "0 9 * * MON-FRI", "0 0 1 * *", "*/10 * * * * * *", "@hourly"];

const MISFIRES = [
  ["", () => t("misfireDefault")],
  ["once", () => t("misfireOnce")],
  ["skip", () => t("misfireSkip")],
  ["all", () => t("misfireAll")],
];

/** The form as a dialog. `kind`: `new`, `edit` or `copy` of the job `name`. */
export function JobForm({ kind, name, close }) {
  const key = `${kind} ${name ?? ""}`;
  const [base, setBase] = useState(kind === "new" ? EMPTY : undefined);
  const [failed, setFailed] = useState("");
  const [again, setAgain] = useState(0);
  useEffect(() => {
    if (kind === "new") return undefined;
    const control = new AbortController();
    setFailed("");
    currentJob(name, control.signal).then(
      (job) => setBase(job && { ...fieldsOf(job), name: kind === "copy" ? "" : job.name }),
      (error) => control.signal.aborted || setFailed(error.message),
    );
    return () => control.abort();
  }, [key, again]);
  if (base) return html`<${Filled} key=${key} draftKey=${key} kind=${kind} name=${name} base=${base} close=${close} />`;
  return html`<${Dialog} label="form-title" className="confirm" onClose=${close}>
    <h2 id="form-title">${t(kind === "copy" ? "duplicate" : "edit")} <${Name} name=${name} /></h2>
    ${failed
      ? html`<p class="note bad" role="alert">${failed}</p>`
      : base === null
        ? html`<p class="note doubt" role="alert">${t("jobGone")}</p>`
        : html`<p role="status">${t("loading")}</p>`}
    <div class="buttons">
      ${failed ? html`<button type="button" onClick=${() => setAgain(again + 1)}>${t("tryAgain")}</button>` : null}
      <button type="button" onClick=${close}>${t("close")}</button>
    </div>
  <//>`;
}

function Filled({ draftKey, kind, name, base: first, close }) {
  const [base, setBase] = useState(first);
  const [draft] = useState(() => drafts.get(draftKey));
  const [job, setJob] = useState({ ...first, ...draft?.job });
  const [restored, setRestored] = useState(Boolean(draft) && !same(job, first));
  const [faults, setFaults] = useState({ fields: {}, rest: [] });
  const [taken, setTaken] = useState(null);
  const [leaving, setLeaving] = useState(false);
  const [busy, setBusy] = useState(false);
  const form = useRef(null);
  const editing = kind === "edit";
  const dirty = !same(job, base);

  useEffect(() => drafts.set(draftKey, dirty ? { job } : null), [job, dirty]);
  useEffect(() => {
    if (!dirty) return undefined;
    const warn = (event) => event.preventDefault();
    window.addEventListener("beforeunload", warn);
    return () => window.removeEventListener("beforeunload", warn);
  }, [dirty]);
  // The first bad field takes the focus, once its message is there to be read out.
  useLayoutEffect(() => {
    const bad = FIELDS.find((field) => faults.fields[field]) ?? (faults.rest.length ? "rest" : null);
    if (bad === "rest") form.current.querySelector("#form-fault").focus();
    else if (bad) (form.current.elements[bad].readOnly ? form.current.querySelector(`#${bad}-fault`) : form.current.elements[bad]).focus();
  }, [faults]);

  // The job may be changed by others while this form is open.
  const watched = usePoll(editing ? `form ${name}` : null, async (signal) => ({ job: await currentJob(name, signal) }));
  const other = editing && watched.data && !busy ? watched.data.job && fieldsOf(watched.data.job) : undefined;
  const changed = other && !same(other, base);
  const gone = other === null;

  const set = (field) => (event) => {
    setJob({ ...job, [field]: event.target.value });
    if (field === "name") setTaken(null);
  };
  const leave = () => {
    if (dirty && !leaving) setLeaving(true);
    else if (leaving) setLeaving(false);
    else close();
  };
  const discard = () => {
    drafts.set(draftKey, null);
    close();
  };
  const save = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setLeaving(false);
    try {
      if (!editing && job.name !== "" && taken !== job.name && (await currentJob(job.name))) {
        setTaken(job.name);
        setFaults({ fields: { name: [t("nameTaken")] }, rest: [] });
        setBusy(false);
        return;
      }
      const { data: previous, warnings = [] } = await ask("job/save", toSend(job));
      const unseen = editing && previous && !same(fieldsOf(previous), base) && !changed;
      drafts.set(draftKey, null);
      say(t(previous && !editing ? "savedReplaced" : "saved", { name: job.name }), [...warnings, ...(unseen ? [t("savedOverOthers")] : [])]);
      close(editing ? undefined : link(["jobs", job.name]));
      refresh();
    } catch (error) {
      if (error.status === undefined) console.error(error);
      setFaults(faultsOf(error.message, FIELDS));
      setBusy(false);
    }
  };

  // In place of this form, so that closing the other does not lead back here.
  const instead = (event) => {
    event.preventDefault();
    go(event.currentTarget.hash, true);
  };
  const title = kind === "new" ? t("newJob") : rich(editing ? "editTitle" : "duplicateTitle", { name: html`<${Name} name=${name} />` });
  const replaces = taken !== null && taken === job.name;
  const field = (id, required = true) => ({
    id,
    name: id,
    value: job[id],
    onInput: set(id),
    autocomplete: "off",
    spellcheck: false,
    "aria-invalid": String(Boolean(faults.fields[id])),
    "aria-describedby": `${id}-fault ${id}-help`,
    "aria-required": String(required),
  });
  return html`<${Dialog} label="form-title" className="drawer" onClose=${leave}>
    <form ref=${form} onSubmit=${save} novalidate>
      <h2 id="form-title">${title}</h2>
      <div id="form-fault" class="note bad" role="alert" tabindex="-1" hidden=${!faults.rest.length}>${faults.rest.map((fault) => html`<p>${fault}</p>`)}</div>
      ${restored ? html`<p class="note" role="status">${t("draftRestored")} <button type="button" class="small" onClick=${() => (setJob(base), setRestored(false))}>${t("draftDrop")}</button></p>` : null}
      <div aria-live="polite">
        ${gone ? html`<p class="note doubt">${t("goneMeanwhile")}</p>` : null}
        ${changed
          ? html`<div class="note doubt changed"><p>${t("changedMeanwhile")}</p>
              <p><code>${other.cronExpr}</code></p><pre class="wrap" tabindex="0" role="region" aria-label=${t("changedCommand")}>${other.command}</pre>
              <button type="button" class="small" onClick=${() => (setBase(other), setJob(other), setRestored(false))}>${t("changedLoad")}</button>
              <button type="button" class="small" onClick=${() => setBase(other)}>${t("changedKeep")}</button></div>`
          : null}
      </div>
      <div class="field">
        <label for="name">${t("name")}</label>
        <input ...${field("name")} readonly=${editing} autofocus=${!editing} dir="auto" />
        <${FieldFaults} id="name" faults=${faults.fields.name} />
        <p class="help" id="name-help">${editing
          ? html`${t("nameFixed")} <a href=${link(["jobs", name, "copy"])} onClick=${instead}>${t("duplicateInstead")}</a>`
          : t("nameHelp")}</p>
      </div>
      <div class="field">
        <label for="cronExpr">${t("scheduleUtc")}</label>
        <input ...${field("cronExpr")} class="mono" autofocus=${editing} placeholder="*/5 * * * *" />
        <${FieldFaults} id="cronExpr" faults=${faults.fields.cronExpr} />
        <p class="help" id="cronExpr-help">${t("scheduleHelp")}</p>
        <details><summary>${t("scheduleExamples")}</summary>
          <ul class="examples">${EXAMPLES.map(
            (example) => html`<li><button type="button" class="small" onClick=${() => setJob({ ...job, cronExpr: example })} aria-label=${t("useExample", { example, meaning: t(`example.${example}`) })}><code>${example}</code></button> <span>${t(`example.${example}`)}</span></li>`,
          )}</ul>
          <p class="help">${t("scheduleForms")}</p>
        </details>
      </div>
      <div class="field">
        <label for="command">${t("command")}</label>
        <textarea ...${field("command")} class="mono" rows="7"></textarea>
        <${FieldFaults} id="command" faults=${faults.fields.command} />
        <p class="help" id="command-help">${t("commandHelp")}</p>
      </div>
      <details open=${OPTIONS.some((option) => base[option] || faults.fields[option])}>
        <summary>${t("moreOptions")}</summary>
        <div class="field">
          <label for="misfire">${t("misfire")}</label>
          <select ...${field("misfire", false)}>${MISFIRES.map(([value, text]) => html`<option value=${value} selected=${job.misfire === value}>${text()}</option>`)}
            ${MISFIRES.some(([value]) => value === job.misfire) ? null : html`<option value=${job.misfire} selected>${job.misfire}</option>`}</select>
          <${FieldFaults} id="misfire" faults=${faults.fields.misfire} />
          <p class="help" id="misfire-help">${t("misfireHelp")}</p>
        </div>
        <div class="field">
          <label for="startDeadlineSeconds">${t("startDeadline")}</label>
          <input ...${field("startDeadlineSeconds", false)} inputmode="numeric" placeholder="60" />
          <${FieldFaults} id="startDeadlineSeconds" faults=${faults.fields.startDeadlineSeconds} />
          <p class="help" id="startDeadlineSeconds-help">${t("startDeadlineHelp")}</p>
        </div>
        <div class="field">
          <label for="jitterSeconds">${t("jitter")}</label>
          <input ...${field("jitterSeconds", false)} inputmode="numeric" placeholder="0" />
          <${FieldFaults} id="jitterSeconds" faults=${faults.fields.jitterSeconds} />
          <p class="help" id="jitterSeconds-help">${t("jitterHelp")}</p>
        </div>
        <div class="field">
          <label for="selector">${t("selector")}</label>
          <input ...${field("selector", false)} class="mono" placeholder="gpu=yes, zone=a" />
          <${FieldFaults} id="selector" faults=${faults.fields.selector} />
          <p class="help" id="selector-help">${t("selectorHelp")}</p>
        </div>
      </details>
      ${leaving
        ? html`<div class="note doubt" role="alert"><p>${t("discardQuestion")}</p>
            <button type="button" class="small danger" onClick=${discard}>${t("discard")}</button>
            <button type="button" class="small" onClick=${() => setLeaving(false)}>${t("keepEditing")}</button></div>`
        : null}
      <div class="buttons">
        <button type="button" onClick=${leave}>${t("cancel")}</button>
        <button type="submit" class=${replaces ? "danger solid" : "primary"} aria-disabled=${String(busy)}>${t(busy ? "working" : replaces ? "replace" : "save")}</button>
      </div>
    </form>
  <//>`;
}

function FieldFaults({ id, faults }) {
  return html`<p class="fault" id=${`${id}-fault`} tabindex="-1">${faults?.map((fault) => html`<span key=${fault}>${fault}</span>`)}</p>`;
}
