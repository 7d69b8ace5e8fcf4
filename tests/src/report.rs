//! The outcome of a run: counts taken from what Cargo printed, and the table.

use std::fmt::Write as _;
use std::time::Duration;

/// Tests (or steps that consist of none) by outcome.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Good.
    pub passed: usize,
    /// Bad.
    pub failed: usize,
    /// Not done.
    pub skipped: usize,
}

/// What became of a step, with a remark for people.
pub enum Outcome {
    /// All good.
    Passed(String),
    /// Something was not done: what is missing, how to get it.
    Skipped(String),
    /// Something is wrong.
    Failed(String),
}

/// All steps so far.
#[derive(Default)]
pub struct Report {
    rows: Vec<(String, Outcome, Counts, Duration)>,
}

impl Report {
    /// Adds a step.
    pub fn add(&mut self, name: &str, outcome: Outcome, counts: Counts, took: Duration) {
        self.rows.push((name.to_owned(), outcome, counts, took));
    }

    /// The sums.
    pub fn counts(&self) -> Counts {
        self.rows.iter().fold(Counts::default(), |sum, (_, _, counts, _)| Counts {
            passed: sum.passed + counts.passed,
            failed: sum.failed + counts.failed,
            skipped: sum.skipped + counts.skipped,
        })
    }

    /// One line for each step.
    pub fn table(&self) -> String {
        let mut table = format!(
            "{:<24} {:<8} {:>7} {:>7} {:>7} {:>7}  \n",
            "step", "", "time", "passed", "failed", "skipped"
        );
        for (name, outcome, counts, took) in &self.rows {
            let (word, remark) = match outcome {
                Outcome::Passed(remark) => ("PASS", remark.as_str()),
                Outcome::Skipped(remark) => ("SKIPPED", remark.as_str()),
                Outcome::Failed(_) => ("FAIL", "see above"),
            };
            let _infallible = writeln!(
                table,
                "{name:<24} {word:<8} {:>5} s {:>7} {:>7} {:>7}  {}",
                took.as_secs(),
                counts.passed,
                counts.failed,
                counts.skipped,
                remark.replace('\n', " / ")
            );
        }
        table
    }
}

/// Lines that tell what failed; the rest is in the log.
const FAILURES_SHOWN_MAX: usize = 40;
/// What a test prints when it cannot run, with what is missing behind it.
const SKIPPED: &str = "SKIPPED: ";

/// What a test prints when nothing that the tests may get has what it wants, with what is not tried behind it.
const NOT_TRIED: &str = "NOT TRIED: ";

/// How Cargo shows `#[ignore = "the child of ..."]`.
const PART_OF_ANOTHER: &str = " ... ignored, the child of ";

/// Counts the tests in what `cargo test -- --nocapture` printed. A test that says that it was skipped passed as far as Cargo knows.
pub fn count(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.lines() {
        let Some((_, result)) = line.split_once("test result: ") else { continue };
        let number = |word: &str| {
            result
                .split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<usize>().ok())
                .unwrap_or(0)
        };
        counts.passed += number("passed");
        counts.failed += number("failed");
        counts.skipped += number("ignored");
    }
    // A test that another one starts as a process of its own is a part of that one.
    let parts = text.lines().filter(|line| line.contains(PART_OF_ANOTHER)).count();
    counts.skipped = counts.skipped.saturating_sub(parts);
    let said = |word: &str| text.lines().filter(|line| line.contains(word)).count();
    counts.skipped += said(SKIPPED);
    counts.passed = counts.passed.saturating_sub(said(SKIPPED) + said(NOT_TRIED));
    counts
}

/// What was not tried, for people; empty when all was.
pub fn not_tried(text: &str) -> String {
    let said = text.lines().filter_map(|line| Some(&line[line.find(NOT_TRIED)?..]));
    said.collect::<Vec<_>>().join(" / ")
}

/// What the tests said when they skipped, each reason once; `None` when nothing was skipped.
pub fn skips(text: &str) -> Option<String> {
    let counts = count(text);
    if counts.skipped == 0 {
        return None;
    }
    let mut reasons: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once(SKIPPED)?.1)).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let shown: Vec<&str> = reasons.iter().take(3).copied().collect();
    Some(match shown.is_empty() {
        true => format!("{} ignored tests", counts.skipped),
        false => shown.join(" / "),
    })
}

/// What to show of a failed step: the failed tests by name, and the end of the log.
pub fn failure(text: &str, tail_lines: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    // A panic's message stands on the line below the place.
    let telling = |at: usize| {
        let line = lines[at];
        line.contains("panicked at")
            || at.checked_sub(1).is_some_and(|above| lines[above].contains("panicked at"))
            || (line.starts_with("test ") && line.ends_with("FAILED"))
            || line.starts_with("error")
    };
    let failed: Vec<&str> =
        (0..lines.len()).filter(|at| telling(*at)).map(|at| lines[at]).take(FAILURES_SHOWN_MAX).collect();
    format!("{}\n...\n{}", failed.join("\n"), lines[lines.len().saturating_sub(tail_lines)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
running 3 tests
test a::child ... ignored, the child of the test above
SKIPPED: e2e: no etcd; run `cargo run -p tests`
test a ... ok
NOT TRIED: roles: no mongod
test b ... ok
something without a line endtest result: ok. 4 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.02s
";

    #[test]
    fn tests_are_counted_and_those_that_skipped_are_not_passed() {
        assert_eq!(count(LOG), Counts { passed: 6, failed: 2, skipped: 2 });
        assert_eq!(count("Finished"), Counts::default());
    }

    #[test]
    fn what_is_not_tried_is_told_and_neither_passed_nor_skipped() {
        assert_eq!(not_tried(LOG), "NOT TRIED: roles: no mongod");
        assert_eq!(not_tried("test result: ok. 3 passed; 0 failed; 0 ignored"), "");
    }

    #[test]
    fn a_skip_is_told_with_its_reason() {
        assert_eq!(skips(LOG).as_deref(), Some("e2e: no etcd; run `cargo run -p tests`"));
        assert_eq!(skips("test result: ok. 3 passed; 0 failed; 0 ignored"), None);
    }
}
