//! Reads our Dockerfiles: only the instructions that they need, so that what the tests do not understand cannot stand in them.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

/// A Dockerfile, read.
#[derive(Debug)]
pub struct Dockerfile {
    /// Its stages, in order.
    pub stages: Vec<Stage>,
}

/// What one `FROM` begins.
#[derive(Debug)]
pub struct Stage {
    /// The name after `AS`.
    pub name: Option<String>,
    /// An image, or an earlier stage.
    pub from: String,
    /// What follows, in order.
    pub instructions: Vec<Instruction>,
}

/// An instruction; values are as they are written, with their `$VARIABLES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// `ARG name=default`
    Arg(String, String),
    /// `ENV name=value …`
    Env(Vec<(String, String)>),
    /// `COPY [--from=stage] source… target`
    Copy {
        /// The stage; `None`: the context.
        from: Option<String>,
        /// What.
        sources: Vec<String>,
        /// Whereto; a directory when it ends with a slash.
        target: String,
    },
    /// `RUN script word…`
    Run(Vec<String>),
    /// `USER uid:gid`
    User(u32, u32),
    /// `WORKDIR path`
    Workdir(PathBuf),
    /// `VOLUME path…`
    Volume(Vec<PathBuf>),
    /// `ENTRYPOINT ["program", …]`
    Entrypoint(Vec<String>),
    /// `CMD ["word", …]`
    Cmd(Vec<String>),
    /// `STOPSIGNAL name`
    StopSignal(String),
    /// `HEALTHCHECK --option=… CMD ["program", …]`
    HealthCheck(Vec<String>),
    /// `EXPOSE port`
    Expose(u16),
    /// `LABEL name=value …`
    Label(Vec<(String, String)>),
}

impl Dockerfile {
    /// Reads one.
    ///
    /// # Errors
    /// When it says what is not understood here; with the line.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut stages: Vec<Stage> = Vec::new();
        for line in logical_lines(text) {
            let (word, rest) = line.split_once(' ').with_context(|| format!("no instruction: {line:?}"))?;
            let rest = rest.trim();
            if word == "FROM" {
                stages.push(stage(rest).with_context(|| format!("line {line:?}"))?);
                continue;
            }
            let instruction = instruction(word, rest).with_context(|| format!("line {line:?}"))?;
            let stage = stages.last_mut().with_context(|| format!("before the first FROM: {line:?}"))?;
            stage.instructions.push(instruction);
        }
        Ok(Self { stages })
    }

    /// The stage of that name, or the last.
    #[must_use]
    pub fn stage(&self, name: Option<&str>) -> Option<&Stage> {
        match name {
            Some(name) => self.stages.iter().find(|stage| stage.name.as_deref() == Some(name)),
            None => self.stages.last(),
        }
    }
}

/// Lines without comments, continued ones joined.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut continued = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (part, goes_on) = line.strip_suffix('\\').map_or((line, false), |part| (part.trim_end(), true));
        match lines.last_mut() {
            Some(last) if continued => {
                last.push(' ');
                last.push_str(part);
            }
            _ => lines.push(part.to_owned()),
        }
        continued = goes_on;
    }
    lines
}

fn stage(rest: &str) -> anyhow::Result<Stage> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (from, name) = match words.as_slice() {
        [from] => (*from, None),
        [from, "AS", name] => (*from, Some((*name).to_owned())),
        _ => bail!("not like `FROM image AS name`"),
    };
    Ok(Stage { name, from: from.to_owned(), instructions: Vec::new() })
}

fn instruction(word: &str, rest: &str) -> anyhow::Result<Instruction> {
    Ok(match word {
        "ARG" => {
            let (name, default) = rest.split_once('=').context("an ARG has a default")?;
            Instruction::Arg(name.to_owned(), default.to_owned())
        }
        "ENV" => Instruction::Env(pairs(rest)?),
        "LABEL" => Instruction::Label(pairs(rest)?),
        "COPY" => copy(rest)?,
        "RUN" => Instruction::Run(run(rest)?),
        "USER" => {
            let (uid, gid) = rest.split_once(':').context("not like uid:gid")?;
            Instruction::User(uid.parse().context("a number")?, gid.parse().context("a number")?)
        }
        "WORKDIR" => Instruction::Workdir(absolute(rest)?),
        "VOLUME" => Instruction::Volume(rest.split_whitespace().map(absolute).collect::<Result<_, _>>()?),
        "ENTRYPOINT" => Instruction::Entrypoint(exec_form(rest)?),
        "CMD" => Instruction::Cmd(exec_form(rest)?),
        "STOPSIGNAL" => Instruction::StopSignal(rest.to_owned()),
        "HEALTHCHECK" => {
            let (options, command) = rest.split_once("CMD ").context("a HEALTHCHECK has a CMD")?;
            for option in options.split_whitespace() {
                let known = ["--interval=", "--timeout=", "--start-period=", "--retries="];
                if !known.iter().any(|known| option.starts_with(known)) {
                    bail!("unknown option {option:?}");
                }
            }
            Instruction::HealthCheck(exec_form(command)?)
        }
        "EXPOSE" => Instruction::Expose(rest.parse().context("a port")?),
        _ => bail!("the instruction {word} is not in use here"),
    })
}

