//! Many jobs at once: what a file asks for against what is stored, as a plan, and the plan carried out.

use std::collections::BTreeSet;

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch, Timestamp};
use common::crontab::{Crontab, Entry, LABEL, Refused};
use common::domain::access::Principal;
use common::domain::job::{Job, JobName};
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::{Compare, Kv, Op, OpReply, Pair, Span, Txn};
use common::schedule::Language;
use serde_json::{Map, Value, json};

use super::after::Before;
use super::preview::fires;
use super::save;
use super::stored::{Stored, deletion};
use super::{CONFLICTS_MAX, Pages, Warnings};
use crate::access::reach;
use crate::http::{Refusal, Reply};
use crate::idempotency::Once;
use crate::store;

/// Most jobs of one import: some 50 transactions, which take a second or two.
pub(super) const JOBS_MAX: usize = 2_000;
/// Jobs of one transaction: of each the job, its mark and the fleet's settings are compared, and etcd takes 128 of these.
const BATCH_JOBS_MAX: usize = 40;
/// Most of a transaction, in bytes of its jobs: a third of what etcd takes.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// As many operations read what is stored of one job.
const READS_OF_ONE: usize = 3;
/// As many fires of each job are shown.
const FIRES_SHOWN: usize = 3;

/// What somebody wants of an import beside the file.
pub(super) struct Wish<'a> {
    /// Jobs are removed whose names begin so.
    pub prefix: &'a str,
    /// Jobs are removed that came from there.
    pub source: &'a str,
    /// Whether what vanished from the file is removed.
    pub prune: bool,
    /// Whether it is done, and not only told.
    pub apply: bool,
    /// In which the schedules are told.
    pub language: Language,
    /// With which the file was read.
    pub fleet: FleetSettings,
    /// Who wishes it.
    pub whose: &'a Principal,
}

/// Makes the plan, carries it out if that is wished, and tells of it.
pub(super) async fn import(
    kv: &dyn Kv,
    clock: &dyn Clock,
    wish: &Wish<'_>,
    crontab: Crontab,
) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    if crontab.entries.len() > JOBS_MAX {
        let message =
            format!("the file has {} jobs: import at most {JOBS_MAX} at once", crontab.entries.len());
        return Err(Refusal::new(Kind::TooLarge, message));
    }
    let mut plan = Plan::make(kv, clock.now(), wish, crontab).await?;
    if wish.apply {
        plan.carry_out(kv, clock, wish, &since).await?;
    }
    Ok(plan.reply(wish, clock.now()))
}

/// What becomes of a job.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Create,
    Change,
    Keep,
}

/// A job of the file, and what is stored under its name.
struct Item {
    entry: Entry,
    stored: Stored,
    previous: Option<Job>,
    action: Action,
}

impl Item {
    fn new(entry: Entry, stored: Stored) -> Self {
        let job = &entry.submitted.job;
        let previous =
            stored.job.as_ref().and_then(|pair| Job::from_stored(job.name.as_str(), &pair.value).ok());
        let action = match &stored.job {
            None => Action::Create,
            Some(_) if previous.as_ref() == Some(job) => Action::Keep,
            Some(_) => Action::Change,
        };
        Self { entry, stored, previous, action }
    }

    fn name(&self) -> &JobName {
        &self.entry.submitted.job.name
    }

    /// The names of the fields that become others.
    fn fields_changed(&self) -> Vec<String> {
        let before = self.previous.as_ref().map(Job::to_value).unwrap_or_default();
        let after = self.entry.submitted.job.to_value();
        let names: BTreeSet<&String> =
            [&before, &after].into_iter().filter_map(Value::as_object).flat_map(Map::keys).collect();
        names.into_iter().filter(|name| before.get(name) != after.get(name)).cloned().collect()
    }
}

struct Plan {
    items: Vec<Item>,
    /// Stored jobs that are to go.
    removals: Vec<Pair>,
    refused: Vec<Refused>,
    remarks: Vec<Value>,
    warnings: Warnings,
}

