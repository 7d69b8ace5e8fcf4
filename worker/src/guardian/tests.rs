//! What a process tells its guardian, with stand-ins for that. What guardians do is tested with real workers: see `e2e_guardian.rs`.

use std::io::{PipeReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;

use super::*;

const FENCED: Member = Member { number: 3, worker: 0, fence: true };
const PLAIN: Member = Member { number: 4, worker: 0, fence: false };

/// A number that no process has.
fn nobody(number: i32) -> GroupId {
    GroupId::from_raw(i32::MAX - number).unwrap()
}

fn line() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    (reader, writer)
}

/// What is in the pipe now.
fn told(reader: &mut PipeReader) -> Vec<Order> {
    rustix::io::ioctl_fionbio(&*reader, true).unwrap();
    let mut bytes = Vec::new();
    let _empty_or_ended = reader.read_to_end(&mut bytes);
    let (orders, half) = bytes.as_chunks();
    assert_eq!(half, [0; 0], "only whole orders are written");
    orders.iter().map(|order| Order::decode(order).unwrap()).collect()
}

fn told_of(state: State) -> Arc<Told> {
    Arc::new(Told { word: "w".to_owned(), numbers: AtomicU64::new(0), state: Mutex::new(state) })
}

#[test]
fn what_finds_no_room_waits_and_stays_in_order() {
    let (mut reader, writer) = line();
    let mut state = State::default();
    state.listens(writer, Pid::from_raw(i32::MAX).unwrap());
    let orders: Vec<Order> = (0..10_000).map(|at| Order::FenceAt(0, at)).collect();
    orders.iter().for_each(|order| state.put(*order));
    assert!(state.sent < state.queued && state.stuck.is_some());
    let mut read = told(&mut reader);
    assert_eq!(read.len() as u64, state.sent);
    while state.sent < state.queued {
        state.flush();
        read.append(&mut told(&mut reader));
    }
    assert_eq!((read, state.stuck.is_some()), (orders, false));
}

#[test]
fn a_new_guardian_is_told_what_is_going() {
    let (mut reader, writer) = line();
    let mut state = State::default();
    state.put(Order::FenceAt(0, 7)); // to nobody
    state.deadlines.insert(0, u64::MAX);
    for (leader, member) in [(nobody(1), PLAIN), (nobody(2), FENCED), (nobody(3), PLAIN)] {
        state.groups.insert(leader, Running { member, fenced: false });
    }
    state.ended(nobody(3));
    assert_eq!(state.sent, state.queued, "nobody has to wait for a guardian that is not there");
    state.listens(writer, Pid::from_raw(i32::MAX).unwrap());
    let all = [Order::FenceAt(0, u64::MAX), Order::Begun(nobody(2), FENCED), Order::Begun(nobody(1), PLAIN)];
    assert_eq!(told(&mut reader), all);
    drop(reader);
    state.put(Order::Ended(nobody(1)));
    assert!(state.line.is_none() && state.sent == state.queued, "a guardian that is gone takes nothing");
}

#[tokio::test]
async fn a_leader_is_not_reaped_before_its_end_was_told() {
    let (mut reader, writer) = line();
    let mut state = State::default();
    state.listens(writer, Pid::from_raw(i32::MAX).unwrap());
    state.groups.insert(nobody(1), Running { member: PLAIN, fenced: false });
    while state.stuck.is_none() {
        state.put(Order::FenceAt(0, 1)); // until the pipe is full
    }
    let all_told = told_of(state);
    let mut group = Group { told: Some(Arc::clone(&all_told)), id: Some(nobody(1)), fenced: false };
    let mut ending = Box::pin(group.end());
    assert!(clock::timeout(Duration::from_millis(50), &mut ending).await.is_err(), "there is no room");
    assert!(!told(&mut reader).contains(&Order::Ended(nobody(1))));
    assert!(!ending.await);
    assert_eq!(told(&mut reader).pop(), Some(Order::Ended(nobody(1))));
}

#[test]
fn a_lease_that_is_over_takes_runs_with_a_fence_along() {
    use std::os::unix::process::CommandExt as _;
    use std::os::unix::process::ExitStatusExt as _;
    let guard = Guard { told: Some(told_of(State::default())), worker: 0 };
    let begin = |fence| {
        let mut command = Command::new("sleep");
        let child = command.arg("1000").process_group(0).spawn().unwrap();
        let group = guard.start(fence).begun(Some(Pid::from_child(&child)));
        (child, group)
    };
    let now = || Stopwatch::start();
    guard.lease_renewed(now(), Duration::from_secs(600));
    let (mut plain, plain_group) = begin(false);
    let (mut fenced, fenced_group) = begin(true);
    guard.lease_renewed(now(), Duration::from_secs(600));
    assert_eq!(fenced.try_wait().unwrap(), None, "a lease that is renewed in time kills nobody");
    guard.lease_lost();
    assert_eq!(fenced.wait().unwrap().signal(), Some(9));
    let (mut late, late_group) = begin(true);
    assert_eq!(late.wait().unwrap().signal(), Some(9), "without a lease none may begin");
    // The guardian may not have seen that the time was over, and nobody else either.
    guard.lease_renewed(now(), Duration::ZERO);
    let (mut unseen, unseen_group) = begin(true);
    guard.lease_renewed(now(), Duration::from_secs(600));
    assert_eq!(unseen.wait().unwrap().signal(), Some(9));
    assert_eq!(plain.try_wait().unwrap(), None, "without a fence they go on");
    let other = Guard { worker: 1, ..guard.clone() };
    let (mut of_this, of_this_group) = begin(true);
    other.lease_lost();
    assert_eq!(of_this.try_wait().unwrap(), None, "each worker has a lease of its own");
    let told = guard.told.unwrap();
    let ended = |mut group: Group| told.state().ended(group.id.take().unwrap());
    assert_eq!([fenced_group, late_group, unseen_group].map(ended), [true; 3]);
    assert!(!told.state().groups.values().any(|running| running.fenced));
    drop((plain_group, of_this_group));
    assert_eq!(plain.wait().unwrap().signal(), Some(9), "nobody waits for a group that was dropped");
    assert_eq!(of_this.wait().unwrap().signal(), Some(9));
}

/// A program that takes no orders.
fn idle(dir: &Path) -> PathBuf {
    let program = dir.join("idle");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[tokio::test]
async fn a_guardian_that_takes_no_orders_is_replaced_and_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let guardian = Guardian::start(&idle(dir.path()));
    let guard = guardian.guard();
    let first = guardian.told.state().guardian.unwrap();
    for number in 0..10_000 {
        let mut group = Group { told: guard.told.clone(), id: Some(nobody(number)), fenced: false };
        guardian.told.state().groups.insert(nobody(number), Running { member: PLAIN, fenced: false });
        guardian.told.state().put(Order::Begun(nobody(number), PLAIN));
        group.end().await;
    }
    guard.ready(true).await.unwrap();
    let second = guardian.told.state().guardian.unwrap();
    assert_ne!(second, first);
    guardian.told.state().closing = true;
    kill_process(second, Signal::KILL).unwrap();
}

#[tokio::test]
async fn without_a_guardian_no_run_with_a_fence_starts() {
    Guard::none().ready(false).await.unwrap();
    Guard::none().ready(true).await.unwrap_err();
    let guardian = Guardian::start(Path::new("/no/such/program"));
    guardian.guard().ready(false).await.unwrap();
    guardian.guard().ready(true).await.unwrap_err();
}