fn absolute(path: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        bail!("{} is not absolute", path.display());
    }
    Ok(path)
}

fn exec_form(text: &str) -> anyhow::Result<Vec<String>> {
    let words: Vec<String> = serde_json::from_str(text).context("not of the form [\"program\", …]")?;
    if words.is_empty() {
        bail!("it is empty");
    }
    Ok(words)
}

/// `name=value name="value with blanks"`
fn pairs(rest: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = rest.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').context("not like name=value")?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').context("a quote is not closed")?,
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        pairs.push((name.trim().to_owned(), value.to_owned()));
        rest = after.trim();
    }
    Ok(pairs)
}

fn copy(rest: &str) -> anyhow::Result<Instruction> {
    let mut words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
    let from = words.first().and_then(|word| word.strip_prefix("--from=")).map(str::to_owned);
    if from.is_some() {
        words.remove(0);
    }
    if let Some(option) = words.iter().find(|word| word.starts_with("--") || word.contains(['*', '?', '['])) {
        bail!("{option:?} is not in use here");
    }
    let target = words.pop().context("COPY has no target")?;
    if words.is_empty() {
        bail!("COPY has no source");
    }
    if words.len() > 1 && !target.ends_with('/') {
        bail!("several sources go into a directory: its name ends with a slash");
    }
    Ok(Instruction::Copy { from, sources: words, target })
}

/// One script and its words: what a RUN does must be runnable without docker.
fn run(rest: &str) -> anyhow::Result<Vec<String>> {
    if let Some(sign) = rest.chars().find(|c| ";&|<>`(){}[]*?!\\\"'".contains(*c)) {
        bail!("a RUN is one call of a script of infra/images: {sign:?} is too much for it");
    }
    let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
    let script = words.first().context("RUN what?")?;
    let ours = ["infra/images/", "/usr/local/lib/fleetcron/"];
    if !script.ends_with(".sh") || !ours.iter().any(|dir| script.starts_with(dir)) {
        bail!("a RUN is a call of a script of infra/images, not of {script:?}");
    }
    Ok(words)
}

/// Puts values in for `$NAME` and `${NAME}`; a name that is not known is an error, which docker would not make of it.
///
/// # Errors
/// When a variable has no value.
pub fn expand(text: &str, variables: &[(String, String)]) -> anyhow::Result<String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let (name, after) = match after.strip_prefix('{') {
            Some(braced) => {
                braced.split_once('}').with_context(|| format!("a brace is not closed: {text:?}"))?
            }
            None => {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                after.split_at(end)
            }
        };
        let value = variables.iter().rev().find(|(known, _)| known == name);
        expanded.push_str(&value.with_context(|| format!("${name} has no value in {text:?}"))?.1);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (text, why) in [
            ("FROM a\nRUN apt-get update && true\n", "too much"),
            ("FROM a\nRUN apt-get update\n", "not of"),
            ("FROM a\nADD a b\n", "not in use"),
            ("FROM a\nCOPY --chown=1:1 a b\n", "not in use"),
            ("FROM a\nUSER fleetcron\n", "uid:gid"),
            ("FROM a\nENTRYPOINT worker\n", "form"),
            ("RUN infra/images/build.sh\n", "before the first FROM"),
        ] {
            let error = format!("{:#}", Dockerfile::parse(text).unwrap_err());
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn lines_are_joined_and_values_quoted() {
        let file = Dockerfile::parse("# one\nFROM a AS b\nLABEL x=\"1 2\" \\\n  y=$Z\n").unwrap();
        let label = Instruction::Label(vec![("x".into(), "1 2".into()), ("y".into(), "$Z".into())]);
        assert_eq!(file.stage(Some("b")).unwrap().instructions, [label]);
        let variables = [("Z".to_owned(), "3".to_owned())];
        assert_eq!(expand("a${Z}b$Z-c", &variables).unwrap(), "a3b3-c");
        assert!(expand("$UNKNOWN", &variables).is_err());
    }
}
