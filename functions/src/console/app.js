// The page: head, the view of the address, the dialogs over it, and what is wrong now.
import { render } from "./preact.js";
import {
  THEMES, answeredAt, caller, chooseLanguage, chooseTheme, go, html, language, link, local, may, paused, refresh, route, t, theme, troubles, useCell, usePoll, utc, whoAmI,
} from "./core.js";
import { Audit } from "./audit.js";
import { Calendars } from "./calendars.js";
import { Confirmation } from "./dialogs.js";
import { FleetPaused, useFleet } from "./fleet.js";
import { JobForm } from "./form.js";
import { Job } from "./job.js";
import { Jobs } from "./jobs.js";
import { Title, Toasts } from "./parts.js";
import { useEffect, useRef } from "./preact-hooks.js";
import { Run } from "./run.js";
import { Running } from "./running.js";
import { SignIn, Who } from "./signin.js";
import { languages } from "./texts.js";
import { Tokens } from "./tokens.js";
import { Versions } from "./versions.js";
import { Workers, useWorkers } from "./workers.js";

/** The form that an address opens, or null: it lies over the view that was there before. */
function formOf({ parts }) {
  if (parts.length === 1 && parts[0] === "new") return { kind: "new" };
  if (parts.length === 3 && parts[0] === "jobs" && ["edit", "copy"].includes(parts[2])) return { kind: parts[2], name: parts[1] };
  return null;
}

/** The views of one part, which is also the name of their title; what is no view is told below the jobs. */
const VIEWS = ["running", "workers", "calendars", "tokens", "audit"];

/** A role may be changed, or end, while the page is open. */
const WHO_EVERY_MS = 60_000;

/** Nothing is asked for before it is known who asks; from then on the views stay, also while somebody has to sign in again. */
function App() {
  useCell(language);
  const who = useCell(caller);
  const begun = useRef(false);
  begun.current ||= Boolean(who);
  usePoll("who", whoAmI, WHO_EVERY_MS);
  return html`${begun.current ? html`<${Page} />` : html`<${Banner} />`}${who === null ? html`<${SignIn} />` : null}`;
}

function Page() {
  const address = useCell(route);
  useCell(language);
  const form = formOf(address);
  const below = useRef(null);
  const cameFrom = useRef(false);
  if (form === null) below.current = address;
  else cameFrom.current = below.current !== null;
  // A form that is linked to has nothing below it yet.
  const view = form === null ? address : (below.current ?? { parts: form.name === undefined ? ["jobs"] : ["jobs", form.name], query: new URLSearchParams() });
  const close = (next) => {
    if (next) go(next, true);
    else if (cameFrom.current) history.back();
    else go(link(view.parts), true);
  };
  const workers = useWorkers();
  const fleet = useFleet();
  return html`
    <a class="skip" href="#main" onClick=${toMain}>${t("skipToContent")}</a>
    <${Head} parts=${view.parts} workers=${workers.data} />
    <${Banner} />
    <${FleetPaused} fleet=${fleet} />
    <main id="main" tabindex="-1"><${View} view=${view} workers=${workers} fleet=${fleet} /></main>
    ${form ? html`<${JobForm} key=${`${form.kind} ${form.name ?? ""}`} ...${form} close=${close} />` : null}
    <${Confirmation} />
    <${Toasts} />
  `;
}

