//! What became of each second of jobs that run every second: their files and their records, compared.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use common::clock::sleep;
use mongodb::bson::Document;

use crate::fixtures::{Counting, Fleet, SOON, now_ms, number, status, wait_for};

/// What the runs and the records of every-second jobs say about each second.
pub struct Account {
    /// Runs by second.
    pub runs: BTreeMap<i64, usize>,
    /// Seconds with a record of a run (succeeded or lost).
    pub ran: BTreeMap<i64, String>,
    /// Ranges of seconds that were skipped, with their records.
    pub skipped: Vec<(i64, i64, Document)>,
}

impl Account {
    /// The account of one job.
    ///
    /// # Panics
    /// When a fire has two records.
    #[must_use]
    pub fn of(job: &Counting, records: &[Document]) -> Self {
        let mut account = Self { runs: BTreeMap::new(), ran: BTreeMap::new(), skipped: Vec::new() };
        for second in job.seconds() {
            *account.runs.entry(second).or_default() += 1;
        }
        for record in records.iter().filter(|r| r.get_str("jobName").is_ok_and(|name| name == job.name)) {
            if status(record) == "skipped" {
                let range = record.get_document("skipped").unwrap();
                account.skipped.push((
                    number(range, "from") / 1000,
                    number(range, "to") / 1000,
                    record.clone(),
                ));
            } else {
                let second = number(record, "planTime") / 1000;
                let other = account.ran.insert(second, status(record).to_owned());
                assert_eq!(other, None, "two records of one fire: {record}");
            }
        }
        account
    }

    /// No second ran twice, each run has its record, and each success its run.
    ///
    /// # Panics
    /// When that is not so.
    pub fn assert_consistent(&self, job: &Counting) {
        let name = &job.name;
        for (second, times) in &self.runs {
            assert_eq!(*times, 1, "{name} ran {times} times at {second}");
            let status = self.ran.get(second).map(String::as_str);
            assert!(
                matches!(status, Some("succeeded" | "lost")),
                "{name} ran at {second}, its record: {status:?}"
            );
        }
        for (second, status) in &self.ran {
            let ran = self.runs.contains_key(second);
            assert!(ran || status != "succeeded", "{name} did not run at {second}, but a record says so");
        }
    }

    /// Consistent, and it ran once in each of the seconds.
    ///
    /// # Panics
    /// When that is not so.
    pub fn assert_ran_in_each(&self, seconds: RangeInclusive<i64>, job: &Counting) {
        self.assert_consistent(job);
        for second in seconds {
            let runs = self.runs.get(&second).copied().unwrap_or(0);
            assert_eq!(runs, 1, "{} at {second}: skipped: {:?}", job.name, self.skipped);
        }
    }

    /// Consistent, and each of the seconds ran or was skipped.
    ///
    /// # Panics
    /// When that is not so.
    pub fn assert_accounted(&self, seconds: RangeInclusive<i64>, job: &Counting) {
        self.assert_consistent(job);
        for second in seconds {
            let accounted = self.ran.contains_key(&second) || self.is_skipped(second);
            assert!(accounted, "{}: nothing says what became of second {second}", job.name);
        }
    }

    /// Whether a record says that this second was let go.
    #[must_use]
    pub fn is_skipped(&self, second: i64) -> bool {
        self.skipped.iter().any(|(from, to, _)| (*from..=*to).contains(&second))
    }
}

/// Waits until every job has run in a second that is later than this one.
///
/// # Panics
/// When one does not.
pub async fn ran_after(jobs: &[Counting], second: i64) {
    wait_for(&format!("every job's runs after second {second}"), SOON, async || {
        jobs.iter().all(|job| job.seconds().last().is_some_and(|last| *last > second)).then_some(())
    })
    .await;
}

/// Ends the jobs: each of their seconds since `first` is accounted for, and no run is lost.
///
/// # Panics
/// When that is not so.
pub async fn assert_nothing_lost(fleet: &Fleet, jobs: &[Counting], first: i64) {
    let last = finish(fleet, jobs).await;
    let records = fleet.all_records().await;
    for job in jobs {
        let account = Account::of(job, &records);
        account.assert_accounted(first..=last, job);
        assert!(!account.ran.values().any(|status| status == "lost"), "{}: {:?}", job.name, account.ran);
    }
}

/// Lets the jobs go, waits until nothing of them is left to do, and returns the last second that counts.
///
/// # Panics
/// When something is left.
pub async fn finish(fleet: &Fleet, jobs: &[Counting]) -> i64 {
    let last = now_ms() / 1000 - 1;
    fleet.delete_prefix("/cron/jobs/").await;
    wait_for("no open runs", SOON, async || fleet.keys("/cron/runs/").await.is_empty().then_some(())).await;
    // The open runs go when their records are stored; the file of a killed worker's last run may be a moment behind.
    let mut before = 0;
    wait_for("quiet files", SOON, async || {
        sleep(Duration::from_millis(500)).await;
        let lines: usize = jobs.iter().map(|job| job.seconds().len()).sum();
        (std::mem::replace(&mut before, lines) == lines).then_some(())
    })
    .await;
    last
}

/// The first second in which every job has run.
///
/// # Panics
/// When one does not run.
pub async fn all_running(jobs: &[Counting]) -> i64 {
    let firsts = wait_for("every job's first run", SOON, async || {
        jobs.iter().map(|job| job.seconds().first().copied()).collect::<Option<Vec<i64>>>()
    })
    .await;
    firsts.into_iter().max().unwrap() + 1
}
