//! Commands are really run here.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::secrets::tests::Scene;
use super::*;
use common::clock::{SystemClock, Timestamp};
use common::domain::job::{Job, JobName};
use common::domain::run::{RunId, Trigger};
use common::domain::worker::Sid;
use serde_json::json;

/// A run that was claimed, as every test may change it.
pub(crate) fn open() -> OpenRun {
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
        unlocked: false,
        asked: None,
        after: None,
        env: None,
        on_lost: None,
        target: None,
        trace: None,
    }
}

pub(in crate::exec) fn work(command: &str) -> Work {
    Work::new(command, &Execution::default())
}

pub(in crate::exec) fn work_with(command: &str, options: serde_json::Value) -> Work {
    let fields = serde_json::json!({"name": "a", "command": "true", "cronExpr": "@daily"});
    let mut job = fields.as_object().unwrap().clone();
    job.extend(options.as_object().unwrap().clone());
    let job =
        Job::from_submitted(job.into(), &common::domain::settings::FleetSettings::default()).unwrap().job;
    Work::new(command, &job.options.execution)
}

/// A command that is going.
struct Going {
    running: Running,
    ending: tokio::task::JoinHandle<Ending>,
}

impl Going {
    fn begin(shell: Shell, work: Work) -> Self {
        let (running, asked) = Running::new(&work);
        let captured = running.captured.clone();
        let ending =
            tokio::spawn(async move { run(&shell, &open(), &work, &captured, &SystemClock, asked).await });
        Self { running, ending }
    }

    /// Returns what it has printed when it has printed so many lines.
    async fn has_printed(&self, lines: usize) -> String {
        for _ in 0..1000 {
            let text = self.running.captured.kept().text;
            if text.lines().count() >= lines && text.ends_with('\n') {
                return text;
            }
            clock::sleep(Duration::from_millis(10)).await;
        }
        panic!("it has printed {:?}", self.running.captured.kept());
    }
}

async fn end_of_work(shell: Shell, work: Work) -> Ending {
    let going = Going::begin(shell, work);
    going.ending.await.unwrap()
}

async fn end_of(command: &str) -> Ending {
    end_of_work(Shell::default(), work(command)).await
}

async fn end_with(command: &str, options: serde_json::Value) -> Ending {
    end_of_work(Shell::default(), work_with(command, options)).await
}

fn told(end: &Ending) -> (Status, &str, Option<i32>, Option<i32>) {
    (end.status, end.err.as_str(), end.exit_code, end.signal)
}

#[tokio::test]
async fn endings_are_told_in_gos_words() {
    for (command, status, err, exit_code, signal) in [
        ("true", Status::Succeeded, "", Some(0), None),
        ("exit 3", Status::Failed, "exit status 3", Some(3), None),
        ("no-such-program-here", Status::Failed, "exit status 127", Some(127), None),
        ("kill -TERM $$", Status::Failed, "signal: terminated", None, Some(15)),
        ("kill -KILL $$", Status::Failed, "signal: killed", None, Some(9)),
        ("ulimit -c 0; kill -XFSZ $$", Status::Failed, "signal: file size limit exceeded", None, Some(25)),
        ("kill -40 $$", Status::Failed, "signal: signal 40", None, Some(40)),
    ] {
        let end = end_of(command).await;
        assert_eq!(told(&end), (status, err, exit_code, signal), "{command}");
        assert!(end.start_time <= end.end_time);
    }
}

#[tokio::test]
async fn stdout_and_stderr_stay_in_the_order_they_were_written() {
    let end = end_of("for i in 1 2 3; do echo out$i; echo err$i >&2; done").await;
    assert_eq!(end.output, "out1\nerr1\nout2\nerr2\nout3\nerr3\n");
}

#[tokio::test]
async fn of_a_command_that_prints_too_much_the_beginning_and_the_end_are_kept() {
    let command = "echo begin; head -c 300000000 /dev/zero; echo end >&2; exit 5";
    let end = end_of(command).await;
    assert_eq!((end.exit_code, end.output_bytes, end.output_truncated), (Some(5), 300_000_010, true));
    assert!(end.output.starts_with("begin\n\0") && end.output.ends_with("\0end\n"));
    let left_out = "[... 298951434 bytes of output are left out here ...]";
    assert!(end.output.contains(left_out) && end.output.len() < (1 << 20) + 100);
    let end = end_with(command, json!({"outputLimitBytes": 11})).await;
    let left_out = "[... 299999999 bytes of output are left out here ...]";
    assert_eq!(end.output, format!("begin\n{left_out}\n\0end\n"));
}

