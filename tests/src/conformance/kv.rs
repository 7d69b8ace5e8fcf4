//! What every store promises: one check for each promise. The headings are those of etcd's own robustness tests: ordered, unique,
//! atomic, reliable, resumable, filtered.
//!
//! Each check keeps to keys of its own, so that the exam can be taken on a server that others use.

use std::sync::Arc;
use std::time::Duration;

use common::clock::{Stopwatch, sleep, timeout};
use common::ids;
use common::kv::{
    Change, Compare, Error, Is, Key, Kv, LeaseId, OPS_MAX, Op, OpReply, Pair, Range, Revision, Span, Txn,
    TxnReply, WatchStream,
};
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};

/// Longest wait for something that will happen; failing takes so long, passing does not.
const WAIT: Duration = Duration::from_secs(30);

/// A check: its name, and what it does.
pub type Check = (&'static str, fn(Subject) -> BoxFuture<'static, ()>);

macro_rules! checks {
    ($($check:ident),* $(,)?) => {
        /// Every promise, in the order of the exam. Compaction is last: it takes the past away from the others.
        pub const CHECKS: &[Check] = &[$((stringify!($check), |subject| Box::pin($check(subject)))),*];
    };
}

checks![
    a_key_counts_its_puts,
    a_range_is_read_in_key_order,
    a_range_is_read_in_pages,
    a_range_is_read_as_of_a_revision,
    keys_are_any_bytes,
    the_empty_key_is_refused,
    compares_see_revisions_lease_and_value,
    replies_carry_what_was_there,
    puts_of_a_transaction_share_a_revision,
    a_transaction_reads_its_own_writes,
    nested_compares_see_the_state_before,
    nested_transactions_answer_within,
    too_many_operations_are_refused,
    overlapping_operations_are_refused,
    a_request_that_is_too_large_is_refused,
    what_writes_nothing_leaves_the_revision_alone,
    transactions_do_not_interleave,
    watches_are_ordered_unique_and_atomic,
    watches_are_reliable,
    watches_are_resumable,
    a_watch_catches_up_in_order,
    watches_are_filtered,
    watches_tell_previous_values,
    a_watch_of_the_future_begins_there,
    a_large_revision_is_told_whole,
    a_slow_watcher_misses_nothing,
    a_quiet_watch_tells_its_progress,
    an_empty_range_is_not_watched,
    a_lease_lists_its_keys,
    a_lease_expires_with_its_keys,
    a_lease_kept_alive_stays,
    a_revoked_lease_takes_its_keys,
    a_dead_lease_refuses_the_whole_transaction,
    a_key_put_again_leaves_its_lease,
    the_store_tells_its_size,
    compaction_forgets_the_past,
];

/// Takes the exam; panics in the first check that fails, after its name.
pub async fn exam(kv: Arc<dyn Kv>) {
    for (name, check) in CHECKS {
        println!("kv conformance: {name}");
        let prefix = format!("{name}/{}/", ids::random_id());
        check(Subject { kv: Arc::clone(&kv), prefix }).await;
    }
}

/// The store, and the keys that are the check's own.
#[derive(Clone)]
pub struct Subject {
    kv: Arc<dyn Kv>,
    prefix: String,
}

impl Subject {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn span(&self) -> Span {
        Span::prefix(self.prefix.as_str())
    }

    fn name_of(&self, pair: &Pair) -> String {
        pair.key.strip_prefix(&self.prefix).unwrap_or("(not ours)").to_owned()
    }

    async fn put(&self, name: &str, value: &str) -> Revision {
        self.done(vec![Op::put(self.key(name), value)]).await.revision
    }

    async fn put_leased(&self, name: &str, lease: LeaseId) -> Revision {
        self.done(vec![Op::put_leased(self.key(name), "leased", lease)]).await.revision
    }

    async fn delete(&self, name: &str) -> Revision {
        self.done(vec![Op::delete(self.key(name))]).await.revision
    }

    async fn done(&self, then: Vec<Op>) -> TxnReply {
        self.try_done(then).await.unwrap()
    }

    async fn try_done(&self, then: Vec<Op>) -> Result<TxnReply, Error> {
        self.kv.txn(Txn { then, ..Txn::default() }).await
    }

    async fn get(&self, name: &str) -> Option<Pair> {
        self.kv.range(Range::key(self.key(name))).await.unwrap().pairs.pop()
    }

    async fn all(&self) -> Vec<Pair> {
        self.kv.range(Range::all(self.span())).await.unwrap().pairs
    }

    async fn names(&self) -> Vec<String> {
        self.all().await.iter().map(|pair| self.name_of(pair)).collect()
    }

    async fn revision(&self) -> Revision {
        self.kv.range(Range::key(self.key("no such key"))).await.unwrap().revision
    }

    async fn watch(&self, start: Revision) -> Watcher {
        Watcher::open(&self.kv, self.span(), start).await
    }

