//! Names and commands of jobs, in pieces of memory that each hold some thousand: a piece for each job would cost a million times what the
//! allocator keeps beside it, and holes where jobs come and go.
//!
//! A text stays where it is. What is not used any more is waste; when that is more than half of a full piece, whoever owns the texts moves
//! those that are left, so that over time no more is moved than is thrown away.

use std::num::NonZeroU32;

/// Bytes of a piece.
const PIECE_BYTES: usize = 1 << PIECE_BITS;
const PIECE_BITS: u32 = 15;
/// Pieces that can be numbered.
const PIECES_MAX: usize = 1 << (u32::BITS - PIECE_BITS);
/// A longer text is its job's own to keep: of a piece's end no more than this is left empty.
const TEXT_BYTES_MAX: usize = PIECE_BYTES / 16;
/// Says of the first byte of a command's length that there is a second.
const LONG: u8 = 0x80;

/// Where a text lies: the number of its piece, and its place there. Another's, once it is thrown away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position(NonZeroU32);

impl Position {
    fn new(piece: usize, at: usize) -> Self {
        let number = u32::try_from((piece << PIECE_BITS | at) + 1).ok().and_then(NonZeroU32::new);
        Self(
            number.expect(
                "pieces are no more than can be numbered, and no text begins with the last byte of one",
            ),
        )
    }

    fn number(self) -> usize {
        self.0.get() as usize - 1
    }

    fn piece(self) -> usize {
        self.number() / PIECE_BYTES
    }

    fn at(self) -> usize {
        self.number() % PIECE_BYTES
    }
}

/// What is known of a job as text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Text<'a> {
    pub(super) name: &'a str,
    pub(super) command: &'a str,
}

/// All texts that are not too long.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pieces: Vec<Piece>,
    /// Pieces that hold nothing.
    free: Vec<usize>,
    /// The piece to which texts are added.
    open: Option<usize>,
    /// Full pieces of which more than half is waste.
    wasteful: Vec<usize>,
}

/// Texts one behind the other: of each the length of its name in one byte, that of its command in one or two, the name and the command.
#[derive(Debug, Default)]
struct Piece {
    bytes: Vec<u8>,
    wasted: usize,
}

impl Piece {
    /// The text that begins at a place, and where it ends.
    fn read(&self, at: usize) -> (Text<'_>, usize) {
        let [name_bytes, first, second] =
            [0, 1, 2].map(|n| self.bytes.get(at + n).copied().unwrap_or_default());
        let (begin, command_bytes) = match first & LONG {
            0 => (at + 2, usize::from(first)),
            _ => (at + 3, usize::from(first & !LONG) << 8 | usize::from(second)),
        };
        let middle = begin + usize::from(name_bytes);
        let end = middle + command_bytes;
        let text = |bytes| std::str::from_utf8(bytes).expect("it was text when it was put");
        (Text { name: text(&self.bytes[begin..middle]), command: text(&self.bytes[middle..end]) }, end)
    }

    fn is_wasteful(&self) -> bool {
        self.wasted > PIECE_BYTES / 2
    }
}

impl Texts {
    /// Keeps a text; `None` = it is too long for here, or there is no room.
    pub(super) fn put(&mut self, text: Text<'_>) -> Option<Position> {
        let Text { name, command } = text;
        let name_bytes = u8::try_from(name.len()).ok()?;
        let [high, low] = u16::try_from(command.len()).ok()?.to_be_bytes();
        let is_long = high > 0 || low & LONG > 0;
        let lengths = if is_long { [name_bytes, high | LONG, low] } else { [name_bytes, low, 0] };
        let lengths = &lengths[..if is_long { 3 } else { 2 }];
        let bytes = lengths.len() + name.len() + command.len();
        if bytes > TEXT_BYTES_MAX {
            return None;
        }
        let piece = self.open_piece(bytes)?;
        let into = &mut self.pieces[piece].bytes;
        let at = into.len();
        for part in [lengths, name.as_bytes(), command.as_bytes()] {
            into.extend_from_slice(part);
        }
        Some(Position::new(piece, at))
    }

    /// A piece that has room for so many bytes.
    fn open_piece(&mut self, bytes: usize) -> Option<usize> {
        if let Some(piece) = self.open {
            if self.pieces[piece].bytes.len() + bytes <= PIECE_BYTES {
                return Some(piece);
            }
            self.open = None;
            if self.pieces[piece].is_wasteful() {
                self.wasteful.push(piece);
            }
        }
        let piece =
            self.free.pop().or_else(|| (self.pieces.len() < PIECES_MAX).then_some(self.pieces.len()))?;
        if piece == self.pieces.len() {
            self.pieces.push(Piece::default());
        }
        self.pieces[piece].bytes.reserve_exact(PIECE_BYTES);
        self.open = Some(piece);
        Some(piece)
    }