impl Plan {
    async fn make(kv: &dyn Kv, now: Timestamp, wish: &Wish<'_>, crontab: Crontab) -> Result<Self, Refusal> {
        let Crontab { entries, mut refused, remarks } = crontab;
        entries.iter().try_for_each(|entry| reach(wish.whose, &entry.submitted.job.name))?;
        let mut items = Vec::new();
        let names: BTreeSet<JobName> = entries.iter().map(|entry| entry.submitted.job.name.clone()).collect();
        let mut entries = entries.into_iter();
        loop {
            let batch: Vec<Entry> = entries.by_ref().take(BATCH_JOBS_MAX).collect();
            if batch.is_empty() {
                break;
            }
            let reads = batch.iter().flat_map(|entry| reads(&entry.submitted.job.name)).collect();
            let found = store::read(kv, Txn { then: reads, ..Txn::default() }).await?;
            items.extend(
                batch
                    .into_iter()
                    .zip(stored_of(found.replies))
                    .map(|(entry, stored)| Item::new(entry, stored)),
            );
        }
        // What would never fire is refused, as a save does it; where it is stored already, it is left as it is.
        items.retain(|item| {
            let submitted = &item.entry.submitted;
            let fires = item.action == Action::Keep
                || submitted.job.options.after.is_some()
                || submitted.schedule.next_after(now).is_some();
            if !fires {
                let (line, why) = (item.entry.line, save::never(&submitted.job, now).to_string());
                refused.push(Refused { line, character: 1, text: submitted.job.cron_expr.clone(), why });
            }
            fires
        });
        refused.sort_by_key(|refused| refused.line);
        let mut warnings = Warnings::default();
        let mut removals = Vec::new();
        if wish.prune && !refused.is_empty() {
            warnings.push(format!(
                "nothing is removed while lines cannot be taken ({}): jobs of theirs might be among what vanished",
                refused.len()
            ));
        } else if wish.prune {
            removals = vanished(kv, wish, &names).await?;
        }
        let remarks =
            remarks.iter().map(|remark| json!({"line": remark.line, "what": remark.what})).collect();
        Ok(Self { items, removals, refused, remarks, warnings })
    }

    /// If this process dies between two transactions, the jobs of the first are stored and the others are as they were: the same import
    /// made again finds the first done and does the rest.
    async fn carry_out(
        &mut self,
        kv: &dyn Kv,
        clock: &dyn Clock,
        wish: &Wish<'_>,
        since: &Stopwatch,
    ) -> Result<(), Refusal> {
        let mut waiting: Vec<&mut Item> =
            self.items.iter_mut().filter(|item| item.action != Action::Keep).collect();
        let mut done = 0;
        let whole = waiting.len();
        while !waiting.is_empty() {
            let mut bytes = 0;
            let fitting = waiting.iter().take(BATCH_JOBS_MAX).take_while(|item| {
                bytes += item.entry.submitted.job.to_value().to_string().len();
                bytes <= BATCH_BYTES_MAX
            });
            // What waits for others compares these as well, and goes alone: a transaction has room for that.
            let waits = |item: &&mut Item| item.entry.submitted.job.options.after.is_some();
            let alone = waiting.iter().position(waits).map_or(usize::MAX, |at| at.max(1));
            let many = fitting.count().clamp(1, alone);
            let batch: Vec<&mut Item> = waiting.drain(..many).collect();
            done += batch.len();
            let part = format!("the import of {done} of its {whole} jobs");
            put(kv, clock, since, wish, &part, batch, &mut self.warnings).await?;
        }
        remove(kv, since, &mut self.removals, &mut self.warnings).await
    }

    fn reply(mut self, wish: &Wish<'_>, now: Timestamp) -> Reply {
        let count = |action: Action| self.items.iter().filter(|item| item.action == action).count();
        let counts = json!({
            "create": count(Action::Create),
            "change": count(Action::Change),
            "keep": count(Action::Keep),
            "remove": self.removals.len(),
            "refused": self.refused.len(),
        });
        for item in &self.items {
            for warning in &item.entry.submitted.warnings {
                self.remarks.push(json!({"line": item.entry.line, "what": warning}));
            }
        }
        let jobs: Vec<Value> = self.items.iter().map(|item| told(item, wish, now)).collect();
        let removed = self.removals.iter().filter_map(|pair| pair.key.strip_prefix(keys::JOBS));
        let removed: Vec<&str> = removed.collect();
        let refused: Vec<Value> = self
            .refused
            .iter()
            .map(|r| json!({"line": r.line, "character": r.character, "text": r.text, "why": r.why}))
            .collect();
        let data = json!({
            "applied": wish.apply,
            "counts": counts,
            "jobs": jobs,
            "remove": removed,
            "refused": refused,
            "remarks": self.remarks,
        });
        Reply::new(data, self.warnings.finish())
    }
}

fn told(item: &Item, wish: &Wish<'_>, now: Timestamp) -> Value {
    let submitted = &item.entry.submitted;
    let mut told = json!({
        "line": item.entry.line,
        "action": match item.action {
            Action::Create => "create",
            Action::Change => "change",
            Action::Keep => "keep",
        },
        "job": submitted.job.to_value(),
        "description": submitted.schedule.describe(wish.language),
        "next": fires(&submitted.schedule, now, FIRES_SHOWN),
    });
    if item.action == Action::Change {
        told["changes"] = item.fields_changed().into();
    }
    told
}