    /// The lease is at its end, which a read shows at once.
    async fn wait_until_gone(&self, name: &str) {
        let started = Stopwatch::start();
        while self.get(name).await.is_some() {
            assert!(started.elapsed() < WAIT, "{name} is still there");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A watch, and the proof that its batches are what they must be.
struct Watcher {
    stream: WatchStream,
    /// Revision of the last batch.
    told: Revision,
}

impl Watcher {
    async fn open(kv: &Arc<dyn Kv>, span: Span, start: Revision) -> Self {
        Self { stream: kv.watch(span, start).await.unwrap(), told: start - 1 }
    }

    async fn item(&mut self) -> Result<common::kv::WatchBatch, Error> {
        timeout(WAIT, self.stream.next())
            .await
            .expect("a watch tells something in time")
            .expect("a watch does not end silently")
    }

    /// The next changes, `count` or more; progress is passed over.
    async fn changes(&mut self, count: usize) -> Vec<Change> {
        let started = Stopwatch::start();
        let mut changes: Vec<Change> = Vec::new();
        while changes.len() < count {
            assert!(started.elapsed() < WAIT, "{} of {count} changes came: {changes:?}", changes.len());
            let batch = self.item().await.unwrap();
            if !batch.changes.is_empty() {
                let revisions: Vec<Revision> = batch.changes.iter().map(|c| c.pair.mod_revision).collect();
                assert!(revisions.is_sorted(), "a batch is in order: {revisions:?}");
                assert!(revisions[0] > self.told, "{} was told, now {revisions:?}", self.told);
                assert!(revisions[revisions.len() - 1] <= batch.revision, "a batch covers its changes");
                self.told = batch.revision;
            }
            changes.extend(batch.changes);
        }
        changes
    }
}

fn value(pair: &Pair) -> String {
    String::from_utf8(pair.value.clone()).unwrap()
}

async fn a_key_counts_its_puts(s: Subject) {
    let created = s.put("k", "1").await;
    let changed = s.put("k", "2").await;
    assert!(changed > created);
    let pair = s.get("k").await.unwrap();
    assert_eq!(
        (value(&pair).as_str(), pair.create_revision, pair.mod_revision, pair.version, pair.lease),
        ("2", created, changed, 2, None)
    );
    s.delete("k").await;
    assert_eq!(s.get("k").await, None);
    let again = s.put("k", "3").await;
    let pair = s.get("k").await.unwrap();
    assert_eq!((pair.create_revision, pair.mod_revision, pair.version), (again, again, 1));
}

async fn a_range_is_read_in_key_order(s: Subject) {
    for name in ["c", "a", "b/2", "b/1", "b0"] {
        s.put(name, name).await;
    }
    assert_eq!(s.names().await, ["a", "b/1", "b/2", "b0", "c"]);
    let read = async |span: Span| -> Vec<String> {
        let reply = s.kv.range(Range::all(span)).await.unwrap();
        assert!(!reply.more);
        reply.pairs.iter().map(|pair| s.name_of(pair)).collect()
    };
    assert_eq!(read(Span::prefix(s.key("b/"))).await, ["b/1", "b/2"]);
    assert_eq!(read(Span::between(s.key("b/2"), s.key("c"))).await, ["b/2", "b0"]);
    assert_eq!(read(Span::key(s.key("c"))).await, ["c"]);
    assert_eq!(read(Span::key(s.key("d"))).await, [""; 0]);
    assert_eq!(read(Span::key(s.key("c")).after(&s.key("c").into())).await, [""; 0]);
    assert_eq!(read(Span::between(s.key("c"), s.key("a"))).await, [""; 0]);
    assert_eq!(read(Span::between(s.key("a"), "")).await, [""; 0]);
    assert_eq!(read(Span::between(s.key("a"), "\0")).await, [""; 0]);
    let serializable = s.kv.range(Range::all(s.span()).serializable()).await.unwrap();
    assert_eq!(serializable.pairs.len(), 5);
}

async fn a_range_is_read_in_pages(s: Subject) {
    for number in 0..7 {
        s.put(&format!("{number}"), "").await;
    }
    let mut span = s.span();
    let mut pages = Vec::new();
    loop {
        let reply = s.kv.range(Range::all(span.clone()).limit(3)).await.unwrap();
        pages.push(reply.pairs.len());
        match reply.pairs.last() {
            Some(last) if reply.more => span = span.after(&last.key),
            _ => break,
        }
    }
    assert_eq!(pages, [3, 3, 1]);
    let reply = s.kv.range(Range::all(s.span()).limit(7)).await.unwrap();
    assert!(!reply.more, "all seven were there");
}

async fn a_range_is_read_as_of_a_revision(s: Subject) {
    let first = s.put("a", "1").await;
    let second = s.put("b", "1").await;
    let third = s.put("a", "2").await;
    let fourth = s.delete("b").await;
    let at = async |revision: Revision| -> Vec<(String, String, i64)> {
        let reply = s.kv.range(Range::all(s.span()).at(revision)).await.unwrap();
        assert!(reply.revision >= fourth, "the reply says how far the store is");
        reply.pairs.iter().map(|pair| (s.name_of(pair), value(pair), pair.version)).collect()
    };
    let row = |name: &str, value: &str, version| (name.to_owned(), value.to_owned(), version);
    assert_eq!(at(first).await, [row("a", "1", 1)]);
    assert_eq!(at(second).await, [row("a", "1", 1), row("b", "1", 1)]);
    assert_eq!(at(third).await, [row("a", "2", 2), row("b", "1", 1)]);
    assert_eq!(at(fourth).await, [row("a", "2", 2)]);
    let limited = s.kv.range(Range::all(s.span()).at(second).limit(1)).await.unwrap();
    assert_eq!((limited.pairs.len(), limited.more), (1, true));
    let future = s.kv.range(Range::all(s.span()).at(fourth + 1_000_000)).await;
    assert!(matches!(future, Err(Error::Invalid(_))), "{future:?}");
}

async fn keys_are_any_bytes(s: Subject) {
    let key = |tail: &[u8]| [s.prefix.as_bytes(), tail].concat();
    let tails: [&[u8]; 5] = [b"", b"\0", b"\xc3\x28", b"\xff", b"\xff\xff\0"];
    for tail in tails {
        s.done(vec![Op::put(key(tail), tail)]).await;
    }
    let pairs = s.all().await;
    assert_eq!(pairs.iter().map(|p| p.value.as_slice()).collect::<Vec<_>>(), tails);
    assert_eq!(pairs[4].key.as_bytes(), key(b"\xff\xff\0"));
    let high = s.kv.range(Range::prefix(key(b"\xff"))).await.unwrap();
    assert_eq!(high.pairs.len(), 2);
    // A prefix of nothing but 0xff has no end; nor has the key space.
    let unique = [b"\xff\xff".as_slice(), s.prefix.as_bytes()].concat();
    s.done(vec![Op::put(unique.clone(), "")]).await;
    for span in [Span::prefix([0xff, 0xff]), Span { from: Key::from(""), to: None }] {
        let mut watcher = Watcher::open(&s.kv, span.clone(), s.revision().await + 1).await;
        let reply = s.kv.range(Range::all(span)).await.unwrap();
        assert!(reply.pairs.iter().any(|pair| pair.key.as_bytes() == unique));
        s.done(vec![Op::put(unique.clone(), "again")]).await;
        assert_eq!(watcher.changes(1).await[0].pair.key.as_bytes(), unique);
    }
    s.done(vec![Op::delete(unique)]).await;
}

async fn the_empty_key_is_refused(s: Subject) {
    let refused = [
        Txn { then: vec![Op::put("", "")], ..Txn::default() },
        Txn { otherwise: vec![Op::put("", "")], ..Txn::default() },
        Txn { when: vec![Compare::absent("")], ..Txn::default() },
        Txn { then: vec![Op::Txn(Txn { then: vec![Op::put("", "")], ..Txn::default() })], ..Txn::default() },
    ];
    for txn in refused {
        let reply = s.kv.txn(txn.clone()).await;
        assert!(matches!(reply, Err(Error::Invalid(_))), "{txn:?}: {reply:?}");
    }
    assert!(s.kv.range(Range::key("")).await.unwrap().pairs.is_empty());
}

async fn compares_see_revisions_lease_and_value(s: Subject) {
    let lease = s.kv.grant(Duration::from_secs(60)).await.unwrap();
    let other = s.kv.grant(Duration::from_secs(60)).await.unwrap();
    let created = s.put("k", "old").await;
    s.put_leased("leased", lease).await;
    let changed = s.put("k", "new").await;
    s.put("empty", "").await;
    let key = |name: &str| Key::from(s.key(name));
    let create = |name: &str, is, revision| Compare::CreateRevision(key(name), is, revision);
    let change = |name: &str, is, revision| Compare::ModRevision(key(name), is, revision);
    let rows = [
        (create("k", Is::Equal, created), true),
        (create("k", Is::Equal, changed), false),
        (create("k", Is::NotEqual, created), false),
        (create("k", Is::NotEqual, changed), true),
        (create("k", Is::Greater, created - 1), true),
        (create("k", Is::Greater, created), false),
        (create("k", Is::Less, created + 1), true),
        (create("k", Is::Less, created), false),
        (create("none", Is::Equal, 0), true),
        (create("none", Is::Greater, 0), false),
        (create("none", Is::Less, 1), true),
        (create("none", Is::NotEqual, 0), false),
        (change("k", Is::Equal, changed), true),
        (change("k", Is::Equal, created), false),
        (change("k", Is::NotEqual, created), true),
        (change("k", Is::Greater, created), true),
        (change("k", Is::Greater, changed), false),
        (change("k", Is::Less, changed), false),
        (change("k", Is::Less, changed + 1), true),
        (change("none", Is::Equal, 0), true),
        (change("none", Is::Greater, 0), false),
        (Compare::absent(s.key("none")), true),
        (Compare::absent(s.key("k")), false),
        (Compare::exists(s.key("k")), true),
        (Compare::exists(s.key("none")), false),
        (Compare::unchanged(s.key("k"), changed), true),
        (Compare::unchanged(s.key("none"), 0), true),
        (Compare::Lease(key("leased"), Some(lease)), true),
        (Compare::Lease(key("leased"), Some(other)), false),
        (Compare::Lease(key("leased"), None), false),
        (Compare::Lease(key("k"), None), true),
        (Compare::Lease(key("k"), Some(lease)), false),
        (Compare::Lease(key("none"), None), true),
        (Compare::Value(key("k"), b"new".to_vec()), true),
        (Compare::Value(key("k"), b"old".to_vec()), false),
        (Compare::Value(key("empty"), Vec::new()), true),
        (Compare::Value(key("none"), Vec::new()), false),
        (Compare::NoneIn(Span::prefix(s.key("non"))), true),
        (Compare::NoneIn(Span::prefix(s.key("lea"))), false),
        (Compare::NoneIn(Span::prefix(s.key("k"))), false),
        (Compare::NoneIn(Span::key(s.key("lea"))), true),
        (Compare::NoneIn(Span::key(s.key("leased"))), false),
        (Compare::NoneIn(Span::between(s.key("l"), s.key("leased"))), true),
        (Compare::NoneIn(Span::between(s.key("k"), s.key("z"))), false),
    ];
    for (compare, holds) in &rows {
        let txn = Txn { when: vec![compare.clone()], ..Txn::default() };
        assert_eq!(s.kv.txn(txn).await.unwrap().succeeded, *holds, "{compare:?}");
    }
    let all_that_hold: Vec<Compare> = rows.iter().filter(|row| row.1).map(|row| row.0.clone()).collect();
    let one_that_does_not = [all_that_hold.clone(), vec![Compare::absent(s.key("k"))]].concat();
    for (when, holds) in [(Vec::new(), true), (all_that_hold, true), (one_that_does_not, false)] {
        assert_eq!(s.kv.txn(Txn { when, ..Txn::default() }).await.unwrap().succeeded, holds);
    }
}

async fn replies_carry_what_was_there(s: Subject) {
    s.put("a", "1").await;
    s.put("d/1", "x").await;
    s.put("d/2", "y").await;
    let txn = Txn {
        when: vec![Compare::exists(s.key("none"))],
        then: vec![],
        otherwise: vec![
            Op::put(s.key("a"), "2"),
            Op::put(s.key("new"), "1"),
            Op::Delete(Span::prefix(s.key("d/"))),
            Op::delete(s.key("none")),
            Op::get(s.key("new")),
        ],
    };
    let reply = s.kv.txn(txn).await.unwrap();
    assert!(!reply.succeeded);
    assert_eq!(reply.replies.len(), 5);
    assert_eq!(reply.pair(0).map(value).as_deref(), Some("1"));
    assert_eq!(reply.replies[1], OpReply::Put(None));
    let OpReply::Delete(deleted) = &reply.replies[2] else { panic!("{reply:?}") };
    assert_eq!(deleted.iter().map(value).collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(reply.replies[3], OpReply::Delete(Vec::new()));
    assert_eq!(reply.pair(4).map(|pair| pair.mod_revision), Some(reply.revision));
    assert_eq!(s.names().await, ["a", "new"]);
}

async fn puts_of_a_transaction_share_a_revision(s: Subject) {
    let before = s.put("a", "").await;
    let reply = s.done(vec![Op::put(s.key("a"), ""), Op::put(s.key("b"), ""), Op::put(s.key("c"), "")]).await;
    assert!(reply.revision > before);
    let pairs = s.all().await;
    assert!(pairs.iter().all(|pair| pair.mod_revision == reply.revision), "{pairs:?}");
    assert_eq!(pairs[0].create_revision, before);
    assert_eq!(s.get("b").await.unwrap().create_revision, reply.revision);
}

async fn a_transaction_reads_its_own_writes(s: Subject) {
    s.put("a", "before").await;
    let read = || Op::Range(Range::all(s.span()));
    let ops = vec![
        read(),
        Op::put(s.key("a"), "after"),
        Op::put(s.key("b"), "new"),
        read(),
        Op::delete(s.key("none")),
        read(),
    ];
    let reply = s.done(ops).await;
    let ranges: Vec<_> = reply
        .replies
        .iter()
        .filter_map(|reply| if let OpReply::Range(range) = reply { Some(range) } else { None })
        .collect();
    let values = |index: usize| ranges[index].pairs.iter().map(value).collect::<Vec<_>>();
    assert_eq!(values(0), ["before"]);
    assert_eq!(values(1), ["after", "new"]);
    assert_eq!(values(2), ["after", "new"]);
    assert!(ranges[0].revision < reply.revision, "nothing was written yet");
    assert_eq!(ranges[1].revision, reply.revision);
}

async fn nested_compares_see_the_state_before(s: Subject) {
    let put_if_absent = |compared: &str, put: &str| {
        Op::Txn(Txn {
            when: vec![Compare::absent(s.key(compared))],
            then: vec![Op::put(s.key(put), "then")],
            otherwise: vec![Op::put(s.key(put), "otherwise")],
        })
    };
    let deep = Op::Txn(Txn { then: vec![put_if_absent("a", "d")], ..Txn::default() });
    let ops = vec![
        Op::put(s.key("a"), ""),
        put_if_absent("a", "b"),
        put_if_absent("b", "c"),
        deep,
        Op::get(s.key("d")),
    ];
    let reply = s.done(ops).await;
    for name in ["b", "c", "d"] {
        let pair = s.get(name).await.unwrap();
        assert_eq!((value(&pair).as_str(), pair.mod_revision), ("then", reply.revision), "{name}");
    }
    assert_eq!(reply.pair(4).map(value).as_deref(), Some("then"), "reads do see it");
}

async fn nested_transactions_answer_within(s: Subject) {
    s.put("a", "1").await;
    let nested = |when: Vec<Compare>, put: &str| {
        Op::Txn(Txn {
            when,
            then: vec![Op::get(s.key("a")), Op::put(s.key(put), "")],
            otherwise: vec![Op::get(s.key("a"))],
        })
    };
    let reply = s.done(vec![nested(vec![], "b"), nested(vec![Compare::absent(s.key("a"))], "c")]).await;
    let inner: Vec<&TxnReply> = reply
        .replies
        .iter()
        .map(|reply| if let OpReply::Txn(inner) = reply { inner } else { panic!("{reply:?}") })
        .collect();
    assert_eq!(
        inner.iter().map(|i| (i.succeeded, i.replies.len())).collect::<Vec<_>>(),
        [(true, 2), (false, 1)]
    );
    assert!(
        inner.iter().all(|i| i.revision == reply.revision && i.pair(0).map(value).as_deref() == Some("1"))
    );
}

async fn too_many_operations_are_refused(s: Subject) {
    let puts =
        |count: usize| -> Vec<Op> { (0..count).map(|i| Op::put(s.key(&format!("{i:03}")), "")).collect() };
    let gets = |count: usize| -> Vec<Op> { (0..count).map(|_| Op::get(s.key("none"))).collect() };
    let compares = |count: usize| vec![Compare::absent(s.key("none")); count];
    // etcd leaves a nested transaction what the longest list of its parent does not use.
    let nested = |outer: usize, inner: usize| {
        let mut ops = gets(outer - 1);
        ops.push(Op::Txn(Txn { then: gets(inner), ..Txn::default() }));
        ops
    };
    let then = |then| Txn { then, ..Txn::default() };
    let rows = [
        ("puts at the limit", then(puts(OPS_MAX)), true),
        ("puts over it", then(puts(OPS_MAX + 1)), false),
        ("otherwise at the limit", Txn { otherwise: gets(OPS_MAX), ..Txn::default() }, true),
        ("otherwise over it", Txn { otherwise: gets(OPS_MAX + 1), ..Txn::default() }, false),
        ("both at the limit", Txn { then: gets(OPS_MAX), otherwise: gets(OPS_MAX), when: vec![] }, true),
        ("compares at the limit", Txn { when: compares(OPS_MAX), ..Txn::default() }, true),
        ("compares over it", Txn { when: compares(OPS_MAX + 1), ..Txn::default() }, false),
        ("126 nested around 2", then(nested(126, 2)), true),
        ("127 nested around 2", then(nested(127, 2)), false),
        ("1 nested around 127", then(nested(1, 127)), true),
        ("1 nested around 128", then(nested(1, 128)), false),
    ];
    for (what, txn, accepted) in rows {
        let reply = s.kv.txn(txn).await;
        match accepted {
            true => assert!(reply.is_ok(), "{what}: {reply:?}"),
            false => assert!(matches!(reply, Err(Error::Invalid(_))), "{what}: {reply:?}"),
        }
    }
    assert_eq!(s.all().await.len(), OPS_MAX);
}

async fn overlapping_operations_are_refused(s: Subject) {
    let put = || Op::put(s.key("k"), "");
    let other = || Op::put(s.key("other"), "");
    let delete = || Op::delete(s.key("k"));
    let delete_all = || Op::Delete(s.span());
    let nested = |then: Vec<Op>, otherwise: Vec<Op>| Op::Txn(Txn { when: vec![], then, otherwise });
    let rows = [
        ("put, put", vec![put(), put()], false),
        ("put, other put", vec![put(), other()], true),
        ("put, read", vec![put(), Op::get(s.key("k"))], true),
        ("put, delete", vec![put(), delete()], false),
        ("delete, put", vec![delete(), put()], false),
        ("put, delete of the range", vec![put(), delete_all()], false),
        (
            "put, delete of another range",
            vec![put(), Op::Delete(Span::between(s.key("l"), s.key("m")))],
            true,
        ),
        (
            "put, delete of the range that ends at it",
            vec![put(), Op::Delete(Span::between(s.key("a"), s.key("k")))],
            true,
        ),
        ("delete, delete", vec![delete(), delete_all()], true),
        ("put, nested put", vec![put(), nested(vec![put()], vec![])], false),
        ("put, nested put not taken", vec![put(), nested(vec![], vec![put()])], false),
        ("put, nested delete", vec![put(), nested(vec![delete()], vec![])], false),
        ("delete, nested put", vec![delete(), nested(vec![put()], vec![])], false),
        ("delete, nested delete", vec![delete(), nested(vec![delete()], vec![])], true),
        ("put in both branches", vec![nested(vec![put()], vec![put()])], true),
        ("put in siblings", vec![nested(vec![put()], vec![]), nested(vec![put()], vec![])], false),
        (
            "put in siblings' other branches",
            vec![nested(vec![put()], vec![]), nested(vec![], vec![put()])],
            false,
        ),
        (
            "put, then deleted by a sibling",
            vec![nested(vec![put()], vec![]), nested(vec![delete()], vec![])],
            true,
        ),
        (
            "deleted, then put by a sibling",
            vec![nested(vec![delete()], vec![]), nested(vec![put()], vec![])],
            false,
        ),
        ("deleted, then put in the branches of one", vec![nested(vec![delete()], vec![put()])], true),
        ("put two levels down", vec![put(), nested(vec![nested(vec![put()], vec![])], vec![])], false),
    ];
    for (what, then, accepted) in rows {
        let reply = s.try_done(then).await;
        match accepted {
            true => assert!(reply.is_ok(), "{what}: {reply:?}"),
            false => assert!(matches!(reply, Err(Error::Invalid(_))), "{what}: {reply:?}"),
        }
    }
    let branches = Txn { when: vec![], then: vec![put()], otherwise: vec![put(), other()] };
    assert!(s.kv.txn(branches).await.is_ok(), "only one of the two is done");
    let bad_branch = Txn { when: vec![], then: vec![], otherwise: vec![put(), put()] };
    assert!(matches!(s.kv.txn(bad_branch).await, Err(Error::Invalid(_))));
}

async fn a_request_that_is_too_large_is_refused(s: Subject) {
    s.done(vec![Op::put(s.key("large"), vec![b'x'; 1 << 20])]).await;
    assert_eq!(s.get("large").await.unwrap().value.len(), 1 << 20);
    for bytes in [(3 << 19) + 1, 4 << 20] {
        let reply = s.try_done(vec![Op::put(s.key("larger"), vec![b'x'; bytes])]).await;
        assert!(matches!(reply, Err(Error::Invalid(_))), "{bytes}: {reply:?}");
    }
    assert_eq!(s.names().await, ["large"]);
}

async fn what_writes_nothing_leaves_the_revision_alone(s: Subject) {
    s.put("a", "").await;
    // Others may write meanwhile: once undisturbed will do.
    for _ in 0..50 {
        let before = s.revision().await;
        let lease = s.kv.grant(Duration::from_secs(60)).await.unwrap();
        s.kv.keep_alive(lease).await.unwrap();
        s.kv.revoke(lease).await.unwrap();
        let ops =
            vec![Op::get(s.key("a")), Op::delete(s.key("none")), Op::Delete(Span::prefix(s.key("none/")))];
        let reply = s.done(ops).await;
        let refused = s.try_done(vec![Op::put(s.key("b"), ""), Op::put(s.key("b"), "")]).await;
        assert!(refused.is_err());
        if (reply.revision, s.revision().await) == (before, before) {
            return;
        }
    }
    panic!("the revision moved");
}

async fn transactions_do_not_interleave(s: Subject) {
    s.put("counter", "0").await;
    let increments = (0..8).map(|_| async {
        for _ in 0..10 {
            loop {
                let pair = s.get("counter").await.unwrap();
                let next = value(&pair).parse::<u32>().unwrap() + 1;
                let txn = Txn {
                    when: vec![Compare::unchanged(s.key("counter"), pair.mod_revision)],
                    then: vec![Op::put(s.key("counter"), next.to_string())],
                    otherwise: vec![],
                };
                if s.kv.txn(txn).await.unwrap().succeeded {
                    break;
                }
            }
        }
    });
    join_all(increments).await;
    assert_eq!(value(&s.get("counter").await.unwrap()), "80");
}

async fn watches_are_ordered_unique_and_atomic(s: Subject) {
    let start = s.revision().await + 1;
    let mut watcher = s.watch(start).await;
    let mut expected = Vec::new();
    for round in 0..50 {
        let names = ["c", "a", "b"];
        let reply = s.done(names.map(|name| Op::put(s.key(name), round.to_string())).to_vec()).await;
        expected.extend(names.map(|name| (reply.revision, name.to_owned(), round.to_string())));
    }
    let seen: Vec<_> = watcher.changes(expected.len()).await;
    // Within a revision in the order of the operations. That no batch ends within one is checked by `Watcher`: it would see the
    // revision again in the next.
    let seen: Vec<_> =
        seen.iter().map(|c| (c.pair.mod_revision, s.name_of(&c.pair), value(&c.pair))).collect();
    assert_eq!(seen, expected);
}

async fn watches_are_reliable(s: Subject) {
    let start = s.revision().await + 1;
    let mut watchers = vec![s.watch(start).await, s.watch(start).await];
    let writers = (0..6).map(|writer| {
        let s = s.clone();
        async move {
            for number in 0..30 {
                match number % 10 {
                    9 => s.delete(&format!("{writer}")).await,
                    _ => s.put(&format!("{writer}"), &format!("{number}")).await,
                };
            }
        }
    });
    join_all(writers).await;
    watchers.push(s.watch(start).await);
    for mut watcher in watchers {
        let changes = watcher.changes(180).await;
        assert_eq!(changes.len(), 180);
        for writer in 0..6 {
            let told: Vec<_> = changes.iter().filter(|c| s.name_of(&c.pair) == writer.to_string()).collect();
            let values = told.iter().map(|c| value(&c.pair)).collect::<Vec<_>>();
            let expected: Vec<String> =
                (0..30).map(|n| if n % 10 == 9 { String::new() } else { n.to_string() }).collect();
            assert_eq!(values, expected);
        }
    }
}

async fn watches_are_resumable(s: Subject) {
    let mut revisions = Vec::new();
    for number in 0..20 {
        revisions.push(s.put("k", &number.to_string()).await);
    }
    for (index, revision) in revisions.iter().enumerate() {
        let changes = s.watch(*revision).await.changes(20 - index).await;
        let told: Vec<Revision> = changes.iter().map(|c| c.pair.mod_revision).collect();
        assert_eq!(told, revisions[index..], "from {revision}");
    }
    // A list and a watch from the next revision leave no gap.
    let listed = s.kv.range(Range::all(s.span())).await.unwrap();
    let next = s.put("k", "next").await;
    assert_eq!(s.watch(listed.revision + 1).await.changes(1).await[0].pair.mod_revision, next);
}

async fn a_watch_catches_up_in_order(s: Subject) {
    // etcd lets a watch catch up by a thousand revisions at a time.
    const PUTS: usize = 1200;
    let start = s.revision().await + 1;
    let puts = futures::stream::iter(0..PUTS).map(|number| {
        let s = s.clone();
        async move { s.put(&number.to_string(), "").await }
    });
    let mut revisions: Vec<Revision> = puts.buffer_unordered(50).collect().await;
    revisions.sort_unstable();
    let changes = s.watch(start).await.changes(PUTS).await;
    assert_eq!(changes.iter().map(|c| c.pair.mod_revision).collect::<Vec<_>>(), revisions);
}

async fn watches_are_filtered(s: Subject) {
    let start = s.revision().await + 1;
    let spans = [
        ("one key", Span::key(s.key("b/1")), vec!["b/1"]),
        ("a prefix", Span::prefix(s.key("b/")), vec!["b/", "b/1", "b/2"]),
        ("a range", Span::between(s.key("b/1"), s.key("c")), vec!["b/1", "b/2", "b0"]),
    ];
    let mut early = Vec::new();
    for (_, span, _) in &spans {
        early.push(Watcher::open(&s.kv, span.clone(), start).await);
    }
    for name in ["a", "b", "b/", "b/1", "b/1\0", "b/2", "b0", "c"] {
        if name != "b/1\0" {
            s.put(name, "").await;
        }
    }
    // One transaction of which only a part is seen.
    let last = s.done(vec![Op::put(s.key("a"), "last"), Op::put(s.key("b/1"), "last")]).await.revision;
    for ((what, span, names), mut early) in spans.into_iter().zip(early) {
        let mut late = Watcher::open(&s.kv, span, start).await;
        for watcher in [&mut early, &mut late] {
            let changes = watcher.changes(names.len() + 1).await;
            let (end, told) = changes.split_last().unwrap();
            assert_eq!(told.iter().map(|c| s.name_of(&c.pair)).collect::<Vec<_>>(), names, "{what}");
            assert_eq!((s.name_of(&end.pair).as_str(), end.pair.mod_revision), ("b/1", last), "{what}");
        }
    }
}

async fn watches_tell_previous_values(s: Subject) {
    let lease = s.kv.grant(Duration::from_secs(60)).await.unwrap();
    let created = s.put_leased("k", lease).await;
    let changed = s.put("k", "2").await;
    let deleted = s.delete("k").await;
    let again = s.put("k", "3").await;
    let changes = s.watch(created).await.changes(4).await;
    let now = |index: usize| &changes[index].pair;
    let before = |index: usize| changes[index].previous.as_ref();
    assert_eq!((now(0).mod_revision, now(0).version, now(0).lease), (created, 1, Some(lease)));
    assert_eq!(before(0), None);
    assert_eq!((now(1).mod_revision, now(1).version, now(1).lease), (changed, 2, None));
    assert_eq!(before(1), Some(now(0)));
    assert!(changes[2].is_delete() && !changes[1].is_delete());
    let tombstone = Pair {
        key: s.key("k").into(),
        value: Vec::new(),
        create_revision: 0,
        mod_revision: deleted,
        version: 0,
        lease: None,
    };
    assert_eq!(now(2), &tombstone);
    assert_eq!(before(2), Some(now(1)));
    assert_eq!((now(3).create_revision, now(3).version), (again, 1));
    assert_eq!(before(3), None);
}

async fn a_watch_of_the_future_begins_there(s: Subject) {
    let start = s.revision().await + 3;
    let mut watcher = s.watch(start).await;
    let mut expected = Vec::new();
    for number in 0..6 {
        expected.push(s.put("k", &number.to_string()).await);
    }
    expected.retain(|revision| *revision >= start);
    let told = watcher.changes(expected.len()).await;
    assert_eq!(told.iter().map(|c| c.pair.mod_revision).collect::<Vec<_>>(), expected);
}

async fn a_large_revision_is_told_whole(s: Subject) {
    const KEYS: usize = 1280;
    for chunk in 0..KEYS / OPS_MAX {
        let name = |i: usize| s.key(&format!("{:05}", chunk * OPS_MAX + i));
        s.done((0..OPS_MAX).map(|i| Op::put(name(i), "value")).collect()).await;
    }
    let start = s.revision().await + 1;
    let mut live = s.watch(start).await;
    let reply = s.done(vec![Op::Delete(s.span())]).await;
    assert!(matches!(&reply.replies[0], OpReply::Delete(pairs) if pairs.len() == KEYS));
    let later = s.put("later", "").await;
    for watcher in [&mut live, &mut s.watch(start).await] {
        // `Watcher` would see the rest of the revision, had it been cut.
        let changes = watcher.changes(KEYS + 1).await;
        assert_eq!(changes.len(), KEYS + 1);
        assert!(changes[..KEYS].iter().all(|c| c.is_delete() && c.previous.is_some()));
        assert_eq!(changes[KEYS].pair.mod_revision, later);
    }
}

async fn a_slow_watcher_misses_nothing(s: Subject) {
    let mut watcher = s.watch(s.revision().await + 1).await;
    // More than any buffer on the way should hold.
    let large = "x".repeat(20_000);
    let mut revisions = Vec::new();
    for number in 0..40 {
        let ops = (0..50).map(|i| Op::put(s.key(&format!("{i}")), format!("{number} {large}")));
        revisions.push(s.done(ops.collect()).await.revision);
    }
    let changes = watcher.changes(2000).await;
    let mut told: Vec<Revision> = changes.iter().map(|c| c.pair.mod_revision).collect();
    assert_eq!(told.len(), 2000);
    told.dedup();
    assert_eq!(told, revisions);
}

async fn a_quiet_watch_tells_its_progress(s: Subject) {
    let mut watcher = s.watch(s.revision().await + 1).await;
    let elsewhere = Op::put(format!("elsewhere/{}", s.prefix), "");
    let moved = s.done(vec![elsewhere]).await.revision;
    let started = Stopwatch::start();
    loop {
        let batch = watcher.item().await.unwrap();
        assert!(batch.changes.is_empty(), "{batch:?}");
        if batch.revision >= moved {
            break;
        }
        assert!(started.elapsed() < WAIT, "still at {} before {moved}", batch.revision);
    }
    // It goes on to tell changes.
    let revision = s.put("k", "").await;
    assert_eq!(watcher.changes(1).await[0].pair.mod_revision, revision);
}

async fn an_empty_range_is_not_watched(s: Subject) {
    for span in [Span::key(""), Span::between(s.key("b"), s.key("a")), Span::between(s.key("a"), s.key("a"))]
    {
        let refused = s.kv.watch(span.clone(), 0).await.err();
        assert!(matches!(refused, Some(Error::Invalid(_))), "{span:?}: {refused:?}");
    }
}

async fn a_lease_lists_its_keys(s: Subject) {
    let lease = s.kv.grant(Duration::from_secs(60)).await.unwrap();
    let other = s.kv.grant(Duration::from_millis(59_500)).await.unwrap();
    assert_ne!(lease, other);
    assert_eq!(s.kv.lease_keys(lease).await.unwrap(), []);
    for name in ["b", "a", "c"] {
        s.put_leased(name, lease).await;
    }
    s.put_leased("other", other).await;
    s.delete("c").await;
    assert_eq!(s.kv.lease_keys(lease).await.unwrap(), [s.key("a").into(), s.key("b").into()]);
    assert_eq!(s.get("a").await.unwrap().lease, Some(lease));
    assert_eq!(s.kv.keep_alive(other).await.unwrap(), Duration::from_secs(60), "rounded up");
    let too_long = s.kv.grant(Duration::from_secs(10_000_000_000)).await;
    assert!(matches!(too_long, Err(Error::Invalid(_))), "{too_long:?}");
}

async fn a_lease_expires_with_its_keys(s: Subject) {
    let lease = s.kv.grant(Duration::from_secs(1)).await.unwrap();
    s.put("stays", "").await;
    s.put_leased("b", lease).await;
    let put = s.put_leased("a", lease).await;
    let mut watcher = s.watch(put + 1).await;
    // etcd may stretch so short a lease to two seconds, and takes a moment to notice.
    let changes = watcher.changes(2).await;
    assert_eq!(changes.iter().map(|c| s.name_of(&c.pair)).collect::<Vec<_>>(), ["a", "b"]);
    assert!(
        changes.iter().all(|c| c.is_delete() && c.previous.as_ref().is_some_and(|p| p.lease == Some(lease)))
    );
    assert_eq!(changes[0].pair.mod_revision, changes[1].pair.mod_revision, "all at one revision");
    assert_eq!(s.names().await, ["stays"]);
    assert_eq!(s.kv.keep_alive(lease).await, Err(Error::LeaseGone));
    assert_eq!(s.kv.lease_keys(lease).await, Err(Error::LeaseGone));
    assert_eq!(s.kv.revoke(lease).await, Err(Error::LeaseGone));
}

async fn a_lease_kept_alive_stays(s: Subject) {
    let lease = s.kv.grant(Duration::from_secs(2)).await.unwrap();
    s.put_leased("k", lease).await;
    let started = Stopwatch::start();
    while started.elapsed() < Duration::from_secs(5) {
        assert_eq!(s.kv.keep_alive(lease).await.unwrap(), Duration::from_secs(2));
        sleep(Duration::from_millis(300)).await;
    }
    assert!(s.get("k").await.is_some());
    s.wait_until_gone("k").await;
}

async fn a_revoked_lease_takes_its_keys(s: Subject) {
    let lease = s.kv.grant(Duration::from_secs(60)).await.unwrap();
    s.put_leased("b", lease).await;
    let put = s.put_leased("a", lease).await;
    s.kv.revoke(lease).await.unwrap();
    assert_eq!(s.names().await, [""; 0]);
    let changes = s.watch(put + 1).await.changes(2).await;
    assert!(changes.iter().all(|c| c.is_delete() && c.pair.mod_revision == changes[0].pair.mod_revision));
    assert_eq!(s.kv.revoke(lease).await, Err(Error::LeaseGone));
    assert_eq!(s.kv.keep_alive(lease).await, Err(Error::LeaseGone));
    assert_eq!(s.kv.lease_keys(lease).await, Err(Error::LeaseGone));
}

async fn a_dead_lease_refuses_the_whole_transaction(s: Subject) {
    let dead = s.kv.grant(Duration::from_secs(60)).await.unwrap();
    s.kv.revoke(dead).await.unwrap();
    let leased = || Op::put_leased(s.key("leased"), "", dead);
    let plain = || Op::put(s.key("plain"), "");
    let nested = Op::Txn(Txn { then: vec![leased()], ..Txn::default() });
    for then in [vec![leased()], vec![plain(), leased()], vec![plain(), nested]] {
        assert_eq!(s.try_done(then).await, Err(Error::LeaseGone));
        assert_eq!(s.names().await, [""; 0], "nothing was applied");
    }
    let not_taken = Txn { when: vec![], then: vec![plain()], otherwise: vec![leased()] };
    assert!(s.kv.txn(not_taken).await.unwrap().succeeded);
    assert_eq!(s.names().await, ["plain"]);
    // A lease that never was.
    assert_eq!(s.try_done(vec![Op::put_leased(s.key("x"), "", LeaseId(4_711))]).await, Err(Error::LeaseGone));
}

async fn a_key_put_again_leaves_its_lease(s: Subject) {
    let first = s.kv.grant(Duration::from_secs(60)).await.unwrap();
    let second = s.kv.grant(Duration::from_secs(60)).await.unwrap();
    for name in ["freed", "moved", "kept"] {
        s.put_leased(name, first).await;
    }
    s.put("freed", "").await;
    s.put_leased("moved", second).await;
    assert_eq!(s.kv.lease_keys(first).await.unwrap(), [s.key("kept").into()]);
    s.kv.revoke(first).await.unwrap();
    assert_eq!(s.names().await, ["freed", "moved"]);
    s.kv.revoke(second).await.unwrap();
    assert_eq!(s.names().await, ["freed"]);
}

async fn the_store_tells_its_size(s: Subject) {
    let before = s.kv.room().await.unwrap();
    let much = "x".repeat(100_000);
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        s.put(name, &much).await;
    }
    let revision = s.put("k", "").await;
    // etcd writes in the background.
    let waited = Stopwatch::start();
    let after = loop {
        let room = s.kv.room().await.unwrap();
        if room.bytes_in_use >= before.bytes_in_use + 500_000 || waited.elapsed() > WAIT {
            break room;
        }
        sleep(Duration::from_millis(50)).await;
    };
    assert!(after.bytes_in_use >= before.bytes_in_use + 500_000, "{before:?} {after:?}");
    assert!(after.bytes >= after.bytes_in_use, "{after:?}");
    assert!(after.revision >= revision, "{after:?}");
    assert!(!after.is_full, "{after:?}");
}

async fn compaction_forgets_the_past(s: Subject) {
    s.put("quiet", "from long ago").await;
    s.put("deleted", "").await;
    let old = s.put("k", "1").await;
    s.delete("deleted").await;
    let before = s.put("k", "2").await;
    let oldest = s.put("k", "3").await;
    let after = s.done(vec![Op::put(s.key("k"), "4"), Op::put(s.key("quiet"), "changed")]).await.revision;
    let mut live = s.watch(old).await;
    assert_eq!(live.changes(6).await.len(), 6);
    s.kv.compact(oldest).await.unwrap();
    for revision in [old, before] {
        let reply = s.kv.range(Range::all(s.span()).at(revision)).await;
        assert!(matches!(reply, Err(Error::Compacted(_))), "{reply:?}");
        let in_txn =
            s.try_done(vec![Op::put(s.key("x"), ""), Op::Range(Range::all(s.span()).at(revision))]).await;
        assert!(matches!(in_txn, Err(Error::Compacted(_))), "{in_txn:?}");
        let mut watcher = s.watch(revision).await;
        assert_eq!(watcher.item().await, Err(Error::Compacted(oldest)));
        assert!(watcher.stream.next().await.is_none(), "the error is the last item");
        let again = s.kv.compact(revision).await;
        assert!(matches!(again, Err(Error::Compacted(_))), "{again:?}");
    }
    let again = s.kv.compact(oldest).await;
    assert!(matches!(again, Err(Error::Compacted(_))), "{again:?}");
    let future = s.kv.compact(after + 1_000_000).await;
    assert!(matches!(future, Err(Error::Invalid(_))), "{future:?}");
    let as_of = async |revision: Revision| -> Vec<String> {
        let reply = s.kv.range(Range::all(s.span()).at(revision)).await.unwrap();
        reply.pairs.iter().map(value).collect()
    };
    assert_eq!(as_of(oldest).await, ["3", "from long ago"]);
    assert_eq!(as_of(after).await, ["4", "changed"]);
    let changes = s.watch(oldest).await.changes(3).await;
    assert_eq!(changes.iter().map(|c| value(&c.pair)).collect::<Vec<_>>(), ["3", "4", "changed"]);
    let previous = |index: usize| changes[index].previous.as_ref().map(value);
    assert_eq!((previous(1).as_deref(), previous(2).as_deref()), (Some("3"), Some("from long ago")));
    // A watch that has seen everything goes on.
    let revision = s.put("k", "5").await;
    let told = live.changes(1).await;
    assert_eq!(
        (told[0].pair.mod_revision, told[0].previous.as_ref().map(value)),
        (revision, Some("4".to_owned()))
    );
    s.kv.compact(revision).await.unwrap();
    assert_eq!(s.names().await, ["k", "quiet"]);
}
