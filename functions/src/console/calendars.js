// Calendars: named sets of days that jobs leave out or are limited to. Which there are, with their days; for admins with all jobs the form of one, filled
// by hand or from an iCalendar file; and the choice among them in the form of a job.
import { html, ask, caller, confirming, go, language, link, may, number, refresh, say, t, useCell, usePoll, utc, weekday } from "./core.js";
import { faultsOf } from "./faults.js";
import { Dialog, Empty, Title, Warnings, dash } from "./parts.js";
import { useEffect, useRef, useState } from "./preact-hooks.js";
import { Pages } from "./versions.js";

const PAGE = 25;
/** They change seldom, and may be large. */
const EVERY_MS = 15_000;
/** So many of the days to come are told in a line. */
const COMING = 3;
/** So long nobody has typed. */
const PAUSE_MS = 300;
const FIELDS = ["name", "description", "timezone", "dates"];

export function Calendars({ query }) {
  useCell(caller);
  const after = query.get("after") ?? "";
  const open = query.get("calendar") ?? "";
  const [form, setForm] = useState(null);
  const asked = new URLSearchParams({ limit: PAGE, after });
  const { data: answer, error } = usePoll(`calendars ${asked}`, (signal) => ask(`calendar/list?${asked}`, { signal }), EVERY_MS);
  return html`
    <div class="bar"><${Title} id="calendars">${t("calendars")}<//>
      ${may("admin", true) ? html`<button type="button" class="primary" onClick=${() => setForm({ name: "", dates: [] })}>${t("newCalendar")}</button>` : null}</div>
    <p class="dim">${t("calendarsHelp")}</p>
    <${Warnings} warnings=${answer?.warnings} />
    ${error && !error.trouble ? html`<p class="note bad" role="alert">${error.message}</p>` : null}
    ${answer === undefined
      ? html`<p class="dim" role="status">${error ? "" : t("loading")}</p>`
      : answer.data.length
        ? html`<${Table} calendars=${answer.data} open=${open} after=${after} edit=${setForm} />`
        : html`<${Empty} title=${t("noCalendars")}><p>${t("noCalendarsHelp")}</p><//>`}
    <${Pages} at=${["calendars"]} after=${after} next=${answer?.next} />
    ${form ? html`<${CalendarForm} key=${form.name} calendar=${form} close=${() => (setForm(null), refresh())} />` : null}
  `;
}

function Table({ calendars, open, after, edit }) {
  return html`<table class="cards calendars" role="table">
    <caption class="aside">${t("calendars")}</caption>
    <thead role="rowgroup">
      <tr role="row">
        <th role="columnheader" scope="col">${t("name")}</th>
        <th role="columnheader" scope="col">${t("option.description")}</th>
        <th role="columnheader" scope="col" class="number">${t("days")}</th>
        <th role="columnheader" scope="col">${t("comingDays")}</th>
        <th role="columnheader" scope="col"><span class="aside">${t("actions")}</span></th>
      </tr>
    </thead>
    <tbody role="rowgroup">${calendars.map((calendar) => html`<${Row} key=${calendar.name} calendar=${calendar} open=${calendar.name === open} after=${after} edit=${edit} />`)}</tbody>
  </table>`;
}

function Row({ calendar, open, after, edit }) {
  const { name, description, dates, days } = calendar;
  const coming = comingDays(dates);
  return html`
    <tr role="row" class=${open ? "open" : ""}>
      <td role="cell" class="name"><bdi class="name-text">${name}</bdi></td>
      <td role="cell" data-label=${t("option.description")}>${description ? html`<bdi class="clip">${description}</bdi>` : dash()}</td>
      <td role="cell" data-label=${t("days")} class="number">${number(days)}</td>
      <td role="cell" data-label=${t("comingDays")}>${coming.length ? coming.map(shown).join(", ") : dash()}</td>
      <td role="cell" class="actions">
        <button type="button" class="small" aria-expanded=${String(open)} aria-label=${t(open ? "hideDays" : "showDays", { name })}
          onClick=${() => go(link(["calendars"], { after, calendar: open ? "" : name }), true)}>${t(open ? "hide" : "show")}</button>
        ${may("admin", true)
          ? html`<button type="button" class="small" aria-label=${t("editCalendar", { name })} onClick=${() => edit(calendar)}>${t("edit")}</button>
            <button type="button" class="small danger" aria-label=${t("deleteCalendar", { name })} onClick=${() => confirming.set({ kind: "calendarDelete", name })}>${t("delete")}</button>`
          : null}
      </td>
    </tr>
    ${open ? html`<tr role="row" class="detail"><td role="cell" colspan="5"><${Days} dates=${dates} /></td></tr>` : null}
  `;
}

/** A date, or a stretch of dates, as the API tells it: `2027-01-01`, `2027-12-24/2027-12-26`. */
const ends = (dates) => dates.split("/");
const shown = (dates) => ends(dates).map((date) => `${weekday(date)} ${date}`).join(" – ");

const comingDays = (dates) => dates.filter((one) => ends(one).at(-1) >= utc(Date.now()).slice(0, 10)).slice(0, COMING);

/** All days, by year. */
function Days({ dates }) {
  useCell(language);
  const years = Map.groupBy(dates, (one) => one.slice(0, 4));
  if (years.size === 0) return html`<p class="dim">${t("noDays")}</p>`;
  return html`<dl class="facts">${[...years].map(([year, some]) => html`<div key=${year}><dt>${year}</dt><dd>${some.map(shown).join(", ")}</dd></div>`)}</dl>`;
}

// ---- the form ----

const linesOf = (text) => text.split(/[\n,]/).map((one) => one.trim()).filter(Boolean);
const NO_FAULTS = { fields: {}, rest: [] };

/** What the API makes of what stands in the form, without saving it; asked for once nobody types any more. `null`: not known yet. */
function useLook(body) {
  const [look, setLook] = useState(null);
  const asked = body && JSON.stringify({ ...body, preview: "true" });
  useEffect(() => {
    setLook(null);
    if (!asked) return undefined;
    const control = new AbortController();
    const pause = setTimeout(() => {
      ask("calendar/save", { body: JSON.parse(asked), signal: control.signal }).then(
        ({ data, warnings = [] }) => setLook({ ...data, warnings }),
        (error) => control.signal.aborted || setLook({ fault: error.message }),
      );
    }, PAUSE_MS);
    return () => {
      clearTimeout(pause);
      control.abort();
    };
  }, [asked]);
  return look;
}

function CalendarForm({ calendar, close }) {
  const editing = calendar.name !== "";
  const [first] = useState({ name: calendar.name, description: calendar.description ?? "", dates: calendar.dates.join("\n"), timezone: "" });
  const [typed, setTyped] = useState(first);
  const [file, setFile] = useState(null);
  const [faults, setFaults] = useState(NO_FAULTS);
  const [busy, setBusy] = useState(false);
  const [leaving, setLeaving] = useState(false);
  const box = useRef(null);
  const dates = linesOf(typed.dates);
  // The days of a file come into the field below, where they can be mended: what is saved is what stands there.
  const read = useLook(file && { name: "preview", text: file.text, timezone: typed.timezone.trim() });
  useEffect(() => {
    if (read?.dates) setTyped((now) => ({ ...now, dates: read.dates.join("\n") }));
  }, [read]);
  const look = useLook(dates.length ? { name: "preview", dates } : null);
  const dirty = ["name", "description", "dates"].some((field) => typed[field] !== first[field]);

  const leave = () => (dirty && !leaving ? setLeaving(true) : leaving ? setLeaving(false) : close());
  const choose = async (event) => {
    const [chosen] = event.target.files;
    setFile(chosen ? { name: chosen.name, text: await chosen.text() } : null);
  };
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setFaults(NO_FAULTS);
    const { name, description } = typed;
    try {
      const { warnings = [] } = await ask("calendar/save", { body: { name, dates, ...(description.trim() && { description }) } });
      say(t("saved", { name }), { warnings });
      close();
    } catch (error) {
      const found = faultsOf(error.message, FIELDS);
      setFaults(found);
      setBusy(false);
      box.current.elements[FIELDS.find((field) => found.fields[field])]?.focus();
    }
  };
  const field = (id) => ({
    id: `calendar-${id}`,
    name: id,
    value: typed[id],
    onInput: (event) => setTyped({ ...typed, [id]: event.target.value }),
    autocomplete: "off",
    spellcheck: false,
    "aria-invalid": String(Boolean(faults.fields[id])),
    "aria-describedby": `calendar-${id}-fault calendar-${id}-help`,
  });
  const told = (id, help) => html`<p class="fault" id=${`calendar-${id}-fault`} role="alert">${faults.fields[id]?.join(" ")}</p><p class="help" id=${`calendar-${id}-help`}>${help}</p>`;
  return html`<${Dialog} label="calendar-title" className="drawer" onClose=${leave}>
    <form ref=${box} onSubmit=${submit} novalidate>
      <h2 id="calendar-title">${t(editing ? "editCalendar" : "newCalendar", { name: calendar.name })}</h2>
      <p class="note bad" role="alert" hidden=${!faults.rest.length}>${faults.rest.join(" ")}</p>
      <div class="field"><label for="calendar-name">${t("name")}</label><input ...${field("name")} readonly=${editing} autofocus=${!editing} dir="auto" />${told("name", t(editing ? "calendarNameFixed" : "calendarNameHelp"))}</div>
      <div class="field"><label for="calendar-description">${t("option.description")}</label><textarea ...${field("description")} rows="2"></textarea>${told("description", t("calendarDescriptionHelp"))}</div>
      <fieldset class="field"><legend>${t("calendarFile")}</legend>
        <div class="field-parts">
          <div><label for="calendar-file">${t("calendarFileChoose")}</label>
            <input type="file" id="calendar-file" name="file" accept=".ics,text/calendar" onChange=${choose} aria-describedby="calendar-file-told calendar-file-help" /></div>
          <div><label for="calendar-timezone">${t("option.timezone")}</label><input ...${field("timezone")} class="mono" placeholder="UTC" /></div>
        </div>
        <div id="calendar-file-told" role="status">
          ${read?.fault ? html`<p class="fault">${read.fault}</p>` : null}
          ${read?.dates ? html`<p>${t("calendarFileRead", { count: read.days, days: number(read.days), file: file.name })}</p>` : null}
          <${Warnings} warnings=${read?.warnings} />
        </div>
        ${told("timezone", "")}
        <p class="help" id="calendar-file-help">${t("calendarFileHelp")}</p>
      </fieldset>
      <div class="field"><label for="calendar-dates">${t("calendarDates")}</label>
        <textarea ...${field("dates")} class="mono" rows="8" autofocus=${editing} placeholder=${"2027-01-01\n2027-12-24/2027-12-26"}></textarea>
        <div class="preview" role="status">
          ${look?.fault ? html`<p class="help">${look.fault}</p>` : null}
          ${look?.dates ? html`<p><strong>${t("daysInAll", { count: look.days, days: number(look.days) })}</strong></p><p class="help">${comingDays(look.dates).map(shown).join(", ")}</p>` : null}
        </div>
        ${told("dates", t("calendarDatesHelp"))}</div>
      ${leaving
        ? html`<div class="note doubt" role="alert"><p>${t("discardQuestion")}</p>
            <button type="button" class="small danger" onClick=${close}>${t("discard")}</button>
            <button type="button" class="small" onClick=${() => setLeaving(false)}>${t("keepEditing")}</button></div>`
        : null}
      <div class="buttons">
        <button type="button" onClick=${leave}>${t("cancel")}</button>
        <button type="submit" class="primary" aria-disabled=${String(busy)}>${t(busy ? "working" : "save")}</button>
      </div>
    </form>
  <//>`;
}

// ---- in the form of a job ----

/** Puts the names of calendars into a field, and takes them out of it. */
export function CalendarNames({ text, change }) {
  // Asked for once: what is chosen here may be typed as well.
  const { data: answer } = usePoll("calendar names", async (signal) => ({ ...(await ask("calendar/list", { signal })), settled: true }));
  const chosen = text.split(",").map((one) => one.trim()).filter(Boolean);
  if (!answer?.data.length) return null;
  const turn = (name) => change((chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name]).join(", "));
  return html`<div class="chosen" role="group" aria-label=${t("chooseCalendars")}>${answer.data.map(
    ({ name }) => html`<button key=${name} type="button" class="small" aria-pressed=${String(chosen.includes(name))} onClick=${() => turn(name)}><bdi>${name}</bdi></button>`,
  )}</div>`;
}
