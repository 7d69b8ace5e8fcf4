//! What holds of the web console's files without a browser: its texts in every language, and its vendored libraries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use common::domain::options::JobOptions;
use common::domain::record::Status;
use local_dev::native::workspace;
use sha2::{Digest as _, Sha256};

/// Keys that the code puts together, by how they begin.
const MADE: &[&str] = &[
    "theme.", "fresh.", "status.", "state.", "trigger.", "reason.", "example.", "group.", "option.",
    "choice.", "help.", "role.", "roleMay.", "days.",
];
/// The questions before something is done: each has its texts.
const QUESTIONS: &[&str] =
    &["run", "kill", "delete", "rollback", "fleetPause", "fleetResume", "revoke", "calendarDelete"];

fn sources() -> PathBuf {
    workspace().join("functions/src/console")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The scripts of a directory, by name.
fn scripts(dir: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let scripts = entries.filter(|path| path.extension().is_some_and(|extension| extension == "js"));
    scripts.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), read(&path))).collect()
}

/// The texts of a language: key, and its one text or its pair (for one, for many). Each stands on a line of its own.
fn texts(source: &str, language: &str) -> BTreeMap<String, Vec<String>> {
    let (_, rest) = source.split_once(&format!("const {language} = {{\n")).expect("a language is an object");
    let (lines, _) = rest.split_once("\n};").expect("an object ends");
    let mut texts = BTreeMap::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")) {
        let (key, value) = match line.strip_prefix('"') {
            Some(quoted) => quoted.split_once("\": "),
            None => line.split_once(": "),
        }
        .unwrap_or_else(|| panic!("no text: {line}"));
        let value = value.strip_suffix(',').unwrap_or_else(|| panic!("no comma behind it: {line}"));
        let forms = serde_json::from_str::<Vec<String>>(value)
            .or_else(|_| serde_json::from_str::<String>(value).map(|one| vec![one]))
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(matches!(forms.len(), 1 | 2) && forms.iter().all(|form| !form.is_empty()), "{line}");
        assert!(texts.insert(key.to_owned(), forms).is_none(), "{language} has {key} twice");
    }
    texts
}

/// The `{name}`s in each form of a text.
fn gaps(forms: &[String]) -> Vec<BTreeSet<&str>> {
    let gaps = |form| {
        str::split(form, '{').skip(1).filter_map(|rest: &str| rest.split_once('}')).map(|(name, _)| name)
    };
    forms.iter().map(|form| gaps(form.as_str()).collect()).collect()
}

#[test]
fn both_languages_have_the_same_texts_with_the_same_gaps() {
    let source = read(&sources().join("texts.js"));
    let (en, zh) = (texts(&source, "en"), texts(&source, "zh"));
    assert!(en.len() > 150, "only {} texts were read", en.len());
    assert_eq!(en.keys().collect::<Vec<_>>(), zh.keys().collect::<Vec<_>>());
    for (key, forms) in &en {
        assert_eq!(gaps(forms), gaps(&zh[key]), "{key}");
    }
}

/// The keys that a script asks for as they stand there: the texts in quotes in `t(…)` and `rich(…)`, but for those that are compared with.
fn asked(script: &str) -> BTreeSet<&str> {
    let mut asked = BTreeSet::new();
    for call in ["t(", "rich("] {
        for (at, _) in script.match_indices(call) {
            if script[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
                continue;
            }
            let arguments = &script[at + call.len()..];
            let end = arguments.find([',', ')', '`', '(']).unwrap_or(arguments.len());
            let pieces: Vec<&str> = arguments[..end].split('"').collect();
            asked.extend(
                pieces.windows(2).step_by(2).filter(|pair| !pair[0].ends_with("== ")).map(|pair| pair[1]),
            );
        }
    }
    asked
}

#[test]
fn every_text_that_the_code_asks_for_exists_and_every_text_is_asked_for() {
    let mut scripts = scripts(&sources());
    let texts = texts(&scripts.remove("texts.js").unwrap(), "en");
    let mut found = 0;
    for (name, script) in &scripts {
        for key in asked(script) {
            assert!(texts.contains_key(key), "{name} asks for {key}");
            found += 1;
        }
    }
    assert!(found > 100, "only {found} keys were found in the scripts");
    let asked_before = |key: &str| {
        let rests = QUESTIONS.iter().filter_map(|question| key.strip_prefix(question));
        rests.into_iter().any(|rest| ["Title", "Question", "Help", "Do", "Insist"].contains(&rest))
    };
    for key in texts.keys() {
        let quoted = format!("\"{key}\"");
        let named = scripts.values().any(|script| script.contains(&quoted));
        let made = MADE.iter().any(|start| key.starts_with(start)) || asked_before(key);
        assert!(named || made, "nobody asks for {key}");
    }
}

#[test]
fn the_form_has_every_option_that_the_api_takes_and_no_other() {
    let scripts = scripts(&sources());
    let texts = texts(&scripts["texts.js"], "en");
    let told = texts.keys().filter_map(|key| key.strip_prefix("option."));
    let told: BTreeSet<&str> = told.filter(|name| !name.contains('.')).collect();
    assert_eq!(told, JobOptions::names().collect());
    for name in told {
        assert!(texts.contains_key(&format!("help.{name}")), "{name} is not explained");
        assert!(scripts["options.js"].contains(&format!("\"{name}\"")), "{name} is not in the form");
    }
}

#[test]
fn records_can_be_held_to_every_status() {
    let scripts = scripts(&sources());
    let texts = texts(&scripts["texts.js"], "en");
    for status in Status::ALL.map(Status::as_str) {
        assert!(texts.contains_key(&format!("status.{status}")), "{status}");
        assert!(scripts["parts.js"].contains(&format!("\"{status}\"")), "{status} is not among STATUSES");
    }
}

fn sum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_vendored_libraries_are_the_bytes_that_their_table_says() {
    let vendor = sources().join("vendor");
    let table = read(&vendor.join("README.md"));
    let scripts = scripts(&vendor);
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let recorded: BTreeMap<&str, &str> = rows
        .map(|row| {
            let quoted: Vec<&str> = row.split('`').collect();
            (quoted[1], quoted[quoted.len() - 2])
        })
        .collect();
    let here: BTreeMap<&str, String> =
        scripts.iter().map(|(name, text)| (name.as_str(), sum(text))).collect();
    assert!(here.len() >= 3, "{here:?}");
    assert_eq!(here.iter().map(|(name, sum)| (*name, sum.as_str())).collect::<BTreeMap<_, _>>(), recorded);
    // Its one change undone, it is what was published.
    let published = scripts["preact-hooks.js"].replacen("from\"./preact.js\"", "from\"preact\"", 1);
    assert!(table.contains(&sum(&published)), "preact-hooks.js differs by more than its import");
    for library in ["preact", "htm"] {
        assert!(vendor.join(format!("{library}.LICENSE")).is_file(), "{library} has no licence beside it");
    }
}
