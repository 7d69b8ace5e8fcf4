// The live workers, each with its detail.
import { html, ago, ask, duration, go, isTime, link, number, t, usePoll } from "./core.js";
import { PauseFleet } from "./fleet.js";
import { Empty, Facts, FullTime, Title, Warnings, dash } from "./parts.js";

/** The workers in the fleet now. The head of the page counts them, so that this is asked for in every view. */
export const useWorkers = () => usePoll("workers", (signal) => ask("worker/list?detail=1", { signal }));

export function Workers({ query, workers, fleet }) {
  const { data: answer, error } = workers;
  const open = query.get("worker") ?? "";
  const gone = open && answer && !answer.data.some((worker) => worker.id === open);
  return html`
    <div class="bar"><${Title} id="workers">${t("workers")}<//><${PauseFleet} fleet=${fleet} /></div>
    <${Warnings} warnings=${answer?.warnings} />
    ${error && !error.trouble ? html`<p class="note bad" role="alert">${error.message}</p>` : null}
    ${gone ? html`<p class="note doubt" role="status">${t("workerGone", { id: open })}</p>` : null}
    ${answer === undefined
      ? html`<p class="dim" role="status">${error ? "" : t("loading")}</p>`
      : answer.data.length > 0
        ? html`<${Table} workers=${answer.data} open=${open} />`
        : html`<${Empty} title=${t("noWorkers")}><p>${t("noWorkersHelp")}</p><//>`}
  `;
}

function Table({ workers, open }) {
  return html`<table class="cards workers" role="table">
    <caption class="aside">${t("workers")}</caption>
    <thead role="rowgroup">
      <tr role="row">
        <th role="columnheader" scope="col">${t("worker")}</th>
        <th role="columnheader" scope="col">${t("host")}</th>
        <th role="columnheader" scope="col">${t("version")}</th>
        <th role="columnheader" scope="col">${t("labels")}</th>
        <th role="columnheader" scope="col">${t("up")}</th>
        <th role="columnheader" scope="col" class="number">${t("maxRuns")}</th>
        <th role="columnheader" scope="col"><span class="aside">${t("actions")}</span></th>
      </tr>
    </thead>
    <tbody role="rowgroup">${workers.map((worker) => html`<${Worker} key=${worker.id} worker=${worker} open=${worker.id === open} />`)}</tbody>
  </table>`;
}

function Worker({ worker, open }) {
  return html`
    <tr role="row" class=${open ? "open" : ""}>
      <td role="cell" class="name"><bdi class="name-text">${worker.id}</bdi>${worker.seed ? html` <span class="chip doubt">${t("seedWorker")}</span>` : null}</td>
      <td role="cell" data-label=${t("host")}><bdi>${worker.host || dash()}</bdi></td>
      <td role="cell" data-label=${t("version")}>${worker.version || dash()}</td>
      <td role="cell" data-label=${t("labels")}><${Labels} labels=${worker.labels} /></td>
      <td role="cell" data-label=${t("up")}>${isTime(worker.startedAt) ? duration(Math.max(0, Date.now() - worker.startedAt)) : dash()}</td>
      <td role="cell" data-label=${t("maxRuns")} class="number">${worker.maxRuns === undefined ? dash() : number(worker.maxRuns)}</td>
      <td role="cell" class="actions">
        <button type="button" class="small" aria-expanded=${String(open)} aria-label=${t(open ? "hideWorker" : "showWorker", { id: worker.id })}
          onClick=${() => go(link(["workers"], { worker: open ? "" : worker.id }), true)}>${t(open ? "hide" : "show")}</button>
      </td>
    </tr>
    ${open ? html`<tr role="row" class="detail"><td role="cell" colspan="7"><${Detail} worker=${worker} /></td></tr>` : null}
  `;
}

function Labels({ labels }) {
  const pairs = Object.entries(labels ?? {});
  if (pairs.length === 0) return dash();
  return html`<span>${pairs.map(([name, value]) => html`<span class="label" key=${name}><bdi>${name}=${value}</bdi></span> `)}</span>`;
}

function Detail({ worker }) {
  if (worker.seed) return html`<p class="note">${t("seedWorkerHelp")}</p>`;
  const facts = [
    [t("address"), worker.address],
    [t("host"), worker.host && html`<bdi>${worker.host}</bdi>`],
    [t("pid"), worker.pid],
    [t("version"), worker.version],
    [t("labels"), Object.keys(worker.labels ?? {}).length ? html`<${Labels} labels=${worker.labels} />` : ""],
    [t("maxRuns"), worker.maxRuns === undefined ? "" : number(worker.maxRuns)],
    [t("startedAt"), html`<${FullTime} ms=${worker.startedAt} />`],
    [t("registeredAt"), html`<${FullTime} ms=${worker.clock} />`],
    [t("session"), worker.sid && html`<code>${worker.sid}</code>`],
    [t("instance"), worker.instance && html`<code>${worker.instance}</code>`],
  ];
  return html`<${Facts} facts=${facts} />`;
}

