//! Crontab files: text in, jobs out, and jobs written as such a file again. Pure: no files, no clock.
//!
//! A file is read as Debian's cron and cronie read it. Each line becomes a job, or is told with the reason why it cannot. What a job has
//! and a crontab has no place for stands in comments that begin with [`DIRECTIVE`], which cron passes over: so a file that was written here is
//! read here as the very same jobs.

mod command;
mod names;
mod read;
#[cfg(test)]
mod tests;
mod write;

use crate::domain::job::Submitted;
use crate::domain::settings::FleetSettings;

pub use read::read;
pub use write::write;

/// A comment that begins so is followed by JSON: the whole job, or the fields of the job on the next line that a crontab has no place for.
pub const DIRECTIVE: &str = "#fleetcron:";

/// The label by which jobs are known that came from a crontab; its value tells from which.
pub const LABEL: &str = "importedFrom";

/// Whose crontab it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A user's, as `crontab -l` shows it.
    User,
    /// The machine's: `/etc/crontab` and files in `/etc/cron.d`, with a user before each command.
    System,
}

/// How a file is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Whose it is.
    pub format: Format,
    /// What the jobs' names begin with.
    pub prefix: &'a str,
    /// The value of the label [`LABEL`].
    pub source: &'a str,
    /// The time zone of lines for which the file names none; `None` = the fleet's.
    pub timezone: Option<&'a str>,
    /// With which the jobs are read.
    pub fleet: &'a FleetSettings,
}

/// A file that was read.
#[derive(Clone, Debug, Default)]
pub struct Crontab {
    /// The jobs, in the order of their lines.
    pub entries: Vec<Entry>,
    /// Lines that cannot be taken.
    pub refused: Vec<Refused>,
    /// Lines that mean less here, or something else, than their author may think.
    pub remarks: Vec<Remark>,
}

/// A line's job.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The number of the line, from 1.
    pub line: usize,
    /// Its job.
    pub submitted: Submitted,
}

/// A line that cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The number of the line, from 1.
    pub line: usize,
    /// Where on the line, in characters from 1.
    pub character: usize,
    /// The line.
    pub text: String,
    /// What is wrong with it, and what to do.
    pub why: String,
}

/// What somebody should know about a line although it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    /// The number of the line, from 1.
    pub line: usize,
    /// A sentence.
    pub what: String,
}
