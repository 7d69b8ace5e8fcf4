//! What the scheduler knows about one job.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::job::{JobName, ScheduleHash};
use common::domain::options::JobOptions;
use common::domain::run::{OpenRun, RunId, Trigger};
use common::kv::Revision;

use crate::exec::work::Work;

use super::event::{Action, Claim, ClaimKind, JobSeen, MarkSeen};
use super::marks::{KeptMark, MarkView, OtherMark, UsualMark};
use super::misfire::Rule;
use super::ownership::Place;
use super::packed::{Rev, Time};
use super::schedules::{Schedules, Source};
use super::sessions::Sessions;
use super::streaks::Streak;
use super::terms::Terms;
use super::texts::{Position, Text, Texts};
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
    pub(super) fn new(
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
    /// False: to this one nothing changes.
    fn take_settings(&mut self, now: Timestamp, schedules: &mut Schedules) -> bool {
        let fleet = schedules.fleet();
        let rule = self.rule.under(fleet.misfire);
        let hash =
            self.source.as_ref().map_or(self.hash, |source| self.own_hash.under(&source.settings(fleet)));
        if (rule, hash) == (self.rule, self.hash) {
            return false;
        }
        let mut terms = Terms { rule, ..Terms::clone(&self.terms) };
        if let Some(source) = terms.source.as_ref().filter(|_| hash != self.hash) {
            terms.runnable = schedules.parse(Source::clone(source)).1.map_err(|why| why.of_job());
            terms.hash = hash;
            self.seen_at = now;
        }
        self.terms = schedules.share(terms);
        true
    }

    /// Of the definition that comes after this one. Put by other hands, the two may come so fast that nobody has put a mark between: fires of
    /// the moments when the job was disabled would be caught up on. A save that enables a job puts the mark with it.
    fn next_marked_since(&self) -> Revision {
        if self.enabled { self.marked_since } else { self.mod_revision }
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

/// What a worker knows of a job beside its definition's terms, its mark and its text, as whole numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Numbers {
    /// See [`Definition`], as for the next two.
    marked_since: Revision,
    mod_revision: Revision,
    seen_at: Timestamp,
    /// See [`JobState::mark_read_at`].
    mark_read_at: Timestamp,
}

/// The same in 22 bytes.
#[derive(Debug)]
struct PackedNumbers {
    marked_since: Rev,
    mod_revision: Rev,
    seen_at: Time,
    mark_read_at: Time,
}

impl PackedNumbers {
    const ZERO: Self = Self {
        marked_since: Rev::ZERO,
        mod_revision: Rev::ZERO,
        seen_at: Time::ZERO,
        mark_read_at: Time::ZERO,
    };

    /// `None` = one of them is too large for that.
    fn of(numbers: Numbers) -> Option<Self> {
        let Numbers { marked_since, mod_revision, seen_at, mark_read_at } = numbers;
        Some(Self {
            marked_since: Rev::of(marked_since)?,
            mod_revision: Rev::of(mod_revision)?,
            seen_at: Time::of_time(seen_at)?,
            mark_read_at: Time::of_time(mark_read_at)?,
        })
    }

    fn whole(&self) -> Numbers {
        let Self { marked_since, mod_revision, seen_at, mark_read_at } = self;
        Numbers {
            marked_since: marked_since.get(),
            mod_revision: mod_revision.get(),
            seen_at: seen_at.time(),
            mark_read_at: mark_read_at.time(),
        }
    }
}

/// What few jobs have, or have for a while.
#[derive(Default, Debug)]
struct More {
    busy: Option<Box<Busy>>,
    /// Its mark, when that is [`KeptMark::Other`].
    mark: Option<Box<OtherMark>>,
    /// When they are not as small as they are with most jobs.
    numbers: Option<Box<Numbers>>,
    /// When it is not among the others.
    text: Option<OwnText>,
}

impl More {
    fn is_empty(&self) -> bool {
        let Self { busy, mark, numbers, text } = self;
        busy.is_none() && mark.is_none() && numbers.is_none() && text.is_none()
    }
}

/// A name, and a command behind that.
#[derive(Debug)]
struct OwnText {
    both: Box<str>,
    name_bytes: usize,
}

impl OwnText {
    fn of(text: Text<'_>) -> Self {
        Self { both: format!("{}{}", text.name, text.command).into(), name_bytes: text.name.len() }
    }

    fn get(&self) -> Text<'_> {
        let (name, command) = self.both.split_at(self.name_bytes);
        Text { name, command }
    }
}

