//! What the compiler cannot hold: which modules are pure, who builds keys, what no file may name.

use std::path::{Path, PathBuf};

use local_dev::native::workspace;

/// Every file of the repository's sources, without what is built or fetched.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![workspace().to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git", ".fleetcron", "node_modules", "__pycache__"].contains(&name.as_str()) {
                    dirs.push(path);
                }
            } else if name != ".git" {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 40, "the sources were not found");
    found
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}

fn name(path: &Path) -> String {
    path.strip_prefix(workspace()).unwrap().to_string_lossy().into_owned()
}

/// The part of a source file that is not its tests.
fn product(path: &Path) -> String {
    let text = text(path);
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

fn assert_none(what: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
}

/// Lines of the given files that contain one of the words, comments left out.
fn lines_with(files: &[PathBuf], words: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for path in files {
        for (number, line) in product(path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = words.iter().find(|word| code.contains(**word)) {
                faults.push(format!("{}:{}: {word}", name(path), number + 1));
            }
        }
    }
    faults
}

#[test]
fn the_scheduler_and_the_schedules_do_no_io_and_read_no_clock() {
    let pure: Vec<PathBuf> = files()
        .into_iter()
        .filter(|path| {
            let name = name(path);
            let dirs = ["worker/src/scheduler", "common/src/schedule"];
            name.ends_with(".rs") && dirs.iter().any(|dir| name.starts_with(dir))
        })
        .collect();
    assert!(pure.iter().any(|path| name(path).starts_with("common/src/schedule")), "schedule/ was not found");
    let words = [
        "tokio::",
        "std::fs",
        "std::net",
        "std::process",
        "std::env",
        "std::thread",
        "std::io",
        "SystemClock",
        "SystemTime",
        "Instant",
        "Stopwatch",
        "Utc::now",
        "Local::now",
        "clock::sleep",
        "clock::timeout",
        "ids::random",
        "HashMap", // its order changes from run to run
        "HashSet",
        "async fn",
        ".await",
        "common::kv::Kv",
        "run_log",
        "mongodb",
        "etcd_client",
    ];
    // The domain's times come from the clock's module, and that is all that may.
    assert_none("pure modules take values in and give values out", &lines_with(&pure, &words));
}

#[test]
fn only_keys_rs_knows_the_keys() {
    let others: Vec<PathBuf> = files()
        .into_iter()
        .filter(|path| {
            let name = name(path);
            name.ends_with(".rs")
                && ["common/src", "functions/src", "worker/src", "local-dev/src"]
                    .iter()
                    .any(|dir| name.starts_with(dir))
                && name != "common/src/keys.rs"
        })
        .collect();
    assert_none("build keys with common::keys", &lines_with(&others, &["\"/cron", "\"cron/"]));
}

#[test]
fn no_file_names_a_package_registrys_host_or_a_machines_path() {
    // Put together here, so that this file does not name them.
    let words: Vec<String> = [
        ["index.crates", ".io"],
        ["static.crates", ".io"],
        ["pypi", ".org"],
        ["pythonhosted", ".org"],
        ["proxy.golang", ".org"],
        ["sum.golang", ".org"],
        ["registry.npmjs", ".org"],
        ["/root", "/"],
        ["/home", "/"],
        ["/work", "/"],
        ["..", "/shared"],
    ]
    .map(|parts| parts.concat())
    .to_vec();
    let mut faults = Vec::new();
    for path in files() {
        let text = text(&path);
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(word.as_str())) {
                faults.push(format!("{}:{}: {word}", name(&path), number + 1));
            }
        }
    }
    assert_none("no file may name these", &faults);
}

#[test]
fn every_rust_file_says_first_what_it_is_for() {
    let faults: Vec<String> = files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| !text(path).starts_with("//! "))
        .map(|path| name(&path))
        .collect();
    assert_none("the first line says what the file is for", &faults);
}

