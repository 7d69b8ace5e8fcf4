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
