//! From the text of a crontab to jobs, line by line.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::names::{Unnamed, names};
use super::{Crontab, DIRECTIVE, Entry, Format, LABEL, Reading, Refused, Remark, command};
use crate::domain::execution::{Environment, is_user};
use crate::domain::job::{Fault, Job};
use crate::domain::labelling::DESCRIPTION_CHARS_MAX;
use crate::domain::options::JITTER_SECONDS_MAX;
use crate::schedule::{Dialect, Schedule, ScheduleSettings, Zone};
use crate::shortened::shortened;

/// Longest part of a line that an answer repeats, in bytes.
const SHOWN_BYTES_MAX: usize = 300;
/// The nicknames of cron: one word in place of five.
const NICKNAME: char = '@';
/// What separates words on a line.
const BLANKS: [char; 2] = [' ', '\t'];
/// Shells whose commands the workers' bash runs as they are.
const OUR_SHELLS: [&str; 6] =
    ["/bin/sh", "/bin/bash", "/usr/bin/sh", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/dash"];
/// Variables about cron's mail.
const OF_MAIL: [&str; 4] = ["MAILTO", "MAILFROM", "CONTENT_TYPE", "CONTENT_TRANSFER_ENCODING"];

/// Reads a file, whatever its bytes; every line that is not empty and no comment becomes a job, a setting of the lines behind it, or is told.
#[must_use]
pub fn read(text: &[u8], reading: &Reading<'_>) -> Crontab {
    let mut reader = Reader::new(reading);
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    for (n, line) in text.split(|b| *b == b'\n').enumerate() {
        let (line, had_return) = line.strip_suffix(b"\r").map_or((line, false), |line| (line, true));
        if had_return && n == 0 {
            reader.remark(1, "lines end in CR LF: the CR, which cron would hand to the command, is left out");
        }
        match std::str::from_utf8(line) {
            Ok(line) => reader.line(n + 1, line),
            Err(_) if line.trim_ascii_start().starts_with(b"#") => reader.comments.clear(),
            Err(error) => {
                let shown = String::from_utf8_lossy(line);
                let good = String::from_utf8_lossy(&line[..error.valid_up_to()]).chars().count();
                reader.refuse(n + 1, &shown, good + 1, "is not UTF-8: convert the file");
            }
        }
    }
    reader.finish()
}

/// A line that is going to be a job, once it has a name.
struct Draft {
    line: usize,
    text: String,
    /// Where its command begins.
    character: usize,
    name: Option<String>,
    fields: Map<String, Value>,
}

struct Reader<'a> {
    reading: &'a Reading<'a>,
    environment: BTreeMap<String, String>,
    shell: Option<String>,
    timezone: Option<String>,
    random_delay_seconds: Option<u32>,
    /// The comments directly above.
    comments: Vec<String>,
    /// What a [`DIRECTIVE`] said of the next line, and on which line it stands.
    directive: Option<(usize, Map<String, Value>)>,
    /// Users that were named, each said once.
    users: Vec<String>,
    drafts: Vec<Draft>,
    crontab: Crontab,
}

impl<'a> Reader<'a> {
    fn new(reading: &'a Reading<'a>) -> Self {
        Self {
            reading,
            environment: BTreeMap::new(),
            shell: None,
            timezone: reading.timezone.map(str::to_owned),
            random_delay_seconds: None,
            comments: Vec::new(),
            directive: None,
            users: Vec::new(),
            drafts: Vec::new(),
            crontab: Crontab::default(),
        }
    }

    fn refuse(&mut self, line: usize, text: &str, character: usize, why: impl Into<String>) {
        let text = shortened(text.to_owned(), SHOWN_BYTES_MAX);
        self.crontab.refused.push(Refused { line, character, text, why: why.into() });
    }

    fn remark(&mut self, line: usize, what: impl Into<String>) {
        self.crontab.remarks.push(Remark { line, what: what.into() });
    }