/// Rows of the table in a section of a document, each with its cells, without the head.
fn rows(document: &str, section: &str) -> Vec<Vec<String>> {
    let text = text(&workspace().join(document));
    let (_, section) = text.split_once(&format!("\n## {section}\n")).expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The sources, by what a table calls them.
fn sources() -> Vec<(String, String)> {
    let module = |path: &Path| {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let of_directory = ["mod", "tests"].contains(&stem.as_str());
        let directory = path.parent().and_then(Path::file_name).filter(|_| of_directory);
        directory.map_or(stem, |directory| directory.to_string_lossy().into_owned())
    };
    files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| (module(&path), text(&path)))
        .collect()
}

/// What is wrong with a cell that is to name tests.
fn faults(row: &str, cell: &str, sources: &[(String, String)]) -> Vec<String> {
    let named: Vec<(&str, &str)> =
        cell.split('`').skip(1).step_by(2).filter_map(|word| word.split_once("::")).collect();
    if named.is_empty() {
        return vec![format!("{row}: no test is named: {cell}")];
    }
    let is_there = |(file, test): &(&str, &str)| {
        sources.iter().any(|(stem, text)| stem == file && text.contains(&format!("fn {test}(")))
    };
    let absent = named.into_iter().filter(|named| !is_there(named));
    absent.map(|(file, test)| format!("{row}: there is no {file}::{test}")).collect()
}

#[test]
fn every_cell_of_the_table_of_degradation_names_tests_that_exist() {
    let (sources, rows) = (sources(), rows("ARCHITECTURE.md", "Degradation"));
    assert!(rows.len() > 10, "the table was not found");
    let mut found = Vec::new();
    for row in &rows {
        assert_eq!(row.len(), 4, "{row:?}");
        found.extend(row[1..].iter().flat_map(|cell| faults(&row[0], cell, &sources)));
    }
    assert_none("each cell is held by a test", &found);
}

#[test]
fn every_rotation_of_the_runbook_names_tests_that_exist_or_says_that_it_is_untried() {
    let (sources, rows) = (sources(), rows("infra/RUNBOOK.md", "Rotate secrets"));
    assert!(rows.len() > 8, "the table was not found");
    let mut found = Vec::new();
    for row in &rows {
        assert_eq!(row.len(), 3, "{row:?}");
        if !row[2].starts_with("untried") {
            found.extend(faults(&row[0], &row[2], &sources));
        }
    }
    assert_none("each rotation is held by a test", &found);
}

/// Where `unsafe` stands, and how often: each with its argument in ARCHITECTURE.md ("Unsafe code").
const UNSAFE: &[(&str, usize)] = &[("worker/src/exec/shell.rs", 1), ("worker/src/private.rs", 1)];

#[test]
fn what_the_compiler_cannot_prove_is_argued_and_stands_nowhere_else() {
    // Put together here, so that this file has none.
    let begins = ["unsafe", " {"].concat();
    let allowed = ["unsafe", "_code"].concat();
    let mut found = Vec::new();
    for path in files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
    {
        let text = text(&path);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let blocks: Vec<usize> = (0..lines.len()).filter(|n| lines[*n].contains(&begins)).collect();
        for block in &blocks {
            let comment = lines[..*block].iter().rev().take_while(|line| line.starts_with("//"));
            let told = comment.clone().any(|line| line.starts_with("// SAFETY: "));
            assert!(told, "{}:{} does not say why it is safe", name(&path), block + 1);
        }
        assert_eq!(
            blocks.is_empty(),
            !text.contains(&allowed),
            "{}: unsafe code or a leave for it",
            name(&path)
        );
        if !blocks.is_empty() {
            found.push((name(&path), blocks.len()));
        }
    }
    let found: Vec<(&str, usize)> = found.iter().map(|(name, many)| (name.as_str(), *many)).collect();
    assert_eq!(found, UNSAFE);
}
