// Who changed what, newest first: for admins with all jobs.
import { html, ask, caller, link, may, t, useCell, usePoll } from "./core.js";
import { Empty, Name, Search, Time, Title, Warnings, dash } from "./parts.js";
import { Changes, Pages } from "./versions.js";

const PAGE = 50;
/** See `versions.js`. */
const EVERY_MS = 15_000;

export function Audit({ query }) {
  useCell(caller);
  const after = query.get("after") ?? "";
  const job = query.get("job") ?? "";
  const asked = new URLSearchParams({ limit: PAGE, after, ...(job && { job }) });
  const { data: answer, error } = usePoll(may("admin", true) ? `audit ${asked}` : null, (signal) => ask(`audit/list?${asked}`, { signal }), EVERY_MS);
  if (!may("admin", true)) return html`<${Title} id="audit">${t("audit")}<//><p class="note doubt">${t("auditForAdmins")}</p>`;
  return html`
    <div class="bar"><${Title} id="audit">${t("audit")}<//>
      <${Search} label=${t("auditJob")} text=${job} address=${(text) => link(["audit"], { job: text })} replace=${() => true} /></div>
    <${Warnings} warnings=${answer?.warnings} />
    ${error && !error.trouble ? html`<p class="note bad" role="alert">${error.message}</p>` : null}
    ${answer === undefined
      ? html`<p class="dim" role="status">${error ? "" : t("loading")}</p>`
      : answer.data.length > 0
        ? answer.data.map((entry) => html`<${Entry} key=${entry.id} entry=${entry} />`)
        : html`<${Empty} title=${t("noAudit")} />`}
    <${Pages} at=${["audit"]} query=${{ job }} after=${after} next=${answer?.next} />
  `;
}

function Entry({ entry: { at, action, by, from, thing, name, details, changes } }) {
  return html`<section class="definition version">
    <div class="bar"><strong><${Time} ms=${at} /></strong> <code>${action}</code>
      ${thing === "job" ? html`<${Name} name=${name} link=${link(["jobs", name])} />` : html`<code>${thing}</code>`}</div>
    <p>${by ? html`<bdi>${by.name}</bdi> (${by.role})` : dash()} <span class="dim"><bdi>${from}</bdi></span></p>
    ${details ? html`<pre class="wrap">${JSON.stringify(details)}</pre>` : null}
    ${Object.keys(changes).length ? html`<${Changes} changes=${changes} />` : null}
  </section>`;
}