/// Everything about one job but its text: a worker holds a million of these, most of which wait for their time. What is known only while
/// something goes on ([`Busy`]) is read as if it were always there; to write there makes room for it, which [`Self::rest`] gives back.
#[derive(Debug)]
pub(super) struct JobState {
    /// Of its definition; `None` once it is deleted, while something of it is still going.
    terms: Option<Arc<Terms>>,
    more: Option<Box<More>>,
    /// `None` = it has a text of its own.
    text: Option<Position>,
    pub(super) slot: u16,
    numbers: PackedNumbers,
    mark: KeptMark,
    /// [`NO_RANK`] = none.
    rank: u8,
    /// Its mark is being read.
    pub(super) reading: bool,
    /// It is on the list of all jobs that is being told, or was on the last one.
    pub(super) listed: bool,
    /// It was seen while this worker's clock was not trusted: when that was is not known.
    pub(super) seen_in_doubt: bool,
}

/// This worker does not look after the job.
const NO_RANK: u8 = u8::MAX;

/// The memory of a million jobs hangs on this.
const _: () = assert!(size_of::<Option<JobState>>() <= 72);

impl Deref for JobState {
    type Target = Busy;

    fn deref(&self) -> &Busy {
        self.more.as_deref().and_then(|more| more.busy.as_deref()).unwrap_or(&IDLE)
    }
}

impl DerefMut for JobState {
    fn deref_mut(&mut self) -> &mut Busy {
        self.more_mut().busy.get_or_insert_with(|| Box::new(Busy::IDLE))
    }
}

impl JobState {
    /// Without a text.
    pub(super) fn new(slot: u16) -> Self {
        Self {
            terms: None,
            more: None,
            text: None,
            slot,
            numbers: PackedNumbers::ZERO,
            mark: KeptMark::Unknown,
            rank: NO_RANK,
            reading: false,
            listed: true,
            seen_in_doubt: false,
        }
    }

