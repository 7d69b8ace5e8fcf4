//! Rows for what is read how, and properties against an oracle that walks second by second and shares no code with the search.

use std::cell::Cell;

use super::fields::YEARS;
use super::*;

fn parse(text: &str) -> Result<Schedule, Error> {
    Schedule::parse(text, &ScheduleSettings::default())
}

fn at(text: &str) -> Timestamp {
    let t = chrono::DateTime::parse_from_rfc3339(text).expect(text);
    Timestamp::from_ms(t.timestamp_millis())
}

/// Fires after `from`, as many as are expected; `never` at the end says that there is no more.
fn check(expression: &str, from: &str, expected: &[&str]) {
    let schedule = parse(expression).unwrap_or_else(|why| panic!("{expression:?}: {why}"));
    let mut t = at(from);
    for expected in expected {
        let next = schedule.next_after(t);
        let shown = next.map_or("never".to_owned(), |t| t.rfc3339().replace(".000Z", "Z"));
        assert_eq!(&shown, expected, "{expression:?} after {t}");
        t = next.unwrap_or(t);
    }
}

/// The message says all of this.
fn refused(expression: &str, field: &str, position: usize, says: &[&str]) {
    let why = match parse(expression) {
        Ok(_) => panic!("{expression:?} was taken"),
        Err(why) => why,
    };
    assert_eq!((why.field, why.position), (field, position), "{expression:?}: {why}");
    let shown = why.to_string();
    for part in says {
        assert!(shown.contains(part), "{expression:?}: {shown:?} does not say {part:?}");
    }
}

#[test]
fn a_window_has_its_start_and_not_its_end() {
    for (from, until, after, expected) in [
        (Some("2027-01-15T08:00:00Z"), None, "2020-01-01T00:00:00Z", Some("2027-01-15T08:00:00Z")),
        (Some("2027-01-15T08:00:00.001Z"), None, "2020-01-01T00:00:00Z", Some("2027-01-15T09:00:00Z")),
        (Some("2027-01-15T08:00:00Z"), None, "2027-01-15T08:00:00Z", Some("2027-01-15T09:00:00Z")),
        (None, Some("2027-01-15T08:00:00Z"), "2027-01-15T06:30:00Z", Some("2027-01-15T07:00:00Z")),
        (None, Some("2027-01-15T08:00:00Z"), "2027-01-15T07:00:00Z", None),
        (None, Some("2027-01-15T08:00:00.001Z"), "2027-01-15T07:00:00Z", Some("2027-01-15T08:00:00Z")),
        (Some("2027-01-15T08:30:00Z"), Some("2027-01-15T08:50:00Z"), "2020-01-01T00:00:00Z", None),
        (Some("2027-01-15T08:30:00Z"), Some("2020-01-01T00:00:00Z"), "1970-01-01T00:00:00Z", None),
        (Some("9999-12-31T23:59:59Z"), None, "1970-01-01T00:00:00Z", None),
        (Some("0000-01-01T00:00:00Z"), Some("0000-01-02T00:00:00Z"), "1970-01-01T00:00:00Z", None),
    ] {
        let window = Window { from: from.map(at), until: until.map(at) };
        let schedule = parse("@hourly").unwrap().within(window);
        assert_eq!(schedule.next_after(at(after)), expected.map(at), "{window:?} after {after}");
    }
}

#[test]
fn the_fires_of_a_window_are_counted() {
    let window = Window { from: Some(at("2027-01-15T08:00:00Z")), until: Some(at("2027-01-15T10:00:00Z")) };
    let schedule = parse("*/10 * * * *").unwrap().within(window);
    let fires = schedule.fires_between(at("2020-01-01T00:00:00Z"), at("2030-01-01T00:00:00Z"), 100).unwrap();
    assert_eq!((fires.first, fires.last), (at("2027-01-15T08:00:00Z"), at("2027-01-15T09:50:00Z")));
    assert_eq!((fires.count, fires.more), (12, false));
}

#[test]
fn five_six_and_seven_fields() {
    let from = "2024-01-31T23:59:59.250Z";
    check("* * * * *", from, &["2024-02-01T00:00:00Z", "2024-02-01T00:01:00Z"]);
    check("* * * * * *", from, &["2024-02-01T00:00:00Z", "2024-02-01T00:00:01Z"]);
    check("*/2 * * * * * *", from, &["2024-02-01T00:00:00Z", "2024-02-01T00:00:02Z"]);
    check("30 15 8 1 1 * 2030", from, &["2030-01-01T08:15:30Z", "never"]);
    check("0 0 1 1 * 2030", from, &["2030-01-01T00:00:00Z", "never"]);
    check("0 0 1 1 * 2030,2032", from, &["2030-01-01T00:00:00Z", "2032-01-01T00:00:00Z", "never"]);
    check("0 0 1 1 * 2030-2031", from, &["2030-01-01T00:00:00Z", "2031-01-01T00:00:00Z", "never"]);
    check("0 0 1 1 * 2030/100", from, &["2030-01-01T00:00:00Z", "2130-01-01T00:00:00Z", "never"]);
    check("\t 5   4 * * * ", from, &["2024-02-01T04:05:00Z"]);
}

#[test]
fn six_fields_come_with_a_warning() {
    let warning = |e: &str| parse(e).unwrap().warning().map(str::to_owned);
    let seconds = warning("*/5 * * * * *").unwrap();
    for says in ["seconds first", "trailing year", "\"0 */5 * * * * *\"", "\"*/5 * * * * * *\""] {
        assert!(seconds.contains(says), "{seconds}");
    }
    let year = warning("0 0 1 1 * 2030").unwrap();
    assert!(year.contains("\"2030\" can only be a year"), "{year}");
    for silent in ["* * * * *", "* * * * * * *", "@daily"] {
        assert_eq!(warning(silent), None);
    }
}

#[test]
fn lists_ranges_and_steps() {
    let from = "2024-01-01T00:00:00Z";
    check(
        "5,10-12 3 * * *",
        from,
        &[
            "2024-01-01T03:05:00Z",
            "2024-01-01T03:10:00Z",
            "2024-01-01T03:11:00Z",
            "2024-01-01T03:12:00Z",
            "2024-01-02T03:05:00Z",
        ],
    );
    check(
        "10-30/10 0 * * *",
        from,
        &["2024-01-01T00:10:00Z", "2024-01-01T00:20:00Z", "2024-01-01T00:30:00Z", "2024-01-02T00:10:00Z"],
    );
    check("40/15 * * * *", from, &["2024-01-01T00:40:00Z", "2024-01-01T00:55:00Z", "2024-01-01T01:40:00Z"]);
    check("*/59 0 * * *", from, &["2024-01-01T00:59:00Z", "2024-01-02T00:00:00Z"]);
    check("0 */23 * * *", from, &["2024-01-01T23:00:00Z", "2024-01-02T00:00:00Z"]);
    check(
        "0 0 29/2 * *",
        from,
        &["2024-01-29T00:00:00Z", "2024-01-31T00:00:00Z", "2024-02-29T00:00:00Z", "2024-03-29T00:00:00Z"],
    );
    check(
        "10-12,11,11-13 0 1 1 *",
        from,
        &[
            "2024-01-01T00:10:00Z",
            "2024-01-01T00:11:00Z",
            "2024-01-01T00:12:00Z",
            "2024-01-01T00:13:00Z",
            "2025-01-01T00:10:00Z",
        ],
    );
}

