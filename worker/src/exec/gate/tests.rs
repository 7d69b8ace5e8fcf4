//! Shells really wait here.

use super::*;
use crate::exec::process::tests::{assert_gone, open, work, work_with};
use crate::exec::secrets::tests::Scene;
use crate::exec::work::Kill;
use common::clock::SystemClock;
use common::domain::record::Status;
use serde_json::json;

const T: Timestamp = Timestamp::from_ms(1_700_000_000_000);

async fn gates(dir: &Path) -> Gates {
    let mut gates = Gates::new(Arc::default());
    gates.use_file(GateFile::make(dir, &Shell::default()).await.unwrap());
    gates
}

fn run(name: &str, time: Timestamp) -> OpenRun {
    OpenRun { run_id: RunId::from_text(name), plan_time: time, ..open() }
}

/// Of the runs with these commands.
fn starts(of: &[(&str, &str)]) -> Starts {
    of.iter().map(|(id, command)| (RunId::from_text(id), (run(id, T), work(command), T))).collect()
}

fn prepare(gates: &mut Gates, of: &[(&str, &str)]) -> usize {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let waiting =
        of.iter().map(|(id, command)| gates.prepare(run(id, T), work(command), T, Arc::clone(&clock)));
    waiting.last().unwrap()
}

async fn end_of(command: &str) -> Ending {
    let (running, asked) = Running::new(&work(command));
    process::run(&Shell::default(), &run("1", T), &work(command), &running.captured, &SystemClock, asked)
        .await
}

#[tokio::test]
async fn a_command_cannot_tell_whether_its_shell_has_waited() {
    let dir = tempfile::tempdir().unwrap();
    let mut gates = gates(dir.path()).await;
    for command in [
        "true",
        "exit 3",
        "(exit 4); echo $?; exit 125",
        "no-such-program-here",
        "kill -TERM $$",
        "kill -KILL $$",
        "sleep 1000 & kill -9 $$",
        "for i in 1 2 3; do echo out$i; echo err$i >&2; done",
        "if then",
        "set -u; echo $nope",
        "trap 'echo bye' EXIT; exit 4",
        "cat; read -r x; echo \"$? <$x>\"",
        "echo one\necho two $LINENO",
        "echo \"$0 $# $? $- $SHLVL $SECONDS $LINENO $BASH_SUBSHELL <$*> <${BASH_SOURCE-}> ${BASH_ENV-none} $TMOUT\"",
        "env | sort | grep -v ^_=",
        "export -p | grep -v ' _='; shopt; set -o; alias; trap",
        "ls /proc/self/fd; readlink /proc/self/fd/0",
        "umask; pwd; ulimit -a; grep ^Sig[BCIP] /proc/self/status",
        // A command alone takes the shell's place, and is the leader of its group.
        "grep ^PPid: /proc/self/status",
        "awk '{ print $1 == $5 }' /proc/self/stat",
        "awk '{ print $1 == $5 }' /proc/$$/stat; true",
        "head -c 2000000 /dev/zero | tr '\\0' x",
        "(sleep 0.3; echo late) & echo early",
    ] {
        let usual = end_of(command).await;
        prepare(&mut gates, &[("1", command)]);
        let mut starts = starts(&[("1", command)]);
        let mut begun = gates.open_due(T, &SystemClock, &mut starts);
        let waited = begun.pop().unwrap().ending.await.unwrap().unwrap();
        let same = |end: &Ending| Ending { start_time: T, end_time: T, ..end.clone() };
        assert_eq!(same(&waited), same(&usual), "{command}");
        assert!(starts.is_empty());
    }
}

