// The runs that are going now: of one job on its page, of the whole fleet in a view of its own.
import { html, ask, confirming, duration, link, may, t, usePoll } from "./core.js";
import { Empty, Name, Time, Title, Warnings, dash } from "./parts.js";
import { Origin } from "./record.js";

const PAGE = 100;

/** The runs of a job that are going, above its history. */
export function RunningOf({ name }) {
  const asked = new URLSearchParams({ name, limit: PAGE });
  const { data: answer, error } = usePoll(`running ${name}`, (signal) => ask(`job/running?${asked}`, { signal }));
  return html`<section aria-labelledby="running-title">
    <h2 id="running-title">${t("runningNow")}</h2>
    <${Refusal} error=${error} />
    <${Warnings} warnings=${answer?.warnings} />
    ${answer === undefined ? null : answer.data.length ? html`<${Table} runs=${answer.data} />` : html`<p class="dim">${t("runningNone")}</p>`}
    ${answer?.next === undefined ? null : html`<p><a href=${link(["running"])}>${t("runningMore")}</a></p>`}
  </section>`;
}

/** Every run that is going. */
export function Running({ query }) {
  const after = query.get("after") ?? "";
  const asked = new URLSearchParams({ limit: PAGE, ...(after && { after }) });
  const { data: answer, error } = usePoll(`running ${asked}`, (signal) => ask(`job/running?${asked}`, { signal }));
  return html`
    <div class="bar"><${Title} id="running">${t("running")}<//></div>
    <${Warnings} warnings=${answer?.warnings} />
    <${Refusal} error=${error} />
    ${answer === undefined
      ? html`<p class="dim" role="status">${error ? "" : t("loading")}</p>`
      : answer.data.length
        ? html`<${Table} runs=${answer.data} named=${true} />`
        : html`<${Empty} title=${t(after ? "noMoreRunning" : "runningNone")}><p>${t("runningHelp")}</p><//>`}
    ${answer && (after || answer.next !== undefined)
      ? html`<nav class="pages" aria-label=${t("pages")}>
          ${after ? html`<a class="button" href=${link(["running"])}>${t("firstPage")}</a>` : null}
          ${answer.next !== undefined ? html`<a class="button" href=${link(["running"], { after: answer.next })}>${t("nextPage")}</a>` : null}
        </nav>`
      : null}
  `;
}

function Refusal({ error }) {
  return error && !error.trouble ? html`<p class="note bad" role="alert">${error.message}</p>` : null;
}

function Table({ runs, named }) {
  return html`<table class="cards running" role="table">
    <caption class="aside">${t("runningNow")}</caption>
    <thead role="rowgroup">
      <tr role="row">
        ${named ? html`<th role="columnheader" scope="col">${t("job")}</th>` : null}
        <th role="columnheader" scope="col">${t("startedUtc")}</th>
        <th role="columnheader" scope="col" class="number">${t("goingFor")}</th>
        <th role="columnheader" scope="col">${t("worker")}</th>
        <th role="columnheader" scope="col">${t("runId")}</th>
        <th role="columnheader" scope="col"><span class="aside">${t("actions")}</span></th>
      </tr>
    </thead>
    <tbody role="rowgroup">${runs.map((run) => html`<${Row} key=${run.runId} run=${run} named=${named} />`)}</tbody>
  </table>`;
}

function Row({ run, named }) {
  const { runId, job, worker, planTime, scheduleTime, status, notBefore, by } = run;
  if (status === "waiting") {
    return html`<tr role="row">
      ${named ? html`<td role="cell" class="name"><${Name} name=${job} link=${link(["jobs", job])} /></td>` : null}
      <td role="cell" data-label=${t("startedUtc")} class="when">${notBefore ? html`<${Time} ms=${notBefore} />` : dash()}</td>
      <td role="cell" data-label=${t("goingFor")} class="number">${t(run.killed ? "runCancelled" : "runWaits")}</td>
      <td role="cell" data-label=${t("worker")} class="worker"><bdi>${by}</bdi></td>
      <td role="cell" data-label=${t("runId")}><span><code>${runId}</code> <${Origin} run=${run} /></span></td>
      <td role="cell" class="actions">
        ${run.killed || !may("operator") ? null : html`<button type="button" class="small danger" aria-label=${t("killRun", { id: runId })} onClick=${() => confirming.set({ kind: "kill", name: job, runId })}>${t("kill")}</button>`}
      </td>
    </tr>`;
  }
  // Claimed shortly before its time; a run that waited, later.
  const begun = Math.max(planTime, scheduleTime ?? 0);
  return html`<tr role="row">
    ${named ? html`<td role="cell" class="name"><${Name} name=${job} link=${link(["jobs", job])} /></td>` : null}
    <td role="cell" data-label=${t("startedUtc")} class="when"><${Time} ms=${begun} /></td>
    <td role="cell" data-label=${t("goingFor")} class="number">${duration(Math.max(0, Date.now() - begun)) || dash()}</td>
    <td role="cell" data-label=${t("worker")} class="worker">${worker ? html`<a href=${link(["workers"], { worker })}><bdi>${worker}</bdi></a>` : dash()}</td>
    <td role="cell" data-label=${t("runId")}><span><code>${runId}</code> <${Origin} run=${run} /></span></td>
    <td role="cell" class="actions">
      <a class="button small" href=${link(["jobs", job, "runs", runId])} aria-label=${t("watchRun", { id: runId })}>${t("watch")}</a>
      ${may("operator") ? html`<button type="button" class="small danger" aria-label=${t("killRun", { id: runId })} onClick=${() => confirming.set({ kind: "kill", name: job, runId })}>${t("kill")}</button>` : null}
    </td>
  </tr>`;
}
