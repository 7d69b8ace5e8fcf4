//! What somebody is told, and how it looks: as JSON, as Slack takes it, as an e-mail.

use std::fmt::Write as _;

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::notify::{Kind, Told};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::state::{Happened, RunDigest};

/// Format version of the JSON.
const VERSION: u32 = 1;
/// Most messages that a summary names; of the others it says how many there are.
const NAMED_MAX: usize = 20;
/// Longest subject of an e-mail, in characters.
const SUBJECT_MAX: usize = 200;

/// One thing that is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Message {
    /// 32 hex digits: of the same news always the same, however often it is sent.
    pub(crate) id: String,
    pub(crate) job: JobName,
    /// When it happened.
    pub(crate) at: Timestamp,
    pub(crate) told: Told,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<RunDigest>,
    /// Where the console shows the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<String>,
}

impl Message {
    /// `by` decided to tell this of what happened.
    pub(crate) fn new(by: &str, told: Told, happened: &Happened, console: Option<&str>) -> Self {
        let job = happened.job.clone();
        let id = xxh3_128(format!("{by}\0{job}\0{}\0{}", told.index, told.kind.as_str()).as_bytes());
        let link = console.map(|console| {
            format!("{}/#/jobs/{}", console.trim_end_matches('/'), percent_encoded(job.as_str()))
        });
        Self { id: format!("{id:032x}"), job, at: happened.at, told, run: happened.run.clone(), link }
    }

    /// In one line.
    pub(crate) fn headline(&self) -> String {
        let (job, Told { since, failures, .. }) = (&self.job, &self.told);
        let err = self.run.as_ref().map(|run| run.err.as_str()).filter(|err| !err.is_empty());
        let err = err.map(|err| format!(": {err}")).unwrap_or_default();
        if self.told.reminder {
            return format!("Job {job} still does not succeed ({failures} failures since {since}){err}");
        }
        match self.told.kind {
            Kind::Failure => format!("Job {job} failed{err}"),
            Kind::Timeout => format!("Job {job} timed out{err}"),
            Kind::Lost => format!("Job {job}: a run was lost{err}"),
            Kind::Misfire => format!("Job {job} missed fires{err}"),
            Kind::Recovery if *failures > 0 => {
                format!("Job {job} succeeds again ({failures} failures since {since})")
            }
            Kind::Recovery => format!("Job {job} succeeds again"),
            Kind::NotSucceeded => format!("Job {job} has not succeeded since {since}"),
        }
    }

    fn text(&self) -> String {
        let mut text = self.headline();
        if let Some(run) = &self.run {
            let worker = run.worker.as_deref().unwrap_or("unknown");
            let _infallible =
                write!(text, "\nPlanned {}, ended {}, worker {worker}", run.plan_time, run.end_time);
            if let Some(attempt) = run.attempt.filter(|attempt| *attempt > 1) {
                let _infallible = write!(text, ", attempt {attempt}");
            }
            if let Some(run_id) = &run.run_id {
                let _infallible = write!(text, ", run {run_id}");
            }
        }
        if let Some(link) = &self.link {
            let _infallible = write!(text, "\n{link}");
        }
        if let Some(run) = self.run.as_ref().filter(|run| !run.output.trim().is_empty()) {
            let _infallible = write!(text, "\n\n{}", run.output.trim_end());
        }
        text
    }

    fn json(&self) -> Value {
        let Told { kind, since, failures, reminder, .. } = &self.told;
        let mut value = json!({
            "v": VERSION,
            "id": self.id,
            "kind": kind.as_str(),
            "job": self.job,
            "at": self.at,
            "since": since,
            "failures": failures,
            "reminder": reminder,
            "text": self.headline(),
        });
        if let (Some(run), Some(fields)) = (&self.run, value.as_object_mut())
            && let Value::Object(run) = json!(run)
        {
            fields.extend(run);
        }
        if let Some(link) = &self.link {
            value["link"] = json!(link);
        }
        value
    }
}

