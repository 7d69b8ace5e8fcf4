// One job: what it is, and the history of its runs with their output.
import { html, ask, currentJob, go, link, may, number, t, usePoll, utc } from "./core.js";
import { Actions } from "./dialogs.js";
import { given, workOf } from "./options.js";
import { Empty, Facts, JobState, Name, STATUSES, Search, Status, Time, Title, Warnings, dash, late, took, when } from "./parts.js";
import { useRef } from "./preact-hooks.js";
import { Detail, Origin, Summary, idOf } from "./record.js";
import { RunningOf } from "./running.js";

const PAGE = 20;
/** A text is looked for in every record: seldom. */
const LOOKED_FOR_EVERY_MS = 30_000;

export function Job({ name, query }) {
  const after = query.get("after") ?? "";
  const text = query.get("text") ?? "";
  const status = STATUSES.includes(query.get("status")) ? query.get("status") : "";
  const run = query.get("run") ?? "";
  const job = usePoll(`job ${name}`, async (signal) => ({ job: await currentJob(name, signal) }));
  // With a place and not by counting: the page stays while newer runs come.
  const asked = new URLSearchParams({ name, limit: PAGE, after, ...(status && { status }), ...(text && { text }) });
  const log = usePoll(`log ${asked}`, (signal) => ask(`job/log?${asked}`, { signal }), text ? LOOKED_FOR_EVERY_MS : undefined);
  const found = job.data?.job;
  const at = (changes) => link(["jobs", name], { after, status, text, run, ...changes });
  const choose = (event) => go(at({ status: event.target.value, after: "", run: "" }), true);
  return html`
    <p class="crumbs"><a href="#/jobs">← ${t("jobs")}</a></p>
    <div class="bar">
      <${Title} id=${name}><${Name} name=${name} /><//>
      ${found ? html`<${JobState} job=${found} />` : null}
      ${found ? html`<div class="actions"><${Actions} job=${found} whole=${true} /></div>` : null}
    </div>
    ${job.data && !found
      ? html`<div class="note doubt" role="status">${t("jobGone")} ${may("editor") ? html`<a href="#/new">${t("newJob")}</a>` : null}</div>`
      : null}
    ${found
      ? html`<section class="definition" aria-label=${t("definition")}>
          <${Facts} facts=${[[t("schedule"), found.after ? "" : html`<code class="schedule">${found.cronExpr}</code>`], ...options(found)]} />
          <pre class="wrap command-text" tabindex="0" role="region" aria-label=${t("command")}>${workOf(found)}</pre>
        </section>`
      : null}
    <${RunningOf} name=${name} />
    <section aria-labelledby="runs-title">
      <div class="bar">
        <h2 id="runs-title">${t("runs")}</h2>
        <label class="filter"><span>${t("status")}</span>
          <select value=${status} onChange=${choose}>
            <option value="">${t("allStatuses")}</option>
            ${STATUSES.map((one) => html`<option value=${one} selected=${one === status}>${t(`status.${one}`)}</option>`)}
          </select></label>
        <${Search} label=${t("textLabel")} text=${text} address=${(next) => at({ text: next, after: "", run: "" })} replace=${() => true} />
      </div>
      <${Warnings} warnings=${log.data?.warnings} />
      ${run && log.data ? html`<${Linked} key=${run} run=${run} records=${log.data.data} close=${at({ run: "" })} />` : null}
      ${log.error && !log.error.trouble ? html`<p class="note bad" role="alert">${log.error.message}</p>` : null}
      ${log.data === undefined
        ? html`<p class="dim" role="status">${log.error ? "" : t("loading")}</p>`
        : log.data.data.length > 0
          ? html`<${Runs} records=${log.data.data} run=${run} at=${at} />`
          : html`<${NoRuns} filtered=${Boolean(status || text)} after=${after} name=${name} />`}
      ${log.data && (after || log.data.next !== undefined)
        ? html`<nav class="pages" aria-label=${t("pages")}>
            <span class="dim">${t(after ? "runsOlder" : "runsNewest", { count: log.data.data.length, number: number(log.data.data.length) })}</span>
            ${after ? html`<a class="button" href=${at({ after: "", run: "" })}>${t("newest")}</a>` : null}
            ${after ? html`<button type="button" onClick=${() => history.back()}>${t("previousPage")}</button>` : null}
            ${log.data.next !== undefined ? html`<a class="button" href=${at({ after: log.data.next, run: "" })}>${t("older")}</a>` : null}
          </nav>`
        : null}
    </section>
  `;
}

