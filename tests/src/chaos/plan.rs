//! What befalls a fleet, and when: drawn from a seed alone, so that a seed is a plan.

use std::time::Duration;

use super::jobs::{Edit, JobKind};
use super::link::Passing;

/// Worker processes of a fleet.
pub const WORKERS: usize = 4;
/// Between two faults of one worker, in ms: so that it can be well for a moment.
const WORKER_REST_MS: u64 = 3_000;
/// Between two faults of etcd or MongoDB, in ms.
const STORE_REST_MS: u64 = 4_000;
/// MongoDB is away for so long, in ms.
const MONGO_AWAY_MS: u64 = 10_000;
/// Longer than a session of the default length lasts, in ms.
const BEYOND_LEASE_MS: (u64, u64) = (12_000, 17_000);
/// Within it, in ms.
const WITHIN_LEASE_MS: (u64, u64) = (1_000, 6_000);
/// A skewed clock is off by so much, in ms: within what the protocol tolerates.
pub const SKEW_MS: i64 = 1_500;
/// The last fault ends so long before the plan does, in ms.
const LAST_MS: u64 = 1_000;

/// Random numbers of a seed (SplitMix64): the same on every machine and for ever, or a seed would be no plan.
pub struct Draw(u64);

impl Draw {
    /// The numbers of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to, not including, `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn within(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.below(most - least + 1)
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.index(last + 1);
            items.swap(last, other);
        }
    }
}

/// A member of etcd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// By its number.
    Number(usize),
    /// Whichever leads at that time.
    Leader,
}

/// Which program a worker process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// The one of these sources.
    This,
    /// The one that it replaces.
    Previous,
}

/// What is done at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// SIGKILL to a worker; what it runs goes on.
    Crash(usize),
    /// SIGSTOP to a worker.
    Freeze(usize),
    /// SIGCONT to a worker.
    Thaw(usize),
    /// SIGTERM to a worker.
    Drain(usize),
    /// A worker starts, once the process of before has ended; its clock is off by so many ms.
    Launch(usize, Version, i64),
    /// A worker's links to all members, or to one.
    Links(usize, Option<usize>, Passing),
    /// SIGKILL to a member of etcd.
    KillMember(Which),
    /// The member that was killed starts again.
    StartMember,
    /// SIGSTOP to a member.
    FreezeMember(Which),
    /// SIGCONT to it.
    ThawMember,
    /// SIGKILL to MongoDB.
    KillMongo,
    /// It starts again.
    StartMongo,
    /// A job is changed through the API; the number of the job among those that are changed.
    Edit(usize, Edit),
}

/// What is done, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Milliseconds after the start.
    pub at_ms: u64,
    /// What.
    pub act: Act,
}

/// A plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// The program that the workers are at the start.
    pub first: Version,
    /// In the order of time.
    pub steps: Vec<Step>,
}

/// Every kind of fault. Each is used before one comes again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Crash { beyond_lease: bool },
    Freeze { beyond_lease: bool },
    CutAll { beyond_lease: bool, passing: Passing },
    CutOne { passing: Passing },
    Drain,
    Skew { ahead: bool },
    KillMember { leader: bool },
    FreezeMember { leader: bool },
    MongoAway,
}

const FAULTS: [Fault; 17] = [
    Fault::Crash { beyond_lease: false },
    Fault::Crash { beyond_lease: true },
    Fault::Freeze { beyond_lease: false },
    Fault::Freeze { beyond_lease: true },
    Fault::CutAll { beyond_lease: false, passing: Passing::Silent },
    Fault::CutAll { beyond_lease: true, passing: Passing::Silent },
    Fault::CutAll { beyond_lease: true, passing: Passing::Reset },
    Fault::CutOne { passing: Passing::Silent },
    Fault::CutOne { passing: Passing::Reset },
    Fault::Drain,
    Fault::Skew { ahead: true },
    Fault::Skew { ahead: false },
    Fault::KillMember { leader: false },
    Fault::KillMember { leader: true },
    Fault::FreezeMember { leader: false },
    Fault::FreezeMember { leader: true },
    Fault::MongoAway,
];

impl Plan {
    /// Faults of every kind for at least `length`, and as long as it takes for each to happen once.
    #[must_use]
    pub fn chaos(seed: u64, length: Duration, jobs: &[JobKind]) -> Self {
        let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let mut drawing = Drawing::new(seed);
        let mut end = 0;
        let mut deck = Vec::new();
        let mut first_round = true;
        loop {
            let Some(fault) = deck.pop() else {
                if !first_round && end + LAST_MS >= length_ms {
                    break;
                }
                deck = FAULTS.to_vec();
                drawing.draw.shuffle(&mut deck);
                first_round = false;
                continue;
            };
            let ended = drawing.fault(fault);
            end = end.max(ended);
            if ended + LAST_MS >= length_ms && drawing.faults >= FAULTS.len() {
                break;
            }
        }
        drawing.edits(end, jobs);
        drawing.plan(Version::This)
    }

    /// The previous version's workers are replaced by this version's one after the other, and back again: some are told to end, some
    /// are killed.
    #[must_use]
    pub fn rolling(seed: u64, rounds: usize, jobs: &[JobKind]) -> Self {
        let mut drawing = Drawing::new(seed);
        let mut at = 5_000;
        for version in [Version::This, Version::Previous].into_iter().cycle().take(2 * rounds) {
            let mut workers: Vec<usize> = (0..WORKERS).collect();
            drawing.draw.shuffle(&mut workers);
            for worker in workers {
                let killed = drawing.draw.below(3) == 0;
                drawing.at(at, if killed { Act::Crash(worker) } else { Act::Drain(worker) });
                drawing.at(at + 500, Act::Launch(worker, version, 0));
                // Sometimes the next one goes before this one has found its place.
                at += drawing.draw.within((1_500, 8_000));
            }
            at += 5_000; // a fleet of one version
        }
        drawing.edits(at, jobs);
        drawing.plan(Version::Previous)
    }
}