#[test]
fn names_and_padding() {
    let from = "2024-01-15T00:00:00Z"; // a Monday
    check("0 0 1 DEC *", from, &["2024-12-01T00:00:00Z"]);
    check("0 0 1 mar,Sep *", from, &["2024-03-01T00:00:00Z", "2024-09-01T00:00:00Z"]);
    check(
        "0 0 1 february-APR/2 *",
        from,
        &["2024-02-01T00:00:00Z", "2024-04-01T00:00:00Z", "2025-02-01T00:00:00Z"],
    );
    check(
        "0 0 * * wed-FRIDAY",
        from,
        &["2024-01-17T00:00:00Z", "2024-01-18T00:00:00Z", "2024-01-19T00:00:00Z", "2024-01-24T00:00:00Z"],
    );
    check("0 0 * * MON-5/2", from, &["2024-01-17T00:00:00Z", "2024-01-19T00:00:00Z", "2024-01-22T00:00:00Z"]);
    // The seed's library takes month 01 for December.
    check("07 08 01 01 *", from, &["2025-01-01T08:07:00Z"]);
    check("00 0000 * 0009 01", from, &["2024-09-02T00:00:00Z"]);
}

#[test]
fn zero_and_seven_are_sunday_in_every_form() {
    let from = "2024-01-13T12:00:00Z"; // a Saturday
    for sunday in ["0", "7", "SUN", "sunday", "0,7", "7-7", "7-0", "0-0", "*/7", "00", "07", "SUN-SUN"] {
        check(&format!("0 0 * * {sunday}"), from, &["2024-01-14T00:00:00Z", "2024-01-21T00:00:00Z"]);
    }
    // The seed's library never fires 5-7 and fires 0-7 on Sundays only.
    for weekend in ["5-7", "5-SUN", "FRI-SUN", "FRI-7", "5-0", "5,6,7", "5,6,0"] {
        check(
            &format!("0 0 * * {weekend}"),
            from,
            &["2024-01-14T00:00:00Z", "2024-01-19T00:00:00Z", "2024-01-20T00:00:00Z", "2024-01-21T00:00:00Z"],
        );
    }
    for every_day in ["0-7", "1-7", "0-6", "7-6", "SUN-SAT", "MON-SUN", "*/1"] {
        check(
            &format!("0 0 * * {every_day}"),
            from,
            &["2024-01-14T00:00:00Z", "2024-01-15T00:00:00Z", "2024-01-16T00:00:00Z"],
        );
    }
    for even in ["*/2", "0/2", "7/2", "SUN/2", "0-6/2", "0-7/2"] {
        check(
            &format!("0 0 * * {even}"),
            from,
            &[
                "2024-01-14T00:00:00Z",
                "2024-01-16T00:00:00Z",
                "2024-01-18T00:00:00Z",
                "2024-01-20T00:00:00Z",
                "2024-01-21T00:00:00Z",
            ],
        );
    }
    check(
        "0 0 * * 1-7/3",
        from,
        &["2024-01-14T00:00:00Z", "2024-01-15T00:00:00Z", "2024-01-18T00:00:00Z", "2024-01-21T00:00:00Z"],
    );
    check("0 0 * * 5/2", from, &["2024-01-19T00:00:00Z", "2024-01-26T00:00:00Z"]);
    check(
        "0 0 * * 7-2",
        from,
        &["2024-01-14T00:00:00Z", "2024-01-15T00:00:00Z", "2024-01-16T00:00:00Z", "2024-01-21T00:00:00Z"],
    );
}

#[test]
fn the_day_rule() {
    let from = "2024-09-01T12:00:00Z"; // a Sunday
    // Both restricted: either. Friday the 13th is one of them, not the only one.
    check(
        "0 0 13 * 5",
        from,
        &[
            "2024-09-06T00:00:00Z",
            "2024-09-13T00:00:00Z",
            "2024-09-20T00:00:00Z",
            "2024-09-27T00:00:00Z",
            "2024-10-04T00:00:00Z",
            "2024-10-11T00:00:00Z",
            "2024-10-13T00:00:00Z",
        ],
    );
    check("0 0 13 * *", from, &["2024-09-13T00:00:00Z", "2024-10-13T00:00:00Z"]);
    check("0 0 * * 5", from, &["2024-09-06T00:00:00Z", "2024-09-13T00:00:00Z"]);
    // A field that begins with `*` is not restricted: both have to match.
    check("0 0 */10 * MON", from, &["2024-10-21T00:00:00Z", "2024-11-11T00:00:00Z"]);
    check("0 0 13 * */5", from, &["2024-09-13T00:00:00Z", "2024-10-13T00:00:00Z", "2024-12-13T00:00:00Z"]);
    check("0 0 *,13 * 5", from, &["2024-09-06T00:00:00Z", "2024-09-13T00:00:00Z"]);
    // All values, but not begun with `*`: restricted by the letter, so either, so every day.
    check("0 0 1-31 * 5", from, &["2024-09-02T00:00:00Z", "2024-09-03T00:00:00Z"]);
    check("0 0 13 * 0-6", from, &["2024-09-02T00:00:00Z", "2024-09-03T00:00:00Z"]);
    // One side never comes, the other does.
    check("0 0 30 2 MON", from, &["2025-02-03T00:00:00Z", "2025-02-10T00:00:00Z"]);
}

#[test]
fn nicknames() {
    let from = "2024-06-12T10:20:30Z"; // a Wednesday
    check("@hourly", from, &["2024-06-12T11:00:00Z", "2024-06-12T12:00:00Z"]);
    check("@daily", from, &["2024-06-13T00:00:00Z", "2024-06-14T00:00:00Z"]);
    check("@midnight", from, &["2024-06-13T00:00:00Z"]);
    check("@weekly", from, &["2024-06-16T00:00:00Z", "2024-06-23T00:00:00Z"]);
    check("@monthly", from, &["2024-07-01T00:00:00Z", "2024-08-01T00:00:00Z"]);
    check(" @Yearly ", from, &["2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"]);
    check("@annually", from, &["2025-01-01T00:00:00Z"]);
}

#[test]
fn calendar_and_the_ends_of_time() {
    check("0 0 29 2 *", "2096-03-01T00:00:00Z", &["2104-02-29T00:00:00Z", "2108-02-29T00:00:00Z"]);
    check("0 0 29 2 MON", "2024-03-01T00:00:00Z", &["2025-02-03T00:00:00Z"]);
    check(
        "0 0 29 2 */7",
        "2024-03-01T00:00:00Z",
        &["2032-02-29T00:00:00Z", "2060-02-29T00:00:00Z", "2088-02-29T00:00:00Z", "2128-02-29T00:00:00Z"],
    );
    check("0 0 31 * *", "2024-03-31T00:00:00Z", &["2024-05-31T00:00:00Z", "2024-07-31T00:00:00Z"]);
    check(
        "59 59 23 31 12 * *",
        "2099-12-31T23:59:58Z",
        &["2099-12-31T23:59:59Z", "2100-12-31T23:59:59Z", "2101-12-31T23:59:59Z"],
    );
    check(
        "* * * * * * *",
        "2100-12-31T23:59:58Z",
        &["2100-12-31T23:59:59Z", "2101-01-01T00:00:00Z", "2101-01-01T00:00:01Z"],
    );
    check("* * * * * * *", "2199-12-31T23:59:58Z", &["2199-12-31T23:59:59Z", "never"]);
    check("* * * * * * *", "1960-01-01T00:00:00Z", &["1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z"]);
    check("* * * * * * *", "0000-01-01T00:00:00Z", &["1970-01-01T00:00:00Z"]);
    check("0 12 * * FRI 2150", "2024-01-01T00:00:00Z", &["2150-01-02T12:00:00Z", "2150-01-09T12:00:00Z"]);
    check(
        "0 0 1 1 * 1999,2099,2199",
        "2024-01-01T00:00:00Z",
        &["2099-01-01T00:00:00Z", "2199-01-01T00:00:00Z", "never"],
    );
    check("* * * * * 1980", "2013-08-31T00:00:00Z", &["never"]);
    let every_second = parse("* * * * * * *").unwrap();
    assert_eq!(every_second.next_after(Timestamp::from_ms(i64::MAX)), None);
    assert_eq!(every_second.next_after(Timestamp::from_ms(i64::MIN)), Some(Timestamp::ZERO));
    assert_eq!(every_second.next_after(Timestamp::from_ms(-1)), Some(Timestamp::ZERO));
    assert_eq!(every_second.next_after(Timestamp::from_ms(999)), Some(Timestamp::from_ms(1000)));
    assert_eq!(every_second.next_after(Timestamp::from_ms(1000)), Some(Timestamp::from_ms(2000)));
}

