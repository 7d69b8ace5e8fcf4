//! What a command prints, up to a limit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Most bytes of output that a record keeps; the rest is read and thrown away, so that the command never blocks.
pub(crate) const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// Read at once, to begin with: most commands print little, and a large buffer for each of a thousand runs a second costs more than the run.
const FIRST_READ_BYTES: usize = 4 * 1024;
/// Read at once from a command that fills that: the size of a pipe.
const READ_BYTES: usize = 64 * 1024;

/// The beginning of a command's output.
#[derive(Debug, Default)]
pub(crate) struct Output {
    kept: Vec<u8>,
    truncated: bool,
}

/// What a command has printed so far, shared between who reads it and who looks at it meanwhile.
#[derive(Clone, Debug, Default)]
pub(crate) struct Captured(Arc<Mutex<Output>>);

impl Captured {
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

    /// The text (what is not UTF-8 is replaced) and whether anything was cut.
    pub(crate) fn text(&self) -> (String, bool) {
        self.output().text()
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    fn take(&mut self, piece: &[u8]) {
        let room = OUTPUT_BYTES_MAX - self.kept.len();
        let kept = piece.len().min(room);
        self.kept.extend_from_slice(&piece[..kept]);
        self.truncated |= kept < piece.len();
    }

    fn text(&self) -> (String, bool) {
        let mut kept = self.kept.as_slice();
        if self.truncated {
            // Do not keep half a character.
            let half = kept.utf8_chunks().last().map_or(0, |last| last.invalid().len());
            if half < 4 {
                kept = &kept[..kept.len() - half];
            }
        }
        (String::from_utf8_lossy(kept).into_owned(), self.truncated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(pieces: &[&[u8]]) -> (String, bool) {
        let mut output = Output::default();
        for piece in pieces {
            output.take(piece);
        }
        output.text()
    }

    #[test]
    fn short_output_is_kept_whole() {
        assert_eq!(text_of(&[b"one\n", b"two\n"]), ("one\ntwo\n".to_owned(), false));
        assert_eq!(text_of(&[]), (String::new(), false));
    }

    #[test]
    fn long_output_is_cut_and_says_so() {
        let (text, truncated) = text_of(&[&vec![b'x'; OUTPUT_BYTES_MAX], b"y"]);
        assert_eq!((text.len(), truncated), (OUTPUT_BYTES_MAX, true));
        assert!(!text_of(&[&vec![b'x'; OUTPUT_BYTES_MAX]]).1, "a full buffer is not a cut one");
    }

    #[test]
    fn a_cut_leaves_no_half_character() {
        let mut long = vec![b'x'; OUTPUT_BYTES_MAX - 1];
        long.extend("é".as_bytes());
        assert_eq!(text_of(&[&long]).0.len(), OUTPUT_BYTES_MAX - 1);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        assert_eq!(text_of(&[b"a\xffb"]), ("a\u{fffd}b".to_owned(), false));
    }
}
