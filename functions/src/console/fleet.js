// Whether the whole fleet is paused: said over every view, by whom, since when and why; and the buttons that change it.
import { html, ask, confirming, may, rich, t, usePoll } from "./core.js";
import { Time } from "./parts.js";

/** The fleet's state, asked for in every view. */
export const useFleet = () => usePoll("fleet", (signal) => ask("fleet/status", { signal }));

/** Over the views while nothing is started. The place is always there, so that what comes into it is read out. */
export function FleetPaused({ fleet }) {
  const pause = fleet.data?.data.paused;
  return html`<div role="status" class="banner-place">${pause
    ? html`<div class="banner doubt">
        <div><strong>${t("fleetPaused")}</strong> ${t("fleetPausedMeans")} ${told(pause)}${pause.reason ? html` <q><bdi>${pause.reason}</bdi></q>` : null}</div>
        ${may("admin", true) ? html`<button type="button" class="small" aria-label=${t("fleetResumeDo")} onClick=${() => confirming.set({ kind: "fleetResume" })}>${t("resume")}</button>` : null}
      </div>`
    : null}</div>`;
}

// A pause that was put into the store by hand says nothing of itself.
function told({ by, since }) {
  const time = html`<${Time} ms=${since} />`;
  if (since) return by ? rich("fleetPausedBy", { time, by: html`<bdi>${by}</bdi>` }) : rich("fleetPausedSince", { time });
  return null;
}

/** Pauses the fleet, after a question. */
export function PauseFleet({ fleet }) {
  if (!fleet.data || fleet.data.data.paused || !may("admin", true)) return null;
  return html`<button type="button" class="small" onClick=${() => confirming.set({ kind: "fleetPause" })}>${t("fleetPause")}</button>`;
}