#[tokio::test]
async fn a_shell_waits_whatever_its_command_is_given_unless_it_might_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut gates = gates(dir.path()).await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let given =
        json!({"env": {"A": "1 2", "HOME": "/", "IFS": "o", "PATH": "/usr/bin"}, "workingDir": "/usr/bin"});
    let work = work_with("echo \"$A\" ~ $PATH ${BASH_ENV-none}; pwd; cat", given);
    assert_eq!(gates.prepare(run("1", T), work.clone(), T, Arc::clone(&clock)), 1);
    let mut starts = Starts::from([(RunId::from_text("1"), (run("1", T), work, T))]);
    let begun = gates.open_due(T, &SystemClock, &mut starts).pop().unwrap();
    assert_eq!(begun.ending.await.unwrap().unwrap().output, "1 2 / /usr/bin none\n/usr/bin\n");

    for options in [
        json!({"env": {"POSIXLY_CORRECT": "1"}}),
        json!({"env": {"BASHOPTS": "x"}}),
        json!({"env": {"SHELLOPTS": "xtrace"}}),
        json!({"env": {"SSH_CLIENT": "x"}}),
        json!({"env": {"LD_PRELOAD": "x"}}),
        json!({"user": "root"}),
        json!({"limits": {"openFiles": 100}}),
    ] {
        let waiting = gates.prepare(run("1", T), work_with("true", options.clone()), T, Arc::clone(&clock));
        assert_eq!(waiting, 0, "{options}");
    }
}

/// Commands that leave a file each.
fn leaving(dir: &Path) -> [String; 3] {
    ["a", "b", "c"].map(|name| format!("echo $$ > {}/{name}", dir.display()))
}

fn left(dir: &Path) -> usize {
    ["a", "b", "c"].into_iter().filter(|name| dir.join(name).exists()).count()
}

#[tokio::test]
async fn a_gate_is_opened_for_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut gates = gates(dir.path()).await;
    let [a, b, c] = leaving(dir.path());
    let of = [("1", a.as_str()), ("2", &b), ("3", &c)];
    assert_eq!(prepare(&mut gates, &of), 3);
    let mut more = starts(&of);
    more.extend(starts(&[("4", "true")]));
    assert!(gates.open_due(T.plus_ms(-1), &SystemClock, &mut more).is_empty(), "not before its time");
    let before = SystemClock.now();
    let begun = gates.open_due(T, &SystemClock, &mut more);
    assert_eq!(more.into_keys().collect::<Vec<_>>(), [RunId::from_text("4")], "this one has no shell yet");
    assert_eq!(begun.len(), 3);
    for run in begun {
        let ending = run.ending.await.unwrap().unwrap();
        assert_eq!((ending.status, ending.start_time), (Status::Succeeded, run.start_time));
        assert!(ending.start_time >= before, "let go, not made ready, is started");
    }
    assert_eq!(left(dir.path()), 3);
}

#[tokio::test]
async fn a_gate_with_one_that_is_not_meant_is_opened_for_none() {
    for meant in [&["1", "2"][..], &["1", "2", "edited"], &[]] {
        let dir = tempfile::tempdir().unwrap();
        let mut gates = gates(dir.path()).await;
        let [a, b, c] = leaving(dir.path());
        let of = [("1", a.as_str()), ("2", &b), ("3", &c)];
        prepare(&mut gates, &of);
        let running: Vec<_> = gates.by_time.values_mut().flat_map(|gate| &mut gate.shells).collect();
        // What becomes of the shells is told by other means here: the gate forgets them.
        let told = running
            .into_iter()
            .map(|(_, shell)| std::mem::replace(&mut shell.ending, tokio::spawn(async { None })));
        let told: Vec<_> = told.collect();
        let meant: Vec<_> = meant
            .iter()
            .zip(&of)
            .map(|(id, (known, command))| if id == known { (*id, *command) } else { (*known, "true") })
            .collect();
        let mut starts = starts(&meant);
        assert!(gates.open_due(T, &SystemClock, &mut starts).is_empty());
        assert_eq!(starts.len(), meant.len(), "all are left to be started without a gate");
        for running in told {
            assert_eq!(running.await.unwrap(), None);
        }
        assert_eq!((left(dir.path()), gates.shells), (0, 0));
    }
}

