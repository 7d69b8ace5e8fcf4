//! What the scheduler knows about one job.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::execution::Execution;
use common::domain::job::{JobName, ScheduleHash};
use common::domain::mark::Mark;
use common::domain::options::JobOptions;
use common::domain::record::Record;
use common::domain::retry::Retry;
use common::domain::run::{OpenRun, RunId, Trigger};
use common::domain::worker::Sid;
use common::kv::Revision;

use crate::exec::work::Work;

use super::event::{Action, Claim, ClaimKind, JobSeen, MarkSeen};
use super::misfire::Rule;
use super::ownership::Place;
use super::schedules::{Schedules, Source};
use super::terms::Terms;
use super::{LOCKED_RETRY_MS, look_after_ms};

/// A job's definition as last seen: the seed's `JobSchedulePlan`. Its command is kept beside the job's name.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    terms: Arc<Terms>,
    /// A mark of before this revision is of another job of the name, or of before it was last seen to be disabled: it says nothing about
    /// this one's fires.
    pub(super) marked_since: Revision,
    pub(super) mod_revision: Revision,
    /// When this worker saw it: the catch-up base, should nobody have set one.
    pub(super) seen_at: Timestamp,
}

impl Deref for Definition {
    type Target = Terms;

    fn deref(&self) -> &Terms {
        &self.terms
    }
}

impl Definition {
    /// With its command. `before` is the definition that this worker knew until now.
    fn new(
        seen: JobSeen,
        before: Option<&Self>,
        now: Timestamp,
        schedules: &mut Schedules,
    ) -> (Self, Arc<str>) {
        let (create_revision, mod_revision) = (seen.create_revision, seen.mod_revision);
        let known_since = before.map_or(create_revision, Self::next_marked_since);
        let name = seen.name;
        let of = |schedules: &mut Schedules,
                  (source, runnable),
                  command: &str,
                  (own_hash, hash),
                  options: &JobOptions,
                  misfire| {
            let Work { command, execution } = Work::new(command, &options.execution);
            let terms = Terms {
                runnable,
                source,
                own_hash,
                hash,
                rule: Rule::of(options, misfire),
                jitter_ms: options.jitter_ms(&name),
                is_broadcast: options.is_broadcast(),
                concurrency: options.concurrency(),
                selector: options.selector.clone(),
                enabled: options.is_enabled(),
                retry: options.retry,
                execution,
            };
            let terms = schedules.share(terms);
            let marked_since = known_since.max(create_revision);
            (Self { terms, marked_since, mod_revision, seen_at: now }, command)
        };
        let job = match seen.job {
            Ok(job) => job,
            Err(fault) => {
                let (runnable, hash) = ((None, Err(fault.to_string())), ScheduleHash::default());
                return of(schedules, runnable, "", (hash, hash), &JobOptions::default(), None);
            }
        };
        let unknown = job.options_not_understood();
        let runnable = if !unknown.is_empty() {
            (
                None,
                Err(format!("it has options that this version does not understand: {}", unknown.join(", "))),
            )
        } else if let Err(fault) = job.check_work() {
            (None, Err(fault.to_string()))
        } else if job.options.after.is_some() && !job.cron_expr.trim().is_empty() {
            (None, Err("cronExpr: is given beside \"after\"".to_owned()))
        } else {
            let (source, schedule) = schedules.parse(Source::of(&job));
            (Some(source), schedule.map_err(|why| why.of_job()))
        };
        let fleet = schedules.fleet();
        let (hashes, misfire) = ((job.own_hash(), job.schedule_hash(fleet)), fleet.misfire);
        of(schedules, runnable, &job.command, hashes, &job.options, misfire)
    }

    /// The fleet's settings are others now. To a job whose times depend on them this is an edit: its fires count from now on (P7).
    fn take_settings(&mut self, now: Timestamp, schedules: &mut Schedules) {
        let fleet = schedules.fleet();
        let rule = self.rule.under(fleet.misfire);
        let hash =
            self.source.as_ref().map_or(self.hash, |source| self.own_hash.under(&source.settings(fleet)));
        if (rule, hash) == (self.rule, self.hash) {
            return;
        }
        let mut terms = Terms { rule, ..Terms::clone(&self.terms) };
        if let Some(source) = terms.source.as_ref().filter(|_| hash != self.hash) {
            terms.runnable = schedules.parse(Source::clone(source)).1.map_err(|why| why.of_job());
            terms.hash = hash;
            self.seen_at = now;
        }
        self.terms = schedules.share(terms);
    }

