//! Texts that somebody reads, and that have a limit.

/// The text, or its beginning with an ellipsis behind it when it is longer than `bytes`.
#[must_use]
pub fn shortened(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
        text.push('…');
    }
    text
}
