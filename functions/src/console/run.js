// The page of one run: while it is going what it prints as it prints it, and then what is kept of it.
import { html, ask, bytes, confirming, link, may, size, t, usePoll } from "./core.js";
import { Name, Status, Title, Warnings, statusOf } from "./parts.js";
import { Command, Detail, Origin, RunFacts } from "./record.js";
import { useLayoutEffect, useRef, useState } from "./preact-hooks.js";

/** So long the API may wait for more output before it answers without. */
const WAIT_SECONDS = 8;
/** A command that prints all the time is looked at so often. */
const AGAIN_MS = 700;
/** Of a growing output so much is drawn: what came before goes, so that a page that is left open does not grow with it. */
const DRAWN_MAX = 200_000;
/** Output comes in small pieces; they are drawn in pieces of at least this, so that there are few of them. */
const PIECE_MIN = 5_000;
/** So near the end, in pixels, the reader is at the end. */
const AT_END = 30;

export function Run({ name, id }) {
  const asked = new URLSearchParams({ id });
  const { data: answer, error } = usePoll(`run ${id}`, async (signal) => {
    const found = await ask(`run/get?${asked}`, { signal });
    // `lost` is provisional: the real record may come yet.
    return { ...found, settled: !found.data.open && (!found.data.record || statusOf(found.data.record) !== "lost") };
  });
  const run = answer?.data.open ?? answer?.data.record;
  const open = Boolean(answer?.data.open);
  // Who has followed a run goes on reading where they are when it ends.
  const watched = useRef(false);
  const [recorded, setRecorded] = useState(false);
  watched.current ||= open;
  const kill = () => confirming.set({ kind: "kill", name, runId: run.runId });
  const live = watched.current && !recorded;
  return html`
    <p class="crumbs"><a href=${link(["jobs", name])}>← <${Name} name=${name} /></a></p>
    <div class="bar">
      <${Title} id=${id}>${t("runOf", { name })}<//>
      ${run ? html`<${Status} record=${run} running=${open} /> <${Origin} run=${run} />` : null}
      ${open && may("operator") ? html`<div class="actions"><button type="button" class="small danger" aria-label=${t("killRun", { id })} onClick=${kill}>${t("kill")}</button></div>` : null}
    </div>
    <${Warnings} warnings=${answer?.warnings} />
    ${error && !error.trouble ? html`<p class="note doubt" role="status">${error.status === 404 ? t("runUnknown") : error.message}</p>` : null}
    ${live
      ? html`<div class="definition run-detail">
          ${open ? null : html`<p class="note" role="status">${t("runEnded")} <button type="button" class="small" onClick=${() => setRecorded(true)}>${t("showRecorded")}</button></p>`}
          <${Live} key=${id} id=${id} />
        </div>`
      : null}
    ${!run
      ? html`<p class="dim" role="status">${error || answer ? "" : t("loading")}</p>`
      : html`<section class="definition" aria-label=${t("run")}>
          ${open ? html`<${RunFacts} run=${run} running=${true} /><${Command} command=${run.command} />` : html`<${Detail} record=${run} output=${!live} />`}
        </section>`}
  `;
}

/** What is known of what a run prints: pieces of text in their order, and how far that goes in bytes. */
const NOTHING = { pieces: [], next: 0, drawn: 0, dropped: false };

/**
 * With an answer of the API more: small pieces are joined, what is left out is told, and the oldest is dropped. An answer that begins anew takes
 * the place of all before it: the record of a run has the beginning and the end of what it printed, and not what was between.
 */
function grown(before, { from, output: whole, next }) {
  const known = from < before.next && from === 0 ? NOTHING : before;
  const pieces = [...known.pieces];
  const output = whole.slice(-DRAWN_MAX);
  if (from > known.next) pieces.push({ key: `gap ${known.next}`, leftOut: from - known.next, text: "" });
  const last = pieces.at(-1);
  if (output && last && last.leftOut === undefined && last.text.length < PIECE_MIN) pieces[pieces.length - 1] = { ...last, text: last.text + output };
  else if (output) pieces.push({ key: `at ${from}`, text: output });
  let drawn = known.drawn + output.length;
  let dropped = known.dropped || output.length < whole.length;
  while (drawn > DRAWN_MAX && pieces.length > 1) {
    drawn -= pieces.shift().text.length;
    dropped = true;
  }
  return { pieces, next, drawn, dropped };
}

function Live({ id }) {
  const known = useRef(NOTHING);
  const box = useRef(null);
  const [following, setFollowing] = useState(true);
  const [wrap, setWrap] = useState(true);
  const { data, error } = usePoll(
    `output ${id}`,
    async (signal) => {
      const asked = new URLSearchParams({ id, after: known.current.next, wait: WAIT_SECONDS });
      const { data: more } = await ask(`run/output?${asked}`, { signal, longer: WAIT_SECONDS * 1000 });
      // Another look has begun meanwhile, from where this one began.
      signal.throwIfAborted();
      known.current = grown(known.current, more);
      return { known: known.current, settled: more.ended };
    },
    AGAIN_MS,
  );
  const { pieces, next, dropped } = data?.known ?? NOTHING;
  useLayoutEffect(() => {
    if (following) box.current.scrollTop = box.current.scrollHeight;
  });
  const scrolled = () => {
    const { scrollHeight, scrollTop, clientHeight } = box.current;
    setFollowing(scrollHeight - scrollTop - clientHeight < AT_END);
  };
  const label = t("output");
  return html`<div class="output">
    <div class="output-tools">
      <strong>${label}</strong> <span class="dim">${bytes(next)}</span>
      <button type="button" class="small" aria-pressed=${String(following)} onClick=${() => setFollowing(!following)}>${t("follow")}</button>
      <button type="button" class="small" aria-pressed=${String(wrap)} onClick=${() => setWrap(!wrap)}>${t("wrap")}</button>
      <span role="status" class="dim">${data?.settled ? "" : following ? t("following") : t("notFollowing")}</span>
    </div>
    ${dropped ? html`<p class="dim">${t("outputNewest", { number: size(DRAWN_MAX) })}</p>` : null}
    ${error && !error.trouble && error.status !== 404 ? html`<p class="note bad" role="alert">${error.message}</p>` : null}
    <pre ref=${box} class=${`live ${wrap ? "wrap" : ""}`} tabindex="0" role="region" aria-label=${label} dir="auto" onScroll=${scrolled}>${pieces.map((piece) =>
      piece.leftOut === undefined
        ? html`<span key=${piece.key}>${piece.text}</span>`
        : html`<span key=${piece.key} class="left-out">${t("leftOut", { bytes: bytes(piece.leftOut) })}</span>`,
    )}</pre>
    ${pieces.length === 0 ? html`<p class="dim">${t(data?.settled ? "noOutputHelp" : "noOutputYet")}</p>` : null}
  </div>`;
}