#[tokio::test]
async fn a_shell_whose_worker_is_gone_ends_without_its_command() {
    let dir = tempfile::tempdir().unwrap();
    let shell = Shell::default();
    let file = GateFile::make(dir.path(), &shell).await.unwrap();
    let refused = probe(&shell, Some((&file.0, b""))).await.unwrap();
    assert_eq!((refused.status.code(), refused.stdout, refused.stderr), (Some(125), vec![], vec![]));
    // Dropped as by the death of the process.
    let mut gates = gates(dir.path()).await;
    let [a, ..] = leaving(dir.path());
    prepare(&mut gates, &[("1", &a)]);
    let shell = gates.by_time.pop_first().unwrap().1.shells.pop_first().unwrap().1;
    drop(gates);
    drop(shell.opened);
    assert_eq!((shell.ending.await.unwrap(), left(dir.path())), (None, 0));
}

#[tokio::test]
async fn a_kill_ends_the_group_of_a_command_whose_shell_has_waited() {
    let dir = tempfile::tempdir().unwrap();
    let mut gates = gates(dir.path()).await;
    let command = "sleep 1000 & echo $!; sleep 1000";
    prepare(&mut gates, &[("1", command)]);
    let begun = gates.open_due(T, &SystemClock, &mut starts(&[("1", command)])).pop().unwrap();
    clock::sleep(Duration::from_millis(300)).await;
    begun.running.kill(Kill::Gracefully);
    let end = begun.ending.await.unwrap().unwrap();
    assert_eq!((end.err.as_str(), end.signal), ("signal: terminated", Some(15)));
    assert_gone(end.output.trim()).await;
}

#[tokio::test]
async fn without_a_file_that_holds_nothing_waits() {
    let dir = tempfile::tempdir().unwrap();
    // bash expands what BASH_ENV says, would find no file, and begin at once.
    let strange = dir.path().join("a$HOME");
    std::fs::create_dir(&strange).unwrap();
    GateFile::make(&strange, &Shell::default()).await.unwrap_err();
    for change in [|file: &Path| std::fs::remove_file(file), |file: &Path| std::fs::write(file, "true")] {
        let mut gates = gates(dir.path()).await;
        change(&dir.path().join(FILE)).unwrap();
        let [a, ..] = leaving(dir.path());
        assert_eq!(prepare(&mut gates, &[("1", &a)]), 0);
        assert!(gates.open_due(T, &SystemClock, &mut starts(&[("1", &a)])).is_empty());
    }
    assert_eq!(left(dir.path()), 0);
}

#[tokio::test]
async fn so_many_wait_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut gates = gates(dir.path()).await;
    gates.shells = SHELLS_MAX - 1;
    assert_eq!(prepare(&mut gates, &[("1", "true"), ("2", "true")]), 1);
}

#[tokio::test]
async fn who_waits_for_a_secret_holds_up_nobody_else_at_the_gate() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(&[("token", "s3cret-token")]).with_vault(&["silent"]);
    let mut gates = Gates::new(Arc::new(Shell::default().with(scene.supplies())));
    gates.use_file(GateFile::make(dir.path(), &Shell::default()).await.unwrap());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    // More that wait than shells are started side by side.
    let silent = work_with("echo began", json!({"env": {"A": "secret:silent"}}));
    let token = work_with("echo ${#A} $A", json!({"env": {"A": "secret:token"}}));
    let mut starts = Starts::new();
    for number in 0..64 {
        let open = run(&format!("{number:02}"), T);
        let work = if number == 63 { &token } else { &silent };
        assert_eq!(gates.prepare(open.clone(), work.clone(), T, Arc::clone(&clock)), number + 1);
        starts.insert(open.run_id.clone(), (open, work.clone(), T));
    }
    let mut begun = gates.open_due(T, &SystemClock, &mut starts);
    assert_eq!(begun.len(), 64);
    let end = begun.pop().unwrap().ending.await.unwrap().unwrap();
    assert_eq!((end.status, end.output.as_str()), (Status::Succeeded, "12 [secret:token]\n"));
    for run in begun {
        assert!(!run.ending.is_finished(), "it waits for its secret still");
        run.running.kill(Kill::Gracefully);
        let end = run.ending.await.unwrap().unwrap();
        assert_eq!((end.status, end.err.as_str()), (Status::Killed, "killed before it began"));
    }
}
