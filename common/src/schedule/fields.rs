//! The fields of an expression: their names and bounds, and the sets of numbers that they stand for.

/// The first and the last year that a schedule can name.
pub(super) const YEARS: (u32, u32) = (1970, 2199);

/// One of the seven places of an expression.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// What messages call it.
    pub name: &'static str,
    pub min: u32,
    /// The largest number that may be written: 7 for the day of week, though it means the same as 0.
    pub max: u32,
    /// Names of the values from `names_from` on, in lower case; a name may be cut to its first three letters.
    pub names: &'static [&'static str],
    pub names_from: u32,
    pub kind: Kind,
}

/// What sets a field apart when its text is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Second, minute, hour, month.
    Plain,
    DayOfMonth,
    DayOfWeek,
    Year,
}

const PLAIN: Field = Field { name: "", min: 0, max: 59, names: &[], names_from: 0, kind: Kind::Plain };

pub(super) const SECOND: Field = Field { name: "second", ..PLAIN };
pub(super) const MINUTE: Field = Field { name: "minute", ..PLAIN };
pub(super) const HOUR: Field = Field { name: "hour", max: 23, ..PLAIN };
pub(super) const DAY_OF_MONTH: Field =
    Field { name: "day of month", min: 1, max: 31, kind: Kind::DayOfMonth, ..PLAIN };
pub(super) const MONTH: Field =
    Field { name: "month", min: 1, max: 12, names: &MONTH_NAMES, names_from: 1, ..PLAIN };
pub(super) const DAY_OF_WEEK: Field =
    Field { name: "day of week", max: 7, names: &DAY_NAMES, kind: Kind::DayOfWeek, ..PLAIN };
pub(super) const YEAR: Field = Field { name: "year", min: YEARS.0, max: YEARS.1, kind: Kind::Year, ..PLAIN };

const MONTH_NAMES: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

const DAY_NAMES: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

impl Field {
    /// The value that a name stands for.
    pub(super) fn named(&self, name: &str) -> Option<u32> {
        let name = name.to_ascii_lowercase();
        (self.names_from..)
            .zip(self.names)
            .find(|(_, full)| name == **full || name == full[..3])
            .map(|(n, _)| n)
    }

    /// The largest number of the field's set, in which Sunday is 0 only.
    pub(super) fn last(&self) -> u32 {
        if self.kind == Kind::DayOfWeek { 6 } else { self.max }
    }

    /// What may be written, for messages.
    pub(super) fn allowed(&self) -> String {
        let names = match self.kind {
            Kind::DayOfWeek => " (0 and 7 are Sunday) or SUN to SAT",
            Kind::Plain if !self.names.is_empty() => " or JAN to DEC",
            _ => "",
        };
        format!("{} to {}{names}", self.min, self.max)
    }
}

/// Years as a set: bit `n` stands for 1970 + `n`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Years([u64; 4]);

impl Years {
    pub(super) fn insert(&mut self, year: u32) {
        if let Some((word, bit)) = Self::place(year) {
            self.0[word] |= bit;
        }
    }

    pub(super) fn contains(&self, year: u32) -> bool {
        Self::place(year).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }

    fn place(year: u32) -> Option<(usize, u64)> {
        (YEARS.0..=YEARS.1)
            .contains(&year)
            .then(|| ((year - YEARS.0) as usize / 64, 1 << ((year - YEARS.0) % 64)))
    }
}