/// Jobs under the prefix that came from the same source and are not in the file any more.
async fn vanished(kv: &dyn Kv, wish: &Wish<'_>, names: &BTreeSet<JobName>) -> Result<Vec<Pair>, Refusal> {
    let mut found = Vec::new();
    let Some(prefix) = wish.whose.narrowed(wish.prefix) else { return Ok(found) };
    let mut pages = Pages::new(kv, Span::prefix(format!("{}{prefix}", keys::JOBS)));
    while let Some(pairs) = pages.next().await? {
        found.extend(pairs.into_iter().filter(|pair| {
            let job =
                pair.key.strip_prefix(keys::JOBS).and_then(|name| Job::from_stored(name, &pair.value).ok());
            job.is_some_and(|job| {
                job.options.labelling.label(LABEL) == Some(wish.source) && !names.contains(&job.name)
            })
        }));
    }
    Ok(found)
}

fn reads(name: &JobName) -> Vec<Op> {
    Stored::reads(name, &Once::never())
}

/// From the replies to the [`reads`] of several jobs, in their order.
fn stored_of(replies: Vec<OpReply>) -> impl Iterator<Item = Stored> {
    let mut replies = replies.into_iter();
    std::iter::from_fn(move || {
        let of_one: Vec<OpReply> = replies.by_ref().take(READS_OF_ONE).collect();
        (!of_one.is_empty()).then(|| Stored::of(of_one))
    })
}

/// Stores the jobs of one transaction. What is compared is each job and its mark: where others changed one of them, all are looked at again.
async fn put(
    kv: &dyn Kv,
    clock: &dyn Clock,
    since: &Stopwatch,
    wish: &Wish<'_>,
    part: &str,
    mut batch: Vec<&mut Item>,
    warnings: &mut Warnings,
) -> Result<(), Refusal> {
    for _ in 0..CONFLICTS_MAX {
        let mut txn = Txn::default();
        let mut said = Vec::new();
        for item in &batch {
            if item.stored.fleet()? != wish.fleet {
                let message = format!(
                    "the fleet's settings were changed meanwhile, {part} was not made: send it again"
                );
                return Err(Refusal::new(Kind::Conflict, message));
            }
            let submitted = &item.entry.submitted;
            let before = Before::of(kv, &submitted.job, wish.whose).await?;
            let plan = save::Plan::make(submitted, &item.stored, before, &wish.fleet, clock.now())?;
            txn.when.extend(item.stored.unchanged(item.name()));
            txn.when.extend(plan.unchanged.iter().cloned());
            txn.otherwise.extend(reads(item.name()));
            said.extend(plan.warnings.iter().map(|warning| format!("{}: {warning}", item.name())));
            txn.then.extend(plan.puts(item.name()));
        }
        let written = store::write(kv, &txn, since, part, false).await?;
        if written.reply.succeeded {
            said.into_iter().for_each(|warning| warnings.push(warning));
            return Ok(());
        }
        // Where an earlier try of ours was applied and its answer lost, what is stored now is what the file says.
        for (item, stored) in batch.iter_mut().zip(stored_of(written.reply.replies)) {
            item.stored = stored;
        }
        batch.retain(|item| {
            let job = &item.entry.submitted.job;
            let stored = item.stored.job.as_ref();
            !stored
                .is_some_and(|pair| Job::from_stored(job.name.as_str(), &pair.value).is_ok_and(|s| s == *job))
        });
        if batch.is_empty() {
            return Ok(());
        }
    }
    let message = format!(
        "jobs of this import are being changed by others again and again, {part} was not made and those before it were: send it again"
    );
    Err(Refusal::new(Kind::Conflict, message))
}

/// Deletes what vanished from the file, each only as it was looked at; leaves in `removals` what is gone.
async fn remove(
    kv: &dyn Kv,
    since: &Stopwatch,
    removals: &mut Vec<Pair>,
    warnings: &mut Warnings,
) -> Result<(), Refusal> {
    let mut gone = Vec::new();
    for pair in std::mem::take(removals) {
        let name = pair.key.strip_prefix(keys::JOBS).and_then(|name| JobName::parse(name).ok());
        let txn = Txn {
            when: vec![Compare::unchanged(pair.key.clone(), pair.mod_revision)],
            then: name.map_or_else(|| vec![Op::delete(pair.key.clone())], |name| deletion(&name).into()),
            otherwise: vec![Op::get(pair.key.clone())],
        };
        let written = store::write(kv, &txn, since, "the removal of what vanished", false).await?;
        if written.reply.succeeded || written.reply.pair(0).is_none() {
            gone.push(pair);
        } else {
            warnings.push(format!("{} was changed meanwhile and is left: import again", pair.key));
        }
    }
    *removals = gone;
    Ok(())
}
