//! What a command prints: the beginning and the end of it, each up to half of a limit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::redact::{Hiding, Redactor};

/// Read at once, to begin with: most commands print little, and a large buffer for each of a thousand runs a second costs more than the run.
const FIRST_READ_BYTES: usize = 4 * 1024;
/// Read at once from a command that fills that: the size of a pipe.
const READ_BYTES: usize = 64 * 1024;
/// Longest character in UTF-8.
const CHARACTER_BYTES_MAX: usize = 4;

/// What a command has printed so far. What is beyond the limit is read and thrown away, so that the command never blocks.
#[derive(Debug)]
struct Output {
    /// The first bytes, up to half of the limit.
    head: Vec<u8>,
    /// The last bytes behind those, up to the other half.
    tail: VecDeque<u8>,
    head_max: usize,
    tail_max: usize,
    /// Bytes printed in all; of secrets, those of what stands in their place.
    total: u64,
    /// What comes goes through this first; `None` = the run has no secrets.
    hiding: Option<Box<Hiding>>,
}

/// The output of a run, as its record has it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Kept {
    /// As text: what is not UTF-8 is replaced, and where something is left out a line says how much. Without that line no longer than the
    /// limit.
    pub(crate) text: String,
    /// Something is left out.
    pub(crate) truncated: bool,
    /// Bytes printed in all.
    pub(crate) total: u64,
}

/// What a command has printed so far, shared between who reads it and who looks at it meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Captured(Arc<Mutex<Output>>);

impl Captured {
    /// Nothing yet; at most `limit` bytes will be kept.
    pub(crate) fn new(limit: usize) -> Self {
        let tail_max = limit / 2;
        Self(Arc::new(Mutex::new(Output {
            head: Vec::new(),
            tail: VecDeque::new(),
            head_max: limit - tail_max,
            tail_max,
            total: 0,
            hiding: None,
        })))
    }

    /// Keeps these secrets out of all that comes from now on.
    pub(crate) fn hide(&self, redactor: Option<Arc<Redactor>>) {
        self.output().hiding = redactor.map(|redactor| Box::new(Hiding::new(redactor)));
    }

    /// A text about the run without them.
    pub(crate) fn clean(&self, text: String) -> String {
        let redactor = self.output().hiding.as_ref().map(|hiding| Arc::clone(hiding.redactor()));
        match redactor {
            Some(redactor) => redactor.clean(&text),
            None => text,
        }
    }

    /// Reads until the end of the stream. Cancel safe: what was read is kept.
    pub(crate) async fn read_all(&self, mut from: impl AsyncRead + Unpin) {
        let mut piece = vec![0; FIRST_READ_BYTES];
        loop {
            match from.read(&mut piece).await {
                Ok(0) => return,
                Ok(n) => {
                    self.output().take(&piece[..n]);
                    if n == piece.len() {
                        piece.resize(READ_BYTES, 0);
                    }
                }
                Err(why) => {
                    tracing::warn!(%why, "output cannot be read to its end");
                    return;
                }
            }
        }
    }

    /// Takes what came by other ways than a stream.
    pub(crate) fn take(&self, piece: &[u8]) {
        self.output().take(piece);
    }

