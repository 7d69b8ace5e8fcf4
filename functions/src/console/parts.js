// Small parts that several views use: names, times, states, output, notes, dialogs, toasts.
import { html, ago, duration, go, isTime, local, said, size, t, unsay, useCell, utc, utcExact } from "./core.js";
import { useEffect, useLayoutEffect, useRef, useState } from "./preact-hooks.js";

/** Characters that are not seen but make two names look the same: all but single spaces between others. */
const HIDDEN = /(?! )[\p{C}\p{Z}\u115f\u1160\u3164\uffa0]|^ | $|(?<= ) /gu;

const escaped = (name) => name.replace(HIDDEN, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);

/** A name, kept apart from the text around it: it may be written from right to left. */
export function Name({ name, link }) {
  const text = html`<bdi class="name-text">${name}</bdi>`;
  const told = escaped(name);
  const mark = told === name ? null : html` <span class="chip doubt" title=${t("hiddenCharacters", { name: told })}>${t("hiddenCharactersShort")}</span>`;
  return html`${link ? html`<a href=${link}>${text}</a>` : text}${mark}`;
}

/** Where there is no value. */
export const dash = () => html`<span class="dim">–</span>`;

/** A time: in UTC, how long ago, and the reader's own time in the hint. */
export function Time({ ms }) {
  if (!isTime(ms)) return dash();
  return html`<time datetime=${new Date(ms).toISOString()} title=${`${utcExact(ms)} UTC · ${local(ms)}`}>
    ${utc(ms)} <span class="dim ago">${ago(ms)}</span>
  </time>`;
}

/** A time with all that there is to say of it. */
export function FullTime({ ms }) {
  if (!isTime(ms)) return "–";
  return html`<time datetime=${new Date(ms).toISOString()}>${utcExact(ms)} UTC</time> <span class="dim local">${local(ms)} · ${ago(ms)}</span>`;
}

export const STATUSES = ["succeeded", "failed", "timedOut", "killed", "lost", "skipped"];
const LOOKS = { succeeded: "good", failed: "bad", timedOut: "bad", killed: "bad", lost: "doubt", skipped: "quiet", running: "info" };
const SIGNS = { succeeded: "✓", failed: "✕", timedOut: "◔", killed: "■", lost: "?", skipped: "⤼", running: "●" };

/** A record's status; records of the seed have none. */
export function statusOf(record) {
  return record.status ?? (record.err ? "failed" : "succeeded");
}

/** How a run ended, or that it is still going: `running`. */
export function Status({ record, running }) {
  const status = running ? "running" : statusOf(record);
  const text = running || STATUSES.includes(status) ? t(`status.${status}`) : status;
  return html`<span class=${`chip ${LOOKS[status] ?? "quiet"}`}><span aria-hidden="true">${SIGNS[status] ?? "·"}</span> ${text}</span>`;
}

/** Whether the command was started, as far as is known. */
export const ran = (record) => !["skipped", "lost"].includes(statusOf(record));
/** When a run began; of one that was never started, when it was due. */
export const when = (record) => record.startTime || record.planTime;
export const took = (record) => (ran(record) && isTime(record.startTime) ? duration(record.endTime - record.startTime) : "");
export const late = (record) =>
  ran(record) && isTime(record.startTime) && isTime(record.planTime) ? duration(Math.max(0, record.startTime - record.planTime)) : "";

/** Why a job does not run at its times now, if it does not. */
export function JobState({ job: { enabled, startAt, endAt } }) {
  if (enabled === false) return html`<span class="chip doubt">${t("state.paused")}</span>`;
  if (Date.parse(endAt) <= Date.now()) return html`<span class="chip quiet">${t("state.over")}</span>`;
  if (Date.parse(startAt) > Date.now()) return html`<span class="chip quiet">${t("state.notYet")}</span>`;
  return null;
}

/** What stands in a view where there is nothing else. */
export function Empty({ title, children }) {
  return html`<div class="empty"><p class="empty-title">${title}</p>${children}</div>`;
}

/** Typing asks once it pauses. */
const TYPED_MS = 250;

/** A search whose text is in the address: `address(text)` is where it is; `replace()` says whether that is a step for Back. A page has one
 *  landmark for searching: a `second` search is none. */
export function Search({ label, text, address, replace, second }) {
  const [typed, setTyped] = useState(text);
  const sent = useRef(text);
  const timer = useRef(0);
  // The address changed by other hands: Back, or a link.
  useEffect(() => {
    if (text !== sent.current) setTyped((sent.current = text));
  }, [text]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const send = (next) => {
    clearTimeout(timer.current);
    if (next === sent.current) return;
    sent.current = next;
    go(address(next), replace());
  };
  const type = (event) => {
    const next = event.target.value;
    setTyped(next);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => send(next), TYPED_MS);
  };
  const submit = (event) => {
    event.preventDefault();
    send(typed);
  };
  return html`<form class="search" role=${second ? null : "search"} onSubmit=${submit}>
    <label><span>${label}</span>
      <input type="search" value=${typed} onInput=${type} autocomplete="off" spellcheck=${false} /></label>
  </form>`;
}