    fn line(&mut self, number: usize, text: &str) {
        let start = text.trim_start_matches(BLANKS);
        if start.trim_end().is_empty() {
            self.comments.clear();
        } else if let Some(json) = start.strip_prefix(DIRECTIVE) {
            self.directive(number, text, json);
        } else if let Some(comment) = start.strip_prefix('#') {
            self.comments.push(comment.strip_prefix(' ').unwrap_or(comment).trim_end().to_owned());
        } else if let Some((name, value)) = setting(start) {
            self.comments.clear();
            if let Err(why) = self.set(number, &name, &value) {
                self.refuse(number, text, text.len() - start.len() + 1, why);
            }
        } else {
            let comments = std::mem::take(&mut self.comments);
            let directive = self.directive.take().map(|(_, fields)| fields);
            match self.entry(number, text, start, &comments, directive) {
                Ok(draft) => self.drafts.push(draft),
                Err((character, why)) => self.refuse(number, text, character, why),
            }
        }
    }

    fn directive(&mut self, number: usize, text: &str, json: &str) {
        let fields = match serde_json::from_str(json) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => {
                return self.refuse(number, text, 1, format!("{DIRECTIVE} is not followed by a JSON object"));
            }
            Err(error) => {
                return self.refuse(number, text, 1, format!("{DIRECTIVE} is not followed by JSON: {error}"));
            }
        };
        let name = fields.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !name.starts_with(self.reading.prefix) {
            let why = format!("the job's name {name:?} does not begin with {:?}", self.reading.prefix);
            return self.refuse(number, text, 1, format!("{why}: import it with a prefix that it has"));
        }
        if !fields.contains_key("cronExpr") && !fields.contains_key("after") {
            self.directive = Some((number, fields));
            return;
        }
        self.comments.clear();
        let draft = Draft { line: number, text: text.to_owned(), character: 1, name: Some(name), fields };
        self.drafts.push(draft);
    }

    /// A line `NAME=value`: it holds for the lines behind it.
    fn set(&mut self, number: usize, name: &str, value: &str) -> Result<(), String> {
        match name {
            mail if OF_MAIL.contains(&mail) => {
                if !value.is_empty() {
                    self.remark(
                        number,
                        format!(
                            "{name} is not taken over: no mail is sent, what a run prints is in its record"
                        ),
                    );
                }
            }
            "LOGNAME" => self.remark(number, "LOGNAME is not taken over: cron sets it from the user as well"),
            "SHELL" => {
                if !value.starts_with('/') {
                    return Err(
                        "SHELL is not the absolute path of a shell: write one like /bin/sh".to_owned()
                    );
                }
                self.shell = (!OUR_SHELLS.contains(&value)).then(|| value.to_owned());
            }
            "CRON_TZ" => {
                let zone = Some(value).filter(|zone| !zone.is_empty());
                zone.map(|zone| Zone::parse(zone).map_err(|why| format!("CRON_TZ {why}"))).transpose()?;
                self.timezone = zone.map(str::to_owned);
            }
            "RANDOM_DELAY" => {
                let seconds = value.parse::<u32>().ok().and_then(|minutes| minutes.checked_mul(60));
                let seconds = seconds.filter(|seconds| *seconds <= JITTER_SECONDS_MAX);
                let wrong = || {
                    format!(
                        "RANDOM_DELAY is not a whole number of minutes from 0 to {}",
                        JITTER_SECONDS_MAX / 60
                    )
                };
                self.random_delay_seconds = Some(seconds.ok_or_else(wrong)?).filter(|seconds| *seconds > 0);
            }
            _ => {
                let variable = Value::Object(Map::from_iter([(name.to_owned(), Value::from(value))]));
                Environment::parse(&variable)?;
                if name == "TZ" {
                    self.remark(
                        number,
                        "TZ is the time zone of the commands alone, as in crontab: times follow CRON_TZ",
                    );
                }
                self.environment.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(())
    }

    /// A line with a command; what is wrong with it comes with the character.
    fn entry(
        &mut self,
        number: usize,
        text: &str,
        start: &str,
        comments: &[String],
        directive: Option<Map<String, Value>>,
    ) -> Result<Draft, (usize, String)> {
        let character_of = |rest: &str| text[..text.len() - rest.len()].chars().count() + 1;
        let quiet = start.strip_prefix('-');
        if quiet.is_some() {
            self.remark(
                number,
                "the \"-\" before the minute, which keeps the line out of cron's log, means nothing here",
            );
        }
        let times = quiet.unwrap_or(start);
        let words = if times.starts_with(NICKNAME) { 1 } else { 5 };
        let (expression, rest) = words_off(times, words);
        if rest.is_empty() {
            let what = if self.reading.format == Format::System { "user and command" } else { "command" };
            let why = format!(
                "has no {what} behind the times: write minute hour day-of-month month day-of-week {what}"
            );
            return Err((character_of(start), why));
        }
        Schedule::parse(expression, &ScheduleSettings::default())
            .map_err(|error| (character_of(times) + error.position - 1, error.to_string()))?;
        let (user, rest) = match self.reading.format {
            Format::User => (None, rest),
            Format::System => {
                let (user, command) = words_off(rest, 1);
                if !is_user(user) {
                    let why = format!(
                        "{user:?} is no name of a user, which stands before the command in a system crontab"
                    );
                    return Err((character_of(rest), why));
                }
                if command.is_empty() {
                    return Err((character_of(rest), format!("has no command behind the user {user:?}")));
                }
                (Some(user), command)
            }
        };
        self.look_at_command(number, user, rest);
        let (line, input) = command::split(blanks_off(rest));
        if line.trim().is_empty() {
            return Err((character_of(rest), "has no command before the \"%\"".to_owned()));
        }
        let line = self.shell.as_ref().map_or(line.clone(), |shell| command::in_shell(shell, &line));
        let mut fields = Map::new();
        fields.insert("command".to_owned(), command::with_input(&line, &input).into());
        let expression: Vec<&str> = expression.split(BLANKS).filter(|word| !word.is_empty()).collect();
        fields.insert("cronExpr".to_owned(), expression.join(" ").into());
        self.add_settings(&mut fields, user);
        if let Some(description) = described(comments) {
            fields.insert("description".to_owned(), description.into());
        }
        let mut name = None;
        match directive {
            None => {
                let labels = Map::from_iter([(LABEL.to_owned(), Value::from(self.reading.source))]);
                fields.insert("labels".to_owned(), labels.into());
            }
            Some(mut directive) => {
                name = directive.shift_remove("name").and_then(|name| Some(name.as_str()?.to_owned()));
                fields.extend(directive);
            }
        }
        Ok(Draft { line: number, text: text.to_owned(), character: character_of(rest), name, fields })
    }

    /// Says what the author of a command should know.
    fn look_at_command(&mut self, number: usize, user: Option<&str>, command: &str) {
        if let Some(user) = user.filter(|user| !self.users.iter().any(|known| known == user)) {
            self.users.push(user.to_owned());
            self.remark(number, format!("runs as {user:?}, on workers alone whose CRON_USERS has that user"));
        }
        let first = words_off(command, 1).0;
        if user.is_none() && first == "root" {
            self.remark(number, "the command begins with \"root\": a system crontab, which has a user there, is read with format=system");
        }
        if first.starts_with('*') || first.bytes().all(|b| b.is_ascii_digit()) {
            self.remark(number, format!("the command begins with {first:?}: a crontab has five fields for the time, none for seconds or years"));
        }
        if command.ends_with('\\') {
            self.remark(
                number,
                "ends in a backslash: a crontab knows no continued lines, the next line stands for itself",
            );
        }
    }

    /// What the lines above and the user say of the job.
    fn add_settings(&self, fields: &mut Map<String, Value>, user: Option<&str>) {
        if let Some(user) = user {
            fields.insert("user".to_owned(), user.into());
        }
        if let Some(timezone) = &self.timezone {
            fields.insert("timezone".to_owned(), timezone.as_str().into());
        }
        // A crontab is read as one, whatever the fleet's jobs are read as.
        if self.reading.fleet.dialect == Some(Dialect::Seed) {
            fields.insert("dialect".to_owned(), "standard".into());
        }
        if let Some(seconds) = self.random_delay_seconds {
            fields.insert("jitterSeconds".to_owned(), seconds.into());
        }
        // Cron starts commands there.
        if let Some(home) = self.environment.get("HOME").filter(|home| home.starts_with('/')) {
            fields.insert("workingDir".to_owned(), home.as_str().into());
        }
        if !self.environment.is_empty() {
            let variables =
                self.environment.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
            fields.insert("env".to_owned(), Value::Object(variables.collect()));
        }
    }

    /// Names what has no name, and checks each job as a save does.
    fn finish(mut self) -> Crontab {
        if let Some((number, _)) = self.directive.take() {
            self.refuse(number, DIRECTIVE, 1, "no line with a command follows");
        }
        let text_of = |fields: &Map<String, Value>, field: &str| {
            fields.get(field).and_then(Value::as_str).map(str::to_owned)
        };
        let unnamed: Vec<Unnamed> = self
            .drafts
            .iter()
            .filter(|draft| draft.name.is_none())
            .map(|draft| Unnamed {
                user: text_of(&draft.fields, "user"),
                command: text_of(&draft.fields, "command").unwrap_or_default(),
                fields: draft.fields.clone(),
            })
            .collect();
        let mut named = names(self.reading.prefix, &unnamed).into_iter();
        let mut lines_of: BTreeMap<String, usize> = BTreeMap::new();
        for draft in std::mem::take(&mut self.drafts) {
            let name = draft.name.or_else(|| named.next()).unwrap_or_default();
            if let Some(other) = lines_of.get(&name) {
                let why = format!("the name {name:?} is that of line {other} already: give it another");
                self.refuse(draft.line, &draft.text, 1, why);
                continue;
            }
            lines_of.insert(name.clone(), draft.line);
            let mut fields = draft.fields;
            fields.insert("name".to_owned(), name.into());
            match Job::from_submitted(Value::Object(fields), self.reading.fleet) {
                Ok(submitted) => self.crontab.entries.push(Entry { line: draft.line, submitted }),
                Err(faults) => {
                    let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
                    self.refuse(draft.line, &draft.text, draft.character, faults.join("; "));
                }
            }
        }
        self.crontab.refused.sort_by_key(|refused| refused.line);
        self.crontab.remarks.sort_by_key(|remark| remark.line);
        self.crontab
    }
}

/// The first words, from the first to the last, and what follows them.
fn words_off(text: &str, words: usize) -> (&str, &str) {
    let mut rest = text;
    for _ in 0..words {
        rest = rest.trim_start_matches(BLANKS);
        rest = &rest[rest.find(BLANKS).unwrap_or(rest.len())..];
    }
    (&text[..text.len() - rest.len()], rest.trim_start_matches(BLANKS))
}

/// Without the blanks at its end, but for one that is escaped.
fn blanks_off(command: &str) -> &str {
    let short = command.trim_end_matches(BLANKS);
    match command[short.len()..].chars().next() {
        Some(blank) if short.ends_with('\\') => &command[..short.len() + blank.len_utf8()],
        _ => short,
    }
}

/// `NAME = value`, either of them perhaps in quotes; nothing of it is expanded.
fn setting(line: &str) -> Option<(String, String)> {
    let (name, rest) = match line.strip_prefix(['"', '\'']) {
        Some(quoted) => quoted.split_once(line.chars().next()?)?,
        None => line.split_at(line.find(['=', ' ', '\t'])?),
    };
    let value = rest.trim_start_matches(BLANKS).strip_prefix('=')?.trim_matches(BLANKS);
    let unquoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    (!name.is_empty()).then(|| (name.to_owned(), unquoted.unwrap_or(value).to_owned()))
}

/// What the comments directly above say of a line; nothing when they are a drawing of crontab's fields or a line that was switched off.
fn described(comments: &[String]) -> Option<String> {
    if comments.is_empty() || comments.iter().any(|comment| is_legend(comment) || is_switched_off(comment)) {
        return None;
    }
    let text = comments.join("\n");
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '#');
    let text: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    match text.char_indices().nth(DESCRIPTION_CHARS_MAX) {
        _ if text.is_empty() => None,
        None => Some(text),
        Some(_) => Some(text.chars().take(DESCRIPTION_CHARS_MAX - 1).chain(['…']).collect()),
    }
}

/// `m h dom mon dow command`, and drawings of the fields with lines to each.
fn is_legend(comment: &str) -> bool {
    let comment = comment.trim();
    let words: Vec<String> = comment.split_whitespace().take(5).map(str::to_ascii_lowercase).collect();
    let begins = |start: [&str; 2]| words.iter().map(String::as_str).take(2).eq(start);
    comment.starts_with(".-")
        || comment.starts_with('|')
        || (words.len() == 5 && words.iter().all(|word| word == "*"))
        || begins(["m", "h"])
        || begins(["min", "hour"])
        || begins(["minute", "hour"])
        || begins(["m", "hour"])
}

fn is_switched_off(comment: &str) -> bool {
    let comment = comment.trim_start();
    let (expression, rest) = words_off(comment, if comment.starts_with(NICKNAME) { 1 } else { 5 });
    !rest.is_empty() && Schedule::parse(expression, &ScheduleSettings::default()).is_ok()
}
