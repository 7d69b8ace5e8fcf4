// The form of a job: a new one, an edit, or a copy under another name. What the API says against it stands at the fields.
import { CalendarNames } from "./calendars.js";
import { Preview } from "./preview.js";
import { html, ask, bytes, caller, currentJob, go, link, may, refresh, rich, say, t, usePoll } from "./core.js";
import { faultsOf } from "./faults.js";
import { GROUPS, NAMES, differing, fieldsOf, firstInput, isGiven, toSend } from "./options.js";
import { Dialog, Name } from "./parts.js";
import { useEffect, useLayoutEffect, useRef, useState } from "./preact-hooks.js";

const EMPTY = fieldsOf({});
const same = (some, others) => differing(some, others).length === 0;

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

/** The name of a field as the form shows it. */
const labelOf = (name) => ({ name: t("name"), cronExpr: t("schedule"), command: t("command") })[name] ?? t(`option.${name}`);

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
  // What was typed by somebody who may save stays, also while somebody has to sign in again.
  const allowed = may("editor") || caller.value === null;
  if (base && allowed) return html`<${Filled} key=${key} draftKey=${key} kind=${kind} name=${name} base=${base} close=${close} />`;
  return html`<${Dialog} label="form-title" className="confirm" onClose=${close}>
    <h2 id="form-title">${kind === "new" ? t("newJob") : html`${t(kind === "copy" ? "duplicate" : "edit")} <${Name} name=${name} />`}</h2>
    ${failed
      ? html`<p class="note bad" role="alert">${failed}</p>`
      : !allowed
        ? html`<p class="note doubt" role="alert">${t("editorsOnly", { role: t(`role.${caller.value.role}`) })}</p>`
        : base === null
        ? html`<p class="note doubt" role="alert">${t("jobGone")}</p>`
        : html`<p role="status">${t("loading")}</p>`}
    <div class="buttons">
      ${failed ? html`<button type="button" onClick=${() => setAgain(again + 1)}>${t("tryAgain")}</button>` : null}
      <button type="button" onClick=${() => close()}>${t("close")}</button>
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
    const bad = NAMES.find((field) => faults.fields[field]) ?? (faults.rest.length ? "rest" : null);
    if (bad === null) return;
    const input = bad === "rest" ? form.current.querySelector("#form-fault") : form.current.elements[firstInput(bad)];
    input.closest("details")?.setAttribute("open", "");
    (input.readOnly ? form.current.querySelector(`#${bad}-fault`) : input).focus();
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
    setLeaving(false);
    const sent = toSend(job);
    if (Object.keys(sent.faults).length) return setFaults({ fields: sent.faults, rest: [] });
    setBusy(true);
    try {
      if (!editing && job.name !== "" && taken !== job.name && (await currentJob(job.name))) {
        setTaken(job.name);
        setFaults({ fields: { name: [t("nameTaken")] }, rest: [] });
        setBusy(false);
        return;
      }
      const { data: previous, warnings = [] } = await ask("job/save", { body: sent.job });
      const unseen = editing && previous && !same(fieldsOf(previous), base) && !changed;
      drafts.set(draftKey, null);
      say(t(previous && !editing ? "savedReplaced" : "saved", { name: job.name }), { warnings: [...warnings, ...(unseen ? [t("savedOverOthers")] : [])] });
      close(editing ? undefined : link(["jobs", job.name]));
      refresh();
    } catch (error) {
      if (error.status === undefined) console.error(error);
      setFaults(faultsOf(error.message, NAMES));
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
  const field = (id, { of = id, required = false } = {}) => ({
    id,
    name: id,
    value: job[id],
    onInput: set(id),
    autocomplete: "off",
    spellcheck: false,
    "aria-invalid": String(Boolean(faults.fields[of])),
    "aria-describedby": `${of}-fault ${of}-help`,
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
              <p>${t("changedFields", { names: differing(other, base).map(labelOf).join(", ") })}</p>
              <p><code>${other.cronExpr}</code></p><pre class="wrap" tabindex="0" role="region" aria-label=${t("changedCommand")}>${other.command || other["http-url"]}</pre>
              <button type="button" class="small" onClick=${() => (setBase(other), setJob(other), setRestored(false))}>${t("changedLoad")}</button>
              <button type="button" class="small" onClick=${() => setBase(other)}>${t("changedKeep")}</button></div>`
          : null}
      </div>
      <div class="field">
        <label for="name">${t("name")}</label>
        <input ...${field("name", { required: true })} readonly=${editing} autofocus=${!editing} dir="auto" />
        <${FieldFaults} id="name" faults=${faults.fields.name} />
        <p class="help" id="name-help">${editing
          ? html`${t("nameFixed")} <a href=${link(["jobs", name, "copy"])} onClick=${instead}>${t("duplicateInstead")}</a>`
          : t("nameHelp")} ${caller.value?.prefix ? t("namePrefix", { prefix: caller.value.prefix }) : ""}</p>
      </div>
      <div class="field">
        <label for="cronExpr">${t("schedule")}</label>
        <textarea ...${field("cronExpr", { required: !job.after?.trim() })} class="mono" autofocus=${editing} placeholder="*/5 * * * *" rows=${Math.max(1, job.cronExpr.split("\n").length)} onKeyDown=${sendByEnter}></textarea>
        <${FieldFaults} id="cronExpr" faults=${faults.fields.cronExpr} />
        <${Preview} job=${job} />
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
        <textarea ...${field("command", { required: !job["http-url"] })} class="mono" rows="7"></textarea>
        <${FieldFaults} id="command" faults=${faults.fields.command} />
        <p class="help" id="command-help">${t("commandHelp")}</p>
      </div>
      <section class="more" aria-labelledby="more-title">
        <h3 id="more-title">${t("moreOptions")}</h3>
        ${Object.entries(GROUPS).map(([group, options]) => {
          const told = options.filter((option) => isGiven(option, job)).map((option) => labelOf(option.name)).join(", ");
          return html`<details key=${group} open=${options.some((option) => isGiven(option, base) || faults.fields[option.name])}>
            <summary>${t(`group.${group}`)}${told ? html` <span class="dim">${told}</span>` : null}</summary>
            ${options.map((option) => html`<${OptionField} key=${option.name} option=${option} job=${job} field=${field} faults=${faults.fields[option.name]} />`)}
          </details>`;
        })}
      </section>
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

/** As in a field of one line. */
function sendByEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.currentTarget.form.requestSubmit();
}

function OptionField({ option: { name, inputs }, job, field, faults }) {
  const told = html`<${FieldFaults} id=${name} faults=${faults} /><p class="help" id=${`${name}-help`}>${t(`help.${name}`)}</p>`;
  const [{ part, id }] = inputs;
  if (part === undefined) {
    return html`<div class="field"><label for=${id}>${t(`option.${name}`)}</label><${Input} input=${inputs[0]} text=${job[id]} attributes=${field(id)} />${told}</div>`;
  }
  return html`<fieldset class="field"><legend>${t(`option.${name}`)}</legend>
    <div class="field-parts">${inputs.map(
      (input) => html`<div key=${input.id}><label for=${input.id}>${t(`option.${name}.${input.part}`)}</label>
        <${Input} input=${input} text=${job[input.id]} attributes=${field(input.id, { of: name })} /></div>`,
    )}</div>${told}</fieldset>`;
}

function Input({ input, text, attributes }) {
  const { rows, placeholder, mono, numeric, standard } = input;
  if (input.choices) {
    const key = input.id.replace("-", ".");
    // A job may give what is meant anyway: it goes on doing so.
    const choices = input.choices.map((value) => (value === "" && text === standard ? standard : value));
    const label = (value) => t(value === "" || value === standard ? `choice.${key}` : `choice.${key}.${value}`);
    return html`<select ...${attributes}>${choices.map((value) => html`<option value=${value} selected=${text === value}>${label(value)}</option>`)}
      ${choices.includes(text) ? null : html`<option value=${text} selected>${text}</option>`}</select>`;
  }
  if (rows) return html`<textarea ...${attributes} class=${input.plain ? "" : "mono"} rows=${rows} placeholder=${placeholder}></textarea>`;
  if (input.calendars) return html`<input ...${attributes} placeholder=${placeholder} dir="auto" /><${CalendarNames} text=${text} change=${(value) => attributes.onInput({ target: { value } })} />`;
  const read = input.bytes && /^\s*\d{4,}\s*$/.test(text) ? html`<span class="help">= ${bytes(Number(text))}</span>` : null;
  return html`<input ...${attributes} class=${mono ? "mono" : ""} inputmode=${numeric ? "numeric" : undefined} placeholder=${placeholder} />${read}`;
}

function FieldFaults({ id, faults }) {
  return html`<p class="fault" id=${`${id}-fault`} tabindex="-1">${faults?.map((fault) => html`<span key=${fault}>${fault}</span>`)}</p>`;
}