    fn more_mut(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// Gives back the room of what went on.
    pub(super) fn rest(&mut self) {
        if let Some(more) = &mut self.more {
            more.busy.take_if(|busy| busy.is_idle());
        }
        self.more.take_if(|more| more.is_empty());
    }

    /// What goes on, to be changed; `None` = nothing.
    pub(super) fn busy_mut(&mut self) -> Option<&mut Busy> {
        self.more.as_deref_mut()?.busy.as_deref_mut()
    }

    // --- text -------------------------------------------------------------------------------------------------------

    pub(super) fn text<'a>(&'a self, texts: &'a Texts) -> Text<'a> {
        let own = || self.more.as_ref().and_then(|more| more.text.as_ref()).map(OwnText::get);
        let text = self.text.map_or_else(own, |position| Some(texts.get(position)));
        text.unwrap_or(Text { name: "", command: "" })
    }

    /// Made anew: names are kept as text.
    pub(super) fn name(&self, texts: &Texts) -> JobName {
        JobName::parse(self.text(texts).name).expect("it was a job's name before")
    }

    /// Where its text lies; `None` = it has it for itself.
    pub(super) fn position(&self) -> Option<Position> {
        self.text
    }

    /// Takes another text, or another place of the same; `None` = it is kept here. What it had before is to be thrown away.
    pub(super) fn set_text(&mut self, position: Option<Position>, text: Text<'_>) -> Option<Position> {
        let own = position.is_none().then(|| OwnText::of(text));
        if own.is_some() || self.more.is_some() {
            self.more_mut().text = own;
            self.rest();
        }
        std::mem::replace(&mut self.text, position)
    }

    /// What is executed.
    pub(super) fn work(&self, texts: &Texts) -> Work {
        let execution = self.terms.as_ref().and_then(|terms| terms.execution.clone());
        Work { command: self.command(texts).into(), execution }
    }

    /// The command as open runs carry it.
    pub(super) fn cut_command(&self, texts: &Texts) -> String {
        OpenRun::cut_command(self.command(texts))
    }

    fn command<'a>(&'a self, texts: &'a Texts) -> &'a str {
        // What is left of a definition that is gone is nobody's command any more.
        if self.terms.is_some() { self.text(texts).command } else { "" }
    }

    // --- definition -------------------------------------------------------------------------------------------------

    pub(super) fn definition(&self) -> Option<Definition> {
        let Numbers { marked_since, mod_revision, seen_at, .. } = self.numbers();
        Some(Definition { terms: Arc::clone(self.terms.as_ref()?), marked_since, mod_revision, seen_at })
    }

    /// Of its definition.
    pub(super) fn mod_revision(&self) -> Option<Revision> {
        self.terms.as_ref().map(|_| self.numbers().mod_revision)
    }

    /// Of its definition all but its revisions and when it was seen.
    pub(super) fn terms(&self) -> Option<&Terms> {
        self.terms.as_deref()
    }

    /// Whatever was seen later counts as seen at this time.
    pub(super) fn set_seen_by(&mut self, at: Timestamp) {
        let numbers = self.numbers();
        let (seen_at, mark_read_at) = (numbers.seen_at.min(at), numbers.mark_read_at.min(at));
        self.set_numbers(Numbers { seen_at, mark_read_at, ..numbers });
    }

    /// The definition counts as seen at this time.
    pub(super) fn set_seen_at(&mut self, at: Timestamp) {
        self.set_numbers(Numbers { seen_at: at, ..self.numbers() });
    }

    /// The mark was as it is known at this time or later.
    pub(super) fn mark_read_at(&self) -> Timestamp {
        self.numbers().mark_read_at
    }

    pub(super) fn set_mark_read_at(&mut self, at: Timestamp) {
        self.set_numbers(Numbers { mark_read_at: at, ..self.numbers() });
    }

    fn numbers(&self) -> Numbers {
        let whole = self.more.as_ref().and_then(|more| more.numbers.as_deref());
        whole.copied().unwrap_or_else(|| self.numbers.whole())
    }

    fn set_numbers(&mut self, numbers: Numbers) {
        let packed = PackedNumbers::of(numbers);
        if packed.is_none() || self.more.is_some() {
            self.more_mut().numbers = packed.is_none().then(|| Box::new(numbers));
        }
        self.numbers = packed.unwrap_or(PackedNumbers::ZERO);
    }

    /// Of its mark, if that can be read.
    fn mark_revision(&self) -> Option<Revision> {
        match (&self.mark, self.more.as_ref().and_then(|more| more.mark.as_deref())) {
            (KeptMark::Usual(usual), _) => Some(usual.revision()),
            (KeptMark::Other, Some(OtherMark::Known(_, revision))) => Some(*revision),
            _ => None,
        }
    }

    /// Of the definition, to which its mark refers.
    fn hash(&self) -> ScheduleHash {
        self.terms.as_ref().map_or(ScheduleHash::default(), |terms| terms.hash)
    }

    // --- what it is to do -------------------------------------------------------------------------------------------

    /// Whether there is a job that has any fires: neither deleted nor disabled.
    pub(super) fn has_fires(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.enabled)
    }

    /// This worker's place among those that may run it; `None` = it does not look after it.
    pub(super) fn rank(&self) -> Option<u8> {
        (self.rank != NO_RANK).then_some(self.rank)
    }

    /// Takes this worker's place among those that may run it; true when it is another now.
    pub(super) fn take_place(&mut self, place: Place) -> bool {
        let before = (self.rank(), self.nobody);
        self.rank = place.rank.unwrap_or(NO_RANK);
        if before.1 || place.nobody {
            self.nobody = place.nobody;
            self.nobody_told &= place.nobody;
        }
        before != (place.rank, place.nobody)
    }

