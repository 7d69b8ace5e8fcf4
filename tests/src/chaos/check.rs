//! Holds what runs have left and what records say against what the jobs' schedules planned.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::fleet::{Disturbance, Trouble};
use super::jobs::{Change, Job, Line};
use super::plan::SKEW_MS;

/// Around a change of a job's times its fires are of neither definition for sure, in ms: a worker whose clock is ahead may have claimed
/// them already, and one whose clock is behind lets them go later.
const EDGE_MS: i64 = SKEW_MS + 1_000;
/// A change of the times, or a delete, lets go what was due and not yet claimed. No fire is left waiting longer than this, in ms, even when
/// its worker dies and etcd is away.
const PENDING_MAX_MS: i64 = 30_000;
/// At the end of the test, when all is well, in ms.
const PENDING_AT_END_MS: i64 = 5_000;
/// After a worker was itself again, a run of before may go on for so long, in ms, without anybody knowing.
const AFTERMATH_MS: i64 = 15_000;
/// So many violations of one kind are told in full.
const TOLD_MAX: usize = 12;

/// What a record says, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// The job.
    pub job: String,
    /// The fire, in ms since 1970.
    pub plan_time: i64,
    /// How it ended.
    pub status: String,
    /// Whose run it was.
    pub worker: String,
    /// The claim.
    pub claim: String,
    /// When it ended, in ms since 1970.
    pub end_time: i64,
    /// The fires that were let go.
    pub skipped: Option<Range>,
}

/// Fires that were let go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first, in ms since 1970.
    pub from: i64,
    /// The last.
    pub to: i64,
    /// How many.
    pub count: i64,
    /// There were more than that.
    pub more: bool,
    /// Why.
    pub reason: String,
}

/// Everything that was seen.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The jobs and what became of their times.
    pub jobs: Vec<Job>,
    /// What their runs left, by job.
    pub lines: BTreeMap<String, Vec<Line>>,
    /// The records.
    pub records: Vec<Recorded>,
    /// Records that were kept aside, because the fire has one of another claim.
    pub conflicts: Vec<String>,
    /// What befell the workers; their names are `w` and the number, from 1.
    pub disturbances: Vec<Disturbance>,
    /// From here on every fire counts: all jobs were seen to run by then. In ms since 1970.
    pub from: i64,
    /// When all jobs were deleted.
    pub to: i64,
}

/// What came out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Fires that had to be accounted for.
    pub planned: usize,
    /// Runs that left a line.
    pub started: usize,
    /// Records by how they ended.
    pub records: BTreeMap<String, usize>,
    /// Fires let go, by reason.
    pub skipped: BTreeMap<String, i64>,
    /// Fires that a change of the job's times let go before anybody had claimed them.
    pub edited_away: usize,
    /// Runs of one job at one time, each with what explains it.
    pub overlaps_explained: usize,
    /// Milliseconds from plan to start, of workers with a right clock, in order.
    pub late: Vec<i64>,
    /// What must not be.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of =
            |percent: usize| self.late.get((self.late.len() * percent / 100).min(self.late.len().max(1) - 1));
        let late = |percent| of(percent).map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
        writeln!(f, "fires planned   {}", self.planned)?;
        writeln!(f, "runs started    {}", self.started)?;
        writeln!(f, "records         {:?}", self.records)?;
        writeln!(f, "fires skipped   {:?}", self.skipped)?;
        writeln!(f, "let go by edits {}", self.edited_away)?;
        writeln!(
            f,
            "overlaps        {} (of workers that were killed, frozen or cut off)",
            self.overlaps_explained
        )?;
        writeln!(f, "late            p50 {}, p99 {}, at most {}", late(50), late(99), late(100))?;
        write!(f, "violations      {}", self.violations.len())?;
        for violation in &self.violations {
            write!(f, "\n  {violation}")?;
        }
        Ok(())
    }
}

/// A stretch in which a job had one schedule.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    period: i64,
    /// Its fires may be from here on …
    possible_from: i64,
    /// … to here,
    possible_to: i64,
    /// and are to be accounted for from here on …
    due_from: i64,
    /// … to here,
    due_to: i64,
    /// but those that waited for so long at the end.
    pending_max: i64,
}

impl Stretch {
    fn fires(self, from: i64, to: i64) -> impl Iterator<Item = i64> {
        let first = from + (self.period - from.rem_euclid(self.period)) % self.period;
        (0..).map(move |n| first + n * self.period).take_while(move |fire| *fire <= to)
    }

    /// Of a range, the fires that are to be accounted for.
    fn due(self, range: &Range) -> impl Iterator<Item = i64> + use<> {
        self.fires(range.from.max(self.due_from), range.to.min(self.due_to))
    }

    /// Of a range, the fires that may be.
    fn possible(self, range: &Range) -> impl Iterator<Item = i64> + use<> {
        self.fires(range.from.max(self.possible_from), range.to.min(self.possible_to))
    }