struct Drawing {
    seed: u64,
    draw: Draw,
    steps: Vec<Step>,
    /// Until when each worker has a fault, with its rest.
    workers: [u64; WORKERS],
    etcd: u64,
    mongo: u64,
    /// When the next fault may begin.
    cursor: u64,
    faults: usize,
}

impl Drawing {
    fn new(seed: u64) -> Self {
        let draw = Draw::new(seed);
        Self {
            seed,
            draw,
            steps: Vec::new(),
            workers: [0; WORKERS],
            etcd: 0,
            mongo: 0,
            cursor: 1_000,
            faults: 0,
        }
    }

    fn at(&mut self, at_ms: u64, act: Act) {
        self.steps.push(Step { at_ms, act });
    }

    /// Puts a fault where its victim is well, and says when it ends.
    fn fault(&mut self, fault: Fault) -> u64 {
        self.faults += 1;
        let lasts = match fault {
            Fault::Crash { beyond_lease: true }
            | Fault::Freeze { beyond_lease: true }
            | Fault::CutAll { beyond_lease: true, .. } => self.draw.within(BEYOND_LEASE_MS),
            Fault::CutOne { .. } => self.draw.within((4_000, 12_000)),
            Fault::Skew { .. } => self.draw.within((8_000, 15_000)),
            Fault::Drain => self.draw.within((500, 3_000)),
            Fault::MongoAway => MONGO_AWAY_MS,
            _ => self.draw.within(WITHIN_LEASE_MS),
        };
        match fault {
            Fault::KillMember { leader } | Fault::FreezeMember { leader } => {
                let (begin, end) = take(&mut self.etcd, self.cursor, lasts, STORE_REST_MS);
                let number = self.draw.index(crate::cluster::MEMBERS);
                let which = if leader { Which::Leader } else { Which::Number(number) };
                let (first, last) = match fault {
                    Fault::KillMember { .. } => (Act::KillMember(which), Act::StartMember),
                    _ => (Act::FreezeMember(which), Act::ThawMember),
                };
                self.at(begin, first);
                self.at(end, last);
                self.advance();
                end
            }
            Fault::MongoAway => {
                let (begin, end) = take(&mut self.mongo, self.cursor, lasts, STORE_REST_MS);
                self.at(begin, Act::KillMongo);
                self.at(end, Act::StartMongo);
                self.advance();
                end
            }
            _ => self.worker_fault(fault, lasts),
        }
    }

    fn worker_fault(&mut self, fault: Fault, lasts: u64) -> u64 {
        // Any worker that is well; when none is, the one that will be first.
        let well: Vec<usize> = (0..WORKERS).filter(|worker| self.workers[*worker] <= self.cursor).collect();
        let worker = match well.as_slice() {
            [] => (0..WORKERS).min_by_key(|worker| self.workers[*worker]).unwrap_or(0),
            well => well[self.draw.index(well.len())],
        };
        let (begin, end) = take(&mut self.workers[worker], self.cursor, lasts, WORKER_REST_MS);
        let launch = Act::Launch(worker, Version::This, 0);
        match fault {
            Fault::Crash { .. } => {
                self.at(begin, Act::Crash(worker));
                self.at(end, launch);
            }
            Fault::Freeze { .. } => {
                self.at(begin, Act::Freeze(worker));
                self.at(end, Act::Thaw(worker));
            }
            Fault::CutAll { passing, .. } => {
                self.at(begin, Act::Links(worker, None, passing));
                self.at(end, Act::Links(worker, None, Passing::Open));
            }
            Fault::CutOne { passing } => {
                let member = self.draw.index(crate::cluster::MEMBERS);
                self.at(begin, Act::Links(worker, Some(member), passing));
                self.at(end, Act::Links(worker, Some(member), Passing::Open));
            }
            Fault::Skew { ahead } => {
                self.at(begin, Act::Drain(worker));
                self.at(
                    begin + 300,
                    Act::Launch(worker, Version::This, if ahead { SKEW_MS } else { -SKEW_MS }),
                );
                self.at(end, Act::Drain(worker));
                self.at(end + 300, launch);
            }
            _ => {
                self.at(begin, Act::Drain(worker));
                self.at(end, launch);
            }
        }
        self.advance();
        end
    }

    fn advance(&mut self) {
        self.cursor += self.draw.within((1_000, 4_000));
    }

    /// Changes of jobs from the beginning to `end`.
    fn edits(&mut self, end: u64, jobs: &[JobKind]) {
        let editable: Vec<usize> = (0..jobs.len()).filter(|job| jobs[*job].is_counting()).collect();
        let mut at = 2_000;
        while at < end {
            let job = editable[self.draw.index(editable.len())];
            let edit = match self.draw.below(4) {
                0 => Edit::Schedule([1, 2, 5][self.draw.index(3)]),
                1 => Edit::Recreate { away_ms: self.draw.within((0, 3_000)) },
                _ => Edit::Command,
            };
            self.at(at, Act::Edit(job, edit));
            at += self.draw.within((300, 1_500));
        }
    }

    fn plan(mut self, first: Version) -> Plan {
        self.steps.sort_by_key(|step| step.at_ms);
        Plan { seed: self.seed, first, steps: self.steps }
    }
}

/// Takes a victim from `earliest` on, once it is well: from when to when.
fn take(busy_until: &mut u64, earliest: u64, lasts: u64, rest: u64) -> (u64, u64) {
    let begin = earliest.max(*busy_until);
    let end = begin + lasts;
    *busy_until = end + rest;
    (begin, end)
}