#[tokio::test]
async fn a_command_gets_its_idempotency_key_and_no_standard_input() {
    let end = end_of("echo $CRON_JOB_NAME $CRON_RUN_ID $CRON_PLAN_TIME $CRON_ATTEMPT; cat").await;
    assert_eq!(end.output, "test abc-7 1700000000000 1\n");
}

#[tokio::test]
async fn a_command_gets_its_jobs_variables_as_they_are() {
    let env = json!({"env": {"GREETING": "hello; $(exit 9) `x` \"'\n", "HOME": "/nowhere"}});
    let end = end_with("echo \"$GREETING$HOME\"", env).await;
    assert_eq!(
        (end.status, end.output.as_str()),
        (Status::Succeeded, "hello; $(exit 9) `x` \"'\n/nowhere\n")
    );
}

#[tokio::test]
async fn a_command_has_no_descriptor_of_the_workers() {
    crate::private::close_on_exec().unwrap(); // as the worker does at its start, for what these tests were started with
    let _open_here = std::fs::File::open("/dev/null").unwrap();
    let end = end_of("readlink /proc/self/fd/0; ls /proc/self/fd").await;
    assert_eq!(end.output, "/dev/null\n0\n1\n2\n3\n", "the last is the directory that is listed");
}

#[tokio::test]
async fn a_command_starts_in_its_directory() {
    let end = end_with("pwd", json!({"workingDir": "/usr/bin"})).await;
    assert_eq!((end.status, end.output.as_str()), (Status::Succeeded, "/usr/bin\n"));
}

#[tokio::test]
async fn what_keeps_a_command_from_starting_is_in_its_record() {
    let allowing = |user: &str| Shell::new(Path::new("/bin/bash"), &[user.to_owned()].into());
    let no_shell = Shell::new(Path::new("/no/shell"), &BTreeSet::new());
    let long = "x".repeat(200_000);
    for (shell, command, options, err) in [
        (no_shell, "true", json!({}), "fork/exec /no/shell: No such file"),
        (Shell::default(), "true", json!({"workingDir": "/no/dir"}), "chdir /no/dir: No such file"),
        (
            Shell::default(),
            "true",
            json!({"workingDir": "/etc/passwd"}),
            "chdir /etc/passwd: not a directory",
        ),
        (Shell::default(), "true", json!({"user": "root"}), "user root is not allowed on this worker"),
        (
            allowing("no-such-user"),
            "true",
            json!({"user": "no-such-user"}),
            "user: unknown user no-such-user",
        ),
        (Shell::default(), long.as_str(), json!({}), "fork/exec /bin/bash: Argument list too long"),
        (Shell::default(), "true\0", json!({}), "fork/exec /bin/bash: nul byte"),
    ] {
        let end = end_of_work(shell, work_with(command, options)).await;
        assert!(end.err.starts_with(err), "{:?}", end.err);
        assert_eq!((end.status, end.exit_code, end.signal), (Status::Failed, None, None));
    }
}

#[tokio::test]
async fn a_command_runs_as_its_user_and_with_its_groups() {
    let shell = Shell::new(Path::new("/bin/bash"), &["nobody".to_owned()].into());
    let work = work_with(
        "id -u; id -G; echo $HOME $USER $LOGNAME; grep ^Cap[EPA] /proc/self/status; exit 3",
        json!({"user": "nobody"}),
    );
    let end = end_of_work(shell, work).await;
    if !rustix::process::getuid().is_root() {
        return assert_eq!(
            end.err,
            "fork/exec /bin/bash as user nobody: Operation not permitted (os error 1)"
        );
    }
    let id = |what: &str| {
        let known = std::process::Command::new("id").args([what, "nobody"]).output().unwrap();
        String::from_utf8(known.stdout).unwrap()
    };
    let none = "0000000000000000";
    let caps = format!("CapPrm:\t{none}\nCapEff:\t{none}\nCapAmb:\t{none}\n");
    let home = "/nonexistent nobody nobody\n";
    assert_eq!(end.output, format!("{}{}{home}{caps}", id("-u"), id("-G")));
    assert_eq!(end.err, "exit status 3");
}