/** What the API says beside its answer. */
export function Warnings({ warnings }) {
  if (!warnings?.length) return null;
  return html`<div class="note doubt" role="status"><ul>${warnings.map((warning) => html`<li key=${warning}>${warning}</li>`)}</ul></div>`;
}

/** What says that a text was copied, and what copies it; `box` shows the text. */
export function useCopy(text, box) {
  const [copied, setCopied] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setCopied(t("copied"));
    } catch {
      // Without permission, or not over HTTPS: the text is chosen, and the reader's own keys copy it.
      getSelection().selectAllChildren(box.current);
      box.current.focus();
      setCopied(t("copySelected"));
    }
  };
  return [copied, copy];
}

/** Of a long output so much is drawn at first: a browser takes seconds for a megabyte of lines. */
const DRAWN_MAX = 100_000;

/** What a run has written. Always text. */
export function Output({ text, label }) {
  const [wrap, setWrap] = useState(true);
  const [whole, setWhole] = useState(false);
  const box = useRef(null);
  const [copied, copy] = useCopy(text, box);
  const cut = !whole && text.length > DRAWN_MAX;
  return html`<div class="output">
    <div class="output-tools">
      <strong>${label}</strong> <span class="dim">${size(text.length)}</span>
      <button type="button" class="small" aria-pressed=${String(wrap)} onClick=${() => setWrap(!wrap)}>${t("wrap")}</button>
      <button type="button" class="small" onClick=${copy}>${t("copy")}</button>
      <span role="status" class="dim">${copied}</span>
    </div>
    <pre ref=${box} class=${wrap ? "wrap" : ""} tabindex="0" role="region" aria-label=${label} dir="auto">${cut ? text.slice(0, DRAWN_MAX) : text}</pre>
    ${cut
      ? html`<p>${t("outputCut", { number: size(DRAWN_MAX) })} <button type="button" class="small" onClick=${() => setWhole(true)}>${t("showAll", { number: size(text.length) })}</button></p>`
      : null}
  </div>`;
}

/** A modal dialog for as long as it is drawn; `onClose` when the reader wants it to go. */
export function Dialog({ label, className, onClose, children }) {
  const dialog = useRef(null);
  const closing = useRef(onClose);
  closing.current = onClose;
  useLayoutEffect(() => {
    const opener = document.activeElement;
    const shown = dialog.current;
    shown.showModal();
    return () => {
      shown.close();
      // What opened it may be gone, with the job.
      if (!opener?.isConnected || opener === document.body) queueMicrotask(focusTitle);
    };
  }, []);
  const cancel = (event) => {
    if (event.target !== dialog.current) return;
    event.preventDefault();
    closing.current();
  };
  // A browser closes a dialog at the second Escape whatever the page says.
  const closed = () => dialog.current && !dialog.current.open && dialog.current.isConnected && (dialog.current.showModal(), closing.current());
  return html`<dialog ref=${dialog} class=${className ?? ""} aria-labelledby=${label} onCancel=${cancel} onClose=${closed}>${children}</dialog>`;
}

/** Puts the focus where a view begins. */
function focusTitle() {
  document.querySelector("main h1")?.focus({ preventScroll: true });
}

/** The title of a view, which takes the focus when the view is gone to. */
export function Title({ children, id }) {
  const title = useRef(null);
  // Before the next key, not some time after it: by then the reader may be elsewhere in the view.
  useLayoutEffect(() => {
    if (!document.querySelector("dialog[open]") && Title.began) title.current?.focus({ preventScroll: true });
    Title.began = true;
  }, [id]);
  return html`<h1 ref=${title} tabindex="-1">${children}</h1>`;
}

/** What was done, said in passing. */
export function Toasts() {
  return html`<div class="toasts" role="status" aria-live="polite">
    ${useCell(said).map(
      ({ id, text, warnings, link }) => html`<div class=${`toast ${warnings.length ? "doubt" : ""}`} key=${id}>
        <div><p>${text}${link ? html` <a href=${link}>${t("watch")}</a>` : null}</p>${warnings.length ? html`<ul>${warnings.map((warning) => html`<li>${warning}</li>`)}</ul>` : null}</div>
        <button type="button" class="small quiet" aria-label=${t("dismiss", { text })} onClick=${() => unsay(id)}>✕</button>
      </div>`,
    )}
  </div>`;
}

/** A row of names and values. */
export function Facts({ facts }) {
  const told = facts.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return html`<dl class="facts">${told.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

