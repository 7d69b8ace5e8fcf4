//! Servers end with whoever started them, also when that is killed with -9.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use tests::fixtures::{SOON, TestDir, wait_for};

#[tokio::test]
async fn servers_and_their_children_end_with_a_parent_that_is_killed() {
    let dir = TestDir::new("guard");
    let mut holder = Command::new(env!("CARGO_BIN_EXE_tests"))
        .arg("hold")
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let held: i32 = line.trim().parse().unwrap();
    // Its child has a process group of its own (`set -m`): killing the server's group alone would leave it behind.
    let child = wait_for("the server's child", SOON, async || {
        children(held).into_iter().find(|child| group(*child) != group(held))
    })
    .await;

    holder.kill().unwrap();
    holder.wait().unwrap();

    for pid in [held, child] {
        wait_for("the end of the server and its child", SOON, async || is_gone(pid).then_some(())).await;
    }
}

fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// Gone, or waiting for a parent that never asks.
fn is_gone(pid: i32) -> bool {
    stat(pid).is_none_or(|fields| fields[0] == "Z")
}

fn group(pid: i32) -> Option<String> {
    Some(stat(pid)?[2].clone())
}

fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
