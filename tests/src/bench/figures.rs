//! Distributions, and tables of them.

/// Measured values, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Spread(Vec<f64>);

impl Spread {
    /// Takes values in any order and unit.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// How many values there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that at least so many percent do not exceed; `None` without values.
    pub(super) fn percentile(&self, percent: usize) -> Option<f64> {
        let last = self.0.len().checked_sub(1)?;
        let rank = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(rank.min(last)).copied()
    }

    /// p50, p99 and the largest, for three columns.
    pub(super) fn columns(&self) -> [String; 3] {
        [50, 99, 100].map(|percent| self.percentile(percent).map_or_else(|| "–".to_owned(), short))
    }
}

/// A number as one reads it: three digits where there are that many.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// Prints the head of a table.
pub(super) fn head(columns: &[&str]) {
    println!("| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
}

/// Prints a row of it; rows come as they are measured.
pub(super) fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let spread = Spread::of((1..=200).rev().map(f64::from));
        assert_eq!(spread.percentile(50), Some(100.0));
        assert_eq!(spread.percentile(99), Some(198.0));
        assert_eq!(spread.percentile(100), Some(200.0));
        assert_eq!(Spread::of([7.0]).percentile(50), Some(7.0));
        assert_eq!(Spread::default().percentile(99), None);
    }
}
