//! The jobs of a fleet under test: what they leave behind, and how they are changed while it is in trouble.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use common::clock::{Stopwatch, sleep};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::fixtures::now_ms;

/// A change that the API has not made after so long will not be made any more.
const CHANGE_LIMIT: Duration = Duration::from_secs(90);
/// Pause before a change is asked for again.
const CHANGE_AGAIN: Duration = Duration::from_millis(300);

/// What a job does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobKind {
    /// Seconds from fire to fire; a divisor of 60.
    pub period_s: u32,
    /// Seconds that a run takes; 0: it ends at once.
    pub runs_s: u32,
}

impl JobKind {
    /// Whether its runs end at once, so that each fire can run.
    #[must_use]
    pub fn is_counting(self) -> bool {
        self.runs_s == 0
    }
}

/// `number` jobs that count, and some whose runs take longer than the time to the next.
#[must_use]
pub fn kinds(number: usize) -> Vec<JobKind> {
    let counting = [1, 2, 1, 5, 2, 5].into_iter().cycle().take(number);
    let counting = counting.map(|period_s| JobKind { period_s, runs_s: 0 });
    let holding = [(2, 3), (2, 3), (5, 3), (5, 3), (5, 14), (1, 14)]
        .map(|(period_s, runs_s)| JobKind { period_s, runs_s });
    counting.chain(holding).collect()
}

/// A change of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edit {
    /// Another command; its times stay.
    Command,
    /// Another time from fire to fire, in seconds.
    Schedule(u32),
    /// Deleted, and saved again later.
    Recreate {
        /// How much later, in ms.
        away_ms: u64,
    },
}

/// A change of what a job's times depend on: made at some moment between its request and its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// When the request was first sent, in ms since 1970.
    pub sent: i64,
    /// When it had been made for sure.
    pub answered: i64,
    /// Seconds from fire to fire from then on; `None`: there is no such job.
    pub period_s: Option<u32>,
}

/// One job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// What it does.
    pub kind: JobKind,
    /// Where its runs leave their lines.
    pub file: PathBuf,
    /// What became of its times, from its first save on.
    pub history: Vec<Change>,
    /// Counts its definitions, so that no two are the same.
    edition: u32,
}

impl Job {
    /// A job whose runs append to a file of its own in `dir`.
    #[must_use]
    pub fn new(number: usize, kind: JobKind, dir: &Path) -> Self {
        let name = format!("{}-{number}", if kind.is_counting() { "count" } else { "hold" });
        let file = dir.join(&name);
        Self { name, kind, file, history: Vec::new(), edition: 0 }
    }

    fn period_s(&self) -> u32 {
        self.history.iter().rev().find_map(|change| change.period_s).unwrap_or(self.kind.period_s)
    }

    /// Its definition, as it is saved.
    #[must_use]
    pub fn definition(&self, period_s: u32) -> Value {
        // One write appends the line; the shell reads its clock without another process.
        let line = |word: &str| {
            let file = self.file.display();
            format!(
                "echo \"{word} $CRON_JOB_NAME $CRON_PLAN_TIME $CRON_RUN_ID ${{EPOCHREALTIME/[.,]/}} $$\" >> '{file}'"
            )
        };
        let mut command = format!(": {}; {}", self.edition, line("start"));
        if self.kind.runs_s > 0 {
            command = format!("{command}; sleep {}; {}", self.kind.runs_s, line("end"));
        }
        let seconds = if period_s == 1 { "*".to_owned() } else { format!("*/{period_s}") };
        json!({"name": self.name, "command": command, "cronExpr": format!("{seconds} * * * * * *")})
    }

    /// What its runs have left.
    ///
    /// # Errors
    /// When a line is not as its command writes it.
    pub fn lines(&self) -> anyhow::Result<Vec<Line>> {
        let text = match std::fs::read_to_string(&self.file) {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("read {}", self.file.display()))?,
        };
        text.lines().map(|line| Line::parse(line, &self.name).with_context(|| format!("{line:?}"))).collect()
    }
}

