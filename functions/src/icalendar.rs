//! The days of an iCalendar file (RFC 5545): of its events, with all that they repeat. What is read and expanded is the work of `calcard`; here is
//! which days that means.
//!
//! A day counts if an event touches it: a whole-day event all of its days, the end not among them; one with times each date that its own clocks show
//! meanwhile. Repeating events are followed to the end of 2199. Cancelled ones count for nothing.

use std::collections::BTreeMap;

use calcard::common::PartialDateTime;
use calcard::common::timezone::Tz;
use calcard::icalendar::dates::TimeOrDelta;
use calcard::icalendar::{
    ICalendar, ICalendarComponent, ICalendarComponentType, ICalendarProperty, ICalendarStatus, ICalendarValue,
};
use common::clock::Timestamp;
use common::schedule::{DAYS, DaySet, Zone};

/// Most times that events happen, all together: a file of holidays has some thousand until 2199; what comes each hour is none.
const HAPPENINGS_MAX: usize = 200_000;
const DAY: i64 = 86_400;

/// What a file says.
pub(crate) struct Read {
    /// Its days.
    pub(crate) days: DaySet,
    /// What its reader should know.
    pub(crate) warnings: Vec<String>,
}

/// Reads a file. `zone` is the one in which times of UTC are dated; without it the file's own (`X-WR-TIMEZONE`), or UTC.
///
/// # Errors
/// What is wrong with the file; it goes on a sentence that begins with "the file".
pub(crate) fn read(text: &str, zone: Option<&Zone>) -> Result<Read, String> {
    let no_calendar = "is no iCalendar file: it begins with BEGIN:VCALENDAR and has events (BEGIN:VEVENT)";
    let calendar = ICalendar::parse(text.trim_start_matches('\u{feff}').trim_start())
        .map_err(|_not_one| no_calendar.to_owned())?;
    let mut warnings = Vec::new();
    let own_zone = text_of(&calendar.components, "X-WR-TIMEZONE").and_then(|name| Zone::parse(&name).ok());
    let dating = zone.cloned().or(own_zone);
    let zones: Vec<ICalendarComponent> = calendar.timezones().cloned().collect();
    // Changes of single happenings belong to the event of their UID alone, which `calcard` does not look at.
    let mut events: BTreeMap<String, Vec<ICalendarComponent>> = BTreeMap::new();
    let mut others = 0;
    for (index, component) in calendar.components.iter().enumerate() {
        match component.component_type {
            ICalendarComponentType::VEvent => {
                let uid = component.uid().map_or_else(|| format!("\0{index}"), str::to_owned);
                events.entry(uid).or_default().push(until_2199(component));
            }
            ICalendarComponentType::VTodo | ICalendarComponentType::VJournal => others += 1,
            _ => {}
        }
    }
    if events.is_empty() {
        return Err(no_calendar.to_owned());
    }
    if others > 0 {
        warnings.push(format!("{others} entries that are no events (tasks, journals) were left out"));
    }
    let (mut days, mut left, mut undated) = (DaySet::default(), HAPPENINGS_MAX, false);
    for (uid, components) in events {
        let said = components.iter().find_map(|one| one.property(&ICalendarProperty::Summary));
        let said = said.and_then(|entry| entry.values.first()).and_then(ICalendarValue::as_text);
        let named = format!("{:?}", said.unwrap_or(uid.trim_start_matches('\0')));
        let ours = ICalendar { components: zones.iter().cloned().chain(components).collect() };
        if let Some(foreign) = ours.components.iter().find_map(|one| unknown_zone(&ours, one)) {
            warnings.push(format!(
                "{named}: the zone {foreign:?} is not known: its times are taken as they stand"
            ));
        }
        let expanded = ours.expand_dates(Tz::Floating, left + 1);
        if let Some(error) = expanded.errors.first() {
            return Err(format!("has an event that cannot be read, {named}: {}", error.error));
        }
        left = left.checked_sub(expanded.events.len()).ok_or_else(|| {
            format!("has events that happen more than {HAPPENINGS_MAX} times until 2199, the last of them {named}: leave out what repeats without end")
        })?;
        for event in expanded.events {
            let Some(component) = usize::try_from(event.comp_id).ok().and_then(|id| ours.components.get(id))
            else {
                continue;
            };
            if matches!(component.status(), Some(ICalendarStatus::Cancelled)) {
                continue;
            }
            let start = event.start.naive_local().and_utc().timestamp();
            let end = match event.end {
                TimeOrDelta::Time(end) => end.naive_local().and_utc().timestamp(),
                TimeOrDelta::Delta(length) => start.saturating_add(length.num_seconds()),
            };
            let mut shift = 0;
            if is_of_utc(component) {
                undated |= dating.is_none();
                let at = Timestamp::from_ms(start.saturating_mul(1000));
                shift = dating.as_ref().map_or(0, |zone| zone.offset_at(at));
            }
            let last = end.saturating_sub(1).max(start);
            days.add((start + shift).div_euclid(DAY), (last + shift).div_euclid(DAY));
        }
    }
    if undated {
        warnings.push(
            "it has times in UTC and does not say whose dates they are: they are those of UTC, unless timezone=… says otherwise"
                .to_owned(),
        );
    }
    if days.count() == 0 {
        warnings.push(format!("it has no day from 1970 to 2199 ({DAYS} days)"));
    }
    Ok(Read { days, warnings })
}

