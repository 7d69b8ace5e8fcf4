//! Schedules in UTC against two other libraries, where they mean the same: plain fields of which at most one is a day field.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use common::clock::Timestamp;
use common::schedule::{Schedule, ScheduleSettings};

/// xorshift64*: the same rows on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % bound
    }

    /// A field in which all three mean the same.
    fn field(&mut self, min: u64, max: u64) -> String {
        let n = min + self.below(max - min + 1);
        match self.below(5) {
            0 | 1 => "*".to_owned(),
            2 => n.to_string(),
            3 => format!("*/{}", 1 + self.below((max - min) / 2)),
            _ => format!("{n}-{},{n}", n + self.below(max - n + 1)),
        }
    }
}

fn utc(t: Timestamp) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(t.ms()).expect("a time of our years")
}

#[test]
fn next_fires_agree_with_croner_and_with_cron() {
    let mut random = Random(0x5eed_0c20);
    let mut compared = 0;
    for _ in 0..400 {
        let (minute, hour) = (random.field(0, 59), random.field(0, 23));
        let (day, weekday) = match random.below(2) {
            0 => (random.field(1, 28), "*".to_owned()),
            _ => (
                "*".to_owned(),
                ["MON-FRI", "SUN", "TUE,THU", "SAT", "*"][random.below(5) as usize].to_owned(),
            ),
        };
        let month = random.field(1, 12);
        let text = format!("{minute} {hour} {day} {month} {weekday}");
        let ours = Schedule::parse(&text, &ScheduleSettings::default())
            .unwrap_or_else(|why| panic!("{text}: {why}"));
        let croner = croner::Cron::from_str(&text).unwrap_or_else(|why| panic!("{text}: {why}"));
        let cron =
            cron::Schedule::from_str(&format!("0 {text}")).unwrap_or_else(|why| panic!("{text}: {why}"));
        let mut t = Timestamp::from_ms(i64::try_from(random.below(3_000_000_000_000)).unwrap() / 1000 * 1000);
        for _ in 0..5 {
            let next = ours.next_after(t).unwrap_or_else(|| panic!("{text} fires again after {t}"));
            assert_eq!(
                croner.find_next_occurrence(&utc(t), false).ok(),
                Some(utc(next)),
                "croner: {text} after {t}"
            );
            assert_eq!(cron.after(&utc(t)).next(), Some(utc(next)), "cron: {text} after {t}");
            (t, compared) = (next, compared + 1);
        }
    }
    assert_eq!(compared, 2_000);
}