    fn has(self, fire: i64) -> bool {
        (self.possible_from..=self.possible_to).contains(&fire) && fire % self.period == 0
    }
}

fn stretches(history: &[Change], from: i64, to: i64) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    for (number, change) in history.iter().enumerate() {
        let Some(period_s) = change.period_s else { continue };
        let next = history.get(number + 1);
        let first = number == 0;
        stretches.push(Stretch {
            period: i64::from(period_s) * 1000,
            possible_from: change.sent - EDGE_MS,
            possible_to: next.map_or(to, |next| next.answered) + EDGE_MS,
            due_from: if first { from } else { change.answered + EDGE_MS },
            due_to: next.map_or(to, |next| next.sent - EDGE_MS),
            pending_max: if next.is_some_and(|next| next.sent < to) {
                PENDING_MAX_MS
            } else {
                PENDING_AT_END_MS
            },
        });
    }
    stretches
}

/// Compares.
#[must_use]
pub fn check(seen: &Observed) -> Report {
    let mut report = Report::default();
    for conflict in &seen.conflicts {
        report.violations.push(format!("two claims of one fire: {conflict}"));
    }
    let mut records: BTreeMap<&str, Vec<&Recorded>> = BTreeMap::new();
    for record in &seen.records {
        records.entry(&record.job).or_default().push(record);
    }
    let mut told = BTreeMap::<&'static str, usize>::new();
    for job in &seen.jobs {
        let none = Vec::new();
        let lines = seen.lines.get(&job.name).unwrap_or(&none);
        let mut of_job = OfJob {
            seen,
            job,
            stretches: stretches(&job.history, seen.from, seen.to),
            starts: BTreeMap::new(),
            ends: BTreeMap::new(),
            runs: BTreeMap::new(),
            ranges: Vec::new(),
            report: &mut report,
            told: &mut told,
        };
        of_job.gather(lines, records.get(job.name.as_str()).map_or(&[], Vec::as_slice));
        of_job.check_each();
        of_job.check_ranges();
        of_job.check_missing();
        of_job.check_overlaps();
    }
    for (kind, number) in told {
        if number > TOLD_MAX {
            report.violations.push(format!("{kind}: {number} in all"));
        }
    }
    report.late.sort_unstable();
    report
}

struct OfJob<'a> {
    seen: &'a Observed,
    job: &'a Job,
    stretches: Vec<Stretch>,
    /// By fire.
    starts: BTreeMap<i64, &'a Line>,
    /// By run.
    ends: BTreeMap<&'a str, i64>,
    /// Records of runs, by fire.
    runs: BTreeMap<i64, &'a Recorded>,
    ranges: Vec<(&'a Recorded, &'a Range)>,
    report: &'a mut Report,
    told: &'a mut BTreeMap<&'static str, usize>,
}

impl<'a> OfJob<'a> {
    fn violation(&mut self, kind: &'static str, what: impl fmt::Display) {
        let number = self.told.entry(kind).or_default();
        *number += 1;
        if *number <= TOLD_MAX {
            self.report.violations.push(format!("{kind}: {}: {what}", self.job.name));
        }
    }