/// The event, with an end to what repeats: the end of 2199, after which no schedule has fires. Its SEQUENCE goes: `calcard` takes only changes of the
/// very same one for the event's, while real files count them up.
fn until_2199(component: &ICalendarComponent) -> ICalendarComponent {
    let mut component = component.clone();
    component.entries.retain(|entry| entry.name != ICalendarProperty::Sequence);
    for value in component.entries.iter_mut().flat_map(|entry| &mut entry.values) {
        if let ICalendarValue::RecurrenceRule(rule) = value
            && rule.until.as_ref().is_none_or(|until| until.year > Some(2199))
        {
            let (year, month, day) = (Some(2199), Some(12), Some(31));
            let (hour, minute, second) = (Some(23), Some(59), Some(59));
            rule.until =
                Some(PartialDateTime { year, month, day, hour, minute, second, ..Default::default() });
        }
    }
    component
}

/// Its start is a time of UTC.
fn is_of_utc(component: &ICalendarComponent) -> bool {
    let start = component.property(&ICalendarProperty::Dtstart).and_then(|entry| entry.values.first());
    matches!(start, Some(ICalendarValue::PartialDateTime(at)) if at.tz_hour.is_some())
}

/// The zone of its start, if nobody knows it.
fn unknown_zone(calendar: &ICalendar, component: &ICalendarComponent) -> Option<String> {
    let name = component.property(&ICalendarProperty::Dtstart)?.tz_id()?;
    calendar.build_tz_resolver().resolve(name).is_none().then(|| name.to_owned())
}

