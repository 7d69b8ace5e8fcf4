//! What a worker tells its guardian, on a pipe: orders of one size, so that a write of whole orders is never half there.

use std::num::NonZero;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

/// Length of an order on the pipe.
pub(super) const BYTES: usize = 16;
/// Most orders of one write: POSIX lets no pipe tear 512 bytes apart.
pub(super) const PER_WRITE: usize = 512 / BYTES;

/// A worker of a process, which has one guardian for all of its workers.
pub(super) type WorkerNumber = u16;

/// A process group, by the number of its leader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct GroupId(NonZero<i32>);

impl GroupId {
    /// The group that this process leads.
    pub(super) fn of(leader: Pid) -> Self {
        Self(leader.as_raw_nonzero())
    }

    pub(super) fn from_raw(number: i32) -> Option<Self> {
        NonZero::new(number).filter(|number| number.get() > 1).map(Self)
    }

    /// Kills it (SIGKILL): whether there was such a group.
    pub(super) fn kill(self) -> bool {
        let done = Pid::from_raw(self.0.get())
            .map_or(Err(Errno::SRCH), |group| kill_process_group(group, Signal::KILL));
        match done {
            Ok(()) => true,
            Err(Errno::SRCH) => false,
            Err(why) => {
                tracing::error!(group = self.0, %why, "a process group cannot be killed");
                false
            }
        }
    }
}

/// What a guardian needs to know of a run's process group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Member {
    /// Of the starts of its process.
    pub(super) number: u64,
    pub(super) worker: WorkerNumber,
    /// It must not outlive its worker's lease.
    pub(super) fence: bool,
}

/// One order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// A process group has begun.
    Begun(GroupId, Member),
    /// A group is gone. Its leader is not reaped yet, so that its number names nothing else.
    Ended(GroupId),
    /// Groups of this worker that are to be fenced may go on until then: nanoseconds of the boot clock.
    FenceAt(WorkerNumber, u64),
    /// The process ends, and all its runs have ended: what they have left behind is not the guardian's to kill.
    Done,
}

impl Order {
    pub(super) fn encode(self) -> [u8; BYTES] {
        let (kind, fence, worker, group, value) = match self {
            Self::Begun(group, member) => (1, member.fence, member.worker, Some(group), member.number),
            Self::Ended(group) => (2, false, 0, Some(group), 0),
            Self::FenceAt(worker, at) => (3, false, worker, None, at),
            Self::Done => (4, false, 0, None, 0),
        };
        let mut bytes = [0; BYTES];
        (bytes[0], bytes[1]) = (kind, u8::from(fence));
        bytes[2..4].copy_from_slice(&worker.to_le_bytes());
        bytes[4..8].copy_from_slice(&group.map_or(0, |group: GroupId| group.0.get()).to_le_bytes());
        bytes[8..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    /// `None` for what no worker of this version writes.
    pub(super) fn decode(bytes: &[u8; BYTES]) -> Option<Self> {
        let [kind, fence, w0, w1, g0, g1, g2, g3, value @ ..] = *bytes;
        let (worker, value) = (WorkerNumber::from_le_bytes([w0, w1]), u64::from_le_bytes(value));
        let group = GroupId::from_raw(i32::from_le_bytes([g0, g1, g2, g3]));
        match (kind, group) {
            (1, Some(group)) => Some(Self::Begun(group, Member { number: value, worker, fence: fence != 0 })),
            (2, Some(group)) => Some(Self::Ended(group)),
            (3, None) => Some(Self::FenceAt(worker, value)),
            (4, None) => Some(Self::Done),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_were_written() {
        let group = GroupId::from_raw(4_194_303).unwrap();
        let member = Member { number: u64::MAX - 1, worker: 513, fence: true };
        for order in [
            Order::Begun(group, member),
            Order::Begun(group, Member { fence: false, ..member }),
            Order::Ended(group),
            Order::FenceAt(7, 1 << 60),
            Order::Done,
        ] {
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
        assert_eq!(Order::decode(&[0; BYTES]), None);
    }
}
