// The tokens by which people and programs call the API: who has which, a new one, shown once, and how they are revoked.
import { ROLES, html, ask, caller, confirming, isTime, may, refresh, t, useCell, usePoll } from "./core.js";
import { faultsOf } from "./faults.js";
import { Dialog, Empty, Time, Title, Warnings, dash, useCopy } from "./parts.js";
import { useRef, useState } from "./preact-hooks.js";

/** For how many days a token may be good. */
const DAYS = ["7", "30", "90", "365", "never"];
const FIELDS = ["name", "role", "prefix", "days"];

export function Tokens() {
  const who = useCell(caller);
  const [making, setMaking] = useState(false);
  const { data: answer, error } = usePoll(may("admin") ? "tokens" : null, (signal) => ask("token/list", { signal }));
  const tokens = [...(answer?.data ?? [])].sort((one, other) => other.createdAt - one.createdAt);
  if (!may("admin")) return html`<${Title} id="tokens">${t("tokens")}<//><p class="note doubt">${t("tokensForAdmins")}</p>`;
  return html`
    <div class="bar"><${Title} id="tokens">${t("tokens")}<//>
      <button type="button" class="primary" onClick=${() => setMaking(true)}>${t("newToken")}</button></div>
    <p class="dim">${t("tokensHelp")}</p>
    <${Warnings} warnings=${answer?.warnings} />
    ${error && !error.trouble ? html`<p class="note bad" role="alert">${error.message}</p>` : null}
    ${answer === undefined
      ? html`<p class="dim" role="status">${error ? "" : t("loading")}</p>`
      : tokens.length
        ? html`<${Table} tokens=${tokens} own=${who?.id} />`
        : html`<${Empty} title=${t("noTokens")}><p>${t("noTokensHelp")}</p><//>`}
    ${making ? html`<${NewToken} close=${() => (setMaking(false), refresh())} />` : null}
  `;
}

function Table({ tokens, own }) {
  return html`<table class="cards tokens" role="table">
    <caption class="aside">${t("tokens")}</caption>
    <thead role="rowgroup">
      <tr role="row">
        <th role="columnheader" scope="col">${t("name")}</th>
        <th role="columnheader" scope="col">${t("role")}</th>
        <th role="columnheader" scope="col">${t("tokenId")}</th>
        <th role="columnheader" scope="col">${t("tokenMade")}</th>
        <th role="columnheader" scope="col">${t("tokenUsed")}</th>
        <th role="columnheader" scope="col">${t("tokenExpires")}</th>
        <th role="columnheader" scope="col"><span class="aside">${t("actions")}</span></th>
      </tr>
    </thead>
    <tbody role="rowgroup">${tokens.map((token) => html`<${Row} key=${token.id} token=${token} own=${token.id === own} />`)}</tbody>
  </table>`;
}

function Row({ token: { id, name, role, prefix, createdAt, createdBy, expiresAt, usedAt }, own }) {
  const over = isTime(expiresAt) && expiresAt <= Date.now();
  return html`<tr role="row">
    <td role="cell" class="name"><bdi class="name-text">${name}</bdi>${own ? html` <span class="chip info">${t("tokenOwn")}</span>` : null}</td>
    <td role="cell" data-label=${t("role")}><span><span class="chip quiet">${t(`role.${role}`)}</span>${prefix ? html` <span class="label"><bdi>${prefix}</bdi>…</span>` : null}</span></td>
    <td role="cell" data-label=${t("tokenId")}><code>${id}</code></td>
    <td role="cell" data-label=${t("tokenMade")} class="when"><span><${Time} ms=${createdAt} /> <span class="dim"><bdi>${createdBy}</bdi></span></span></td>
    <td role="cell" data-label=${t("tokenUsed")} class="when">${isTime(usedAt) ? html`<${Time} ms=${usedAt} />` : dash()}</td>
    <td role="cell" data-label=${t("tokenExpires")} class="when">${over ? html`<span class="chip bad">${t("tokenOver")}</span>` : isTime(expiresAt) ? html`<${Time} ms=${expiresAt} />` : t("days.never")}</td>
    <td role="cell" class="actions"><button type="button" class="small danger" aria-label=${t("revokeToken", { name })} onClick=${() => confirming.set({ kind: "revoke", name, id })}>${t("revoke")}</button></td>
  </tr>`;
}

function NewToken({ close }) {
  // Nobody makes a token that is worth more than their own.
  const [token, setToken] = useState({ name: "", role: "viewer", prefix: caller.value?.prefix ?? "", days: "90" });
  const [faults, setFaults] = useState({ fields: {}, rest: [] });
  const [busy, setBusy] = useState(false);
  const [made, setMade] = useState(null);
  if (made) return html`<${Made} made=${made} close=${close} />`;
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setFaults({ fields: {}, rest: [] });
    try {
      setMade((await ask("token/create", { body: token })).data);
    } catch (error) {
      setFaults(faultsOf(error.message, FIELDS));
      setBusy(false);
    }
  };
  const field = (id) => ({
    id: `token-${id}`,
    value: token[id],
    onInput: (event) => setToken({ ...token, [id]: event.target.value }),
    "aria-invalid": String(Boolean(faults.fields[id])),
    "aria-describedby": `token-${id}-fault token-${id}-help`,
  });
  const told = (id, help) => html`<p class="fault" id=${`token-${id}-fault`} role="alert">${faults.fields[id]?.join(" ")}</p><p class="help" id=${`token-${id}-help`}>${help}</p>`;
  const options = (values, label) => values.map((value) => html`<option value=${value}>${label(value)}</option>`);
  return html`<${Dialog} label="new-token-title" className="confirm" onClose=${close}>
    <form onSubmit=${submit} novalidate>
      <h2 id="new-token-title">${t("newToken")}</h2>
      <p class="note bad" role="alert" hidden=${!faults.rest.length}>${faults.rest.join(" ")}</p>
      <div class="field"><label for="token-name">${t("name")}</label><input ...${field("name")} autofocus autocomplete="off" spellcheck=${false} dir="auto" />${told("name", t("tokenNameHelp"))}</div>
      <div class="field"><label for="token-role">${t("role")}</label>
        <select ...${field("role")}>${options(ROLES.filter((role) => may(role)), (role) => t(`role.${role}`))}</select>${told("role", t(`roleMay.${token.role}`))}</div>
      <div class="field"><label for="token-prefix">${t("tokenPrefix")}</label><input ...${field("prefix")} autocomplete="off" spellcheck=${false} dir="auto" />${told("prefix", t("tokenPrefixHelp"))}</div>
      <div class="field"><label for="token-days">${t("tokenDays")}</label>
        <select ...${field("days")}>${options(DAYS, (days) => t(`days.${days}`))}</select>${told("days", t("tokenDaysHelp"))}</div>
      <div class="buttons">
        <button type="button" onClick=${close}>${t("cancel")}</button>
        <button type="submit" class="primary" aria-disabled=${String(busy)}>${t(busy ? "working" : "newTokenDo")}</button>
      </div>
    </form>
  <//>`;
}

// It goes only when the reader says that they have it: nobody can show it again.
function Made({ made: { name, token }, close }) {
  const box = useRef(null);
  const [copied, copy] = useCopy(token, box);
  return html`<${Dialog} label="made-token-title" className="confirm" onClose=${() => {}}>
    <h2 id="made-token-title">${t("madeTokenTitle", { name })}</h2>
    <p class="note doubt">${t("madeTokenHelp")}</p>
    <pre ref=${box} class="wrap" tabindex="0" role="region" aria-label=${t("token")}>${token}</pre>
    <p><button type="button" onClick=${copy} autofocus>${t("copy")}</button> <span role="status" class="dim">${copied}</span></p>
    <div class="buttons"><button type="button" class="primary" onClick=${close}>${t("madeTokenDone")}</button></div>
  <//>`;
}
