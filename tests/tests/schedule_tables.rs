//! Holds the schedules to the tables of cases of other cron libraries; each file says where it comes from and what was left out of it.

use common::clock::Timestamp;
use common::schedule::{Dialect, Dst, Schedule, ScheduleSettings, Zone};

#[test]
fn gorhill_cronexpr() {
    check(include_str!("../testdata/schedules/gorhill-cronexpr.txt"), 69);
}

#[test]
fn hashicorp_cronexpr() {
    check(include_str!("../testdata/schedules/hashicorp-cronexpr.txt"), 87);
}

#[test]
fn robfig_cron() {
    check(include_str!("../testdata/schedules/robfig-cron.txt"), 107);
}

#[test]
fn cronsim_debian() {
    check(include_str!("../testdata/schedules/cronsim-debian.txt"), 270);
}

#[test]
fn cronos() {
    check(include_str!("../testdata/schedules/cronos.txt"), 1342);
}

#[test]
fn zslayton_cron() {
    check(include_str!("../testdata/schedules/zslayton-cron.txt"), 8);
}

/// Every row of a table holds; `rows` says how many there are, so that none gets lost.
fn check(table: &str, rows: usize) {
    let lines: Vec<_> =
        table.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).collect();
    let faults: Vec<_> =
        lines.iter().filter_map(|line| row(line).err().map(|why| format!("{line}\n    {why}"))).collect();
    assert!(faults.is_empty(), "{} of {} rows:\n{}", faults.len(), lines.len(), faults.join("\n"));
    assert_eq!(lines.len(), rows, "rows in the table");
}

fn row(line: &str) -> Result<(), String> {
    let cells: Vec<_> = line.split('|').map(str::trim).collect();
    let settings = settings(cells.get(4).copied().unwrap_or_default())?;
    let schedule = Schedule::parse(cells.get(1).ok_or("no expression")?, &settings);
    match (cells[0], &schedule) {
        ("refused", schedule) => return schedule.as_ref().map_or(Ok(()), |_| Err("was accepted".to_owned())),
        ("never", Err(why)) if why.message.contains("never comes") => return Ok(()),
        _ => {}
    }
    let schedule = schedule.map_err(|why| why.to_string())?;
    let from = time(cells.get(2).ok_or("no time to start from")?)?;
    let times = cells.get(3).filter(|cell| !cell.is_empty());
    let times = times.map_or(Ok(Vec::new()), |cell| cell.split(", ").map(time).collect())?;
    let next = schedule.next_after(from);
    match (cells[0], times.as_slice()) {
        ("never", []) => expect(next.is_none(), next),
        ("some", []) => expect(next.is_some(), next),
        ("not", [other]) => expect(next != Some(*other), next),
        ("fires", [_, ..]) => times
            .iter()
            .try_fold(from, |t, expected| {
                let next = schedule.next_after(t);
                expect(next == Some(*expected), next).map(|()| *expected)
            })
            .map(|_| ()),
        _ => Err("is not a row of this table".to_owned()),
    }
}

/// A zone, a dialect, a rule for daylight saving: whichever a row has.
fn settings(cell: &str) -> Result<ScheduleSettings<'static>, String> {
    let mut settings = ScheduleSettings { dialect: Some(Dialect::Standard), ..ScheduleSettings::default() };
    for word in cell.split_whitespace() {
        if let Some((dialect, _)) = Dialect::ALL.iter().find(|(_, name)| *name == word) {
            settings.dialect = Some(*dialect);
        } else if let Some((dst, _)) = Dst::ALL.iter().find(|(_, name)| *name == word) {
            settings.dst = *dst;
        } else {
            settings.zone = Zone::parse(word)?;
        }
    }
    Ok(settings)
}

fn expect(holds: bool, next: Option<Timestamp>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(next.map_or("never fires".to_owned(), |t| format!("fires {t}"))) }
}

/// A time in the form of the tables: `2024-01-31T23:59:00+01:00`, or with `Z`, with a fraction of a second in few.
fn time(text: &str) -> Result<Timestamp, String> {
    let digits = |range: std::ops::Range<usize>| text.get(range).and_then(|part| part.parse::<i64>().ok());
    let parts = (digits(0..4), digits(5..7), digits(8..10), digits(11..13), digits(14..16), digits(17..19));
    let (Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)) = parts else {
        return Err(format!("{text:?} is not a time"));
    };
    // Days since 1970 by counting years that begin in March, so that the leap day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    let offset = match text.rsplit_once(['+', '-']) {
        Some((head, offset)) if head.len() >= 19 => {
            let (hours, minutes) = offset.split_once(':').ok_or_else(|| format!("{text:?} has no offset"))?;
            let number = |part: &str| part.parse::<i64>().map_err(|why| format!("{text:?}: {why}"));
            let minutes = number(hours)? * 60 + number(minutes)?;
            if text.as_bytes()[head.len()] == b'-' { -minutes } else { minutes }
        }
        _ => 0,
    };
    let fraction = text.get(19..).and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.get(..3));
    let ms = fraction.map_or(Ok(0), str::parse::<i64>).map_err(|why| format!("{text:?}: {why}"))?;
    Ok(Timestamp::from_ms((((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000 + ms))
}