#[test]
fn faults_name_the_field_the_place_and_the_cure() {
    refused("60 * * * *", "minute", 1, &["minute: \"60\" at character 1", "write 0 to 59"]);
    refused("* 24 * * *", "hour", 3, &["\"24\"", "0 to 23"]);
    refused("* * 0 * *", "day of month", 5, &["1 to 31"]);
    refused("* * * 13 *", "month", 7, &["1 to 12 or JAN to DEC"]);
    refused("* * * 0 *", "month", 7, &["1 to 12"]);
    refused("* * * * 8", "day of week", 9, &["0 to 7", "SUN to SAT"]);
    refused("61 * * * * *", "second", 1, &["0 to 59"]);
    refused("* * * * * * 1969", "year", 13, &["1970 to 2199"]);
    refused("* * * * * 2200", "year", 11, &["1970 to 2199"]);
    refused("  1 2 * jam *", "month", 9, &["\"jam\" at character 9", "is not understood", "JAN"]);
    refused("1,2,,3 * * * *", "minute", 5, &["\"1,2,,3\"", "extra comma"]);
    refused("1, * * * *", "minute", 3, &["extra comma"]);
    refused(", * * * *", "minute", 1, &["extra comma"]);
    refused("* +1 * * *", "hour", 3, &["\"+1\"", "has a sign: write 1"]);
    refused("-1 * * * *", "minute", 1, &["has a sign: write 1"]);
    refused("5--7 * * * *", "minute", 3, &["\"-7\"", "has a sign: write 7"]);
    refused("*/60 * * * *", "minute", 1, &["\"*/60\"", "larger than the field", "write 0 for one time only"]);
    refused("5/60 * * * *", "minute", 1, &["write 5 for one time only"]);
    refused("* */24 * * *", "hour", 3, &["larger than the field"]);
    refused("*/0 * * * *", "minute", 1, &["a step of 0"]);
    refused("*/ * * * *", "minute", 1, &["no step after"]);
    refused("*/x * * * *", "minute", 1, &["not a number", "*/2"]);
    refused("*/+2 * * * *", "minute", 1, &["not a number"]);
    refused("*/2/3 * * * *", "minute", 1, &["not a number"]);
    refused("/5 * * * *", "minute", 1, &["write */5"]);
    refused("5- * * * *", "minute", 1, &["half a range"]);
    refused("1-2-3 * * * *", "minute", 3, &["\"2-3\"", "is not understood"]);
    refused("*5 * * * *", "minute", 1, &["is not understood"]);
    refused("1-* * * * *", "minute", 3, &["is not understood"]);
    refused("MON * * * *", "minute", 1, &["is not understood"]);
    refused("99999999999999999999 * * * *", "minute", 1, &["out of bounds"]);
    refused("1\u{b}2 * * * *", "minute", 1, &["\\u{b}"]);
    refused("0 0 1 1 * 2031-2030", "year", 11, &["ends before it starts: write 2030-2031"]);
}

#[test]
fn faults_of_the_whole() {
    refused("", "", 1, &["empty", "5 fields"]);
    refused(" \t ", "", 1, &["empty"]);
    refused("* * * *", "", 1, &["has 4 fields", "5 fields", "6", "7", "@hourly"]);
    refused("xyz", "", 1, &["has 1 field:"]);
    refused(" * * * * * * * *", "", 2, &["has 8 fields"]);
    refused("* * * * ¹", "", 9, &["\"¹\"", "not ASCII"]);
    refused("é é é é é", "", 1, &["not ASCII"]);
    refused("@dayly", "", 1, &["\"@dayly\"", "is not known", "@daily"]);
    refused("@daily 5", "", 8, &["\"5\" at character 8", "does not belong after @daily"]);
    let long = format!("{} * * * *", vec!["1"; 500].join(","));
    refused(&long, "", 1, &["1007 bytes", "1000"]);
    let fits = format!("{} * * * *", vec!["1"; 490].join(","));
    check(&fits, "2024-01-01T00:00:00Z", &["2024-01-01T00:01:00Z"]);
}

#[test]
fn days_that_depend_on_the_month() {
    let from = "2024-01-15T00:00:00Z"; // a Monday
    let midnights = |days: &[&str]| days.iter().map(|day| format!("{day}T00:00:00Z")).collect::<Vec<_>>();
    for (fields, days) in [
        ("L * *", ["2024-01-31", "2024-02-29", "2024-03-31"]),
        ("l-0 * *", ["2024-01-31", "2024-02-29", "2024-03-31"]),
        ("L-2 * *", ["2024-01-29", "2024-02-27", "2024-03-29"]),
        ("L-30 * *", ["2024-03-01", "2024-05-01", "2024-07-01"]),
        ("LW * *", ["2024-01-31", "2024-02-29", "2024-03-29"]),
        ("L-1W * *", ["2024-01-30", "2024-02-28", "2024-03-29"]),
        // The 1st and the last day never move into another month.
        ("1w * *", ["2024-02-01", "2024-03-01", "2024-04-01"]),
        ("1W 6,9,12 *", ["2024-06-03", "2024-09-02", "2024-12-02"]),
        ("31W * *", ["2024-01-31", "2024-03-29", "2024-05-31"]),
        ("15,LW * *", ["2024-01-31", "2024-02-15", "2024-02-29"]),
        ("15,L 2 *", ["2024-02-15", "2024-02-29", "2025-02-15"]),
        ("* * 5L", ["2024-01-26", "2024-02-23", "2024-03-29"]),
        ("* * friL", ["2024-01-26", "2024-02-23", "2024-03-29"]),
        ("* * 7L", ["2024-01-28", "2024-02-25", "2024-03-31"]),
        ("* * MON#1", ["2024-02-05", "2024-03-04", "2024-04-01"]),
        ("* * 4#5", ["2024-02-29", "2024-05-30", "2024-08-29"]),
        ("* * 0#2,7#3", ["2024-01-21", "2024-02-11", "2024-02-18"]),
        ("* * 1,3#2", ["2024-01-22", "2024-01-29", "2024-02-05"]),
        // Both day fields: either.
        ("L * 1#1", ["2024-01-31", "2024-02-05", "2024-02-29"]),
        ("? * 5L", ["2024-01-26", "2024-02-23", "2024-03-29"]),
        ("L * ?", ["2024-01-31", "2024-02-29", "2024-03-31"]),
    ] {
        let days = midnights(&days);
        check(&format!("0 0 {fields}"), from, &days.iter().map(String::as_str).collect::<Vec<_>>());
    }
    check("? ? ? ? ?", from, &["2024-01-15T00:01:00Z"]);
    refused("0 0 L-31 * *", "day of month", 5, &["write L-0 to L-30"]);
    refused("0 0 L2 * *", "day of month", 5, &["L-2W"]);
    refused("0 0 32W * *", "day of month", 5, &["1W to 31W"]);
    refused("0 0 1-5W * *", "day of month", 5, &["one day before W"]);
    refused("0 0 5L * *", "day of month", 5, &["is not understood", "L-2"]);
    refused("0 0 * * L", "day of week", 9, &["5L or FRIL", "6 for Saturdays"]);
    refused("0 0 * * 8L", "day of week", 9, &["no weekday before"]);
    refused("0 0 * * 1#6", "day of week", 9, &["no week from 1 to 5"]);
    refused("0 0 * * #2", "day of week", 9, &["no weekday before \"#\""]);
    refused("0 0 * * MON-FRI#2", "day of week", 9, &["no weekday before"]);
    refused("L 0 * * *", "minute", 1, &["is not understood"]);
    refused("?/5 * * * *", "minute", 1, &["write * in its place"]);
    refused("0 0 30W 2 *", "day of month", 5, &["never fire"]);
}