// The options that the job gives. With what this version does not know nobody runs it, and the reader should know why.
function options(job) {
  const { known, unknown } = given(job);
  const facts = known.map(([name, text]) => [t(`option.${name}`), html`<code class="option">${text}</code>`]);
  return Object.keys(unknown).length ? [...facts, [t("unknownOptions"), html`<code>${JSON.stringify(unknown)}</code> ${t("unknownOptionsHelp")}`]] : facts;
}

// The run that the address names, when it is not on the page: newer runs push it away, even while it is read.
function Linked({ run, records, close }) {
  const onPage = records.find((record) => idOf(record) === run);
  const kept = useRef(null);
  if (onPage) kept.current = onPage;
  const wanted = !onPage && !kept.current;
  const { data, error } = usePoll(wanted ? `linked ${run}` : null, async (signal) => {
    const found = await ask(`run/get?${new URLSearchParams({ id: run })}`, { signal });
    return { ...found, settled: true };
  });
  if (onPage) return null;
  const found = kept.current ?? data?.data.record;
  if (!found) return error && !error.trouble ? html`<p class="note linked" role="status">${error.status === 404 ? t("runNotFound") : error.message}</p>` : null;
  return html`<section class="pinned" aria-label=${t("linkedRun")}>
    <div class="bar"><h3>${t("linkedRun")}</h3> <${Status} record=${found} /> <${Time} ms=${when(found)} />
      <button type="button" class="small" aria-label=${t("hideRun", { time: utc(when(found)) })} onClick=${() => go(close, true)}>${t("hide")}</button></div>
    <${Detail} record=${found} />
  </section>`;
}

function NoRuns({ filtered, after, name }) {
  if (after) return html`<${Empty} title=${t("noMoreRuns")} />`;
  if (filtered) {
    return html`<${Empty} title=${t("noRunsOfStatus")}><p><a href=${link(["jobs", name])}>${t("allRuns")}</a></p><//>`;
  }
  return html`<${Empty} title=${t("noRuns")}><p>${t("noRunsHelp")}</p><//>`;
}

function Runs({ records, run, at }) {
  return html`<table class="cards runs" role="table">
    <caption class="aside">${t("runs")}</caption>
    <thead role="rowgroup">
      <tr role="row">
        <th role="columnheader" scope="col">${t("status")}</th>
        <th role="columnheader" scope="col">${t("startedUtc")}</th>
        <th role="columnheader" scope="col" class="number">${t("took")}</th>
        <th role="columnheader" scope="col" class="number">${t("lateBy")}</th>
        <th role="columnheader" scope="col">${t("worker")}</th>
        <th role="columnheader" scope="col">${t("outcome")}</th>
        <th role="columnheader" scope="col"><span class="aside">${t("actions")}</span></th>
      </tr>
    </thead>
    <tbody role="rowgroup">
      ${records.map((record) => {
        const id = idOf(record);
        return html`<${Run} key=${id} record=${record} open=${id === run} toggle=${at({ run: id === run ? "" : id })} />`;
      })}
    </tbody>
  </table>`;
}

function Run({ record, open, toggle }) {
  const label = t(open ? "hideRun" : "showRun", { time: utc(when(record)) });
  return html`
    <tr role="row" class=${open ? "open" : ""}>
      <td role="cell" data-label=${t("status")} class="status"><span><${Status} record=${record} /> <${Origin} run=${record} /></span></td>
      <td role="cell" data-label=${t("startedUtc")} class="when"><${Time} ms=${when(record)} /></td>
      <td role="cell" data-label=${t("took")} class=${`number ${took(record) ? "" : "void"}`}>${took(record) || dash()}</td>
      <td role="cell" data-label=${t("lateBy")} class=${`number ${late(record) ? "" : "void"}`}>${late(record) || dash()}</td>
      <td role="cell" data-label=${t("worker")} class="worker">${record.worker ? html`<a href=${link(["workers"], { worker: record.worker })}><bdi>${record.worker}</bdi></a>` : dash()}</td>
      <td role="cell" data-label=${t("outcome")} class="outcome"><span>
        <span class="clip"><${Summary} record=${record} /></span>${record.outputTruncated ? html` <span class="chip doubt">${t("cut")}</span>` : null}
      </span></td>
      <td role="cell" class="actions">
        <button type="button" class="small" aria-expanded=${String(open)} aria-label=${label} onClick=${() => go(toggle, true)}>${t(open ? "hide" : "show")}</button>
      </td>
    </tr>
    ${open
      ? html`<tr role="row" class="detail"><td role="cell" colspan="7"><${Detail} record=${record} />
          <p><a href=${link(["jobs", record.jobName, "runs", idOf(record)])}>${t("pageOfRun")}</a></p></td></tr>`
      : null}
  `;
}