#[tokio::test]
async fn a_command_has_its_limits() {
    let limits = json!({"limits": {
        "cpuSeconds": 7, "memoryBytes": 1_073_741_824, "openFiles": 33, "fileBytes": 4096, "processes": 5000,
    }});
    let end = end_with("ulimit -St; ulimit -v; ulimit -n; ulimit -f; ulimit -u", limits.clone()).await;
    assert_eq!(end.output, "7\n1048576\n33\n4\n5000\n");
    let dir = tempfile::tempdir().unwrap();
    let command = format!("ulimit -c 0; head -c 9999 /dev/zero > {}/file; exit $?", dir.path().display());
    let end = end_with(&command, limits).await;
    assert_eq!(std::fs::metadata(dir.path().join("file")).unwrap().len(), 4096);
    assert_eq!((end.status, end.exit_code), (Status::Failed, Some(153)), "128 and the signal: {end:?}");
    let end = end_with("ulimit -c 0; while :; do :; done", json!({"limits": {"cpuSeconds": 1}})).await;
    assert_eq!(end.err, "signal: CPU time limit exceeded");
    // More than the worker itself may have is what it may have.
    let most = end_of("ulimit -Hn").await.output;
    assert_eq!(end_with("ulimit -n", json!({"limits": {"openFiles": 1_u64 << 40}})).await.output, most);
}

#[tokio::test]
async fn a_kill_ends_the_whole_group() {
    for (how, err, signal) in
        [(Kill::Gracefully, "signal: terminated", 15), (Kill::AtOnce, "signal: killed", 9)]
    {
        let going = Going::begin(Shell::default(), work("sleep 1000 & echo $!; sleep 1000"));
        let pid = going.has_printed(1).await;
        going.running.kill(how);
        let end = going.ending.await.unwrap();
        assert_eq!(told(&end), (Status::Killed, err, None, Some(signal)));
        assert_gone(pid.trim()).await;
    }
}

#[tokio::test]
async fn what_is_killed_may_end_by_itself_within_its_grace() {
    for (command, options, err, output) in [
        // It is killed all the same, whatever it says of itself.
        (
            "trap 'echo bye; exit 3' TERM; echo on; sleep 1000 & wait",
            json!({}),
            "exit status 3 (killed)",
            "on\nbye\n",
        ),
        ("trap 'exit 0' TERM; echo on; sleep 1000 & wait", json!({}), "exit status 0 (killed)", "on\n"),
        // Its first process ends at once, and another has something to do.
        (
            "(trap 'sleep 0.3; echo bye; exit' TERM; echo on; sleep 1000 & wait) & wait",
            json!({}),
            "signal: terminated",
            "on\nbye\n",
        ),
        // One that does not heed it.
        ("trap '' TERM; echo on; sleep 1000", json!({"killGraceSeconds": 1}), "signal: killed", "on\n"),
        (
            "trap 'echo bye' TERM; echo on; sleep 1000",
            json!({"killGraceSeconds": 0}),
            "signal: killed",
            "on\n",
        ),
    ] {
        let going = Going::begin(Shell::default(), work_with(command, options));
        going.has_printed(1).await;
        going.running.kill(Kill::Gracefully);
        let end = going.ending.await.unwrap();
        assert_eq!(
            (end.status, end.err.as_str(), end.output.as_str()),
            (Status::Killed, err, output),
            "{command}"
        );
    }
}

#[tokio::test]
async fn the_grace_is_for_every_process_of_the_group_and_for_one_that_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    // Its first process ends at once, and nobody has its output any more.
    let command = format!(
        "(trap 'sleep 0.3; echo bye > {}; exit' TERM; echo on; exec >/dev/null 2>&1; sleep 1000 & wait) & wait",
        file.display()
    );
    let going = Going::begin(Shell::default(), work(&command));
    going.has_printed(1).await;
    going.running.kill(Kill::Gracefully);
    assert_eq!(going.ending.await.unwrap().err, "signal: terminated");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "bye\n");

    let command = "trap 'echo bye; exit 3' TERM; echo $$; kill -STOP $$";
    let going = Going::begin(Shell::default(), work(command));
    let pid = going.has_printed(1).await;
    let stat = format!("/proc/{}/stat", pid.trim());
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        clock::sleep(Duration::from_millis(10)).await;
    }
    going.running.kill(Kill::Gracefully);
    let end = going.ending.await.unwrap();
    assert_eq!((end.err.as_str(), end.output), ("exit status 3 (killed)", format!("{pid}bye\n")));
}

