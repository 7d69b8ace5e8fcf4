// One job: what it is, and the history of its runs with their output.
import { html, ask, currentJob, go, isTime, link, number, rich, t, usePoll, utc } from "./core.js";
import { Actions } from "./dialogs.js";
import { Empty, Facts, FullTime, Name, Output, STATUSES, Status, Time, Title, Warnings, dash, late, ran, statusOf, took, when } from "./parts.js";
import { useRef, useState } from "./preact-hooks.js";

const PAGE = 20;
/** So many records are looked through for a run that is linked to: a week of a job of every minute. */
const LOOKED_THROUGH_MAX = 10_000;
const LOOKED_THROUGH_AT_A_TIME = 200;

const idOf = (record) => record._id ?? `${record.planTime}/${record.startTime}`;

export function Job({ name, query }) {
  const skip = Math.max(0, Math.trunc(Number(query.get("skip"))) || 0);
  const status = STATUSES.includes(query.get("status")) ? query.get("status") : "";
  const run = query.get("run") ?? "";
  const job = usePoll(`job ${name}`, async (signal) => ({ job: await currentJob(name, signal) }));
  const asked = new URLSearchParams({ name, limit: PAGE, ...(skip && { skip }), ...(status && { status }) });
  const log = usePoll(`log ${asked}`, (signal) => ask(`job/log?${asked}`, undefined, signal));
  const found = job.data?.job;
  const at = (changes) => link(["jobs", name], { skip, status, run, ...changes });
  const choose = (event) => go(at({ status: event.target.value, skip: 0, run: "" }), true);
  return html`
    <p class="crumbs"><a href="#/jobs">← ${t("jobs")}</a></p>
    <div class="bar">
      <${Title} id=${name}><${Name} name=${name} /><//>
      ${found ? html`<div class="actions"><${Actions} job=${found} whole=${true} /></div>` : null}
    </div>
    ${job.data && !found
      ? html`<div class="note doubt" role="status">${t("jobGone")} <a href="#/new">${t("newJob")}</a></div>`
      : null}
    ${found
      ? html`<section class="definition" aria-label=${t("definition")}>
          <${Facts} facts=${[[t("scheduleUtc"), html`<code class="schedule">${found.cronExpr}</code>`], ...extra(found)]} />
          <pre class="wrap command-text" tabindex="0" role="region" aria-label=${t("command")}>${found.command}</pre>
        </section>`
      : null}
    <section aria-labelledby="runs-title">
      <div class="bar">
        <h2 id="runs-title">${t("runs")}</h2>
        <label class="filter"><span>${t("status")}</span>
          <select value=${status} onChange=${choose}>
            <option value="">${t("allStatuses")}</option>
            ${STATUSES.map((one) => html`<option value=${one} selected=${one === status}>${t(`status.${one}`)}</option>`)}
          </select></label>
      </div>
      <${Warnings} warnings=${log.data?.warnings} />
      ${run && log.data ? html`<${Linked} key=${run} run=${run} records=${log.data.data} name=${name} close=${at({ run: "" })} />` : null}
      ${log.error && !log.error.trouble ? html`<p class="note bad" role="alert">${log.error.message}</p>` : null}
      ${log.data === undefined
        ? html`<p class="dim" role="status">${log.error ? "" : t("loading")}</p>`
        : log.data.data.length > 0
          ? html`<${Runs} records=${log.data.data} run=${run} at=${at} />`
          : html`<${NoRuns} status=${status} skip=${skip} name=${name} />`}
      ${log.data && (skip > 0 || log.data.next !== undefined)
        ? html`<nav class="pages" aria-label=${t("pages")}>
            ${log.data.data.length
              ? html`<span class="dim">${t("runsShown", { from: number(skip + 1), to: number(skip + log.data.data.length) })}</span>`
              : null}
            ${skip > 0 ? html`<a class="button" href=${at({ skip: 0, run: "" })}>${t("newest")}</a>` : null}
            ${skip > 0 ? html`<a class="button" href=${at({ skip: Math.max(0, skip - PAGE), run: "" })}>${t("newer")}</a>` : null}
            ${log.data.next !== undefined ? html`<a class="button" href=${at({ skip: log.data.next, run: "" })}>${t("older")}</a>` : null}
          </nav>`
        : null}
    </section>
  `;
}

// What the stored job has beyond the three fields. With what this version does not know nobody runs it, and the reader should know why.
function extra({ name, command, cronExpr, misfire, startDeadlineSeconds, jitterSeconds, selector, ...unknown }) {
  const given = [
    [t("misfire"), misfire],
    [t("startDeadline"), startDeadlineSeconds],
    [t("jitter"), jitterSeconds],
    [t("selector"), selector],
  ].filter(([, value]) => value !== undefined);
  return [...given.map(([label, value]) => [label, html`<code>${typeof value === "string" ? value : JSON.stringify(value)}</code>`]), ...others(unknown)];
}

function others(unknown) {
  return Object.keys(unknown).length ? [[t("unknownOptions"), html`<code>${JSON.stringify(unknown)}</code> ${t("unknownOptionsHelp")}`]] : [];
}