/// For a part of an address.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _infallible = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// What is sent at once: one message, or many in short.
#[derive(Clone, Debug)]
pub(crate) struct Letter<'a>(pub(crate) &'a [&'a Message]);

impl Letter<'_> {
    /// Names it, for a receiver that must not take it twice.
    pub(crate) fn id(&self) -> String {
        match self.0 {
            [one] => one.id.clone(),
            many => {
                let ids: Vec<&str> = many.iter().map(|message| message.id.as_str()).collect();
                format!("{:032x}", xxh3_128(ids.concat().as_bytes()))
            }
        }
    }

    /// The body of a webhook.
    pub(crate) fn json(&self) -> Value {
        match self.0 {
            [one] => one.json(),
            many => {
                let named = many.iter().take(NAMED_MAX).map(|message| {
                    json!({"kind": message.told.kind.as_str(), "job": message.job, "at": message.at, "text": message.headline()})
                });
                let named: Vec<Value> = named.collect();
                json!({"v": VERSION, "id": self.id(), "kind": "summary", "count": many.len(), "messages": named})
            }
        }
    }

    /// The body for Slack: no markup, and nothing in it that Slack takes for a mention or a link.
    pub(crate) fn slack(&self) -> Value {
        let text = self.text().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        json!({ "text": text, "mrkdwn": false })
    }

    /// The subject of an e-mail: one line, whatever a job is called or prints.
    pub(crate) fn subject(&self) -> String {
        let text = match self.0 {
            [one] => one.headline(),
            many => format!("{} notifications about jobs", many.len()),
        };
        let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        line.take(SUBJECT_MAX).collect()
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        match self.0 {
            [one] => one.text(),
            many => {
                let mut text = format!("{} notifications came at once:", many.len());
                for message in many.iter().take(NAMED_MAX) {
                    let _infallible = write!(text, "\n- {}", message.headline());
                }
                let more = many.len().saturating_sub(NAMED_MAX);
                if more > 0 {
                    let _infallible = write!(text, "\nand {more} more");
                }
                text
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::state::What;
    use super::*;
    use common::domain::notify::Occasion;

    /// Of a run that failed at a time.
    pub(crate) fn message(at: i64) -> Message {
        named("任务 <!channel>", at)
    }

    fn named(job: &str, at: i64) -> Message {
        let run = RunDigest {
            status: "failed".to_owned(),
            err: "exit status 1".to_owned(),
            exit_code: Some(1),
            output: "a & b\r\nBcc: <x>\n".to_owned(),
            ..RunDigest::default()
        };
        let happened = Happened {
            job: JobName::parse(job).unwrap(),
            what: What::Trouble(Occasion::Failure),
            record: String::new(),
            at: Timestamp::from_ms(at),
            count: 1,
            run: Some(run),
        };
        let since = Timestamp::from_ms(at);
        let told = Told::new(Kind::Failure, 0, since, 1);
        Message::new(&format!("w/{at}"), told, &happened, Some("https://cron.example.com/"))
    }

    #[test]
    fn the_json_has_what_the_record_says() {
        let message = message(5);
        let json = Letter(&[&message]).json();
        assert_eq!(
            (&json["v"], &json["kind"], &json["job"]),
            (&json!(1), &json!("failure"), &json!("任务 <!channel>"))
        );
        assert_eq!((&json["at"], &json["since"], &json["failures"]), (&json!(5), &json!(5), &json!(1)));
        assert_eq!((&json["exitCode"], &json["status"]), (&json!(1), &json!("failed")));
        assert_eq!(json["link"], "https://cron.example.com/#/jobs/%E4%BB%BB%E5%8A%A1%20%3C%21channel%3E");
        assert_eq!(json["id"], message.id.as_str());
        assert_ne!(message.id, super::tests::message(6).id);
    }

    #[test]
    fn slack_takes_nothing_in_it_for_its_own() {
        let message = message(5);
        let text = Letter(&[&message]).slack()["text"].as_str().unwrap().to_owned();
        assert!(
            !text.contains('<') && text.contains("a &amp; b") && text.contains("&lt;!channel&gt;"),
            "{text}"
        );
    }

    #[test]
    fn a_subject_is_one_line() {
        let mut message = message(5);
        message.run.as_mut().unwrap().err = format!("a\r\nBcc: b@c\u{85}{}", "x".repeat(500));
        let subject = Letter(&[&message]).subject();
        assert!(!subject.chars().any(char::is_control), "{subject}");
        assert_eq!(subject.chars().count(), SUBJECT_MAX);
    }

    #[test]
    fn a_summary_names_some_and_counts_all() {
        let messages: Vec<Message> = (0..50).map(message).collect();
        let all: Vec<&Message> = messages.iter().collect();
        let letter = Letter(&all);
        let json = letter.json();
        assert_eq!((&json["kind"], &json["count"]), (&json!("summary"), &json!(50)));
        assert_eq!(json["messages"].as_array().unwrap().len(), NAMED_MAX);
        assert!(letter.text().ends_with("and 30 more"));
        assert!(letter.id() != messages[0].id && letter.id() == Letter(&all).id());
    }
}
