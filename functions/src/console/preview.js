// What the schedule means that is being typed: its words, and its next times.
import { html, ask, language, t, useCell } from "./core.js";
import { useEffect, useState } from "./preact-hooks.js";

/** So long nobody has typed. */
const PAUSE_MS = 300;
const TIMES = 3;
/** What else of the form decides the times. */
const BESIDE = ["timezone", "dst", "dialect"];

/** Asks the API what the schedule of the form would be. What is wrong with it is said, too, but quietly: it may be half typed. */
export function Preview({ job }) {
  const lang = useCell(language);
  const [told, setTold] = useState(null);
  // H takes its value from the name; all else is the same for every name.
  const asked = job.cronExpr.includes("H") ? ["name", ...BESIDE] : BESIDE;
  const beside = asked.filter((field) => job[field]?.trim()).map((field) => [field, job[field]]);
  for (const part of ["exclude", "only"]) {
    if (job[`calendars-${part}`]?.trim()) beside.push([part, job[`calendars-${part}`]]);
  }
  const query = job.cronExpr.trim() && String(new URLSearchParams([["expr", job.cronExpr], ...beside, ["count", TIMES], ["lang", lang]]));
  useEffect(() => {
    if (!query) return setTold(null);
    const control = new AbortController();
    const pause = setTimeout(() => {
      ask(`job/next?${query}`, { signal: control.signal }).then(
        ({ data, warnings = [] }) => setTold({ ...data, warnings }),
        (error) => control.signal.aborted || setTold({ fault: error.message }),
      );
    }, PAUSE_MS);
    return () => {
      clearTimeout(pause);
      control.abort();
    };
  }, [query]);
  return html`<div class="preview" id="preview" role="status">
    ${told?.fault ? html`<p class="help">${told.fault}</p>` : null}
    ${told?.description ? html`<p lang=${lang}><strong>${told.description}</strong></p>` : null}
    ${told?.next ? html`<p class="help">${t("nextTimes", { times: told.next.map(shown).join(", ") })}</p>` : null}
    ${told?.warnings?.map((warning) => html`<p class="help">${warning}</p>`)}
  </div>`;
}

const shown = (time) => time.replace("T", " ");