/// What a run has left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// At its end; else at its start.
    pub is_end: bool,
    /// The fire, in ms since 1970.
    pub plan_time: i64,
    /// The run.
    pub run_id: String,
    /// When it was written, in ms since 1970.
    pub at: i64,
}

impl Line {
    fn parse(line: &str, job: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [word @ ("start" | "end"), name, plan_time, run_id, micros, _pid] = words.as_slice() else {
            bail!("not a line of a run");
        };
        anyhow::ensure!(*name == job, "a line of another job");
        let at = micros.parse::<i64>()? / 1000;
        Ok(Self { is_end: *word == "end", plan_time: plan_time.parse()?, run_id: (*run_id).to_owned(), at })
    }
}

/// Changes jobs through the API, one after the other, however often it must be asked.
pub struct Editor {
    http: reqwest::Client,
    url: String,
}

impl Editor {
    /// Of an API at this address.
    #[must_use]
    pub fn new(url: String) -> Self {
        Self { http: crate::fixtures::http(), url }
    }

    /// Saves a job for the first time.
    ///
    /// # Errors
    /// When the API does not.
    pub async fn create(&self, job: &mut Job) -> anyhow::Result<()> {
        let period_s = job.kind.period_s;
        self.save(job, period_s).await.map(drop)
    }

    /// Makes the changes that are asked for until the asker is gone; hands back the jobs, with what became of them.
    ///
    /// # Errors
    /// When the API does not make a change.
    pub async fn work(
        self,
        mut jobs: Vec<Job>,
        mut asked: mpsc::Receiver<(usize, Edit)>,
    ) -> anyhow::Result<Vec<Job>> {
        while let Some((number, edit)) = asked.recv().await {
            let Some(job) = jobs.get_mut(number) else { continue };
            let period_s = job.period_s();
            match edit {
                Edit::Command => drop(self.save(job, period_s).await?),
                Edit::Schedule(other) if other == period_s => drop(self.save(job, period_s).await?),
                Edit::Schedule(other) => {
                    let change = self.save(job, other).await?;
                    job.history.push(change);
                }
                Edit::Recreate { away_ms } => {
                    let (sent, answered) = self.post("delete", &[("name", job.name.clone())]).await?;
                    job.history.push(Change { sent, answered, period_s: None });
                    sleep(Duration::from_millis(away_ms)).await;
                    let change = self.save(job, period_s).await?;
                    job.history.push(change);
                }
            }
        }
        Ok(jobs)
    }

    async fn save(&self, job: &mut Job, period_s: u32) -> anyhow::Result<Change> {
        job.edition += 1;
        let (sent, answered) = self.post("save", &[("job", job.definition(period_s).to_string())]).await?;
        Ok(Change { sent, answered, period_s: Some(period_s) })
    }

    /// Asks until the answer says that it is done: when it was first asked, and when it was answered.
    async fn post(&self, what: &str, form: &[(&str, String)]) -> anyhow::Result<(i64, i64)> {
        let (sent, since) = (now_ms(), Stopwatch::start());
        loop {
            let answer = self.http.post(format!("{}/job/{what}", self.url)).form(form).send().await;
            let said = match answer {
                Ok(answer) if answer.status().is_success() => return Ok((sent, now_ms())),
                // Away or in doubt for now; the same request again is harmless.
                Ok(answer) if [409, 503].contains(&answer.status().as_u16()) => {
                    answer.text().await.unwrap_or_default()
                }
                Ok(answer) => bail!("{what} of {form:?}: {}: {}", answer.status(), answer.text().await?),
                Err(why) => why.to_string(),
            };
            if since.elapsed() > CHANGE_LIMIT {
                bail!("{what} of {form:?} was not done in {CHANGE_LIMIT:?}: {said}");
            }
            sleep(CHANGE_AGAIN).await;
        }
    }
}