#[test]
fn ranges_may_wrap() {
    let from = "2024-01-01T12:00:00Z"; // a Monday
    // The seed's library panics on these.
    check(
        "0 22-2/2 * * *",
        from,
        &["2024-01-01T22:00:00Z", "2024-01-02T00:00:00Z", "2024-01-02T02:00:00Z", "2024-01-02T22:00:00Z"],
    );
    check("0 0 1 DEC-FEB *", from, &["2024-02-01T00:00:00Z", "2024-12-01T00:00:00Z", "2025-01-01T00:00:00Z"]);
    check("0 0 * * FRI-MON", from, &["2024-01-05T00:00:00Z", "2024-01-06T00:00:00Z", "2024-01-07T00:00:00Z"]);
    check("0 0 * * 6-1", from, &["2024-01-06T00:00:00Z", "2024-01-07T00:00:00Z", "2024-01-08T00:00:00Z"]);
    check("0 0 30-2 * *", from, &["2024-01-02T00:00:00Z", "2024-01-30T00:00:00Z", "2024-01-31T00:00:00Z"]);
    check(
        "50-10/10 0 * * *",
        from,
        &["2024-01-02T00:00:00Z", "2024-01-02T00:10:00Z", "2024-01-02T00:50:00Z"],
    );
}

#[test]
fn elapsed_time_since_1970() {
    check("@every 90s", "2024-01-01T00:00:00Z", &["2024-01-01T00:01:30Z", "2024-01-01T00:03:00Z"]);
    check("@every 1h30m", "2024-01-01T00:00:00Z", &["2024-01-01T01:30:00Z", "2024-01-01T03:00:00Z"]);
    check("@EVERY 2d", "1970-01-01T00:00:00Z", &["1970-01-03T00:00:00Z"]);
    check("@every 7s", "1960-01-01T00:00:00Z", &["1970-01-01T00:00:00Z", "1970-01-01T00:00:07Z"]);
    check("@every 1d", "2199-12-30T00:00:00Z", &["2199-12-31T00:00:00Z", "never"]);
    for (wrong, says) in [
        ("@every", "has no period"),
        ("@every 90", "is no period"),
        ("@every 1.5h", "is no period"),
        ("@every 90S", "is no period"),
        ("@every -1s", "is no period"),
        ("@every 1s1s", "unit twice"),
        ("@every 0h0s", "no time at all"),
        ("@every 99999999999d", "so long"),
        ("@every 90 s", "is no period"),
        ("@every_hour", "is not known"),
    ] {
        refused(
            wrong,
            "",
            if wrong.contains(' ') {
                8
            } else if wrong == "@every" {
                7
            } else {
                1
            },
            &[says, "@every 90s"],
        );
    }
}

#[test]
fn one_moment() {
    check("@at 2027-01-01T00:00:00+08:00", "2024-01-01T00:00:00Z", &["2026-12-31T16:00:00Z", "never"]);
    check("@AT 2027-01-01T00:00:00.000Z", "2024-01-01T00:00:00Z", &["2027-01-01T00:00:00Z", "never"]);
    check("@at 2010-01-01T00:00:00Z", "2024-01-01T00:00:00Z", &["never"]);
    refused("@at", "", 4, &["has no time", "offset from UTC"]);
    refused("@at 2027-01-01T00:00:00", "", 5, &["RFC 3339", "+01:00"]);
    refused("@at 2027-02-30T00:00:00Z", "", 5, &["RFC 3339"]);
    refused("@at 2027-01-01T00:00:00.0001Z", "", 5, &["finer than a millisecond"]);
    refused("@at 2200-01-01T00:00:00Z", "", 5, &["1970 to 2199"]);
    refused("@at 1969-12-31T23:59:59Z", "", 5, &["1970 to 2199"]);
}

#[test]
fn what_no_fleet_has_is_refused() {
    refused("@reboot", "", 1, &["a fleet has no single boot", "init system"]);
    refused("0 9 * * * ; 0 17 * * *", "", 11, &["each of several expressions on a line of its own"]);
    refused("0 9 * * * | 0 17 * * *", "", 11, &["a line of its own"]);
}

#[test]
fn any_of_several_lines_fires() {
    let lines =
        "0 9 * * MON-FRI\r\n\n  0 10 * * SAT,SUN\n@at 2024-01-05T09:00:00Z\n@at 2024-01-05T09:30:00Z\n";
    check(
        lines,
        "2024-01-05T00:00:00Z",
        &["2024-01-05T09:00:00Z", "2024-01-05T09:30:00Z", "2024-01-06T10:00:00Z", "2024-01-07T10:00:00Z"],
    );
    let why = parse("0 9 * * *\n\n0 0 31 6 *").unwrap_err();
    assert_eq!((why.line, why.field, why.position), (3, "day of month", 5), "{why}");
    assert!(why.to_string().starts_with("line 3: day of month: \"31\""), "{why}");
    let warned = parse("0 9 * * *\n*/5 * * * * *").unwrap();
    assert!(warned.warning().unwrap().starts_with("line 2: read as six"), "{warned:?}");
    assert!(parse(&"0 9 * * *\n".repeat(33)).unwrap_err().to_string().contains("33 expressions"));
    check(&"0 9 * * *\n".repeat(32), "2024-01-05T00:00:00Z", &["2024-01-05T09:00:00Z"]);
}

#[test]
fn values_from_the_jobs_name() {
    let of = |name: &str, text: &str| {
        Schedule::parse(text, &ScheduleSettings { name: Some(name), ..ScheduleSettings::default() })
    };
    let values = |name: &str, text: &str, place| match of(name, text).unwrap().expressions() {
        [Expression::Fields(fields)] => fields.values(place),
        other => panic!("{other:?}"),
    };
    // The same in every version: another number would move each such job.
    assert_eq!(values("backup", "H H H H H", Place::Minute), [7]);
    assert_eq!(values("backup", "H H H H H", Place::Hour), [20]);
    let (mut minutes, mut days) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for n in 0..500 {
        let name = format!("job{n}");
        minutes.extend(values(&name, "H * * * *", Place::Minute));
        days.extend(values(&name, "0 0 H * *", Place::DayOfMonth));
        let quarters = values(&name, "H/15 * * * *", Place::Minute);
        assert!(quarters.len() == 4 && quarters[0] < 15 && quarters[3] == quarters[0] + 45, "{quarters:?}");
        let part = values(&name, "h(10-29)/10 * * * *", Place::Minute);
        assert!(part.len() == 2 && (10..20).contains(&part[0]) && part[1] == part[0] + 10, "{part:?}");
        assert!((3..=5).contains(&values(&name, "0 H(3-5) * * *", Place::Hour)[0]));
    }
    assert_eq!((minutes.len(), days.len(), days.last()), (60, 28, Some(&28)));
    refused("H * * * *", "minute", 1, &["the job's name, which is not known here"]);
    for (text, says) in [
        ("H(5-2) * * * *", "write H(2-5)"),
        ("H(5) * * * *", "H(0-29)"),
        ("H/0 * * * *", "step of 0"),
        ("H(0-60) * * * *", "out of bounds"),
        ("0 0 0 1 1 * H", "write years"),
    ] {
        let why = of("backup", text).unwrap_err().to_string();
        assert!(why.contains(says), "{text}: {why}");
    }
    for (text, depends) in
        [("H * * * *", true), ("0 0 * * THU", false), ("0 1,h/5 * * *", true), ("0 H(1-2) * * *", true)]
    {
        assert_eq!(Schedule::depends_on_name(text), depends, "{text}");
    }
}

