//! All that is drawn in a world comes from one seed.

/// xorshift64*.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        dice.below(1); // neighbouring seeds begin alike
        dice
    }

    /// From 0 to below `bound`.
    pub(super) fn below(&mut self, bound: i64) -> i64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        i64::try_from(high).unwrap() % bound.max(1)
    }

    /// Both ends may come.
    pub(super) fn between(&mut self, from: i64, to: i64) -> i64 {
        from + self.below(to - from + 1)
    }

    pub(super) fn percent(&mut self, of_hundred: i64) -> bool {
        self.below(100) < of_hundred
    }

    pub(super) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.below(i64::try_from(all.len()).unwrap());
        &all[usize::try_from(index).unwrap()]
    }
}