    pub(super) fn get(&self, position: Position) -> Text<'_> {
        self.pieces[position.piece()].read(position.at()).0
    }

    /// Throws a text away.
    pub(super) fn waste(&mut self, position: Position) {
        let number = position.piece();
        let piece = &mut self.pieces[number];
        let before = piece.is_wasteful();
        piece.wasted += piece.read(position.at()).1 - position.at();
        if piece.is_wasteful() && !before && self.open != Some(number) {
            self.wasteful.push(number);
        }
    }

    /// A piece of which more than half is waste: what is left of it is to be moved, and then it is to be cleared.
    pub(super) fn next_wasteful(&mut self) -> Option<usize> {
        self.wasteful.pop()
    }

    /// Where the texts of a piece lie, those that are thrown away as well.
    pub(super) fn positions(&self, piece: usize) -> Vec<Position> {
        let bytes = self.pieces[piece].bytes.len();
        let next = |at: usize| Some(self.pieces[piece].read(at).1).filter(|end| *end < bytes);
        let starts = std::iter::successors((bytes > 0).then_some(0), |at| next(*at));
        starts.map(|at| Position::new(piece, at)).collect()
    }

    /// Gives back the memory of a piece of which nothing is used any more.
    pub(super) fn clear(&mut self, piece: usize) {
        self.pieces[piece] = Piece::default();
        self.free.push(piece);
    }

    /// How much memory is held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes.capacity()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The owner of texts, as far as these are concerned.
    #[derive(Default)]
    struct Owner {
        texts: Texts,
        known: BTreeMap<String, (Position, String)>,
        moved: usize,
    }

    impl Owner {
        fn put(&mut self, name: &str, command: &str) {
            let position = self.texts.put(Text { name, command }).unwrap();
            if let Some((before, _)) = self.known.insert(name.to_owned(), (position, command.to_owned())) {
                self.texts.waste(before);
            }
            self.tidy();
        }

        fn remove(&mut self, name: &str) {
            if let Some((position, _)) = self.known.remove(name) {
                self.texts.waste(position);
            }
            self.tidy();
        }

        fn tidy(&mut self) {
            while let Some(piece) = self.texts.next_wasteful() {
                for position in self.texts.positions(piece) {
                    let name = self.texts.get(position).name.to_owned();
                    if let Some((known, command)) =
                        self.known.get_mut(&name).filter(|(at, _)| *at == position)
                    {
                        *known = self.texts.put(Text { name: &name, command }).unwrap();
                        self.moved += 1;
                    }
                }
                self.texts.clear(piece);
            }
        }

        fn check(&self) {
            for (name, (position, command)) in &self.known {
                assert_eq!(self.texts.get(*position), Text { name, command });
            }
        }

        fn used(&self) -> usize {
            self.known.iter().map(|(name, (_, command))| name.len() + command.len() + 2).sum()
        }
    }

    #[test]
    fn texts_are_what_they_were_put_as_whatever_is_put_changed_and_thrown_away() {
        let mut owner = Owner::default();
        let mut dice = 1_u64;
        let mut changes = 0;
        for round in 0..60_000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (number, length) = (dice >> 52, usize::try_from(dice >> 30 & 255).unwrap());
            let name = match number % 8 {
                0 => format!("{number}{}", "é".repeat(125)),
                _ => format!("job-{number}"),
            };
            match dice >> 40 & 7 {
                0..3 => owner.remove(&name),
                3 => owner.put(&name, ""),
                4 => owner.put(&name, &"c".repeat(length * 6)),
                _ => owner.put(&name, &"ü".repeat(length)),
            }
            changes += 1;
            if round % 5_000 == 0 {
                owner.check();
            }
        }
        owner.check();
        // At most half of each piece is waste, an end of a sixteenth is empty, and one piece is being filled.
        assert!(
            owner.texts.held() <= owner.used() * 5 / 2 + 2 * PIECE_BYTES,
            "{} of {}",
            owner.texts.held(),
            owner.used()
        );
        assert!(owner.moved > 0 && owner.moved <= changes, "{} texts were moved", owner.moved);
        for name in owner.known.keys().cloned().collect::<Vec<_>>() {
            owner.remove(&name);
        }
        assert!(owner.texts.held() <= PIECE_BYTES, "all but the piece that is being filled was given back");
    }

    #[test]
    fn one_text_that_is_changed_again_and_again_leaves_nothing_behind() {
        let mut owner = Owner::default();
        for n in 0..1_000 {
            owner.put(&format!("other-{n}"), "true");
        }
        let used = owner.texts.held();
        for n in 0..100_000 {
            owner.put("busy", &format!("echo {n}"));
            if n % 1_000 == 0 {
                owner.put(&format!("another-{n}"), "true"); // a piece that is wasted before it is full
            }
        }
        owner.check();
        assert!(owner.texts.held() <= used + 3 * PIECE_BYTES, "{} bytes are held", owner.texts.held());
    }

    #[test]
    fn lengths_of_every_kind_are_kept_and_what_is_too_long_is_refused() {
        let mut texts = Texts::default();
        let long = "x".repeat(70_000);
        for name in [1, 127, 128, 255] {
            for command in [0, 1, 127, 128, 255, 256, TEXT_BYTES_MAX - 3 - name] {
                let text = Text { name: &long[..name], command: &long[..command] };
                let position = texts.put(text).unwrap();
                assert_eq!(texts.get(position), text);
            }
            for command in [TEXT_BYTES_MAX - 2 - name, 65_535, 65_536, 65_537] {
                assert_eq!(texts.put(Text { name: &long[..name], command: &long[..command] }), None);
            }
        }
        assert_eq!(texts.put(Text { name: &long[..256], command: "" }), None);
    }
}