/// As [`check`], with settings, in the zone's own times; `from` and what is expected are written with their offsets.
fn check_in(zone: &str, dst: Dst, expression: &str, from: &str, expected: &[&str]) {
    let settings = ScheduleSettings { zone: Zone::parse(zone).unwrap(), dst, ..ScheduleSettings::default() };
    let schedule = Schedule::parse(expression, &settings).unwrap();
    let mut t = at(from);
    for expected in expected {
        let next = schedule.next_after(t);
        assert_eq!(next, Some(at(expected)), "{expression:?} in {zone}, {dst:?}, after {t}: not {expected}");
        t = next.unwrap();
    }
}

#[test]
fn skipped_and_repeated_hours() {
    use Dst::{Debian, Skip, Twice};
    // New York, 2024: 02:00 to 03:00 on March 10 is skipped, 01:00 to 02:00 on November 3 is shown twice.
    let in_new_york = |dst, expression, from: &str, expected: &[&str]| {
        check_in("America/New_York", dst, expression, from, expected);
    };
    let (before_gap, before_repeat) = ("2024-03-09T12:00:00-05:00", "2024-11-02T12:00:00-04:00");
    in_new_york(
        Debian,
        "30 2 * * *",
        before_gap,
        &["2024-03-10T03:00:00-04:00", "2024-03-11T02:30:00-04:00"],
    );
    in_new_york(
        Debian,
        "15,45 2 * * *",
        before_gap,
        &["2024-03-10T03:00:00-04:00", "2024-03-11T02:15:00-04:00"],
    );
    in_new_york(
        Debian,
        "0 2,3 * * *",
        before_gap,
        &["2024-03-10T03:00:00-04:00", "2024-03-11T02:00:00-04:00"],
    );
    for dst in [Skip, Twice] {
        in_new_york(
            dst,
            "30 2 * * *",
            before_gap,
            &["2024-03-11T02:30:00-04:00", "2024-03-12T02:30:00-04:00"],
        );
        in_new_york(dst, "30 2,3 * * *", before_gap, &["2024-03-10T03:30:00-04:00"]);
    }
    for dst in [Debian, Skip] {
        in_new_york(
            dst,
            "30 1 * * *",
            before_repeat,
            &["2024-11-03T01:30:00-04:00", "2024-11-04T01:30:00-05:00"],
        );
        in_new_york(dst, "30 1 * * *", "2024-11-03T01:00:00-05:00", &["2024-11-04T01:30:00-05:00"]);
        in_new_york(
            dst,
            "0 1,2 * * *",
            before_repeat,
            &["2024-11-03T01:00:00-04:00", "2024-11-03T02:00:00-05:00"],
        );
    }
    in_new_york(
        Twice,
        "30 1 * * *",
        before_repeat,
        &["2024-11-03T01:30:00-04:00", "2024-11-03T01:30:00-05:00", "2024-11-04T01:30:00-05:00"],
    );
    for dst in [Debian, Skip, Twice] {
        for every_half_hour in ["*/30 * * * *", "0/30 * * * *", "*/30 0-23 * * *", "0 0-59/30 0-23 * * *"] {
            in_new_york(
                dst,
                every_half_hour,
                "2024-11-03T01:00:00-04:00",
                &[
                    "2024-11-03T01:30:00-04:00",
                    "2024-11-03T01:00:00-05:00",
                    "2024-11-03T01:30:00-05:00",
                    "2024-11-03T02:00:00-05:00",
                ],
            );
            in_new_york(
                dst,
                every_half_hour,
                "2024-03-10T01:10:00-05:00",
                &["2024-03-10T01:30:00-05:00", "2024-03-10T03:00:00-04:00", "2024-03-10T03:30:00-04:00"],
            );
        }
        // The last times of a year that is named, in a repeated hour.
        in_new_york(dst, "*/30 1 3 11 * 2024", "2024-11-03T01:30:00-04:00", &["2024-11-03T01:00:00-05:00"]);
        // After the years to which time zones are commonly written out.
        in_new_york(dst, "0 12 * * *", "2150-07-01T00:00:00Z", &["2150-07-01T12:00:00-04:00"]);
    }
    // A whole day that was skipped.
    check_in(
        "Pacific/Apia",
        Debian,
        "0 9 30 12 * 2011",
        "2011-12-01T00:00:00Z",
        &["2011-12-31T00:00:00+14:00"],
    );
    assert!(
        Schedule::parse(
            "0 9 30 12 * 2011",
            &ScheduleSettings { zone: Zone::parse("Pacific/Apia").unwrap(), dst: Skip, ..Default::default() }
        )
        .unwrap_err()
        .message
        .contains("never fire")
    );
    // Half an hour, in a zone east of UTC; a midnight that does not exist.
    check_in(
        "Australia/Lord_Howe",
        Debian,
        "15 2 * * *",
        "2024-10-05T12:00:00+10:30",
        &["2024-10-06T02:30:00+11:00"],
    );
    check_in(
        "Australia/Lord_Howe",
        Debian,
        "45 1 * * *",
        "2024-04-06T12:00:00+11:00",
        &["2024-04-07T01:45:00+11:00", "2024-04-08T01:45:00+10:30"],
    );
    check_in(
        "America/Sao_Paulo",
        Debian,
        "@daily",
        "2018-11-03T12:00:00-03:00",
        &["2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"],
    );
}

#[test]
fn a_zone_of_its_own() {
    let from = "2024-01-15T00:00:00Z";
    check("CRON_TZ=Asia/Shanghai 0 9 * * *", from, &["2024-01-15T01:00:00Z"]);
    check("tz=Europe/Berlin 0 9 * * *\n0 9 * * *", from, &["2024-01-15T08:00:00Z", "2024-01-15T09:00:00Z"]);
    check("TZ=Europe/Berlin @daily", from, &["2024-01-15T23:00:00Z"]);
    refused("TZ=Berlin 0 9 * * *", "", 4, &["\"Berlin\" at character 4", "did you mean \"Europe/Berlin\""]);
    refused("TZ= 0 9 * * *", "", 4, &["no time zone"]);
    refused("TZ=UTC", "", 1, &["nothing after it"]);
}

#[test]
fn zones_are_named_as_the_iana_does() {
    for name in
        ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/Argentina/Ushuaia", "Etc/GMT+5", "US/Eastern"]
    {
        assert_eq!(Zone::parse(name).unwrap().name(), name);
    }
    for (wrong, says) in [
        ("europe/berlin", "\"Europe/Berlin\""),
        ("Europe/Belrin", "\"Europe/Berlin\""),
        ("new_york", "\"America/New_York\""),
        ("", "\"Europe/Berlin\""),
        ("+02:00", "write a name"),
        ("../etc/passwd", "write a name"),
        (&"x".repeat(1000), "write a name"),
    ] {
        let why = Zone::parse(wrong).unwrap_err();
        assert!(why.contains(says), "{wrong}: {why}");
    }
    let berlin = Zone::parse("Europe/Berlin").unwrap();
    assert_eq!(berlin.offset_at(at("2024-07-01T00:00:00Z")), 7200);
    assert_eq!(
        (Zone::default(), Zone::utc().offset_at(at("2024-07-01T00:00:00Z"))),
        (Zone::parse("UTC").unwrap(), 0)
    );
}

#[test]
fn jumps_are_far_from_each_other_in_every_zone() {
    // The search looks at one jump before a time only.
    for name in Zone::names() {
        let zone = Zone::parse(name).unwrap();
        let mut period = zone.period_at(-1);
        while let Some(next) = zone.period_after(&period) {
            assert!(next.end - next.start > 3 * zone::DAY, "{name}: {next:?}");
            assert!((next.offset - period.offset).abs() <= zone::DAY, "{name}: {next:?} after {period:?}");
            period = next;
        }
    }
    assert!(Zone::names().len() > 400 && Zone::release() >= "2026a", "{}", Zone::release());
}

