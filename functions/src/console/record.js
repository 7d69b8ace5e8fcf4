// What is kept of a run: in one line, and with all that there is to say of it.
import { html, bytes, isTime, link, number, t } from "./core.js";
import { Facts, FullTime, Output, late, ran, statusOf, took } from "./parts.js";

export const idOf = (record) => record._id ?? `${record.planTime}/${record.startTime}`;

const TRIGGERS = ["schedule", "manual", "retry", "after", "broadcast"];
const REASONS = ["overlap", "misfire", "deleted", "superseded", "noWorker", "disabled", "replaced", "storeWentBack"];

export const triggerText = (trigger) => (TRIGGERS.includes(trigger) ? t(`trigger.${trigger}`) : trigger);

/** What is unusual about how a run came about: not by its schedule, or not at the first attempt. */
export function Origin({ run: { attempt, trigger } }) {
  const told = [trigger && trigger !== "schedule" ? triggerText(trigger) : "", attempt > 1 ? t("attemptNumber", { number: number(attempt) }) : ""].filter(Boolean);
  return told.length ? html`<span class="dim origin">${told.join(" · ")}</span>` : null;
}

/** One line: what went wrong and the last that was said before it, or how the output begins. */
export function Summary({ record }) {
  if (record.skipped) return skippedText(record.skipped);
  const output = String(record.output ?? "");
  const lines = (record.err ? output.trimEnd().slice(-200) : output.trimStart().slice(0, 200)).split("\n");
  const text = lines.at(record.err ? -1 : 0);
  if (!record.err) return text || html`<span class="dim">${t("noOutput")}</span>`;
  const by = record.killedBy ? html` ${t("killedByShort", { by: record.killedBy })}` : null;
  return html`<span class="fault">${record.err}</span>${by}${text ? html` <span class="dim">${text}</span>` : null}`;
}

function skippedText({ count, more, reason }) {
  return t(more ? "skippedMore" : "skippedCount", { count, number: number(count ?? 0), reason: REASONS.includes(reason) ? t(`reason.${reason}`) : String(reason) });
}

/** How much was written, and whether all of it was kept. */
function written({ outputBytes, outputTruncated }) {
  if (outputBytes === undefined) return "";
  const all = `${bytes(outputBytes)}${outputBytes >= 1024 ? ` (${number(outputBytes)} B)` : ""}`;
  return outputTruncated ? html`${all} <span class="chip doubt">${t("cut")}</span>` : all;
}

/** The names and values of a run, going or ended. */
export function RunFacts({ run, running }) {
  const { skipped } = run;
  const facts = [
    [t("planned"), html`<${FullTime} ms=${run.planTime} />`],
    [t("claimed"), isTime(run.scheduleTime) ? html`<${FullTime} ms=${run.scheduleTime} />` : ""],
    [t("started"), (running ? isTime(run.startTime) : ran(run)) ? html`<${FullTime} ms=${run.startTime} />` : ""],
    [t("ended"), !running && ran(run) ? html`<${FullTime} ms=${run.endTime} />` : ""],
    [t("took"), running ? "" : took(run)],
    [t("lateBy"), late(run)],
    [t("error"), run.err],
    [t("killedBy"), run.killedBy && html`<bdi>${run.killedBy}</bdi>`],
    [t("killedAt"), isTime(run.killedAt) ? html`<${FullTime} ms=${run.killedAt} />` : ""],
    [t("skippedFires"), skipped && skippedText(skipped)],
    [t("skippedFrom"), skipped && html`<${FullTime} ms=${skipped.from} />`],
    [t("skippedTo"), skipped && html`<${FullTime} ms=${skipped.to} />`],
    [t("exitCode"), run.exitCode],
    [t("signal"), run.signal],
    [t("httpStatus"), run.httpStatus],
    [t("written"), written(run)],
    [t("worker"), run.worker && html`<a href=${link(["workers"], { worker: run.worker })}><bdi>${run.worker}</bdi></a>`],
    [t("attempt"), run.attempt],
    [t("trigger"), triggerText(run.trigger)],
    [t("afterRun"), run.after && html`<code>${run.after}</code>`],
    [t("runId"), (run.runId ?? run.claim) && html`<code>${run.runId ?? run.claim}</code>`],
    [t("recordId"), run._id && html`<code>${run._id}</code>`],
  ];
  return html`<${Facts} facts=${facts} />`;
}

/** All that is kept of a run; its `output` but where that stands elsewhere already. */
export function Detail({ record, output = true }) {
  const status = statusOf(record);
  return html`<div class="run-detail">
    ${status === "lost" ? html`<p class="note doubt">${t("lostHelp")}</p>` : null}
    ${status === "skipped" && record.skipped?.reason === "overlap" ? html`<p class="note">${t("overlapHelp")}</p>` : null}
    <${RunFacts} run=${record} />
    ${!output
      ? null
      : record.output
        ? html`<${Output} text=${String(record.output)} label=${t("output")} />`
        : ran(record)
          ? html`<p class="dim">${t("noOutputHelp")}</p>`
          : null}
    ${record.outputTruncated ? html`<p class="note doubt">${t("truncated")}</p>` : null}
    <${Command} command=${record.command} />
  </div>`;
}

/** The command that a run executes, folded. */
export function Command({ command }) {
  if (!command) return null;
  return html`<details><summary>${t("commandRan")}</summary><pre class="wrap command-text" tabindex="0" role="region" aria-label=${t("commandRan")}>${command}</pre></details>`;
}
