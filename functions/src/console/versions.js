// What a job was: its definitions, newest first, each with what was different from the one before, and the way back to it.
import { html, ask, confirming, link, t, usePoll, utc } from "./core.js";
import { Empty, Name, Time, Title, Warnings, dash } from "./parts.js";

const PAGE = 20;
/** They come from the store of records, and seldom: nobody needs them each second. */
const EVERY_MS = 15_000;

export function Versions({ name, query }) {
  const after = query.get("after") ?? "";
  const asked = new URLSearchParams({ name, limit: PAGE, after });
  const { data: answer, error } = usePoll(`versions ${asked}`, (signal) => ask(`job/versions?${asked}`, { signal }), EVERY_MS);
  return html`
    <p class="crumbs"><a href=${link(["jobs", name])}>← <${Name} name=${name} /></a></p>
    <div class="bar"><${Title} id=${`versions ${name}`}>${t("versions")}<//></div>
    <${Warnings} warnings=${answer?.warnings} />
    ${error && !error.trouble ? html`<p class="note bad" role="alert">${error.message}</p>` : null}
    ${answer === undefined
      ? html`<p class="dim" role="status">${error ? "" : t("loading")}</p>`
      : answer.data.length > 0
        ? answer.data.map((version) => html`<${Version} key=${version.version} name=${name} version=${version} />`)
        : html`<${Empty} title=${t("noVersions")}><p>${t("noVersionsHelp")}</p><//>`}
    <${Pages} at=${["jobs", name, "versions"]} after=${after} next=${answer?.next} />
  `;
}

function Version({ name, version }) {
  const { version: id, at, by, action, definition, changes, beforeUnknown } = version;
  return html`<section class="definition version" aria-label=${t("versionOf", { time: utc(at) })}>
    <div class="bar">
      <strong><${Time} ms=${at} /></strong> <code>${action}</code> ${by ? html`<bdi>${by}</bdi>` : dash()}
      ${beforeUnknown ? html`<span class="chip doubt" title=${t("beforeUnknownHelp")}>${t("beforeUnknown")}</span>` : null}
      ${definition
        ? html`<div class="actions"><button type="button" class="small" aria-label=${t("rollbackTo", { time: utc(at) })}
            onClick=${() => confirming.set({ kind: "rollback", name, version: id })}>${t("rollback")}</button></div>`
        : null}
    </div>
    <${Changes} changes=${changes} />
  </section>`;
}

/** What was different: each field with what it was and what it became. */
export function Changes({ changes }) {
  const fields = Object.entries(changes);
  if (fields.length === 0) return html`<p class="dim">${t("noChanges")}</p>`;
  return html`<dl class="changes">${fields.map(
    ([field, { before, after }]) => html`<div key=${field}>
      <dt><code>${field}</code></dt>
      <dd>
        ${before === undefined ? null : html`<pre class="wrap before"><span class="aside">${t("before")}: </span>− ${shown(before)}</pre>`}
        ${after === undefined ? null : html`<pre class="wrap after"><span class="aside">${t("after")}: </span>+ ${shown(after)}</pre>`}
      </dd>
    </div>`,
  )}</dl>`;
}

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** To older entries and back. */
export function Pages({ at, query = {}, after, next }) {
  if (!after && next === undefined) return null;
  return html`<nav class="pages" aria-label=${t("pages")}>
    ${after ? html`<a class="button" href=${link(at, query)}>${t("newest")}</a>` : null}
    ${after ? html`<button type="button" onClick=${() => history.back()}>${t("previousPage")}</button>` : null}
    ${next !== undefined ? html`<a class="button" href=${link(at, { ...query, after: next })}>${t("older")}</a>` : null}
  </nav>`;
}
