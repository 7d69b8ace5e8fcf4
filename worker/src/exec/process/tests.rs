//! Commands are really run here.

use super::*;
use common::clock::{SystemClock, Timestamp};
use common::domain::job::JobName;
use common::domain::run::{RunId, Trigger};
use common::domain::worker::Sid;

pub(in crate::exec) fn open() -> OpenRun {
    OpenRun {
        run_id: RunId::new(Sid(0xabc), 7),
        job: JobName::parse("test").unwrap(),
        plan_time: Timestamp::from_ms(1_700_000_000_000),
        attempt: 1,
        schedule_time: Timestamp::ZERO,
        worker: "here".to_owned(),
        command: String::new(),
        trigger: Trigger::Schedule,
        skipped: None,
    }
}

pub(in crate::exec) fn work(command: &str) -> Work {
    Work { command: command.into() }
}

async fn end_of(command: &str) -> Ending {
    let (_kill, killed) = oneshot::channel();
    run(&open(), &work(command), &Captured::default(), &SystemClock, killed).await
}

#[tokio::test]
async fn endings_are_told_in_gos_words() {
    for (command, status, err, exit_code, signal) in [
        ("true", Status::Succeeded, "", Some(0), None),
        ("exit 3", Status::Failed, "exit status 3", Some(3), None),
        ("no-such-program-here", Status::Failed, "exit status 127", Some(127), None),
        ("kill -TERM $$", Status::Failed, "signal: terminated", None, Some(15)),
        ("kill -KILL $$", Status::Failed, "signal: killed", None, Some(9)),
    ] {
        let end = end_of(command).await;
        assert_eq!(
            (end.status, end.err.as_str(), end.exit_code, end.signal),
            (status, err, exit_code, signal),
            "{command}"
        );
        assert!(end.start_time <= end.end_time);
    }
}

#[tokio::test]
async fn stdout_and_stderr_stay_in_the_order_they_were_written() {
    let end = end_of("for i in 1 2 3; do echo out$i; echo err$i >&2; done").await;
    assert_eq!(end.output, "out1\nerr1\nout2\nerr2\nout3\nerr3\n");
}

#[tokio::test]
async fn a_command_that_prints_too_much_is_not_blocked() {
    let end = end_of("head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2; exit 5").await;
    assert_eq!((end.exit_code, end.output.len(), end.output_truncated), (Some(5), 1024 * 1024, true));
}

#[tokio::test]
async fn a_command_gets_its_idempotency_key_and_no_standard_input() {
    let end = end_of("echo $CRON_JOB_NAME $CRON_RUN_ID $CRON_PLAN_TIME $CRON_ATTEMPT; cat").await;
    assert_eq!(end.output, "test abc-7 1700000000000 1\n");
}

#[tokio::test]
async fn a_kill_ends_the_whole_group() {
    let (kill, killed) = oneshot::channel();
    let command = "sleep 1000 & echo $!; sleep 1000".to_owned();
    let running = tokio::spawn(async move {
        run(&open(), &work(&command), &Captured::default(), &SystemClock, killed).await
    });
    clock::sleep(Duration::from_millis(300)).await;
    kill.send(()).unwrap();
    let end = running.await.unwrap();
    assert_eq!((end.err.as_str(), end.signal), ("signal: killed", Some(9)));
    assert_gone(end.output.trim()).await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_does_not_outlive_the_run() {
    let end = end_of("sleep 1000 >/dev/null 2>&1 & echo $!").await;
    assert_eq!(end.status, Status::Succeeded);
    assert_gone(end.output.trim()).await;
}

#[tokio::test]
async fn output_of_background_processes_still_counts() {
    let end = end_of("(sleep 0.3; echo late) & echo early").await;
    assert_eq!((end.status, end.output.as_str()), (Status::Succeeded, "early\nlate\n"));
}

/// Waits until a process is gone, or a zombie that nobody of ours can reap (its parent is dead, and pid 1 of a container may be lazy).
pub(in crate::exec) async fn assert_gone(pid: &str) {
    let stat = format!("/proc/{pid}/stat");
    for _ in 0..200 {
        match std::fs::read_to_string(&stat) {
            Err(_) => return,
            Ok(line) if line.contains(") Z") => return,
            Ok(_) => clock::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("process {pid} is still there");
}