// Not by the address, which belongs to the views.
function toMain(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

function View({ view: { parts, query }, workers, fleet }) {
  const [first, second, third, fourth] = parts;
  const title = parts.length >= 2 && first === "jobs" ? second : VIEWS.includes(first) ? t(first) : t("jobs");
  useEffect(() => {
    document.title = `${title} · Fleetcron`;
  }, [title]);
  if (parts.length === 0 || (parts.length === 1 && first === "jobs")) return html`<${Jobs} query=${query} />`;
  if (parts.length === 2 && first === "jobs") return html`<${Job} key=${second} name=${second} query=${query} />`;
  if (parts.length === 3 && first === "jobs" && third === "versions") return html`<${Versions} key=${second} name=${second} query=${query} />`;
  if (parts.length === 4 && first === "jobs" && third === "runs") return html`<${Run} key=${fourth} name=${second} id=${fourth} />`;
  if (parts.length === 1 && first === "running") return html`<${Running} query=${query} />`;
  if (parts.length === 1 && first === "workers") return html`<${Workers} query=${query} workers=${workers} fleet=${fleet} />`;
  if (parts.length === 1 && first === "calendars") return html`<${Calendars} query=${query} />`;
  if (parts.length === 1 && first === "tokens") return html`<${Tokens} />`;
  if (parts.length === 1 && first === "audit") return html`<${Audit} query=${query} />`;
  return html`<${Title} id="none">${t("noSuchView")}<//><p><a href="#/jobs">${t("allJobs")}</a></p>`;
}

function Head({ parts, workers }) {
  const [view] = parts;
  const count = workers?.data.length;
  const current = (is) => (is ? "page" : undefined);
  return html`<header>
    <a class="brand" href="#/jobs">Fleetcron</a>
    <nav aria-label=${t("views")}>
      <a href="#/jobs" aria-current=${current(!VIEWS.includes(view))}>${t("jobs")}</a>
      <a href="#/running" aria-current=${current(view === "running")}>${t("running")}</a>
      <a href="#/workers" aria-current=${current(view === "workers")}>${t("workers")}${count === undefined ? null : html` <span class=${`count ${count === 0 ? "none" : ""}`}>${count}</span>`}</a>
      <a href="#/calendars" aria-current=${current(view === "calendars")}>${t("calendars")}</a>
      ${may("admin") ? html`<a href="#/tokens" aria-current=${current(view === "tokens")}>${t("tokens")}</a>` : null}
      ${may("admin", true) ? html`<a href="#/audit" aria-current=${current(view === "audit")}>${t("audit")}</a>` : null}
    </nav>
    <${Freshness} />
    <div class="choices">
      <label><span class="aside">${t("language")}</span>
        <select value=${language.value} onChange=${(event) => chooseLanguage(event.target.value)}>
          ${Object.entries(languages).map(([code, name]) => html`<option value=${code} lang=${code} selected=${code === language.value}>${name}</option>`)}
        </select></label>
      <${ThemeChoice} />
    </div>
    <${Who} />
  </header>`;
}

function ThemeChoice() {
  const chosen = useCell(theme);
  return html`<label><span class="aside">${t("theme")}</span>
    <select value=${chosen} onChange=${(event) => chooseTheme(event.target.value)}>
      ${THEMES.map((one) => html`<option value=${one} selected=${one === chosen}>${t(`theme.${one}`)}</option>`)}
    </select></label>`;
}

function Freshness() {
  const at = useCell(answeredAt);
  const stopped = useCell(paused);
  const away = useCell(troubles).size > 0;
  const state = stopped ? "paused" : away ? "stale" : "live";
  return html`<div class="freshness">
    <span class=${`dot ${state}`} aria-hidden="true"></span>
    <span class="freshness-text" title=${at ? `${local(at)} · ${t("pausedWhenHidden")}` : t("pausedWhenHidden")}>${t(`fresh.${state}`)}${at ? html` <span class="clock">${utc(at).slice(11)} UTC</span>` : null}</span>
    <button type="button" class="small" aria-label=${t(stopped ? "updatesResume" : "updatesStop")} onClick=${() => paused.set(!stopped)}>${t(stopped ? "resume" : "stop")}</button>
  </div>`;
}

// The place is always there, so that what comes into it is read out.
function Banner() {
  const found = [...new Set(useCell(troubles).values())];
  const at = useCell(answeredAt);
  return html`<div role="alert" class="banner-place">${found.length
    ? html`<div class="banner">
        <div><strong>${t("troubleTitle")}</strong> ${found.map((message) => html`<span key=${message}>${message} </span>`)}<span>${at ? t("troubleShown", { time: utc(at).slice(11) }) : ""} ${t("troubleRetry")}</span></div>
        <button type="button" class="small" onClick=${refresh}>${t("tryNow")}</button>
      </div>`
    : null}</div>`;
}

render(html`<${App} />`, document.body);
