//! From jobs to the text of a crontab.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{DIRECTIVE, Format, Reading, command, read};
use crate::domain::job::Job;
use crate::domain::settings::FleetSettings;
use crate::schedule::{Schedule, ScheduleSettings};

/// Options that a crontab has a place for: with its settings, its user column, its comments and, in our comments, what cron need not know.
const SAYABLE: [&str; 9] =
    ["name", "command", "cronExpr", "env", "workingDir", "timezone", "user", "description", "labels"];
/// The nicknames that every cron knows.
const NICKNAMES: [&str; 7] =
    ["@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"];
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Writes jobs as a crontab. What cron would do otherwise, or not at all, stands in comments with the reason; [`super::read`] takes those as
/// well, so that it reads every job as it was.
#[must_use]
pub fn write(jobs: &[Job], format: Format) -> String {
    let mut lines: Vec<Line<'_>> = jobs.iter().map(|job| Line::of(job, format)).collect();
    // A crontab can set a variable, and not unset it: lines with fewer come first.
    lines.sort_by(|a, b| {
        let order = |line: &Line<'_>| (line.variables.len(), line.variables.clone(), line.job.name.clone());
        order(a).cmp(&order(b))
    });
    let mut text = String::new();
    let mut current: BTreeMap<String, String> = BTreeMap::new();
    let mut commented = String::new();
    for line in lines {
        let written: Result<String, String> = line.written.and_then(|written| {
            let is_kept = |name: &&String| line.variables.contains_key(*name);
            let unset = current.keys().find(|name| !is_kept(name));
            unset.map_or(Ok(written), |name| {
                Err(format!("{name} is set for other lines, and a crontab cannot unset it"))
            })
        });
        match written {
            Ok(written) => {
                let news: String = line
                    .variables
                    .iter()
                    .filter(|(name, value)| current.get(*name) != Some(*value))
                    .map(|(name, value)| setting(name, value))
                    .collect();
                if !news.is_empty() && !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&news);
                text.push_str(&written);
                current = line.variables;
            }
            Err(why) => {
                let job = line.job.to_value();
                let written =
                    writeln!(commented, "\n# {} is no line here: {why}\n{DIRECTIVE} {job}", line.job.name);
                written.expect("a String takes all text");
            }
        }
    }
    text + &commented
}

/// A job as a line with its comments, or why it is none.
struct Line<'a> {
    job: &'a Job,
    /// What has to be set above it.
    variables: BTreeMap<String, String>,
    written: Result<String, String>,
}

impl<'a> Line<'a> {
    fn of(job: &'a Job, format: Format) -> Self {
        let fields = job.to_value();
        let text = |field: &str| fields.get(field).and_then(Value::as_str);
        let env = fields.get("env").and_then(Value::as_object);
        let mut variables: BTreeMap<String, String> = env
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        variables.extend(text("timezone").map(|zone| ("CRON_TZ".to_owned(), zone.to_owned())));
        let written =
            why_not(job, &fields, format).map_or_else(|| line(job, &fields, &variables, format), Err);
        Self { job, variables, written }
    }
}

/// Why cron would not do with a line what we do with the job.
fn why_not(job: &Job, fields: &Value, format: Format) -> Option<String> {
    let options = fields.as_object().into_iter().flat_map(Map::keys);
    let unsayable: Vec<&str> =
        options.map(String::as_str).filter(|option| !SAYABLE.contains(option)).collect();
    if !unsayable.is_empty() {
        return Some(format!("a crontab has nothing for {}", unsayable.join(", ")));
    }
    if let Some(why) = not_of_cron(&job.cron_expr) {
        return Some(format!("cron has no such times as {:?}: {why}", job.cron_expr));
    }
    match (format, fields.get("user")) {
        (Format::User, Some(user)) => {
            Some(format!("a user's crontab has no user, and it runs as {user}: export it with format=system"))
        }
        (Format::System, None) => Some("a system crontab wants a user, and it has none".to_owned()),
        _ => None,
    }
}

/// The line with its comments, as it reads as this job again.
fn line(
    job: &Job,
    fields: &Value,
    variables: &BTreeMap<String, String>,
    format: Format,
) -> Result<String, String> {
    let mut beside = Map::new();
    for field in ["name", "labels"] {
        beside.extend(fields.get(field).map(|value| (field.to_owned(), value.clone())));
    }
    let user = fields.get("user").and_then(Value::as_str).map(|user| format!("{user} ")).unwrap_or_default();
    let description = fields.get("description").and_then(Value::as_str).unwrap_or_default();
    let comments: String = description.lines().map(|line| format!("# {line}\n")).collect();
    let entry = format!("{} {user}{}\n", job.cron_expr, command::written(&job.command));
    let settings: String = variables.iter().map(|(name, value)| setting(name, value)).collect();
    let with_comments = format!("\n{comments}{DIRECTIVE} {}\n{entry}", Value::Object(beside.clone()));
    if reads_as(job, &format!("{settings}{with_comments}"), format) {
        return Ok(with_comments);
    }
    // A description that a comment does not hold to the letter.
    beside.extend(fields.get("description").map(|value| ("description".to_owned(), value.clone())));
    let without = format!("\n{DIRECTIVE} {}\n{entry}", Value::Object(beside));
    if reads_as(job, &format!("{settings}{without}"), format) {
        return Ok(without);
    }
    Err("a line has no way of writing its command or its variables".to_owned())
}

fn reads_as(job: &Job, text: &str, format: Format) -> bool {
    let fleet = FleetSettings::default();
    let reading = Reading { format, prefix: "", source: "", timezone: None, fleet: &fleet };
    let crontab = read(text.as_bytes(), &reading);
    crontab.refused.is_empty()
        && crontab.entries.len() == 1
        && crontab.entries.iter().all(|entry| entry.submitted.job == *job)
}

fn setting(name: &str, value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '+');
    if !value.is_empty() && value.chars().all(plain) {
        return format!("{name}={value}\n");
    }
    format!("{name}=\"{value}\"\n")
}

/// What of an expression cron does not have, or reads in another way.
fn not_of_cron(expression: &str) -> Option<String> {
    if NICKNAMES.contains(&expression) {
        return None;
    }
    let fields: Vec<&str> = expression.split(' ').collect();
    if fields.len() != 5 || Schedule::parse(expression, &ScheduleSettings::default()).is_err() {
        return Some("it has five fields with one blank between them".to_owned());
    }
    let names: [&[&str]; 5] = [&[], &[], &[], &MONTHS, &DAYS];
    let items =
        fields.iter().zip(names).flat_map(|(field, names)| field.split(',').map(move |item| (item, names)));
    items
        .map(|(item, names)| (item, is_cron_item(item, names)))
        .find(|(_, known)| !known)
        .map(|(item, _)| format!("{item:?} means nothing to it, or something else"))
}

/// `*`, a number or a name, a range that does not wrap; steps of `*` and of ranges.
fn is_cron_item(item: &str, names: &[&str]) -> bool {
    let (body, step) = item.split_once('/').map_or((item, None), |(body, step)| (body, Some(step)));
    let number = |text: &str| {
        let named = names.iter().position(|name| text.eq_ignore_ascii_case(name));
        text.parse::<usize>().ok().filter(|_| !text.starts_with('+')).or(named)
    };
    let is_known = match body.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
        None if body == "*" => true,
        None => step.is_none() && number(body).is_some(),
    };
    is_known && step.is_none_or(|step| step.bytes().all(|b| b.is_ascii_digit()))
}