// The run that the address names, when it is not on the page: newer runs push it away, even while it is read.
function Linked({ run, records, name, close }) {
  const onPage = records.find((record) => idOf(record) === run);
  const kept = useRef(null);
  const [state, setState] = useState("");
  if (onPage) kept.current = onPage;
  if (onPage) return null;
  const found = kept.current;
  const find = async () => {
    if (state === "working") return;
    setState("working");
    try {
      for (let skip = 0; skip < LOOKED_THROUGH_MAX; ) {
        const { data, next } = await ask(`job/log?${new URLSearchParams({ name, skip, limit: LOOKED_THROUGH_AT_A_TIME })}`);
        const record = data.find((one) => idOf(one) === run);
        if (record) {
          kept.current = record;
          return setState("found");
        }
        if (next === undefined) break;
        skip = Number(next);
      }
      setState("runNotFound");
    } catch (error) {
      setState(error.message);
    }
  };
  if (!found) {
    return html`<div class="note linked" role="status"><p>${state === "working" || state === "" ? t("runElsewhere") : state === "runNotFound" ? t(state) : state}</p>
      <button type="button" class="small" aria-disabled=${String(state === "working")} onClick=${find}>${t(state === "working" ? "working" : "findRun")}</button></div>`;
  }
  return html`<section class="pinned" aria-label=${t("linkedRun")}>
    <div class="bar"><h3>${t("linkedRun")}</h3> <${Status} record=${found} /> <${Time} ms=${when(found)} />
      <button type="button" class="small" aria-label=${t("hideRun", { time: utc(when(found)) })} onClick=${() => go(close, true)}>${t("hide")}</button></div>
    <${Detail} record=${found} />
  </section>`;
}

function NoRuns({ status, skip, name }) {
  if (skip > 0) return html`<${Empty} title=${t("noMoreRuns")} />`;
  if (status) {
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
      <td role="cell" data-label=${t("status")}><${Status} record=${record} /></td>
      <td role="cell" data-label=${t("startedUtc")} class="when"><${Time} ms=${when(record)} /></td>
      <td role="cell" data-label=${t("took")} class=${`number ${took(record) ? "" : "void"}`}>${took(record) || dash()}</td>
      <td role="cell" data-label=${t("lateBy")} class=${`number ${late(record) ? "" : "void"}`}>${late(record) || dash()}</td>
      <td role="cell" data-label=${t("worker")} class="worker">${record.worker ? html`<a href=${link(["workers"], { worker: record.worker })}><bdi>${record.worker}</bdi></a>` : dash()}</td>
      <td role="cell" data-label=${t("outcome")} class="outcome"><span class="clip">${summary(record)}</span></td>
      <td role="cell" class="actions">
        <button type="button" class="small" aria-expanded=${String(open)} aria-label=${label} onClick=${() => go(toggle, true)}>${t(open ? "hide" : "show")}</button>
      </td>
    </tr>
    ${open ? html`<tr role="row" class="detail"><td role="cell" colspan="7"><${Detail} record=${record} /></td></tr>` : null}
  `;
}

// One line: what went wrong and the last that was said before it, or how the output begins.
function summary(record) {
  if (record.skipped) return skippedText(record.skipped);
  const output = String(record.output ?? "");
  const lines = (record.err ? output.trimEnd().slice(-200) : output.trimStart().slice(0, 200)).split("\n");
  const line = lines.at(record.err ? -1 : 0);
  if (!record.err) return line || html`<span class="dim">${t("noOutput")}</span>`;
  return html`<span class="fault">${record.err}</span>${line ? html` <span class="dim">${line}</span>` : null}`;
}

function skippedText({ count, more, reason }) {
  const known = ["overlap", "misfire", "deleted", "superseded", "noWorker"].includes(reason);
  return t(more ? "skippedMore" : "skippedCount", { count, number: number(count ?? 0), reason: known ? t(`reason.${reason}`) : String(reason) });
}

function Detail({ record }) {
  const { skipped } = record;
  const facts = [
    [t("planned"), html`<${FullTime} ms=${record.planTime} />`],
    [t("claimed"), isTime(record.scheduleTime) ? html`<${FullTime} ms=${record.scheduleTime} />` : ""],
    [t("started"), ran(record) ? html`<${FullTime} ms=${record.startTime} />` : ""],
    [t("ended"), ran(record) ? html`<${FullTime} ms=${record.endTime} />` : ""],
    [t("took"), took(record)],
    [t("lateBy"), late(record)],
    [t("error"), record.err],
    [t("skippedFires"), skipped && skippedText(skipped)],
    [t("skippedFrom"), skipped && html`<${FullTime} ms=${skipped.from} />`],
    [t("skippedTo"), skipped && html`<${FullTime} ms=${skipped.to} />`],
    [t("exitCode"), record.exitCode],
    [t("signal"), record.signal],
    [t("worker"), record.worker && html`<bdi>${record.worker}</bdi>`],
    [t("attempt"), record.attempt],
    [t("trigger"), record.trigger],
    [t("runId"), record.claim && html`<code>${record.claim}</code>`],
    [t("recordId"), record._id && html`<code>${record._id}</code>`],
  ];
  return html`<div class="run-detail">
    ${statusOf(record) === "lost" ? html`<p class="note doubt">${t("lostHelp")}</p>` : null}
    ${statusOf(record) === "skipped" && skipped?.reason === "overlap" ? html`<p class="note">${t("overlapHelp")}</p>` : null}
    <${Facts} facts=${facts} />
    ${record.output ? html`<${Output} text=${String(record.output)} label=${t("output")} />` : ran(record) ? html`<p class="dim">${t("noOutputHelp")}</p>` : null}
    ${record.outputTruncated ? html`<p class="note doubt">${t("truncated")}</p>` : null}
    ${record.command ? html`<details><summary>${t("commandRan")}</summary><pre class="wrap command-text" tabindex="0" role="region" aria-label=${t("commandRan")}>${record.command}</pre></details>` : null}
  </div>`;
}

