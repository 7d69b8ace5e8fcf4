//! Crontab files that `local-dev` starts with (`--crontab FILE…`): imported as `POST /job/import` does it, each under its own prefix.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use common::crontab::Format;
use functions::Ports;
use functions::endpoints::import;

/// Of a path, so much: a label has 200 bytes, and a character up to four.
const SOURCE_CHARS_MAX: usize = 50;

/// Imports the files and says what became of their lines. A line that cannot be taken does not keep the others from running; a file that
/// cannot be read does.
///
/// # Errors
/// When a file cannot be read, or the store of jobs not written.
#[expect(clippy::print_stdout, reason = "this is what the command says to whoever typed it")]
pub async fn import(ports: &Ports, files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        let text = std::fs::read(file).with_context(|| format!("the crontab {}", file.display()))?;
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let prefix = format!("{name}.");
        let source = source_of(file)?;
        let imported =
            import::file(&*ports.kv, &*ports.clock, &text, format_of(file), &prefix, &source).await;
        let lines = match imported {
            Ok(lines) => lines,
            Err(why) => bail!("the crontab {}: {why}", file.display()),
        };
        for line in lines {
            println!("{}: {line}", file.display());
        }
    }
    Ok(())
}

/// What tells its jobs from those of other files of the same name: its path, or the end of one that is too long for a label.
fn source_of(file: &Path) -> anyhow::Result<String> {
    let path = file.canonicalize().with_context(|| format!("the crontab {}", file.display()))?;
    let path: Vec<char> = path.to_string_lossy().chars().filter(|c| !c.is_control()).collect();
    Ok(path[path.len().saturating_sub(SOURCE_CHARS_MAX)..].iter().collect())
}

/// Only the place of a file tells whether a user stands before its commands.
fn format_of(file: &Path) -> Format {
    let in_cron_d = file.parent().and_then(Path::file_name).is_some_and(|dir| dir == "cron.d");
    if in_cron_d || file == Path::new("/etc/crontab") { Format::System } else { Format::User }
}