#[test]
fn the_seeds_dialect() {
    let seed = |text: &str| {
        Schedule::parse(
            text,
            &ScheduleSettings { dialect: Some(Dialect::Seed), ..ScheduleSettings::default() },
        )
    };
    let next = |text: &str| seed(text).unwrap().next_after(at("2024-01-15T00:00:00Z"));
    // Six fields end with a year.
    assert_eq!(next("*/5 * * * * *"), Some(at("2024-01-15T00:05:00Z")));
    assert_eq!(next("0 0 1 1 * 2030"), Some(at("2030-01-01T00:00:00Z")));
    assert_eq!(seed("*/5 * * * * *").unwrap().warning(), None);
    let why = seed("0 0 9 * * 1").unwrap_err();
    assert_eq!((why.field, why.position), ("year", 11), "{why}");
    // A step restricts a day field.
    assert_eq!(next("0 0 */10 * FRI"), Some(at("2024-01-19T00:00:00Z")));
    assert_eq!(
        parse("0 0 */10 * FRI").unwrap().next_after(at("2024-01-15T00:00:00Z")),
        Some(at("2024-03-01T00:00:00Z"))
    );
    assert_eq!(next("0 0 13,* * FRI"), Some(at("2024-01-19T00:00:00Z")));
    // Empty items, and fields after the seventh, are passed over.
    assert_eq!(next("1,,3 * * * *"), Some(at("2024-01-15T00:01:00Z")));
    assert!(seed(", * * * *").is_err());
    assert_eq!(next("0 1 * * * * * what else"), Some(at("2024-01-15T00:01:00Z")));
    assert!(seed("0 1 * * * * * what else").unwrap().warning().unwrap().contains("\"what\""));
    // Where the seed's library spins, panics or takes January for December, its dialect does not follow.
    assert_eq!(next("0 0 * * 5-7"), Some(at("2024-01-19T00:00:00Z")));
    assert_eq!(next("0 22-2 * * *"), Some(at("2024-01-15T01:00:00Z")));
    assert_eq!(next("0 0 1 01 *"), Some(at("2025-01-01T00:00:00Z")));
    assert!(seed("0 0 30 2 *").unwrap_err().message.contains("never fire"));
    // Chosen, the standard dialect needs no warning.
    let standard = ScheduleSettings { dialect: Some(Dialect::Standard), ..ScheduleSettings::default() };
    assert_eq!(Schedule::parse("*/5 * * * * *", &standard).unwrap().warning(), None);
}

#[test]
fn what_can_never_fire_is_refused() {
    // The seed's workers spin on these.
    refused("0 0 30 2 *", "day of month", 5, &["\"30\" at character 5", "month \"2\"", "never fire"]);
    refused("0 0 31 4,6,9,11 *", "day of month", 5, &["never fire"]);
    refused("0 0 30-31 feb *", "day of month", 5, &["never fire"]);
    refused("0 0 29 2 * 2023", "day of month", 5, &["in year \"2023\""]);
    refused("0 0 29 2 * 2100", "day of month", 5, &["never fire"]);
    refused("0 0 0 13 10 */5 2025", "day of month", 7, &["never fire"]);
    check("0 0 29 2 * 2023-2024", "2000-01-01T00:00:00Z", &["2024-02-29T00:00:00Z", "never"]);
}

// ---- properties ----

/// A small generator of random numbers (xorshift64*), so that a seed gives the same rows on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    fn between(&mut self, low: u32, high: u32) -> u32 {
        low + u32::try_from(self.below(u64::from(high - low) + 1)).unwrap()
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One field as text, and by other means the values that it stands for.
struct Written {
    text: String,
    values: Vec<bool>,
}

impl Written {
    /// Up to three items. `max` is what may be written, `top` the last value of a step without an end.
    fn random(random: &mut Random, min: u32, max: u32, top: u32, names: &[&str]) -> Self {
        let mut written = Self { text: String::new(), values: vec![false; max as usize + 1] };
        let items = if random.one_in(3) { random.between(2, 3) } else { 1 };
        for n in 0..items {
            if n > 0 {
                written.text.push(',');
            }
            written.item(random, min, max, top, names);
        }
        if max == 7 {
            let sunday = written.values[0] || written.values[7];
            (written.values[0], written.values[7]) = (sunday, sunday);
        }
        written
    }

    fn item(&mut self, random: &mut Random, min: u32, max: u32, top: u32, names: &[&str]) {
        let show = |random: &mut Random, n: u32| match names.get((n - min) as usize) {
            Some(name) if random.one_in(2) => {
                if random.one_in(2) {
                    name.to_lowercase()
                } else {
                    (*name).to_owned()
                }
            }
            _ if random.one_in(4) => format!("{n:02}"),
            _ => n.to_string(),
        };
        let step_max = if random.one_in(4) { max } else { max / 3 };
        let step = random.between(1, step_max);
        let (first, last, step, text) = match random.below(6) {
            0 | 1 => (min, top, 1, "*".to_owned()),
            2 => (min, top, step, format!("*/{step}")),
            3 => {
                let n = random.between(min, max);
                (n, n, 1, show(random, n))
            }
            4 => {
                let n = random.between(min, top);
                (n, top, step, format!("{}/{step}", show(random, n)))
            }
            _ => {
                let a = random.between(min, max);
                let b = random.between(a, max);
                let step = if random.one_in(2) { step } else { 1 };
                let suffix = if step == 1 { String::new() } else { format!("/{step}") };
                // SUN to SUN is a Sunday and SUN to 7 a week, so the ends at 7 are written in digits.
                let start = if a == 7 { "7".to_owned() } else { show(random, a) };
                let end = if b == 7 { "7".to_owned() } else { show(random, b) };
                (a, b, step, format!("{start}-{end}{suffix}"))
            }
        };
        self.text.push_str(&text);
        let mut n = first;
        while n <= last {
            self.values[n as usize] = true;
            n += step;
        }
    }

    fn star(&self) -> bool {
        self.text.starts_with('*')
    }

    fn has(&self, n: u32) -> bool {
        self.values[n as usize]
    }
}

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: [&str; 8] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"];

/// A calendar of its own: steps day by day from a Thursday in 1970.
#[derive(Clone, Copy)]
struct Day {
    number: i64,
    year: u32,
    month: u32,
    day: u32,
    weekday: u32,
}

impl Day {
    fn tomorrow(self) -> Self {
        let leap =
            self.year.is_multiple_of(4) && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        let days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut next =
            Self { number: self.number + 1, day: self.day + 1, weekday: (self.weekday + 1) % 7, ..self };
        if next.day > days[self.month as usize - 1] {
            (next.day, next.month) = (1, self.month + 1);
        }
        if next.month > 12 {
            (next.month, next.year) = (1, self.year + 1);
        }
        next
    }
}

struct Oracle {
    fields: [Written; 6],
    years: Vec<u32>,
}

impl Oracle {
    fn random(random: &mut Random) -> Self {
        let second = Written::random(random, 0, 59, 59, &[]);
        let minute = Written::random(random, 0, 59, 59, &[]);
        let hour = Written::random(random, 0, 23, 23, &[]);
        let day = Written::random(random, 1, 31, 31, &[]);
        let month = Written::random(random, 1, 12, 12, &MONTHS);
        let weekday = Written::random(random, 0, 7, 6, &DAYS);
        let years = match random.below(4) {
            0 => (0..3).map(|_| random.between(1970, 2199)).collect(),
            _ => Vec::new(),
        };
        Self { fields: [second, minute, hour, day, month, weekday], years }
    }

