//! What `docker build` would be given: the workspace's files by the rules of `.dockerignore`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The rules of a `.dockerignore`: the last one that fits a path, or a directory that it is in, decides.
pub struct Rules(Vec<(bool, Vec<String>)>);

impl Rules {
    /// Reads them.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let rule = |line: &str| {
            let (takes_back, pattern) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
            let parts = pattern.trim_matches('/').split('/').map(str::to_owned).collect();
            (takes_back, parts)
        };
        Self(lines.map(rule).collect())
    }

    /// Whether the path, relative to the context, stays out.
    #[must_use]
    pub fn ignore(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        let mut ignored = false;
        for (takes_back, pattern) in &self.0 {
            let pattern: Vec<&str> = pattern.iter().map(String::as_str).collect();
            if (1..=parts.len()).any(|length| parts_match(&pattern, &parts[..length])) {
                ignored = !takes_back;
            }
        }
        ignored
    }

    /// Whether nothing below a directory can be taken back, so that it need not be looked into.
    fn ignore_all_below(&self, directory: &str) -> bool {
        let below = format!("{directory}/");
        self.ignore(directory)
            && !self
                .0
                .iter()
                .any(|(takes_back, pattern)| *takes_back && pattern.join("/").starts_with(&below))
    }
}

fn parts_match(pattern: &[&str], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((&"**", rest)) => (0..=path.len()).any(|skipped| parts_match(rest, &path[skipped..])),
        Some((first, rest)) => path
            .split_first()
            .is_some_and(|(part, others)| part_matches(first, part) && parts_match(rest, others)),
    }
}

/// `*` is any text; the other signs of docker's patterns are not in use here.
fn part_matches(pattern: &str, part: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == part,
        Some((before, after)) => part.strip_prefix(before).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.into_iter().any(|at| part_matches(after, &rest[at..]))
        }),
    }
}

/// The files of the context, relative to the workspace.
///
/// # Errors
/// When the workspace cannot be read.
pub fn files(workspace: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = fs::read_to_string(workspace.join(".dockerignore")).context("read .dockerignore")?;
    let rules = Rules::parse(&text);
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(workspace.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let name = path.to_string_lossy();
            if entry.file_type()?.is_dir() {
                if !rules.ignore_all_below(&name) {
                    directories.push(path);
                }
            } else if !rules.ignore(&name) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Copies the context into a directory.
///
/// # Errors
/// When a file cannot be copied.
pub fn copy(workspace: &Path, into: &Path) -> anyhow::Result<()> {
    for path in files(workspace)? {
        let target = into.join(&path);
        fs::create_dir_all(target.parent().unwrap_or(into))?;
        fs::copy(workspace.join(&path), &target).with_context(|| format!("copy {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_fits_decides() {
        let rules = Rules::parse("# all\n*\n!a\n!infra/images\n**/*.pem\n!a/public.pem\na/b\n");
        for (path, ignored) in [
            ("a/x/y.rs", false),
            ("z", true),
            ("infra/README.md", true),
            ("infra/images/build.sh", false),
            ("a/x/key.pem", true),
            ("a/key.pem/in", true),
            ("a/public.pem", false),
            ("a/b/c", true),
            ("a/bc", false),
        ] {
            assert_eq!(rules.ignore(path), ignored, "{path}");
        }
        assert!(!rules.ignore_all_below("infra") && rules.ignore_all_below("z"));
    }
}
