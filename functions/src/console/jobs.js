// The list of jobs: search by the beginning of the name and by labels, pages, the newest record of each job on the page.
import { html, ask, link, may, number, rich, route, t, usePoll } from "./core.js";
import { Actions } from "./dialogs.js";
import { workOf } from "./options.js";
import { Empty, JobState, Name, Search, Status, Time, Title, Warnings, when } from "./parts.js";

const PAGE = 25;
/** The newest records of a page's jobs are a request for each: they are asked for seldom, and few at a time. */
const NEWEST_EVERY_MS = 10_000;
const NEWEST_AT_A_TIME = 4;

async function newest(names, signal) {
  const found = new Map();
  const left = [...names];
  let length = 0;
  const one = async () => {
    for (let name = left.shift(); name !== undefined; name = left.shift()) {
      const answer = await ask(`job/log?${new URLSearchParams({ name, limit: 1 })}`, { signal });
      length += answer.length;
      found.set(name, answer.data[0] ?? null);
    }
  };
  await Promise.all(Array.from({ length: NEWEST_AT_A_TIME }, one));
  return { found, length };
}

export function Jobs({ query }) {
  const prefix = query.get("prefix") ?? "";
  const after = query.get("after") ?? "";
  // Labels like `team=ops, tier`: a job must have all of them.
  const labels = query.get("labels") ?? "";
  const wanted = labels.split(",").map((one) => one.trim()).filter(Boolean);
  const asked = new URLSearchParams({ limit: PAGE, ...(prefix && { prefix }), ...(after && { after }) });
  wanted.forEach((label) => asked.append("label", label));
  const searched = { ...(prefix && { prefix }), ...(labels && { labels }) };
  const { data: answer, error } = usePoll(`jobs ${asked}`, (signal) => ask(`job/list?${asked}`, { signal }));
  const names = answer?.data.map((job) => job.name) ?? [];
  const { data: records } = usePoll(names.length ? `newest ${JSON.stringify(names)}` : null, (signal) => newest(names, signal), NEWEST_EVERY_MS);
  return html`
    <div class="bar">
      <${Title} id="jobs">${t("jobs")}<//>
      ${may("editor") ? html`<a class="button primary" href="#/new">${t("newJob")}</a>` : null}
      <${Search} label=${t("searchLabel")} text=${prefix} address=${(text) => link(["jobs"], { ...searched, prefix: text })} replace=${() => route.value.query.has("prefix")} />
      <${Search} label=${t("labelLabel")} text=${labels} address=${(text) => link(["jobs"], { ...searched, labels: text })} replace=${() => route.value.query.has("labels")} second=${true} />
    </div>
    <${Warnings} warnings=${answer?.warnings} />
    ${error && !error.trouble ? html`<p class="note bad" role="alert">${error.message}</p>` : null}
    ${answer === undefined
      ? html`<p class="dim" role="status">${error ? "" : t("loading")}</p>`
      : answer.data.length > 0
        ? html`<${Table} jobs=${answer.data} records=${records?.found} />`
        : html`<${None} prefix=${prefix} labels=${labels} after=${after} />`}
    ${answer && (after || answer.next !== undefined)
      ? html`<nav class="pages" aria-label=${t("pages")}>
          <span class="dim">${t("jobsShown", { count: answer.data.length, number: number(answer.data.length) })}</span>
          ${after ? html`<a class="button" href=${link(["jobs"], searched)}>${t("firstPage")}</a>` : null}
          ${after ? html`<button type="button" onClick=${() => history.back()}>${t("previousPage")}</button>` : null}
          ${answer.next !== undefined ? html`<a class="button" href=${link(["jobs"], { ...searched, after: answer.next })}>${t("nextPage")}</a>` : null}
        </nav>`
      : null}
  `;
}

function None({ prefix, labels, after }) {
  if (labels) {
    return html`<${Empty} title=${rich("noJobsWithLabels", { labels: html`<bdi>${labels}</bdi>` })}>
      <p><a href="#/jobs">${t("allJobs")}</a></p>
    <//>`;
  }
  if (prefix || after) {
    return html`<${Empty} title=${prefix ? rich("noJobsWithPrefix", { prefix: html`<bdi>${prefix}</bdi>` }) : t("noMoreJobs")}>
      <p><a href="#/jobs">${t("allJobs")}</a></p>
    <//>`;
  }
  return html`<${Empty} title=${t("noJobs")}>
    <p>${rich("noJobsHelp", { example: html`<code>*/5 * * * *</code>` })}</p>
    ${may("editor") ? html`<p><a class="button primary" href="#/new">${t("newJobFirst")}</a></p>` : null}
  <//>`;
}

function Table({ jobs, records }) {
  return html`<table class="cards jobs" role="table">
    <caption class="aside">${t("jobs")}</caption>
    <thead role="rowgroup">
      <tr role="row">
        <th role="columnheader" scope="col">${t("name")}</th>
        <th role="columnheader" scope="col">${t("schedule")}</th>
        <th role="columnheader" scope="col">${t("command")}</th>
        <th role="columnheader" scope="col">${t("newestRecord")}</th>
        <th role="columnheader" scope="col"><span class="aside">${t("actions")}</span></th>
      </tr>
    </thead>
    <tbody role="rowgroup">
      ${jobs.map((job) => html`<${Row} key=${job.name} job=${job} record=${records?.get(job.name)} />`)}
    </tbody>
  </table>`;
}

function Row({ job, record }) {
  return html`<tr role="row">
    <td role="cell" class="name"><${Name} name=${job.name} link=${link(["jobs", job.name])} /><${JobState} job=${job} /></td>
    <td role="cell" data-label=${t("schedule")}>${job.after ? t("afterJobs", { names: [job.after].flat().join(", ") }) : html`<code class="schedule">${job.cronExpr}</code>`}</td>
    <td role="cell" data-label=${t("command")} class="command"><code class="clip">${workOf(job)}</code></td>
    <td role="cell" data-label=${t("newestRecord")} class="newest">
      ${record ? html`<${Status} record=${record} /> <${Time} ms=${when(record)} />` : html`<span class="dim">${record === null ? t("noneYet") : "…"}</span>`}
    </td>
    <td role="cell" class="actions"><${Actions} job=${job} /></td>
  </tr>`;
}