#[tokio::test]
async fn a_kill_at_once_does_not_wait_for_the_grace() {
    let work = work_with("trap '' TERM; echo on; sleep 1000", json!({"killGraceSeconds": 3600}));
    let going = Going::begin(Shell::default(), work);
    going.has_printed(1).await;
    going.running.kill(Kill::Gracefully);
    clock::sleep(Duration::from_millis(100)).await;
    going.running.kill(Kill::AtOnce);
    going.running.kill(Kill::Gracefully);
    let end = going.ending.await.unwrap();
    assert_eq!(told(&end), (Status::Killed, "signal: killed", None, Some(9)));
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_ended() {
    let going = Going::begin(
        Shell::default(),
        work_with("sleep 1000 & echo $!; sleep 1000", json!({"timeoutSeconds": 1})),
    );
    let pid = going.has_printed(1).await;
    let end = going.ending.await.unwrap();
    assert_eq!(told(&end), (Status::TimedOut, "signal: terminated (timed out after 1 s)", None, Some(15)));
    assert!(end.end_time.ms_since(end.start_time) >= 1000);
    assert_gone(pid.trim()).await;
    for (command, err) in [
        ("trap 'exit 0' TERM; sleep 1000 & wait", "exit status 0 (timed out after 1 s)"),
        ("trap '' TERM; sleep 1000", "signal: killed (timed out after 1 s)"),
    ] {
        let end = end_with(command, json!({"timeoutSeconds": 1, "killGraceSeconds": 1})).await;
        assert_eq!((end.status, end.err.as_str()), (Status::TimedOut, err), "{command}");
    }
    assert_eq!(end_with("true", json!({"timeoutSeconds": 1})).await.status, Status::Succeeded);
}

#[tokio::test]
async fn a_tree_of_processes_is_gone_after_a_kill() {
    // 1 + 3 + 9 + 27 shells; those of the last row go on forking.
    let command = r#"
        tree() {
            echo $BASHPID
            if [ $1 = 0 ]; then while :; do sleep 0.1; done; fi
            for _ in 1 2 3; do tree $(($1 - 1)) & done
            wait
        }
        trap '' TERM
        tree 3
    "#;
    for how in [Kill::AtOnce, Kill::Gracefully] {
        let going = Going::begin(Shell::default(), work_with(command, json!({"killGraceSeconds": 1})));
        let pids = going.has_printed(40).await;
        going.running.kill(how);
        assert_eq!(going.ending.await.unwrap().err, "signal: killed");
        for pid in pids.lines() {
            assert_gone(pid).await;
        }
    }
}

#[tokio::test]
async fn a_process_that_left_the_group_does_not_hold_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let end = end_of(&format!("setsid sh -c 'echo $$ > {}; exec sleep 30' & sleep 0.2", pid.display())).await;
    assert_eq!(end.status, Status::Succeeded);
    let left: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    kill_process_group(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
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

#[tokio::test]
async fn a_command_gets_its_secrets_and_its_record_none_of_them() {
    let scene = Scene::new(&[("token", "s3cret-token\n"), ("gone", "")]);
    let shell = || Shell::default().with(scene.supplies());
    let env = json!({"env": {"TOKEN": "secret:token", "PLAIN": "not secret:token"}});
    let command = "echo ${#TOKEN} $PLAIN; printf %s ${TOKEN:0:5}; sleep 0.2; echo ${TOKEN:5} >&2; printf %s $TOKEN | base64; \
                   tr '\\0' ' ' < /proc/$$/cmdline | grep -c $TOKEN; printf %s ${TOKEN:0:11}";
    let end = end_of_work(shell(), work_with(command, env)).await;
    let expected = "12 not secret:token\n[secret:token]\n[secret:token]\n0\n[secret:token]";
    assert_eq!((told(&end), end.output.as_str()), ((Status::Succeeded, "", Some(0), None), expected));
    assert_eq!(end.output_bytes, expected.len() as u64);

    // What does not start with a secret in its words does not say it either.
    let dir = json!({"env": {"TOKEN": "secret:token"}, "workingDir": "/nowhere/s3cret-token"});
    let end = end_of_work(shell(), work_with("true", dir)).await;
    assert!(end.err.starts_with("chdir /nowhere/[secret:token]: No such"), "{}", end.err);

    std::fs::remove_file(scene.dir.path().join("gone")).unwrap();
    let end = end_of_work(shell(), work_with("echo began", json!({"env": {"A": "secret:gone"}}))).await;
    assert_eq!((end.status, end.output.as_str(), end.exit_code), (Status::Failed, "", None));
    assert!(end.err.starts_with("secret:gone cannot be read"), "{}", end.err);
}

#[tokio::test]
async fn a_command_that_waits_for_a_secret_can_be_killed_and_has_not_begun() {
    let scene = Scene::new(&[]).with_vault(&["silent"]);
    let shell = Shell::default().with(scene.supplies());
    let going = Going::begin(shell, work_with("echo began", json!({"env": {"A": "secret:silent"}})));
    clock::sleep(Duration::from_millis(100)).await;
    going.running.kill(Kill::Gracefully);
    let end = going.ending.await.unwrap();
    assert_eq!(
        (told(&end), end.output.as_str()),
        ((Status::Killed, "killed before it began", None, None), "")
    );
}