    /// Of the definition that comes after this one. Put by other hands, the two may come so fast that nobody has put a mark between: fires of
    /// the moments when the job was disabled would be caught up on. A save that enables a job puts the mark with it.
    fn next_marked_since(&self) -> Revision {
        if self.enabled { self.marked_since } else { self.mod_revision }
    }

    /// What is to happen when the worker of an attempt is lost; `None` = it ends there.
    pub(super) fn on_lost(&self, attempt: u32) -> Option<Retry> {
        self.retry?.after_loss(attempt, self.has_fence())
    }

    /// Its runs are killed before their worker's lease can end.
    pub(super) fn has_fence(&self) -> bool {
        self.execution.as_deref().is_some_and(Execution::has_fence)
    }
}

/// A job's mark as far as this worker knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum MarkView {
    Unknown,
    Absent,
    Known(Mark, Revision),
    Unreadable(String),
}

/// The same in forty bytes, since most marks are of a few kinds.
#[derive(Clone, Debug)]
enum KeptMark {
    Unknown,
    Absent,
    Usual(UsualMark),
    Other(Box<(Mark, Revision)>),
    Unreadable(Box<str>),
}

/// A mark as this version writes it, with the hash of the job's definition.
#[derive(Clone, Debug)]
struct UsualMark {
    plan_time: Timestamp,
    base: Timestamp,
    revision: Revision,
    /// What has claimed the plan time: number `seq` of session `sid`; nothing yet when `seq` is 0.
    sid: Sid,
    seq: u32,
    unlocked: bool,
}

impl UsualMark {
    /// `None` = it is no such mark.
    fn of(mark: &Mark, revision: Revision, hash: ScheduleHash) -> Option<Self> {
        let (sid, seq) = match &mark.run_id {
            None => (Sid(0), 0),
            Some(run_id) => run_id.claim()?,
        };
        let seq = u32::try_from(seq).ok()?;
        let (plan_time, base, unlocked) = (mark.plan_time, mark.base, mark.unlocked);
        let usual = Self { plan_time, base, revision, sid, seq, unlocked };
        (usual.mark(hash) == *mark).then_some(usual)
    }

    fn mark(&self, hash: ScheduleHash) -> Mark {
        let mut mark = Mark::based(None, self.base, hash);
        if self.seq > 0 && self.plan_time > mark.plan_time {
            mark = mark.claimed(self.plan_time, RunId::new(self.sid, self.seq.into()), self.sid);
        }
        mark.unlocked = self.unlocked;
        mark
    }
}

/// What is in flight for a job; at most one thing at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Pending {
    None,
    Adopting,
    Claiming {
        claim: Box<Claim>,
        /// The claim that this one replaces, of which a sending may have committed before.
        earlier: Option<Box<Claim>>,
        /// A sending may have been applied, or be applied later.
        ambiguous: bool,
        /// When to send it again; `None` while an answer is awaited.
        resend_at: Option<Timestamp>,
        /// Sendings that brought no answer.
        sendings: u32,
    },
}

/// Consecutive skips for one reason, under one open run.
#[derive(Clone, Debug)]
pub(super) struct Streak {
    pub(super) sid: Sid,
    pub(super) seq: u64,
    pub(super) open: OpenRun,
    /// When its record was last handed on.
    pub(super) recorded_at: Timestamp,
}

impl Streak {
    /// Its record so far; the last one settles the open run.
    pub(super) fn record(&self, last: bool) -> Action {
        let skipped = self.open.skipped.clone().expect("a streak's open run says what was skipped");
        Action::Record {
            record: Box::new(Record::skipped(&self.open, skipped)),
            settles: last.then_some((self.sid, self.seq)),
        }
    }
}

/// What is known of a job while something of it goes on.
#[derive(Clone, Debug)]
pub(super) struct Busy {
    pub(super) pending: Pending,
    /// The run that holds its lock here. Runs without the lock are nowhere but among the scheduler's runs.
    pub(super) run: Option<RunId>,
    pub(super) streak: Option<Box<Streak>>,
    /// No worker has the labels that it wants.
    pub(super) nobody: bool,
    /// And this was said.
    pub(super) nobody_told: bool,
    /// Its last fire was left to a seed worker.
    pub(super) left_to_seed: bool,
    /// The definition was found stale: wait for the watch until then.
    pub(super) stale_until: Option<Timestamp>,
    /// It waits for its turn to catch up, among the others by this time.
    pub(super) behind_since: Option<Timestamp>,
    /// When the fire that is next in turn should start, once its time to be claimed has come.
    pub(super) due: Option<Timestamp>,
    /// Under which it stands among those that are due and unclaimed.
    pub(super) unclaimed: Option<Timestamp>,
}