    fn expression(&self) -> String {
        let mut words: Vec<String> = self.fields.iter().map(|field| field.text.clone()).collect();
        let years: Vec<_> = self.years.iter().map(u32::to_string).collect();
        words.push(if years.is_empty() { "*".to_owned() } else { years.join(",") });
        words.join(" ")
    }

    fn has_day(&self, day: Day) -> bool {
        let [_, _, _, days, months, weekdays] = &self.fields;
        let (by_day, by_weekday) = (days.has(day.day), weekdays.has(day.weekday));
        let either = !days.star() && !weekdays.star();
        (self.years.is_empty() || self.years.contains(&day.year))
            && months.has(day.month)
            && if either { by_day || by_weekday } else { by_day && by_weekday }
    }

    /// Every second of a day that fires, each looked at.
    fn seconds(&self, day: Day) -> Vec<i64> {
        let [second, minute, hour, ..] = &self.fields;
        let fires = |s: &u32| hour.has(s / 3600) && minute.has(s / 60 % 60) && second.has(s % 60);
        (0..86_400).filter(fires).map(|s| (day.number * 86_400 + i64::from(s)) * 1000).collect()
    }
}

fn calendar() -> Vec<Day> {
    let first = Day { number: 0, year: 1970, month: 1, day: 1, weekday: 4 };
    std::iter::successors(Some(first), |day| Some(day.tomorrow()))
        .take_while(|day| day.year <= YEARS.1)
        .collect()
}

/// Fires in a stretch, found by asking again and again.
fn walk(schedule: &Schedule, from: Timestamp, until: Timestamp) -> Vec<i64> {
    let mut fires = Vec::new();
    let mut t = from;
    while let Some(next) = schedule.next_after(t).filter(|next| *next < until) {
        assert!(next > t, "{next} is not after {t}");
        fires.push(next.ms());
        t = next;
    }
    fires
}

#[test]
fn days_agree_with_the_oracle_over_230_years() {
    let calendar = calendar();
    let mut random = Random(0x5eed_0001);
    for row in 0..150 {
        let oracle = Oracle::random(&mut random);
        let expression = oracle.expression();
        let days: Vec<_> = calendar.iter().filter(|day| oracle.has_day(**day)).collect();
        let Ok(schedule) = parse(&expression) else {
            assert!(days.is_empty(), "row {row}: {expression:?} was refused and has {} days", days.len());
            continue;
        };
        // From anywhere, the first fire is on the first day that matches.
        for _ in 0..40 {
            let start = calendar[random.index(calendar.len())].number;
            let from = Timestamp::from_ms(start * 86_400_000 - 1);
            let expected = days.iter().find(|day| day.number >= start).map(|day| day.number);
            let found = schedule.next_after(from).map(|t| t.ms() / 86_400_000);
            assert_eq!(found, expected, "row {row}: {expression:?} after {from}");
        }
    }
}

#[test]
fn seconds_agree_with_the_oracle() {
    let calendar = calendar();
    let mut random = Random(0x5eed_0002);
    let mut compared = 0;
    for row in 0..45 {
        let oracle = Oracle::random(&mut random);
        let expression = oracle.expression();
        let Ok(schedule) = parse(&expression) else { continue };
        // A day that fires, its neighbours with it, so that the turn of the day is looked at.
        let start = random.index(calendar.len() - 4);
        let Some(hit) = calendar[start..calendar.len() - 2].iter().position(|day| oracle.has_day(*day))
        else {
            continue;
        };
        let days = &calendar[(start + hit).max(1) - 1..][..2];
        let expected: Vec<i64> =
            days.iter().filter(|day| oracle.has_day(**day)).flat_map(|day| oracle.seconds(*day)).collect();
        let from = Timestamp::from_ms(days[0].number * 86_400_000 - 1);
        let until = Timestamp::from_ms((days[1].number + 1) * 86_400_000);
        compared += expected.len();
        assert!(
            walk(&schedule, from, until) == expected,
            "row {row}: {expression:?} on {} and the day after",
            from
        );
        // From between two fires, and from a fraction of a second.
        for _ in 0..20 {
            let t = from.plus_ms(i64::try_from(random.below(86_400_000)).unwrap());
            let expected = expected.iter().find(|fire| **fire > t.ms()).copied();
            let found = schedule.next_after(t).filter(|fire| *fire < until).map(Timestamp::ms);
            assert_eq!(found, expected, "row {row}: {expression:?} after {t}");
        }
        // The fires of the stretch, told by its first, last and number.
        let fires = schedule.fires_between(from, until.plus_ms(-1), 100);
        assert_eq!(fires.map(|f| f.first.ms()), expected.first().copied(), "row {row}: {expression:?}");
        assert_eq!(fires.map(|f| f.last.ms()), expected.last().copied(), "row {row}: {expression:?}");
        assert_eq!(fires.map_or(0, |f| f.count), expected.len().min(100) as u64, "row {row}: {expression:?}");
        assert_eq!(fires.is_some_and(|f| f.more), expected.len() > 100, "row {row}: {expression:?}");
    }
    assert!(compared > 100_000, "only {compared} fires were compared");
}

#[test]
fn no_text_makes_it_panic() {
    let mut random = Random(0x5eed_0003);
    let alphabet: Vec<char> = "0123456789*/,-?#LWH@+() \t\nJANfriSUNwlh=;|é".chars().collect();
    let readings = [
        ScheduleSettings::default(),
        ScheduleSettings { dialect: Some(Dialect::Seed), name: Some("a"), ..ScheduleSettings::default() },
        ScheduleSettings {
            zone: Zone::parse("Pacific/Apia").unwrap(),
            dst: Dst::Skip,
            name: Some("b"),
            ..ScheduleSettings::default()
        },
    ];
    let mut taken = 0;
    for _ in 0..60_000 {
        let long = random.below(12);
        let text: String = (0..long).map(|_| alphabet[random.index(alphabet.len())]).collect();
        // Mostly five words, of which one is odd, so that the fields are reached.
        let word = text.split_whitespace().collect::<String>();
        let text = match random.below(6) {
            0 => text,
            1 => format!("@every {word}"),
            2 => format!("* * {word} * {word}"),
            3 => format!("* * * * *\n@at {word}"),
            _ => format!("* {word} * * 1"),
        };
        match Schedule::parse(&text, &readings[random.index(readings.len())]) {
            Ok(schedule) => {
                taken += 1;
                let t = Timestamp::from_ms(i64::try_from(random.below(1 << 42)).unwrap());
                assert!(schedule.next_after(t).is_none_or(|next| next > t), "{text:?} after {t}");
            }
            Err(why) => assert!(!why.to_string().is_empty() && why.position >= 1, "{text:?}"),
        }
    }
    assert!(taken > 50, "only {taken} were taken");
}

// ---- fires_between ----

#[test]
fn fires_between_tells_first_last_and_number() {
    let fires = |expression: &str, after: &str, until: &str, count_max| {
        parse(expression).unwrap().fires_between(at(after), at(until), count_max)
    };
    let day = ("2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z");
    let expected =
        |first: &str, last: &str, count, more| Some(Fires { first: at(first), last: at(last), count, more });
    assert_eq!(fires("@hourly", day.0, day.1, 100), expected("2024-01-01T01:00:00Z", day.1, 24, false));
    assert_eq!(fires("@hourly", day.0, day.1, 24), expected("2024-01-01T01:00:00Z", day.1, 24, false));
    assert_eq!(fires("@hourly", day.0, day.1, 23), expected("2024-01-01T01:00:00Z", day.1, 23, true));
    assert_eq!(fires("@hourly", day.0, day.1, 1), expected("2024-01-01T01:00:00Z", day.1, 1, true));
    assert_eq!(fires("@hourly", day.0, day.1, 0), expected("2024-01-01T01:00:00Z", day.1, 0, true));
    assert_eq!(fires("0 0 * * *", day.0, day.1, 5), expected(day.1, day.1, 1, false));
    assert_eq!(fires("0 0 * * *", day.0, "2024-01-01T23:59:59.999Z", 5), None);
    assert_eq!(fires("0 0 * * *", day.1, day.0, 5), None);
    assert_eq!(fires("0 0 * * *", day.0, day.0, 5), None);
    assert_eq!(fires("0 0 1 1 * 1999", day.0, day.1, 5), None);
}

