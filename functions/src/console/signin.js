// Who is signed in: the view that asks for a token, and what the head of the page says of the caller.
import { html, ago, caller, isTime, local, signIn, signOut, t, useCell } from "./core.js";
import { Dialog } from "./parts.js";
import { useState } from "./preact-hooks.js";

/** What a header can carry; anything else was not copied whole, or is no token. */
const SENDABLE = /^[\x21-\x7e]+$/;

/** Asks for a token. It lies over what the reader was doing, which goes on behind it. */
export function SignIn() {
  const [typed, setTyped] = useState("");
  const [stay, setStay] = useState(false);
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState("");
  const submit = async (event) => {
    event.preventDefault();
    const token = typed.trim().replace(/^bearer\s+/i, "");
    if (busy || !SENDABLE.test(token)) return busy || setFault(t("tokenUnsendable"));
    setBusy(true);
    setFault("");
    try {
      await signIn(token, stay);
    } catch (error) {
      setFault(error.status === 401 ? t("tokenRefused") : error.message);
      setBusy(false);
    }
  };
  return html`<${Dialog} label="signin-title" className="confirm" onClose=${() => {}}>
    <form onSubmit=${submit} novalidate>
      <h2 id="signin-title">${t("signInTitle")}</h2>
      <p>${t("signInHelp")}</p>
      <div class="field">
        <label for="token">${t("token")}</label>
        <input id="token" type="password" class="mono" value=${typed} onInput=${(event) => setTyped(event.target.value)} autofocus autocomplete="off" spellcheck=${false}
          aria-invalid=${String(Boolean(fault))} aria-describedby="token-fault token-help" />
        <p class="fault" id="token-fault" role="alert">${fault}</p>
        <p class="help" id="token-help">${t("tokenHelp")}</p>
      </div>
      <label class="choice"><input type="checkbox" checked=${stay} onChange=${(event) => setStay(event.target.checked)} /> <span>${t("staySignedIn")}</span></label>
      <div class="buttons"><button type="submit" class="primary" aria-disabled=${String(busy)}>${t(busy ? "working" : "signIn")}</button></div>
    </form>
  <//>`;
}

/** So long before a token ends its reader is told, so that there is time to ask for another. */
const ENDS_SOON_MS = 7 * 86400e3;

/** In the head of the page: as whom the reader is signed in, what that may do, and until when. */
export function Who() {
  const who = useCell(caller);
  if (!who) return null;
  if (who.means === "open") return html`<div class="who"><span class="chip doubt" title=${t("openHelp")}>${t("open")}</span></div>`;
  const role = t(`role.${who.role}`);
  const ends = isTime(who.expiresAt);
  const until = ends && t("whoUntil", { time: local(who.expiresAt) });
  const told = [t(`roleMay.${who.role}`), who.prefix && t("whoPrefix", { prefix: who.prefix }), until];
  return html`<div class="who">
    <span title=${told.filter(Boolean).join(" ")}><bdi class="who-name">${who.name}</bdi> <span class="chip quiet">${role}${who.prefix ? html` · <bdi>${who.prefix}</bdi>…` : null}</span></span>
    ${ends && who.expiresAt - Date.now() < ENDS_SOON_MS ? html`<span class="chip doubt" title=${until}>${t("whoEnds", { when: ago(who.expiresAt) })}</span>` : null}
    <button type="button" class="small" onClick=${signOut}>${t("signOut")}</button>
  </div>`;
}