impl Busy {
    const IDLE: Self = Self {
        pending: Pending::None,
        run: None,
        streak: None,
        nobody: false,
        nobody_told: false,
        left_to_seed: false,
        stale_until: None,
        behind_since: None,
        due: None,
        unclaimed: None,
    };

    fn is_idle(&self) -> bool {
        let Self { pending, run, streak, nobody, nobody_told, left_to_seed, .. } = self;
        let Self { stale_until, behind_since, due, unclaimed, .. } = self;
        let times = [stale_until, behind_since, due, unclaimed];
        *pending == Pending::None
            && run.is_none()
            && streak.is_none()
            && !(*nobody || *nobody_told || *left_to_seed)
            && times.iter().all(|time| time.is_none())
    }
}

/// Of a job with which nothing goes on.
static IDLE: Busy = Busy::IDLE;

/// Everything about one job: a worker holds a million of these, most of which wait for their time. What is known only while something goes on
/// ([`Busy`]) is read as if it were always there; to write there makes room for it, which [`Self::rest`] gives back.
#[derive(Clone, Debug)]
pub(super) struct JobState {
    /// Its name, and its command behind that.
    text: Box<str>,
    name_bytes: u8,
    /// `None` once it is deleted, while something of it is still going.
    definition: Option<Definition>,
    mark: KeptMark,
    /// The mark was as it is known at this time or later.
    pub(super) mark_read_at: Timestamp,
    busy: Option<Box<Busy>>,
    pub(super) slot: u16,
    pub(super) rank: Option<u8>,
    /// Its mark is being read.
    pub(super) reading: bool,
    /// It is on the list of all jobs that is being told, or was on the last one.
    pub(super) listed: bool,
    /// It was seen while this worker's clock was not trusted: when that was is not known.
    pub(super) seen_in_doubt: bool,
}

impl Deref for JobState {
    type Target = Busy;

    fn deref(&self) -> &Busy {
        self.busy.as_deref().unwrap_or(&IDLE)
    }
}

impl DerefMut for JobState {
    fn deref_mut(&mut self) -> &mut Busy {
        self.busy.get_or_insert_with(|| Box::new(Busy::IDLE))
    }
}

