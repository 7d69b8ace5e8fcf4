//! An error in one line: what it says, and what its causes add to that.

use std::error::Error;

/// The texts of an error and of its causes, from the outermost in; a cause that the text so far has already said is left out.
#[must_use]
pub fn in_words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}
