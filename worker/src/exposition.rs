//! Prometheus' text format.

use std::fmt::{Display, Write as _};

use crate::histogram::Histogram;

/// Metrics, being written down.
#[derive(Debug, Default)]
pub(crate) struct Exposition(String);

impl Exposition {
    /// A metric without labels.
    pub(crate) fn put(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        let _infallible = writeln!(self.0, "{name} {value}");
    }

    /// A gauge.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.put(name, "gauge", help, value);
    }

    /// A gauge that is 1 while something is so.
    pub(crate) fn flag(&mut self, name: &str, help: &str, is_so: bool) {
        self.gauge(name, help, u8::from(is_so));
    }

    /// A counter.
    pub(crate) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.put(name, "counter", help, value);
    }

    /// A metric with one label, for each of whose values there is a sample. None of them needs quoting: they are our own words.
    pub(crate) fn by<V: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        label: &str,
        samples: impl IntoIterator<Item = (&'static str, V)>,
    ) {
        self.head(name, kind, help);
        for (value, number) in samples {
            let _infallible = writeln!(self.0, "{name}{{{label}=\"{value}\"}} {number}");
        }
    }

    /// A histogram of times in seconds; where it has a label, one for each of its values.
    pub(crate) fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = (Option<(&'static str, &'static str)>, &'a Histogram)>,
    ) {
        self.head(name, "histogram", help);
        for (label, histogram) in all {
            let label = label.map(|(label, value)| format!("{label}=\"{value}\"")).unwrap_or_default();
            histogram.write(&mut self.0, name, &label);
        }
    }

    /// The text.
    pub(crate) fn into_text(self) -> String {
        self.0
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _infallible = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}