impl JobState {
    pub(super) fn new(name: &JobName, slot: u16) -> Self {
        Self {
            text: name.as_str().into(),
            name_bytes: u8::try_from(name.as_str().len()).expect("names have at most 255 bytes"),
            definition: None,
            mark: KeptMark::Unknown,
            mark_read_at: Timestamp::ZERO,
            busy: None,
            slot,
            rank: None,
            reading: false,
            listed: true,
            seen_in_doubt: false,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.text[..usize::from(self.name_bytes)]
    }

    /// Made anew: see [`Self::name`].
    pub(super) fn job_name(&self) -> JobName {
        JobName::parse(self.name()).expect("it was a job's name before")
    }

    fn command(&self) -> &str {
        &self.text[usize::from(self.name_bytes)..]
    }

    /// Gives back the room of what went on.
    pub(super) fn rest(&mut self) {
        self.busy.take_if(|busy| busy.is_idle());
    }

    /// What goes on, to be changed; `None` = nothing.
    pub(super) fn busy_mut(&mut self) -> Option<&mut Busy> {
        self.busy.as_deref_mut()
    }

    // --- definition and mark ----------------------------------------------------------------------------------------

    pub(super) fn definition(&self) -> Option<&Definition> {
        self.definition.as_ref()
    }

    /// Takes a definition; what was known of the mark stays.
    pub(super) fn define(&mut self, seen: JobSeen, now: Timestamp, schedules: &mut Schedules) {
        let mark = self.mark();
        let (definition, command) = Definition::new(seen, self.definition.as_ref(), now, schedules);
        self.text = format!("{}{command}", self.name()).into();
        self.definition = Some(definition);
        self.set_mark(mark);
    }

    /// The job is deleted, or its definition is nothing to go by any more.
    pub(super) fn forget_definition(&mut self) {
        let mark = self.mark();
        self.text = self.name().into();
        self.definition = None;
        self.set_mark(mark);
    }

    /// See [`Definition::take_settings`].
    pub(super) fn take_settings(&mut self, now: Timestamp, schedules: &mut Schedules) {
        let mark = self.mark();
        if let Some(definition) = &mut self.definition {
            definition.take_settings(now, schedules);
        }
        self.set_mark(mark);
    }

    /// The definition counts as seen at this time.
    pub(super) fn set_seen_at(&mut self, at: Timestamp) {
        if let Some(definition) = &mut self.definition {
            definition.seen_at = at;
        }
    }

    pub(super) fn mark(&self) -> MarkView {
        let hash = self.definition.as_ref().map_or(ScheduleHash::default(), |definition| definition.hash);
        match &self.mark {
            KeptMark::Unknown => MarkView::Unknown,
            KeptMark::Absent => MarkView::Absent,
            KeptMark::Usual(usual) => MarkView::Known(usual.mark(hash), usual.revision),
            KeptMark::Other(other) => MarkView::Known(other.0.clone(), other.1),
            KeptMark::Unreadable(why) => MarkView::Unreadable(why.to_string()),
        }
    }

    pub(super) fn set_mark(&mut self, mark: MarkView) {
        let hash = self.definition.as_ref().map_or(ScheduleHash::default(), |definition| definition.hash);
        self.mark = match mark {
            MarkView::Unknown => KeptMark::Unknown,
            MarkView::Absent => KeptMark::Absent,
            MarkView::Known(mark, revision) => match UsualMark::of(&mark, revision, hash) {
                Some(usual) => KeptMark::Usual(usual),
                None => KeptMark::Other(Box::new((mark, revision))),
            },
            MarkView::Unreadable(why) => KeptMark::Unreadable(why.into()),
        };
    }

    // --- what it is to do -------------------------------------------------------------------------------------------

    /// What is executed.
    pub(super) fn work(&self) -> Work {
        let execution = self.definition.as_ref().and_then(|definition| definition.execution.clone());
        Work { command: self.command().into(), execution }
    }

    /// The command as open runs carry it.
    pub(super) fn cut_command(&self) -> String {
        OpenRun::cut_command(self.command())
    }

    /// A fire of it that is being claimed.
    pub(super) fn open_run(
        &self,
        run_id: RunId,
        job: &JobName,
        plan_time: Timestamp,
        worker: String,
        now: Timestamp,
    ) -> OpenRun {
        OpenRun {
            run_id,
            job: job.clone(),
            plan_time,
            attempt: 1,
            schedule_time: now,
            worker,
            command: self.cut_command(),
            trigger: Trigger::Schedule,
            skipped: None,
            unlocked: false,
            asked: None,
            after: None,
            env: None,
            on_lost: self.definition.as_ref().and_then(|definition| definition.on_lost(1)),
            target: None,
            trace: None,
        }
    }

    /// Whether there is a job that has any fires: neither deleted nor disabled.
    pub(super) fn has_fires(&self) -> bool {
        self.definition.as_ref().is_some_and(|definition| definition.enabled)
    }

    /// Takes this worker's place among those that may run it; true when it is another now.
    pub(super) fn take_place(&mut self, place: Place) -> bool {
        let before = (self.rank, self.nobody);
        self.rank = place.rank;
        if before.1 || place.nobody {
            self.nobody = place.nobody;
            self.nobody_told &= place.nobody;
        }
        before != (place.rank, place.nobody)
    }

    /// After how long, in ms, a fire is claimed again that found the job locked by a run elsewhere; `None` = the two overlap. Fires of a
    /// job that catches up with all of them wait behind each other, also for those who look on.
    pub(super) fn waits_for_lock(&self, due: Timestamp, now: Timestamp) -> Option<i64> {
        let rule = self.definition.as_ref()?.rule;
        let pause = match self.rank {
            Some(rank @ 1..) => Some(look_after_ms(rank)),
            _ => self.was_missed(due, now).then_some(LOCKED_RETRY_MS),
        };
        pause.filter(|_| rule.runs_all() && now.ms_since(due) <= rule.start_deadline_ms())
    }

    /// A fire of a job whose missed fires all run was missed itself: what it finds locked, it is behind.
    pub(super) fn was_missed(&self, due: Timestamp, now: Timestamp) -> bool {
        let rule = self.definition.as_ref().map(|definition| definition.rule);
        rule.is_some_and(|rule| rule.runs_all() && now.ms_since(due) > rule.late_max_ms())
    }

    /// How much later than their times its fires start, in ms.
    pub(super) fn jitter_ms(&self) -> i64 {
        self.definition.as_ref().map_or(0, |definition| definition.jitter_ms)
    }

    pub(super) fn see_mark(&mut self, seen: Option<MarkSeen>, at: Timestamp) {
        self.mark_read_at = at;
        let known = match &self.mark {
            KeptMark::Usual(usual) => Some(usual.revision),
            KeptMark::Other(other) => Some(other.1),
            KeptMark::Unknown | KeptMark::Absent | KeptMark::Unreadable(_) => None,
        };
        if seen.as_ref().zip(known).is_some_and(|(seen, known)| seen.revision < known) {
            return; // a stale answer
        }
        self.set_mark(match seen {
            None => MarkView::Absent,
            Some(MarkSeen { mark: Ok(mark), revision, .. }) => MarkView::Known(mark, revision),
            Some(MarkSeen { mark: Err(why), .. }) => MarkView::Unreadable(why.to_string()),
        });
    }

    /// Whoever is not the owner acts only on a mark that it has read since `act_at`; when that is still to be done, the job is set to reading.
    pub(super) fn must_read(&mut self, rank: u8, act_at: Timestamp) -> bool {
        self.reading = rank > 0 && self.mark_read_at < act_at;
        self.reading
    }

    /// Sends a claim. A sending of `earlier`, which it replaces, may still commit just before it: then that fire is taken after all.
    pub(super) fn send(&mut self, mut claim: Claim, earlier: Option<Claim>, out: &mut Vec<Action>) {
        claim.replaces = earlier.as_ref().map(|earlier| earlier.seq);
        let is_large = claim.kind == ClaimKind::Broadcast;
        claim.alone = earlier.is_some() || claim.over_lock.is_some() || claim.exclusive || is_large;
        let (claim, earlier) = (Box::new(claim), earlier.map(Box::new));
        out.push(Action::Claim(claim.clone()));
        self.pending = Pending::Claiming { claim, earlier, ambiguous: false, resend_at: None, sendings: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> JobName {
        JobName::parse("backup").unwrap()
    }

    fn define(state: &mut JobState, cron: &str) -> ScheduleHash {
        let json = format!(r#"{{"command":"true","cronExpr":"{cron}"}}"#);
        let job = common::domain::job::Job::from_stored("backup", json.as_bytes()).map(Arc::new);
        let seen = JobSeen { name: name(), job, create_revision: 1, mod_revision: 1 };
        state.define(seen, Timestamp::ZERO, &mut Schedules::new());
        state.definition().unwrap().hash
    }

    #[test]
    fn a_job_at_rest_takes_little_memory() {
        assert!(size_of::<JobState>() <= 112, "a million jobs take {} MB", size_of::<JobState>());
    }

    #[test]
    fn what_goes_on_with_a_job_is_forgotten_when_it_is_over() {
        let mut state = JobState::new(&name(), 1);
        state.due = Some(Timestamp::ZERO);
        state.rest();
        assert_eq!(state.due, Some(Timestamp::ZERO));
        state.due = None;
        state.rest();
        assert!(state.busy_mut().is_none());
    }

    #[test]
    fn a_mark_is_known_as_it_was_seen_whatever_becomes_of_the_definition() {
        let at = Timestamp::from_ms;
        let mut state = JobState::new(&name(), 1);
        let hash = define(&mut state, "* * * * *");
        let based = Mark::based(None, at(5), hash);
        let claimed = based.claimed(at(60_000), RunId::new(Sid(0x1f), 7), Sid(0x1f));
        let asked = based.claimed(at(60_000), RunId::from_text("00ff"), Sid(0x1f));
        let more = br#"{"v":1,"planTime":9,"base":5,"hash":"00","more":1}"#;
        let mut unlocked = claimed.clone();
        unlocked.unlocked = true;
        let moved = Mark::based(Some(&claimed), at(90_000), hash);
        let usual = [based, claimed, unlocked, moved];
        let others = [asked, Mark::based(None, at(5), ScheduleHash::default()), Mark::decode(more).unwrap()];
        for (mark, is_usual) in
            usual.into_iter().map(|mark| (mark, true)).chain(others.map(|mark| (mark, false)))
        {
            define(&mut state, "* * * * *");
            state.set_mark(MarkView::Known(mark.clone(), 3));
            assert_eq!(matches!(state.mark, KeptMark::Usual(_)), is_usual, "{mark:?}");
            let known = MarkView::Known(mark, 3);
            assert_eq!(state.mark(), known);
            define(&mut state, "0 * * * *");
            assert_eq!(state.mark(), known);
            state.forget_definition();
            assert_eq!((state.mark(), state.command()), (known, ""));
        }
    }
}
