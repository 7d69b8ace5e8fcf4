//! Parsed schedules, shared: a million jobs have some thousand distinct expressions.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use common::schedule::{Error, Schedule};

/// Schedules that nobody has any more are dropped once there are so many, and twice as many as at the last look.
const CLEAN_FROM: usize = 1024;

/// The schedules in use, by expression.
#[derive(Debug)]
pub(super) struct Schedules {
    known: BTreeMap<Box<str>, Weak<Schedule>>,
    clean_at: usize,
}

impl Schedules {
    pub(super) fn new() -> Self {
        Self { known: BTreeMap::new(), clean_at: CLEAN_FROM }
    }

    /// The schedule of an expression: the one that other jobs have, if any has.
    pub(super) fn parse(&mut self, expression: &str) -> Result<Arc<Schedule>, Error> {
        if let Some(known) = self.known.get(expression).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let schedule = Arc::new(Schedule::parse(expression)?);
        if self.known.len() >= self.clean_at {
            self.known.retain(|_, schedule| schedule.strong_count() > 0);
            self.clean_at = CLEAN_FROM.max(self.known.len() * 2);
        }
        self.known.insert(expression.into(), Arc::downgrade(&schedule));
        Ok(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_expressions_share_one_schedule_and_unused_ones_go() {
        let mut schedules = Schedules::new();
        let one = schedules.parse("*/5 * * * *").unwrap();
        assert!(Arc::ptr_eq(&one, &schedules.parse("*/5 * * * *").unwrap()));
        assert!(schedules.parse("61 * * * *").is_err());
        for second in 0..60 {
            for minute in 0..60 {
                drop(schedules.parse(&format!("{second} {minute} * * * *")).unwrap());
            }
        }
        assert!(schedules.known.len() <= CLEAN_FROM, "{}", schedules.known.len());
        assert!(Arc::ptr_eq(&one, &schedules.parse("*/5 * * * *").unwrap()));
    }
}