    fn gather(&mut self, lines: &'a [Line], records: &[&'a Recorded]) {
        for line in lines {
            if line.is_end {
                self.ends.insert(&line.run_id, line.at);
                continue;
            }
            self.report.started += 1;
            if let Some(other) = self.starts.insert(line.plan_time, line) {
                self.violation("started twice", format!("{line:?} and {other:?}"));
            }
        }
        for &record in records {
            *self.report.records.entry(record.status.clone()).or_default() += 1;
            if let Some(range) = &record.skipped {
                *self.report.skipped.entry(range.reason.clone()).or_default() += range.count;
                self.ranges.push((record, range));
            } else if let Some(other) = self.runs.insert(record.plan_time, record) {
                self.violation("two records of one fire", format!("{record:?} and {other:?}"));
            }
        }
    }

    /// Each run has its record, each record its run, and both a fire.
    fn check_each(&mut self) {
        for (fire, line) in self.starts.clone() {
            match self.runs.get(&fire).copied() {
                None => self.violation("started without a record", format!("{line:?}")),
                Some(record) if record.claim != line.run_id => {
                    self.violation("the record is of another claim", format!("{line:?}, {record:?}"));
                }
                Some(record) => {
                    if !self.was(&record.worker, &[Trouble::Skewed], line.at, line.at) {
                        self.report.late.push(line.at - fire);
                    }
                }
            }
        }
        for (fire, record) in self.runs.clone() {
            if !self.stretches.iter().any(|stretch| stretch.has(fire)) {
                self.violation("a fire that was not planned", format!("{record:?}"));
            }
            let started = self.starts.contains_key(&fire);
            match record.status.as_str() {
                "succeeded" if !started => {
                    self.violation("recorded, and never started", format!("{record:?}"))
                }
                "succeeded" | "killed" => {}
                "lost" => {
                    let troubles = [Trouble::Killed, Trouble::Frozen, Trouble::Cut];
                    if !self.was(&record.worker, &troubles, fire - EDGE_MS, record.end_time + AFTERMATH_MS) {
                        self.violation("lost by a worker that was well", format!("{record:?}"));
                    }
                }
                _ => self.violation("a run that cannot have failed", format!("{record:?}")),
            }
        }
    }

    /// What was let go was a fire, did not run, and was let go once.
    fn check_ranges(&mut self) {
        let ranges = self.ranges.clone();
        let mut before: BTreeMap<i64, &Recorded> = BTreeMap::new();
        for (record, range) in ranges {
            let has = |fire: i64| self.stretches.iter().any(|stretch| stretch.has(fire));
            let within = |stretch: &&Stretch| stretch.has(range.from) && stretch.has(range.to);
            let stretches: Vec<Stretch> = self.stretches.iter().filter(within).copied().collect();
            let all = self.stretches.iter().copied();
            let fires: Vec<i64> = match stretches.first() {
                Some(stretch) => stretch.fires(range.from, range.to).collect(),
                None => all.clone().flat_map(|stretch| stretch.due(range)).collect(),
            };
            // One that reaches over an edit has fires of both schedules, and nobody knows of which near the edit.
            let (least, most) = match stretches.len() {
                1 => (fires.len(), fires.len()),
                _ => (
                    all.clone().flat_map(|stretch| stretch.due(range)).count(),
                    all.flat_map(|stretch| stretch.possible(range)).count(),
                ),
            };
            let counted =
                range.more || usize::try_from(range.count).is_ok_and(|count| (least..=most).contains(&count));
            if !has(range.from) || !has(range.to) || !counted {
                self.violation("a range of no fires, or miscounted", format!("{record:?}"));
                continue;
            }
            for fire in fires {
                if let Some(run) = self.runs.get(&fire).copied() {
                    self.violation("skipped and run", format!("{record:?}, {run:?}"));
                }
                if let Some(other) = before.insert(fire, record) {
                    self.violation("skipped twice", format!("{record:?}, {other:?}"));
                }
            }
        }
    }

    /// Every fire that was due is accounted for.
    fn check_missing(&mut self) {
        for stretch in self.stretches.clone() {
            let skipped: BTreeSet<i64> =
                self.ranges.iter().flat_map(|(_, range)| stretch.fires(range.from, range.to)).collect();
            let fires: Vec<i64> = stretch.fires(stretch.due_from, stretch.due_to).collect();
            self.report.planned += fires.len();
            let accounted = |fire: &i64| self.runs.contains_key(fire) || skipped.contains(fire);
            let last = fires.iter().rev().find(|fire| accounted(fire)).copied().unwrap_or(i64::MIN);
            let missing: Vec<i64> = fires.into_iter().filter(|fire| !accounted(fire)).collect();
            for fire in missing {
                if fire > last && fire > stretch.due_to - stretch.pending_max {
                    self.report.edited_away += 1;
                } else {
                    let history = &self.job.history;
                    self.violation("missing", format!("{fire}, of {history:?}"));
                }
            }
        }
    }

    /// Runs of the job do not overlap, but for a worker that was not its own master.
    fn check_overlaps(&mut self) {
        if self.job.kind.is_counting() {
            return;
        }
        let end_of = |line: &Line| {
            let recorded = self.runs.get(&line.plan_time).filter(|record| record.status == "killed");
            self.ends.get(line.run_id.as_str()).copied().or_else(|| recorded.map(|record| record.end_time))
        };
        let mut runs: Vec<(i64, Option<i64>, &Line)> =
            self.starts.values().map(|line| (line.at, end_of(line), *line)).collect();
        runs.sort_by_key(|(start, ..)| *start);
        for pair in runs.windows(2) {
            let [(start, Some(end), one), (next, _, other)] = pair else { continue };
            if next >= end {
                continue;
            }
            let of = |line: &Line| self.runs.get(&line.plan_time).map_or("", |record| record.worker.as_str());
            let troubles = [Trouble::Killed, Trouble::Frozen, Trouble::Cut, Trouble::Skewed];
            // A line has the time of its worker's clock: one that is behind seems to start before the other has ended.
            if self.was(of(one), &troubles, *start, *next)
                || self.was(of(other), &[Trouble::Skewed], *next, *next)
            {
                self.report.overlaps_explained += 1;
            } else {
                self.violation("runs overlap", format!("{one:?} until {end}, {other:?}"));
            }
        }
    }

    /// Whether one of these befell the worker in this time or shortly before.
    fn was(&self, worker: &str, troubles: &[Trouble], from: i64, to: i64) -> bool {
        // A name that was taken is given with a suffix.
        let name = worker.split('~').next().unwrap_or(worker);
        self.seen.disturbances.iter().any(|disturbance| {
            format!("w{}", disturbance.worker + 1) == name
                && troubles.contains(&disturbance.what)
                && disturbance.from <= to
                && disturbance.to.saturating_add(AFTERMATH_MS) >= from
        })
    }
}