    /// After how long, in ms, a fire is claimed again that found the job locked by a run elsewhere; `None` = the two overlap. Fires of a
    /// job that catches up with all of them wait behind each other, also for those who look on.
    pub(super) fn waits_for_lock(&self, due: Timestamp, now: Timestamp) -> Option<i64> {
        let rule = self.terms.as_ref()?.rule;
        let pause = match self.rank() {
            Some(rank @ 1..) => Some(look_after_ms(rank)),
            _ => self.was_missed(due, now).then_some(LOCKED_RETRY_MS),
        };
        pause.filter(|_| rule.runs_all() && now.ms_since(due) <= rule.start_deadline_ms())
    }

    /// A fire of a job whose missed fires all run was missed itself: what it finds locked, it is behind.
    pub(super) fn was_missed(&self, due: Timestamp, now: Timestamp) -> bool {
        let rule = self.terms.as_ref().map(|terms| terms.rule);
        rule.is_some_and(|rule| rule.runs_all() && now.ms_since(due) > rule.late_max_ms())
    }

    /// How much later than their times its fires start, in ms.
    pub(super) fn jitter_ms(&self) -> i64 {
        self.terms.as_ref().map_or(0, |terms| terms.jitter_ms)
    }

    /// Whoever is not the owner acts only on a mark that it has read since `act_at`; when that is still to be done, the job is set to reading.
    pub(super) fn must_read(&mut self, rank: u8, act_at: Timestamp) -> bool {
        self.reading = rank > 0 && self.mark_read_at() < act_at;
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

/// A job, with what it shares with all others.
#[derive(Debug)]
pub(super) struct JobMut<'a> {
    pub(super) state: &'a mut JobState,
    pub(super) texts: &'a Texts,
    pub(super) sessions: &'a mut Sessions,
}

impl Deref for JobMut<'_> {
    type Target = JobState;

    fn deref(&self) -> &JobState {
        self.state
    }
}

impl DerefMut for JobMut<'_> {
    fn deref_mut(&mut self) -> &mut JobState {
        self.state
    }
}