/// The text of a property of the calendar itself that is not of the standard.
fn text_of(components: &[ICalendarComponent], name: &str) -> Option<String> {
    let calendar = components.iter().find(|one| one.component_type == ICalendarComponentType::VCalendar)?;
    let entry = calendar.entries.iter().find(
        |entry| matches!(&entry.name, ICalendarProperty::Other(other) if other.eq_ignore_ascii_case(name)),
    )?;
    entry.values.first()?.as_text().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use common::domain::calendars::Calendar;
    use serde_json::json;

    use super::*;

    fn file(events: &str) -> String {
        format!(
            "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//test//EN\r\n{}END:VCALENDAR\r\n",
            events.replace('\n', "\r\n")
        )
    }

    fn event(lines: &str) -> String {
        format!("BEGIN:VEVENT\nUID:{}\nSUMMARY:a day\n{lines}\nEND:VEVENT\n", lines.len())
    }

    /// The dates of a file up to 2035.
    #[track_caller]
    fn check(events: &str, zone: Option<&str>, dates: &[&str]) {
        let zone = zone.map(|zone| Zone::parse(zone).unwrap());
        let read = read(&file(events), zone.as_ref()).unwrap();
        let mut known = Calendar { days: read.days, ..Calendar::default() };
        let early: Vec<(i64, i64)> = known.days.stretches();
        known.days = DaySet::default();
        for (first, last) in early {
            known.days.add(first, last.min(23_741));
        }
        known.days = {
            let mut kept = DaySet::default();
            known
                .days
                .stretches()
                .into_iter()
                .filter(|(first, _)| *first <= 23_741)
                .for_each(|(a, b)| kept.add(a, b));
            kept
        };
        assert_eq!(known.to_value()["dates"], json!(dates), "{events}");
    }

    #[test]
    fn whole_days_end_before_their_end() {
        check(&event("DTSTART;VALUE=DATE:20270101"), None, &["2027-01-01"]);
        check(
            &event("DTSTART;VALUE=DATE:20271224\nDTEND;VALUE=DATE:20271227"),
            None,
            &["2027-12-24/2027-12-26"],
        );
        check(&event("DTSTART;VALUE=DATE:20271224\nDTEND;VALUE=DATE:20271224"), None, &["2027-12-24"]);
        check(&event("DTSTART;VALUE=DATE:20271224\nDURATION:P2D"), None, &["2027-12-24/2027-12-25"]);
    }

    #[test]
    fn an_event_with_times_touches_the_dates_that_its_clocks_show() {
        let overnight =
            "DTSTART;TZID=Europe/Berlin:20270310T220000\nDTEND;TZID=Europe/Berlin:20270311T060000";
        check(&event(overnight), None, &["2027-03-10/2027-03-11"]);
        let to_midnight =
            "DTSTART;TZID=Europe/Berlin:20270310T220000\nDTEND;TZID=Europe/Berlin:20270311T000000";
        check(&event(to_midnight), None, &["2027-03-10"]);
        // UTC: the dates of whoever asks, or of the file's zone.
        let utc = event("DTSTART:20271224T230000Z\nDTEND:20271225T230000Z");
        check(&utc, Some("Europe/Berlin"), &["2027-12-25"]);
        check(&utc, None, &["2027-12-24/2027-12-25"]);
        check(&format!("X-WR-TIMEZONE:Europe/Berlin\n{utc}"), None, &["2027-12-25"]);
        assert_eq!(read(&file(&utc), None).unwrap().warnings.len(), 1);
        check(&event("DTSTART:20271224T230000"), Some("Asia/Tokyo"), &["2027-12-24"]);
        let weekly = "DTSTART:20271224T230000Z\nDTEND:20271224T233000Z\nRRULE:FREQ=WEEKLY;COUNT=2";
        check(&event(weekly), Some("Europe/Berlin"), &["2027-12-25", "2028-01-01"]);
    }

    #[test]
    fn what_repeats_is_followed_until_2199() {
        let yearly = event("DTSTART;VALUE=DATE:20331225\nRRULE:FREQ=YEARLY");
        check(&yearly, None, &["2033-12-25", "2034-12-25"]);
        let read = read(&file(&yearly), None).unwrap();
        assert_eq!(read.days.count(), 2199 - 2033 + 1);
        assert!(read.days.has(DAYS - 7), "2199-12-25");
        // The fourth Thursday of November; Good Friday is in no rule, and such files list it.
        let thanksgiving = "DTSTART;VALUE=DATE:20331124\nRRULE:FREQ=YEARLY;BYMONTH=11;BYDAY=4TH";
        check(&event(thanksgiving), None, &["2033-11-24", "2034-11-23"]);
        let last_monday =
            "DTSTART;VALUE=DATE:20330530\nRRULE:FREQ=YEARLY;BYMONTH=5;BYDAY=-1MO;UNTIL=20340601";
        check(&event(last_monday), None, &["2033-05-30", "2034-05-29"]);
        let without = "DTSTART;VALUE=DATE:20330101\nRRULE:FREQ=MONTHLY;COUNT=4\nEXDATE;VALUE=DATE:20330201,20330401\nRDATE;VALUE=DATE:20330215";
        check(&event(without), None, &["2033-01-01", "2033-02-15", "2033-03-01"]);
        let two_days = "DTSTART;VALUE=DATE:20331231\nDTEND;VALUE=DATE:20340102\nRRULE:FREQ=YEARLY;COUNT=1";
        check(&event(two_days), None, &["2033-12-31/2034-01-01"]);
        // It began before there are schedules.
        check(
            &event("DTSTART;VALUE=DATE:19000101\nRRULE:FREQ=YEARLY;UNTIL=19710101"),
            None,
            &["1970-01-01", "1971-01-01"],
        );
    }

    #[test]
    fn cancelled_and_moved_happenings() {
        check(
            &(event("DTSTART;VALUE=DATE:20270101\nSTATUS:CANCELLED") + &event("DTSTART;VALUE=DATE:20270105")),
            None,
            &["2027-01-05"],
        );
        let series = "BEGIN:VEVENT\nUID:s\nSEQUENCE:3\nDTSTART;VALUE=DATE:20330101\nRRULE:FREQ=MONTHLY;COUNT=4\nEND:VEVENT\n";
        let other =
            "BEGIN:VEVENT\nUID:o\nDTSTART;VALUE=DATE:20330101\nRRULE:FREQ=MONTHLY;COUNT=2\nEND:VEVENT\n";
        let moved = "BEGIN:VEVENT\nUID:s\nSEQUENCE:4\nRECURRENCE-ID;VALUE=DATE:20330201\nDTSTART;VALUE=DATE:20330203\nEND:VEVENT\n";
        let gone = "BEGIN:VEVENT\nUID:s\nSEQUENCE:4\nRECURRENCE-ID;VALUE=DATE:20330301\nDTSTART;VALUE=DATE:20330301\nSTATUS:CANCELLED\nEND:VEVENT\n";
        check(&[series, moved, gone].concat(), None, &["2033-01-01", "2033-02-03", "2033-04-01"]);
        check(
            &[other, series, moved, gone].concat(),
            None,
            &["2033-01-01", "2033-02-01", "2033-02-03", "2033-04-01"],
        );
    }

    #[test]
    fn what_is_no_calendar_or_never_ends_is_told() {
        for bad in
            ["", "hello", "BEGIN:VCARD\nEND:VCARD", "BEGIN:VCALENDAR\nVERSION:2.0\nEND:VCALENDAR", "{}"]
        {
            assert!(read(bad, None).is_err_and(|why| why.contains("no iCalendar file")), "{bad}");
        }
        let hourly = event("DTSTART:20270101T000000\nRRULE:FREQ=HOURLY");
        assert!(read(&file(&hourly), None).is_err_and(|why| why.contains("more than 200000 times")));
        let broken = event("DTSTART:tomorrow");
        assert!(read(&file(&broken), None).is_err_and(|why| why.contains("\"a day\"")));
        let tasks =
            event("DTSTART;VALUE=DATE:20270101") + "BEGIN:VTODO\nUID:t\nDUE;VALUE=DATE:20270109\nEND:VTODO\n";
        assert_eq!(read(&file(&tasks), None).unwrap().warnings.len(), 1);
    }
}
