//! Names for lines that have none: the same for the same file, however often and in whatever order of its lines it is read.

use serde_json::{Map, Value};

use super::command;

/// Most of the command that a name shows, in characters.
const SLUG_CHARS_MAX: usize = 32;
/// Words of a command that say little about what it does.
const PASSED_OVER: [&str; 31] = [
    "test", "if", "then", "else", "elif", "fi", "for", "in", "do", "done", "while", "case", "esac", "cd",
    "exec", "command", "nice", "ionice", "env", "sudo", "null", "bin", "true", "false", "and", "or", "not",
    "set", "export", "sleep", "chronic",
];

/// A line that is to be named.
pub(super) struct Unnamed {
    /// Its user and its command: by these it is known when its times are edited.
    pub user: Option<String>,
    pub command: String,
    /// The job without a name.
    pub fields: Map<String, Value>,
}

/// A name for each. Lines of one user with the same command are told apart by a number, which is given in the order of what else they say.
///
/// With the times in the name, a line whose times are edited would be a new job, and the old one would go on firing unless somebody removed it.
pub(super) fn names(prefix: &str, lines: &[Unnamed]) -> Vec<String> {
    let bases: Vec<String> = lines.iter().map(|line| base(prefix, line)).collect();
    let said = |line: &Unnamed| {
        let times = line.fields.get("cronExpr").map(Value::to_string).unwrap_or_default();
        (times, Value::Object(line.fields.clone()).to_string())
    };
    let mut order: Vec<(&String, (String, String), usize)> =
        bases.iter().zip(lines).enumerate().map(|(n, (base, line))| (base, said(line), n)).collect();
    order.sort();
    let mut names = vec![String::new(); lines.len()];
    let (mut last, mut number) = ("", 0);
    for (base, _, n) in &order {
        number = if *base == last { number + 1 } else { 1 };
        last = base;
        names[*n] = if number == 1 { (*base).clone() } else { format!("{base}-{number}") };
    }
    names
}

fn base(prefix: &str, line: &Unnamed) -> String {
    let identity = format!("{}\0{}", line.user.as_deref().unwrap_or_default(), line.command);
    // Eight digits tell a file's commands apart; should two be the same after all, a number does.
    let hash = xxhash_rust::xxh3::xxh3_64(identity.as_bytes()) >> 32;
    format!("{prefix}{}-{hash:08x}", slug(command::parted(&line.command).0))
}

/// The words that tell the most of a command, for people.
fn slug(command: &str) -> String {
    let mut slug = String::new();
    let shell = |c: char| {
        c.is_whitespace() || matches!(c, ';' | '|' | '&' | '(' | ')' | '{' | '}' | '"' | '\'' | '`')
    };
    for word in command.split(shell) {
        if word.starts_with(['-', '$', '>', '<', '+', '[', '!']) || word.contains(['=', '>', '<']) {
            continue;
        }
        let name = word.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
        let name: String = name
            .to_ascii_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' })
            .collect();
        let name = name.trim_matches(['-', '.', '_']);
        let says_little = PASSED_OVER.contains(&name) || name.bytes().all(|b| !b.is_ascii_alphabetic());
        if says_little || slug.split('-').any(|known| known == name) || slug.ends_with(name) {
            continue;
        }
        if slug.is_empty() {
            slug.extend(name.chars().take(SLUG_CHARS_MAX));
        } else if slug.len() + name.len() < SLUG_CHARS_MAX {
            slug.push('-');
            slug.push_str(name);
        } else {
            break;
        }
    }
    if slug.is_empty() { "job".to_owned() } else { slug }
}