impl JobMut<'_> {
    pub(super) fn name(&self) -> JobName {
        self.state.name(self.texts)
    }

    /// Takes a definition, or (`None`) the job is deleted, or its definition is nothing to go by any more. What was known of the mark stays.
    pub(super) fn set_definition(&mut self, definition: Option<Definition>) {
        let mark = self.mark();
        let (terms, numbers) = match definition {
            Some(Definition { terms, marked_since, mod_revision, seen_at }) => {
                (Some(terms), Numbers { marked_since, mod_revision, seen_at, ..self.numbers() })
            }
            None => (None, self.numbers()),
        };
        self.terms = terms;
        self.set_numbers(numbers);
        self.set_mark(mark);
    }

    /// See [`Definition::take_settings`].
    pub(super) fn take_settings(&mut self, now: Timestamp, schedules: &mut Schedules) {
        if let Some(mut definition) = self.definition()
            && definition.take_settings(now, schedules)
        {
            self.set_definition(Some(definition));
        }
    }

    pub(super) fn mark(&self) -> MarkView {
        match &self.mark {
            KeptMark::Unknown => MarkView::Unknown,
            KeptMark::Absent => MarkView::Absent,
            KeptMark::Usual(usual) => {
                MarkView::Known(usual.mark(self.hash(), self.sessions), usual.revision())
            }
            KeptMark::Other => match self.more.as_ref().and_then(|more| more.mark.as_deref()) {
                Some(OtherMark::Known(mark, revision)) => MarkView::Known(mark.clone(), *revision),
                Some(OtherMark::Unreadable(why)) => MarkView::Unreadable(why.to_string()),
                None => MarkView::Unknown,
            },
        }
    }

    pub(super) fn set_mark(&mut self, mark: MarkView) {
        let hash = self.hash();
        if let KeptMark::Usual(usual) = &self.state.mark {
            usual.leave(self.sessions);
        }
        let (kept, other) = match mark {
            MarkView::Unknown => (KeptMark::Unknown, None),
            MarkView::Absent => (KeptMark::Absent, None),
            MarkView::Known(mark, revision) => match UsualMark::of(&mark, revision, hash, self.sessions) {
                Some(usual) => (KeptMark::Usual(usual), None),
                None => (KeptMark::Other, Some(OtherMark::Known(mark, revision))),
            },
            MarkView::Unreadable(why) => (KeptMark::Other, Some(OtherMark::Unreadable(why.into()))),
        };
        self.mark = kept;
        if other.is_some() || self.more.is_some() {
            self.more_mut().mark = other.map(Box::new);
        }
    }

    pub(super) fn see_mark(&mut self, seen: Option<MarkSeen>, at: Timestamp) {
        self.set_mark_read_at(at);
        if seen.as_ref().zip(self.mark_revision()).is_some_and(|(seen, known)| seen.revision < known) {
            return; // a stale answer
        }
        self.set_mark(match seen {
            None => MarkView::Absent,
            Some(MarkSeen { mark: Ok(mark), revision, .. }) => MarkView::Known(mark, revision),
            Some(MarkSeen { mark: Err(why), .. }) => MarkView::Unreadable(why.to_string()),
        });
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
            command: self.state.cut_command(self.texts),
            trigger: Trigger::Schedule,
            skipped: None,
            unlocked: false,
            asked: None,
            after: None,
            env: None,
            on_lost: self.state.terms().and_then(|terms| terms.on_lost(1)),
            target: None,
            trace: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use common::domain::mark::Mark;
    use common::domain::worker::Sid;

    use super::*;
    use crate::scheduler::jobs::Jobs;

    const BACKUP: &str = "backup";

    fn name() -> JobName {
        JobName::parse(BACKUP).unwrap()
    }

    fn seen(cron: &str, command: &str) -> JobSeen {
        let json = serde_json::json!({ "command": command, "cronExpr": cron }).to_string();
        let job = common::domain::job::Job::from_stored(BACKUP, json.as_bytes()).map(Arc::new);
        JobSeen { name: name(), job, create_revision: 1, mod_revision: 1 }
    }

    fn define<'a>(jobs: &'a mut Jobs, cron: &str) -> JobMut<'a> {
        jobs.define(seen(cron, "true"), Timestamp::ZERO, &mut Schedules::new())
    }

    #[test]
    fn what_goes_on_with_a_job_is_forgotten_when_it_is_over() {
        let mut state = JobState::new(1);
        state.due = Some(Timestamp::ZERO);
        state.rest();
        assert_eq!(state.due, Some(Timestamp::ZERO));
        state.due = None;
        state.rest();
        assert!(state.busy_mut().is_none() && state.more.is_none());
    }

    #[test]
    fn numbers_are_kept_as_they_are_however_large() {
        let mut state = JobState::new(1);
        let at = Timestamp::from_ms;
        for (revision, ms) in [
            (1, 1),
            ((1 << 39) - 1, (1 << 47) - 1),
            (1 << 39, 1),
            (2, 1 << 47),
            (Revision::MAX, -1),
            (3, i64::MIN),
            (4, -(1 << 47)),
            (-1, -(1 << 47) - 1),
            (5, 5),
        ] {
            for numbers in [
                Numbers { marked_since: revision, mod_revision: 1, seen_at: at(ms), mark_read_at: at(2) },
                Numbers { marked_since: 1, mod_revision: revision, seen_at: at(2), mark_read_at: at(ms) },
            ] {
                state.set_numbers(numbers);
                assert_eq!(state.numbers(), numbers);
                state.due = Some(at(ms));
                state.rest();
                assert_eq!((state.numbers(), state.mark_read_at()), (numbers, numbers.mark_read_at));
                state.due = None;
                state.rest();
                assert_eq!((state.numbers(), state.mark_read_at()), (numbers, numbers.mark_read_at));
            }
        }
        assert!(state.more.is_none(), "what is small again takes no room of its own");
    }

    #[test]
    fn a_mark_is_known_as_it_was_seen_whatever_becomes_of_the_definition() {
        let at = Timestamp::from_ms;
        let mut jobs = Jobs::default();
        let hash = define(&mut jobs, "* * * * *").hash();
        let based = Mark::based(None, at(5), hash);
        let claimed = based.claimed(at(60_000), RunId::new(Sid(0x1f), 7), Sid(0x1f));
        let last = based.claimed(at(60_000), RunId::new(Sid(i64::MAX), (1 << 31) - 1), Sid(i64::MAX));
        let asked = based.claimed(at(60_000), RunId::from_text("00ff"), Sid(0x1f));
        let more = br#"{"v":1,"planTime":9,"base":5,"hash":"00","more":1}"#;
        let mut unlocked = claimed.clone();
        unlocked.unlocked = true;
        let moved = Mark::based(Some(&claimed), at(90_000), hash);
        let usual = [based.clone(), claimed, last, unlocked, moved].map(|mark| (mark, 3));
        let too_late = based.claimed(at(1 << 47), RunId::new(Sid(2), 7), Sid(2));
        let too_many = based.claimed(at(60_000), RunId::new(Sid(2), 1 << 31), Sid(2));
        let of_two = based.claimed(at(60_000), RunId::new(Sid(2), 7), Sid(3));
        let of_none = based.claimed(at(60_000), RunId::new(Sid(2), 0), Sid(2));
        let early = Mark::based(None, at(-(1 << 47) - 1), hash);
        let others = [asked, too_late, too_many, of_two, of_none, early, Mark::decode(more).unwrap()];
        let others = others.into_iter().chain([Mark::based(None, at(5), ScheduleHash::default())]);
        let others = others.map(|mark| (mark, 3)).chain([(based, 1 << 39)]);
        for (known, is_usual) in
            usual.map(|mark| (mark, true)).into_iter().chain(others.map(|mark| (mark, false)))
        {
            let mut state = define(&mut jobs, "* * * * *");
            let (mark, revision) = known;
            state.set_mark(MarkView::Known(mark.clone(), revision));
            assert_eq!(matches!(state.mark, KeptMark::Usual(_)), is_usual, "{mark:?}");
            let known = MarkView::Known(mark, revision);
            assert_eq!((state.mark(), state.mark_revision()), (known.clone(), Some(revision)));
            let mut state = define(&mut jobs, "0 * * * *");
            assert_eq!(state.mark(), known);
            state.set_definition(None);
            assert_eq!((state.mark(), state.command(state.texts)), (known, ""));
        }
        assert!(jobs.remove(&name()) && jobs.is_empty());
    }

    #[test]
    fn marks_of_more_sessions_than_are_numbered_are_kept_whole() {
        let mut sessions = Sessions::default();
        let (mut state, texts) = (JobState::new(1), Texts::default());
        while sessions.enter(Sid(sessions.len())).is_some() {}
        let mut state = JobMut { state: &mut state, texts: &texts, sessions: &mut sessions };
        for sid in [Sid(i64::MAX), Sid(5), Sid(i64::MAX - 1)] {
            let mark = Mark::based(None, Timestamp::ZERO, ScheduleHash::default());
            let known = MarkView::Known(mark.claimed(Timestamp::from_ms(1), RunId::new(sid, 1), sid), 3);
            state.set_mark(known.clone());
            assert_eq!(state.mark(), known);
            assert_eq!(matches!(state.mark, KeptMark::Usual(_)), sid == Sid(5));
        }
    }

    #[test]
    fn a_command_of_any_length_is_the_jobs_until_its_definition_is_another() {
        let (mut jobs, mut schedules) = (Jobs::default(), Schedules::new());
        for bytes in [0, 4, 2_000, 65_536, 1, 65_536, 3_000, 0] {
            let command = "ü".repeat(bytes / 2);
            let state = jobs.define(seen("* * * * *", &command), Timestamp::ZERO, &mut schedules);
            assert_eq!(state.text(state.texts), Text { name: BACKUP, command: &command });
            assert_eq!(state.position().is_none(), bytes > 2_000, "{bytes} bytes");
            assert_eq!(jobs.work_of(jobs.get(&name()).unwrap()).command, command.into());
        }
        assert!(jobs.remove(&name()) && jobs.get(&name()).is_none());
    }
}
