//! Parsed schedules, shared: a million jobs have some thousand distinct expressions.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use common::schedule::{Error, Schedule, Window};

/// Schedules that nobody has any more are dropped once there are so many, and twice as many as at the last look.
const CLEAN_FROM: usize = 1024;

/// The schedules in use, by expression and window.
#[derive(Debug)]
pub(super) struct Schedules {
    known: BTreeMap<(Box<str>, Window), Weak<Schedule>>,
    clean_at: usize,
}

impl Schedules {
    pub(super) fn new() -> Self {
        Self { known: BTreeMap::new(), clean_at: CLEAN_FROM }
    }

    /// The schedule of an expression within a window: the one that other jobs have, if any has.
    pub(super) fn parse(&mut self, expression: &str, window: Window) -> Result<Arc<Schedule>, Error> {
        let key = (Box::from(expression), window);
        if let Some(known) = self.known.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        // Another window of the same expression: what is large of it is shared as well.
        let first = (key.0.clone(), Window::default());
        let of_the_same = self.known.range(first..).take_while(|((other, _), _)| *other == key.0);
        let parsed = match of_the_same.map(|(_, schedule)| schedule).find_map(Weak::upgrade) {
            Some(known) => (*known).clone(),
            None => Schedule::parse(expression)?,
        };
        let schedule = Arc::new(parsed.within(window));
        if self.known.len() >= self.clean_at {
            self.known.retain(|_, schedule| schedule.strong_count() > 0);
            self.clean_at = CLEAN_FROM.max(self.known.len() * 2);
        }
        self.known.insert(key, Arc::downgrade(&schedule));
        Ok(schedule)
    }
}

#[cfg(test)]
mod tests {
    use common::clock::Timestamp;

    use super::*;

    const ALWAYS: Window = Window { from: None, until: None };

    #[test]
    fn equal_expressions_share_one_schedule_and_unused_ones_go() {
        let mut schedules = Schedules::new();
        let one = schedules.parse("*/5 * * * *", ALWAYS).unwrap();
        assert!(Arc::ptr_eq(&one, &schedules.parse("*/5 * * * *", ALWAYS).unwrap()));
        assert!(schedules.parse("61 * * * *", ALWAYS).is_err());
        for second in 0..60 {
            for minute in 0..60 {
                drop(schedules.parse(&format!("{second} {minute} * * * *"), ALWAYS).unwrap());
            }
        }
        assert!(schedules.known.len() <= CLEAN_FROM, "{}", schedules.known.len());
        assert!(Arc::ptr_eq(&one, &schedules.parse("*/5 * * * *", ALWAYS).unwrap()));
    }

    #[test]
    fn a_window_has_a_schedule_of_its_own_that_equal_ones_share() {
        let mut schedules = Schedules::new();
        let at = |ms| Some(Timestamp::from_ms(ms));
        let until = |ms| Window { from: None, until: at(ms) };
        let hour = 3_600_000;
        let always = schedules.parse("@hourly", ALWAYS).unwrap();
        let ends = schedules.parse("@hourly", until(2 * hour)).unwrap();
        assert!(Arc::ptr_eq(&ends, &schedules.parse("@hourly", until(2 * hour)).unwrap()));
        assert!(Arc::ptr_eq(&always, &schedules.parse("@hourly", ALWAYS).unwrap()));
        let after = Timestamp::from_ms(hour);
        assert_eq!((ends.next_after(after), always.next_after(after)), (None, at(2 * hour)));
        // What a window is cut from may itself have been cut.
        drop(always);
        let later = schedules.parse("@hourly", until(3 * hour)).unwrap();
        assert_eq!(later.next_after(after), at(2 * hour));
        drop((ends, later));
        assert_eq!(schedules.parse("@hourly", ALWAYS).unwrap().next_after(after), at(2 * hour));
    }
}