#[test]
fn a_long_outage_costs_few_questions() {
    let whole_time = (Timestamp::from_ms(i64::MIN), Timestamp::from_ms(i64::MAX));
    let twenty_years = (at("2004-01-01T00:00:00.5Z"), at("2024-01-01T00:00:00.5Z"));
    for expression in ["* * * * * * *", "0 0 29 2 *", "*/7 3-5 * * MON", "0 0 1 1 * 2010"] {
        let schedule = parse(expression).unwrap();
        for (after, until) in [whole_time, twenty_years] {
            let asked = Cell::new(0_u32);
            let counted = |t| {
                asked.set(asked.get() + 1);
                schedule.next_after(t)
            };
            let fires = next::fires_between(counted, after, until, 10).expect("there are some");
            assert!(asked.get() <= 1 + 64 + 10, "{expression:?}: asked {} times", asked.get());
            assert!(
                schedule.next_after(fires.last).is_none_or(|next| next > until),
                "{expression:?}: {fires:?}"
            );
            assert_eq!(
                schedule.next_after(fires.last.plus_ms(-1)),
                Some(fires.last),
                "{expression:?}: {fires:?}"
            );
        }
    }
}

// ---- zones, against an oracle that looks at every second ----

/// What clocks in a zone show around one of its jumps: for each second, by jiff's own arithmetic.
struct Clocks {
    from: i64,
    walls: Vec<i64>,
    step: i64,
}

impl Clocks {
    /// `around` seconds on both sides of the jump, in steps.
    fn around(zone: &str, jump: i64, around: i64, step: i64) -> Self {
        let zone = jiff::tz::TimeZoneDatabase::bundled().get(zone).expect("a zone");
        let from = (jump - around).div_euclid(60) * 60;
        let shown = |t| t + i64::from(zone.to_offset(jiff::Timestamp::from_second(t).unwrap()).seconds());
        let walls = (0..2 * around / step).map(|n| shown(from + n * step)).collect();
        Self { from, walls, step }
    }

    fn time(&self, index: usize) -> i64 {
        self.from + i64::try_from(index).unwrap() * self.step
    }

    /// The fires among these times by the rule, found the long way. `has` tells whether a wall time is one of the schedule's.
    fn fires(&self, dst: Dst, interval: bool, has: impl Fn(i64) -> bool) -> Vec<i64> {
        if interval || dst == Dst::Twice {
            return (0..self.walls.len()).filter(|n| has(self.walls[*n])).map(|n| self.time(n)).collect();
        }
        // Every wall time from the first that is shown, whether it is shown or not: it belongs to the first moment that shows it or more.
        let (mut fires, mut wall) = (Vec::new(), self.walls[0]);
        for (n, shown) in self.walls.iter().enumerate() {
            while wall <= *shown {
                if has(wall) && (wall == *shown || dst == Dst::Debian) {
                    fires.push(self.time(n));
                }
                wall += self.step;
            }
        }
        fires.dedup();
        fires
    }
}

/// Zones that do what others do not: jumps of half an hour, of three hours, over a day, at midnight, twice around Ramadan, by two hours.
const ODD_ZONES: [&str; 12] = [
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Kwajalein",
    "Africa/Casablanca",
    "Antarctica/Troll",
    "Antarctica/Casey",
    "Pacific/Chatham",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Asia/Gaza",
    "Europe/Dublin",
    "America/New_York",
];

#[test]
fn zones_agree_with_the_oracle_around_their_jumps() {
    let mut random = Random(0x5eed_0004);
    let mut compared = 0;
    for name in ODD_ZONES {
        let zone = Zone::parse(name).unwrap();
        let mut jumps = Vec::new();
        let mut period = zone.period_at(0);
        while let Some(next) = zone.period_after(&period) {
            jumps.push(next.start);
            period = next;
        }
        let chosen: Vec<i64> =
            (0..5).map(|_| jumps[random.index(jumps.len())]).chain(jumps.last().copied()).collect();
        for jump in chosen {
            for (around, step) in [(40 * 3600, 60), (2 * 3600, 1)] {
                let clocks = Clocks::around(name, jump, around, step);
                for _ in 0..4 {
                    compared += compare_around(&zone, &clocks, &mut random);
                }
            }
        }
    }
    assert!(compared > 10_000, "only {compared} fires were compared");
}

/// One random expression under each rule; how many fires were compared.
fn compare_around(zone: &Zone, clocks: &Clocks, random: &mut Random) -> usize {
    let minute = Written::random(random, 0, 59, 59, &[]);
    let hour = Written::random(random, 0, 23, 23, &[]);
    let second = (clocks.step == 1).then(|| Written::random(random, 0, 59, 59, &[]));
    let text = match &second {
        None => format!("{} {} * * *", minute.text, hour.text),
        Some(second) => format!("{} {} {} * * * *", second.text, minute.text, hour.text),
    };
    let says_how_often = |field: &Written| {
        field.star() || field.text.contains('/') || (second.is_some() && field.text.contains('-'))
    };
    let interval =
        says_how_often(&minute) || says_how_often(&hour) || second.as_ref().is_some_and(says_how_often);
    let has = |wall: i64| {
        let second_of_day = u32::try_from(wall.rem_euclid(86_400)).unwrap();
        let (h, m, s) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        hour.has(h) && minute.has(m) && second.as_ref().map_or(s == 0, |second| second.has(s))
    };
    let mut compared = 0;
    for (dst, _) in Dst::ALL {
        let settings = ScheduleSettings { zone: zone.clone(), dst, ..ScheduleSettings::default() };
        let schedule = Schedule::parse(&text, &settings).unwrap();
        // The first hours may have skipped times of before.
        let margin = if clocks.step == 1 { 60 } else { 26 * 60 * 60 };
        let start = clocks.from + margin.min(clocks.time(clocks.walls.len()) - clocks.from);
        let expected: Vec<i64> =
            clocks.fires(dst, interval, has).into_iter().filter(|t| *t >= start).collect();
        let end = Timestamp::from_ms(clocks.time(clocks.walls.len()) * 1000);
        let found = walk(&schedule, Timestamp::from_ms(start * 1000 - 1), end);
        let found: Vec<i64> = found.iter().map(|ms| ms / 1000).collect();
        assert_eq!(
            found,
            expected,
            "{text:?} in {zone} by {dst:?} from {}",
            Timestamp::from_ms(start * 1000)
        );
        compared += expected.len();
    }
    compared
}

#[test]
fn every_minute_is_a_minute_of_real_time_in_every_zone() {
    for name in Zone::names() {
        let zone = Zone::parse(name).unwrap();
        let settings = ScheduleSettings { zone: zone.clone(), ..ScheduleSettings::default() };
        let schedule = Schedule::parse("* * * * *", &settings).unwrap();
        let mut period = zone.period_at(100 * zone::DAY);
        while let Some(next) = zone.period_after(&period) {
            // Offsets of whole minutes: those of Liberia had seconds until 1972.
            if period.offset % 60 == 0 && next.offset % 60 == 0 {
                let before = Timestamp::from_ms((next.start - 120) * 1000);
                let fires = walk(&schedule, before, before.plus_ms(240_000));
                let expected: Vec<i64> = (1..4).map(|n| before.ms() + n * 60_000).collect();
                assert_eq!(fires, expected, "{name} at {}", Timestamp::from_ms(next.start * 1000));
            }
            period = next;
        }
    }
}
