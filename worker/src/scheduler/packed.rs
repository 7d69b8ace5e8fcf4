//! Numbers in fewer bytes than eight: a million jobs hold many of them, and none is large.

use common::clock::Timestamp;

/// A whole number of so many bytes, with its sign. It lies at any address, so that several stand side by side without gaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Packed<const BYTES: usize>([u8; BYTES]);

/// A time, in ms: some 4,400 years to either side of 1970.
pub(super) type Time = Packed<6>;
/// A revision of the store: a thousand a second for 17 years.
pub(super) type Rev = Packed<5>;

impl<const BYTES: usize> Packed<BYTES> {
    pub(super) const ZERO: Self = Self([0; BYTES]);

    /// `None` = the number takes more bytes than that.
    pub(super) fn of(number: i64) -> Option<Self> {
        let packed = Self::cut(number);
        (packed.get() == number).then_some(packed)
    }

    /// The nearest number that there is.
    pub(super) fn nearest(number: i64) -> Self {
        let unused = Self::UNUSED_BITS;
        Self::cut(number.clamp(i64::MIN >> unused, i64::MAX >> unused))
    }

    pub(super) fn get(self) -> i64 {
        let mut bytes = [0; 8];
        bytes[8 - BYTES..].copy_from_slice(&self.0);
        i64::from_le_bytes(bytes) >> Self::UNUSED_BITS // the sign comes with it
    }

    const UNUSED_BITS: usize = 8 * (8 - BYTES);

    fn cut(number: i64) -> Self {
        let mut bytes = [0; BYTES];
        bytes.copy_from_slice(&number.to_le_bytes()[..BYTES]);
        Self(bytes)
    }
}

impl Time {
    pub(super) fn of_time(at: Timestamp) -> Option<Self> {
        Self::of(at.ms())
    }

    pub(super) fn time(self) -> Timestamp {
        Timestamp::from_ms(self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<const BYTES: usize>() {
        let most = i64::MAX >> (8 * (8 - BYTES));
        let least = -most - 1;
        for number in [0, 1, -1, 255, 256, -256, most, most - 1, least, least + 1] {
            assert_eq!(Packed::<BYTES>::of(number).map(Packed::get), Some(number), "{BYTES} bytes");
            assert_eq!(Packed::<BYTES>::nearest(number).get(), number, "{BYTES} bytes");
        }
        let mut dice = 1_i64;
        for _ in 0..10_000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            for number in [dice, dice >> 8, dice >> 16, dice >> 24, dice >> 32, dice >> 48] {
                let fits = (least..=most).contains(&number);
                assert_eq!(Packed::<BYTES>::of(number).map(Packed::get), fits.then_some(number));
                assert_eq!(Packed::<BYTES>::nearest(number).get(), number.clamp(least, most));
            }
        }
    }

    #[test]
    fn what_fits_is_kept_and_nothing_else_is() {
        check::<2>();
        check::<4>();
        check::<5>();
        check::<6>();
        assert_eq!(Packed::<4>::of(i64::from(u32::MAX)), None);
        assert_eq!((Time::of_time(Timestamp::from_ms(i64::MAX)), Rev::of(1 << 39)), (None, None));
        let end_of_2199 = Timestamp::from_ms(7_258_118_399_999);
        assert_eq!(Time::of_time(end_of_2199).map(Time::time), Some(end_of_2199));
    }
}
