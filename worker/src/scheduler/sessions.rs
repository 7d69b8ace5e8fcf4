//! The sessions that jobs' marks name: a million marks are of few, so that a mark holds a number in place of one.

use std::collections::BTreeMap;

use common::domain::worker::Sid;

use super::packed::Packed;

/// The number of a session. Another's, once no mark is of that one any more.
pub(super) type SessionNumber = Packed<2>;

/// Sessions by their numbers, and how many marks are of each.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    known: Vec<(Sid, u32)>,
    numbers: BTreeMap<Sid, SessionNumber>,
    /// Numbers that stand for none.
    free: Vec<SessionNumber>,
}

impl Sessions {
    /// One mark more is of this session; `None` = there are too many to be numbered.
    pub(super) fn enter(&mut self, sid: Sid) -> Option<SessionNumber> {
        let number = match self.numbers.get(&sid) {
            Some(number) => *number,
            None => {
                let number = match self.free.pop() {
                    Some(number) => number,
                    None => SessionNumber::of(i64::try_from(self.known.len()).ok()?)?,
                };
                let place = place(number);
                if place == self.known.len() {
                    self.known.push((sid, 0));
                } else {
                    self.known[place] = (sid, 0);
                }
                self.numbers.insert(sid, number);
                number
            }
        };
        self.known[place(number)].1 += 1;
        Some(number)
    }

    /// One mark less is of the session.
    pub(super) fn leave(&mut self, number: SessionNumber) {
        let (sid, marks) = &mut self.known[place(number)];
        *marks -= 1;
        if *marks == 0 {
            self.numbers.remove(sid);
            self.free.push(number);
        }
    }

    pub(super) fn get(&self, number: SessionNumber) -> Sid {
        self.known[place(number)].0
    }

    /// How many have a number.
    #[cfg(test)]
    pub(super) fn len(&self) -> i64 {
        self.numbers.len().try_into().unwrap()
    }

    /// No mark names any.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

fn place(number: SessionNumber) -> usize {
    usize::try_from(number.get()).expect("numbers are given from 0 on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_one_number_until_its_last_mark_is_gone() {
        let mut sessions = Sessions::default();
        let (a, b) = (sessions.enter(Sid(7)).unwrap(), sessions.enter(Sid(i64::MIN)).unwrap());
        assert_eq!(
            (sessions.enter(Sid(7)), sessions.get(a), sessions.get(b)),
            (Some(a), Sid(7), Sid(i64::MIN))
        );
        sessions.leave(a);
        assert_eq!(sessions.get(a), Sid(7));
        sessions.leave(a);
        assert_eq!(sessions.enter(Sid(9)), Some(a), "the number is given again");
        assert_eq!((sessions.get(a), sessions.get(b)), (Sid(9), Sid(i64::MIN)));
        sessions.leave(a);
        sessions.leave(b);
        assert!(sessions.is_empty());
    }

    #[test]
    fn more_sessions_than_numbers_are_refused_and_those_that_are_known_stay() {
        let mut sessions = Sessions::default();
        let numbers: Vec<_> = (0..1 << 15).map(|sid| sessions.enter(Sid(sid)).unwrap()).collect();
        assert_eq!((sessions.enter(Sid(-1)), sessions.enter(Sid(5))), (None, Some(numbers[5])));
        assert!(numbers.iter().zip(0..).all(|(number, sid)| sessions.get(*number) == Sid(sid)));
        sessions.leave(numbers[3]);
        assert_eq!(sessions.enter(Sid(-1)), Some(numbers[3]));
    }
}
