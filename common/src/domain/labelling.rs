//! What people say about a job: its description and its labels. Nothing is decided from them but what is shown, and workers do not keep them.

use std::collections::BTreeMap;

use serde_json::Value;

/// Longest description, in characters: some lines above a crontab line, no manual.
pub const DESCRIPTION_CHARS_MAX: usize = 1_000;
/// Most labels of a job.
const LABELS_MAX: usize = 32;
/// Longest label or value, in bytes.
const LABEL_BYTES_MAX: usize = 200;

/// The options `description` and `labels`; `None` = left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Labelling {
    /// What the job is for.
    pub description: Option<String>,
    /// Names with values, by which jobs are found.
    pub labels: Option<BTreeMap<String, String>>,
}

impl Labelling {
    /// The value of a label.
    #[must_use]
    pub fn label(&self, label: &str) -> Option<&str> {
        self.labels.as_ref()?.get(label).map(String::as_str)
    }
}

pub(super) fn description(value: &Value) -> Result<String, String> {
    let text = value.as_str().ok_or("is not a text: write it in quotes, or leave it out")?;
    let characters = text.chars().count();
    if characters > DESCRIPTION_CHARS_MAX {
        return Err(format!("has {characters} characters: shorten it to {DESCRIPTION_CHARS_MAX}"));
    }
    match text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
        Some(bad) => Err(format!("contains the control character {bad:?}: leave it out")),
        None => Ok(text.to_owned()),
    }
}

pub(super) fn labels(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let Value::Object(given) = value else {
        return Err("is not an object of labels: write it like {\"team\":\"ops\"}".to_owned());
    };
    if given.len() > LABELS_MAX {
        return Err(format!("has {} labels: give at most {LABELS_MAX}", given.len()));
    }
    given.iter().map(|(label, value)| Ok((label.clone(), label_value(label, value)?))).collect()
}

fn label_value(label: &str, value: &Value) -> Result<String, String> {
    // Without "=", so that `label=value` is read in one way.
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || !label.chars().all(is_good) {
        return Err(format!(
            "{label:?} is no label: use letters, digits and \". _ - /\", at most {LABEL_BYTES_MAX} bytes"
        ));
    }
    let text = value
        .as_str()
        .ok_or_else(|| format!("the value of {label:?} is not a string: write it in quotes"))?;
    if text.len() > LABEL_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!(
            "the value of {label:?} is too long or has control characters: give at most {LABEL_BYTES_MAX} bytes of text"
        ));
    }
    Ok(text.to_owned())
}