    /// Whether nothing was printed yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.output().total == 0
    }

    /// What is kept in the end.
    pub(crate) fn kept(&self) -> Kept {
        let mut output = self.output();
        output.finish();
        output.kept()
    }

    /// What was printed after the first `after` bytes, at most `max` bytes of it: where it begins, the bytes, and how many were printed in
    /// all. It begins later than `after` where something is left out, and is empty when nothing more was printed. To read on, ask for what
    /// comes after its end.
    pub(crate) fn since(&self, after: u64, max: usize) -> (u64, Vec<u8>, u64) {
        self.output().since(after, max)
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    fn take(&mut self, piece: &[u8]) {
        match self.hiding.as_mut().map(|hiding| hiding.push(piece)) {
            Some(clean) => self.keep(&clean),
            None => self.keep(piece),
        }
    }

    /// Nothing more comes.
    fn finish(&mut self) {
        if let Some(rest) = self.hiding.as_mut().map(|hiding| hiding.finish()) {
            self.keep(&rest);
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        self.total += piece.len() as u64;
        let (first, rest) = piece.split_at(piece.len().min(self.head_max - self.head.len()));
        self.head.extend_from_slice(first);
        let last = &rest[rest.len().saturating_sub(self.tail_max)..];
        // Room is made first, so that the buffer does not grow beyond what is kept.
        let over = (self.tail.len() + last.len()).saturating_sub(self.tail_max);
        self.tail.drain(..over);
        self.tail.extend(last);
    }

    /// Where the tail begins, among all that was printed.
    fn tail_from(&self) -> u64 {
        self.total - self.tail.len() as u64
    }

    fn kept(&self) -> Kept {
        let (total, mut tail) = (self.total, self.tail.iter().copied().collect::<Vec<u8>>());
        let mut head = self.head.as_slice();
        let mut left_out = self.tail_from() - head.len() as u64;
        if left_out == 0 {
            let whole = String::from_utf8([head, &tail].concat());
            let text = whole.unwrap_or_else(|why| String::from_utf8_lossy(why.as_bytes()).into_owned());
            if text.len() <= self.head_max + self.tail_max {
                return Kept { text, truncated: false, total };
            }
            // It has become longer by what was replaced in it.
        }
        // Half a character on either side of the cut is left out, too.
        let half = half_a_character_at_the_end(head);
        head = &head[..head.len() - half];
        let rest =
            tail.iter().take(CHARACTER_BYTES_MAX - 1).take_while(|byte| is_continuation(**byte)).count();
        tail.drain(..rest);
        left_out += (half + rest) as u64;

        let (mut text, used) = beginning(head, self.head_max);
        left_out += (head.len() - used) as u64;
        let (end, unused) = ending(&tail, self.tail_max);
        left_out += unused as u64;
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("[... {left_out} bytes of output are left out here ...]\n"));
        text.push_str(&end);
        Kept { text, truncated: true, total }
    }

    fn since(&self, after: u64, max: usize) -> (u64, Vec<u8>, u64) {
        let (head_to, tail_from) = (self.head.len() as u64, self.tail_from());
        let from = if after < head_to { after } else { after.clamp(tail_from, self.total) };
        // Positions within what is kept fit a usize, as that does.
        let within = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let mut bytes: Vec<u8> = Vec::new();
        if from < head_to {
            bytes.extend(self.head.iter().skip(within(from)).take(max));
        }
        let reached = from + bytes.len() as u64;
        if reached >= tail_from {
            bytes.extend(self.tail.iter().skip(within(reached - tail_from)).take(max - bytes.len()));
        }
        (from, bytes, self.total)
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// How many bytes at the end begin a character that is not whole.
fn half_a_character_at_the_end(bytes: &[u8]) -> usize {
    let last = &bytes[bytes.len().saturating_sub(CHARACTER_BYTES_MAX - 1)..];
    let Some(start) = last.iter().rposition(|byte| !is_continuation(*byte)) else { return 0 };
    match str::from_utf8(&last[start..]) {
        Err(why) if why.error_len().is_none() => last.len() - start,
        _ => 0,
    }
}

/// Text of bytes, with how many of them it stands for.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = (&str, usize)> {
    bytes.utf8_chunks().flat_map(|chunk| {
        let replaced = (!chunk.invalid().is_empty()).then_some(("\u{fffd}", chunk.invalid().len()));
        [(chunk.valid(), chunk.valid().len())].into_iter().chain(replaced)
    })
}

/// The text of the first bytes, as long as it may be, and how many bytes it stands for.
fn beginning(bytes: &[u8], max: usize) -> (String, usize) {
    let (mut text, mut used) = (String::new(), 0);
    for (piece, stands_for) in pieces(bytes) {
        let fits = piece.floor_char_boundary(max - text.len());
        text.push_str(&piece[..fits]);
        if fits < piece.len() {
            used += fits; // of what was replaced nothing fits
            break;
        }
        used += stands_for;
    }
    (text, used)
}

/// The text of the last bytes, as long as it may be, and how many bytes before it are left out.
fn ending(bytes: &[u8], max: usize) -> (String, usize) {
    let mut over = pieces(bytes).map(|(piece, _)| piece.len()).sum::<usize>().saturating_sub(max);
    let (mut text, mut unused) = (String::new(), 0);
    for (piece, stands_for) in pieces(bytes) {
        let start = piece.ceil_char_boundary(over);
        text.push_str(&piece[start..]);
        unused += if start == piece.len() { stands_for } else { start };
        over = over.saturating_sub(start);
    }
    (text, unused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output_of(limit: usize, pieces: &[&[u8]]) -> Captured {
        let captured = Captured::new(limit);
        for piece in pieces {
            captured.output().take(piece);
        }
        captured
    }

    fn text_of(limit: usize, pieces: &[&[u8]]) -> (String, bool, u64) {
        let Kept { text, truncated, total } = output_of(limit, pieces).kept();
        (text, truncated, total)
    }

    fn whole(text: &str) -> (String, bool, u64) {
        (text.to_owned(), false, text.len() as u64)
    }

    fn cut(text: &str, total: u64) -> (String, bool, u64) {
        (text.to_owned(), true, total)
    }

    #[test]
    fn short_output_is_kept_whole() {
        assert_eq!(text_of(20, &[b"one\n", b"two\n"]), whole("one\ntwo\n"));
        assert_eq!(text_of(20, &[]), whole(""));
        assert_eq!(text_of(8, &[b"one\n", b"two\n"]), whole("one\ntwo\n"));
        assert_eq!(text_of(7, &["12345é".as_bytes()]), whole("12345é"));
        for limit in 6..12 {
            assert_eq!(
                text_of(limit, &["éàü".as_bytes()]),
                whole("éàü"),
                "a half may end within a character"
            );
        }
    }

    #[test]
    fn of_long_output_the_beginning_and_the_end_are_kept_and_the_cut_says_so() {
        let mark = |bytes| format!("[... {bytes} bytes of output are left out here ...]\n");
        let long: Vec<&[u8]> = vec![b"first\n", b"second\n", b"third\n", b"fourth\n", b"last\n"];
        let (text, truncated, total) = text_of(12, &long);
        assert_eq!((text, truncated, total), (format!("first\n{}\nlast\n", mark(19)), true, 31));
        assert_eq!(text_of(3, &[b"abcdefg"]), cut(&format!("ab\n{}g", mark(4)), 7));
        assert_eq!(text_of(1, &[b"abcdefg"]), cut(&format!("a\n{}", mark(6)), 7));
        assert_eq!(text_of(0, &[b"abcdefg"]), cut(&mark(7), 7));
        // However it comes in pieces.
        let all: Vec<u8> = long.concat();
        for size in 1..=all.len() {
            let pieces: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(text_of(12, &pieces), text_of(12, &long), "in pieces of {size}");
        }
    }

    #[test]
    fn a_cut_leaves_no_half_character() {
        let mark = |bytes| format!("[... {bytes} bytes of output are left out here ...]\n");
        let euros = "€".repeat(10); // of three bytes each
        for (limit, each, left_out) in [(12, 2, 18), (14, 2, 18), (16, 2, 18), (18, 3, 12), (28, 4, 6)] {
            let (head, tail) = ("€".repeat(each), "€".repeat(each));
            let (text, ..) = text_of(limit, &[euros.as_bytes()]);
            assert_eq!(text, format!("{head}\n{}{tail}", mark(left_out)), "{limit}");
        }
        // The longest half there is would find room for what replaces it.
        let crabs = "🦀".repeat(10);
        assert_eq!(text_of(14, &[crabs.as_bytes()]).0, format!("🦀\n{}🦀", mark(32)));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_and_the_text_stays_within_the_limit() {
        assert_eq!(text_of(20, &[b"a\xffb"]), ("a\u{fffd}b".to_owned(), false, 3));
        let noise = vec![0xff; 100];
        for limit in 0..=200 {
            let (text, truncated, total) = text_of(limit, &[b"ab", &noise, b"yz"]);
            let kept: usize = text.chars().filter(|c| *c == '\u{fffd}').count();
            let (head, mark_and_tail) = text.split_once("[... ").unwrap_or_else(|| panic!("{limit}: {text}"));
            let (left_out, _) = mark_and_tail.split_once(' ').unwrap();
            let letters = text.split("[...").next().unwrap().chars().filter(|c| "ab".contains(*c)).count()
                + text.split("...]").nth(1).unwrap().chars().filter(|c| "yz".contains(*c)).count();
            assert_eq!(left_out.parse::<usize>().unwrap() + kept + letters, 104, "{limit}: {text}");
            let tail = text.split_once("...]\n").unwrap().1;
            assert!(head.trim_end().len() + tail.len() <= limit, "{limit}: {text}");
            assert_eq!((truncated, total), (true, 104));
        }
    }

    #[test]
    fn a_gigabyte_takes_no_more_room_than_the_limit() {
        let captured = Captured::new(1 << 20);
        let piece = vec![b'x'; READ_BYTES];
        for _ in 0..(1 << 30) / READ_BYTES {
            captured.output().take(&piece);
        }
        let output = captured.output();
        assert_eq!(output.total, 1 << 30);
        assert!(output.head.capacity() + output.tail.capacity() <= 2 << 20);
    }

    #[test]
    fn output_can_be_read_on_while_it_grows() {
        let captured = output_of(8, &[b"abcdef"]);
        assert_eq!(captured.since(0, 100), (0, b"abcdef".to_vec(), 6));
        assert_eq!(captured.since(3, 2), (3, b"de".to_vec(), 6), "over the middle");
        assert_eq!(captured.since(6, 100), (6, vec![], 6), "nothing new");
        assert_eq!(captured.since(99, 100), (6, vec![], 6), "never printed");
        captured.output().take(b"ghijkl");
        assert_eq!(captured.since(6, 100), (8, b"ijkl".to_vec(), 12), "what is left out is passed over");
        assert_eq!(captured.since(2, 100), (2, b"cd".to_vec(), 12), "up to where something is left out");
        assert_eq!(captured.since(4, 100), (8, b"ijkl".to_vec(), 12));
        assert_eq!(captured.since(9, 2), (9, b"jk".to_vec(), 12));
        assert_eq!(output_of(0, &[b"abc"]).since(0, 9), (3, vec![], 3));
    }
}
