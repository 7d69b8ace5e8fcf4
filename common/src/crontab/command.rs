//! The command of a line: crontab's percent signs, another shell, and what a command reads from its standard input.

/// Parts what stands behind the time into the command and what it reads: the first `%` ends the command, each further one is a line break,
/// and `\%` is a percent sign. Backslashes count as in cronie: in the command in pairs, in the input each alone.
pub(super) fn split(text: &str) -> (String, String) {
    let mut command = String::new();
    let mut rest = text.chars();
    let mut escaped = false;
    while let Some(c) = rest.next() {
        match (escaped, c) {
            (true, '%') => {
                command.pop();
                command.push('%');
            }
            (false, '%') => return (command, input(rest.as_str())),
            _ => command.push(c),
        }
        escaped = !escaped && c == '\\';
    }
    (command, String::new())
}

fn input(text: &str) -> String {
    let mut input = String::new();
    let mut escaped = false;
    for c in text.chars() {
        match (escaped, c) {
            (true, '%') => {
                input.pop();
                input.push('%');
            }
            (false, '%') => input.push('\n'),
            _ => input.push(c),
        }
        escaped = c == '\\';
    }
    if !input.is_empty() && !input.ends_with('\n') {
        input.push('\n');
    }
    input
}

/// The command with what it reads, as one command. A job has no standard input, so that the shell gets it from a here-document: with a
/// quoted word at its end no character of the text means anything to the shell, every shell of POSIX has it, and by `exec` it stands before
/// the command, which is left as it is, whatever it is made of.
pub(super) fn with_input(command: &str, input: &str) -> String {
    if input.is_empty() {
        return command.to_owned();
    }
    let mut word = "END".to_owned();
    while input.lines().any(|line| line == word) {
        word.push('_');
    }
    format!("exec <<'{word}'\n{input}{word}\n{command}")
}

/// What [`with_input`] put together; no input where it did not.
pub(super) fn parted(command: &str) -> (&str, &str) {
    let found = command.strip_prefix("exec <<'").and_then(|rest| {
        let (word, rest) = rest.split_once("'\n")?;
        let end = rest.find(&format!("\n{word}\n"))? + 1;
        Some((rest.get(end + word.len() + 1..)?, &rest[..end]))
    });
    found.unwrap_or((command, ""))
}

/// As it is written on a line; [`split`] reads it again, but for a backslash before a percent sign, for which crontab has no way of writing.
pub(super) fn written(command: &str) -> String {
    let (command, input) = parted(command);
    let mut text = command.replace('%', "\\%");
    if !input.is_empty() {
        text.push('%');
        text.push_str(&input.replace('%', "\\%").trim_end_matches('\n').replace('\n', "%"));
        // A line break at the end is put there by cron; others, and the one of an empty line, have to be written.
        let ends = input.len() - input.trim_end_matches('\n').len();
        let unwritten = usize::from(ends == 1 && input.len() > 1);
        text.push_str(&"%".repeat(ends - unwritten));
    }
    text
}

/// The command for another shell than the workers'.
pub(super) fn in_shell(shell: &str, command: &str) -> String {
    format!("exec {} -c {}", quoted(shell), quoted(command))
}

/// As one word of the shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+');
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}
