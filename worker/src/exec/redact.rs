//! Secrets taken out of what a run prints, and of what its request is answered.
//!
//! Each secret is looked for in the forms in which programs print such things. All forms of all secrets are one automaton, which looks at each
//! byte once, however the bytes come in pieces: bytes that may be the beginning of a secret are held back until they are known to be none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use aho_corasick::automaton::{Automaton as _, StateID};
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use common::domain::secret::SecretName;

/// Shortest text that is looked for, in bytes: shorter ones are found everywhere, and what stands around their place tells what they were.
pub(crate) const BYTES_MIN: usize = 8;

/// What to look for.
pub(crate) struct Redactor {
    automaton: NFA,
    start: StateID,
    /// By pattern, what is written in its place.
    marks: Vec<Arc<str>>,
    /// Of each state of the automaton but the first: how much of a pattern has been seen, and the mark of that.
    seen: HashMap<StateID, (usize, Arc<str>)>,
}

impl Redactor {
    /// Looks for these secrets.
    ///
    /// # Errors
    /// They are too large together.
    pub(crate) fn new(secrets: &BTreeMap<SecretName, String>) -> Result<Self, String> {
        let forms = secrets.iter().flat_map(|(name, value)| {
            let mark: Arc<str> = format!("[{name}]").into();
            forms(value).into_iter().map(move |form| (form, Arc::clone(&mark)))
        });
        // Two secrets with one value have one form; it is told by the first name.
        let mut marks: BTreeMap<Vec<u8>, Arc<str>> = BTreeMap::new();
        for (form, mark) in forms {
            marks.entry(form).or_insert(mark);
        }
        Self::of(&marks)
    }

    fn of(marks: &BTreeMap<Vec<u8>, Arc<str>>) -> Result<Self, String> {
        let too_large = |why: &dyn fmt::Display| format!("secrets cannot be looked for: {why}");
        // Standard: every place at which a pattern ends is told, also within others.
        let built = NFA::builder().match_kind(MatchKind::Standard).build(marks.keys());
        let automaton = built.map_err(|why| too_large(&why))?;
        let start = automaton.start_state(Anchored::No).map_err(|why| too_large(&why))?;
        let mut seen = HashMap::new();
        for (pattern, mark) in marks {
            let mut state = start;
            for (at, byte) in pattern.iter().enumerate() {
                // A pattern's own beginnings lead through states that stand for just these.
                state = automaton.next_state(Anchored::No, state, *byte);
                seen.entry(state).or_insert_with(|| (at + 1, Arc::clone(mark)));
            }
        }
        Ok(Self { automaton, start, marks: marks.values().cloned().collect(), seen })
    }

    /// A text that is there as a whole.
    pub(crate) fn clean(self: &Arc<Self>, text: &str) -> String {
        let mut hiding = Hiding::new(Arc::clone(self));
        let mut clean = hiding.push(text.as_bytes());
        clean.extend(hiding.finish());
        String::from_utf8_lossy(&clean).into_owned()
    }
}

/// Shows nothing of what it looks for.
impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").finish_non_exhaustive()
    }
}

/// The texts that show a secret: itself, each of its lines, and as JSON, addresses, forms and base64 have it, this also in the middle of other
/// text (as `user:password` in a header).
fn forms(value: &str) -> BTreeSet<Vec<u8>> {
    let mut forms: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut put = |form: String| {
        forms.insert(form.into_bytes());
    };
    put(value.to_owned());
    value.lines().for_each(|line| put(line.trim().to_owned()));
    let json = serde_json::Value::from(value).to_string();
    let json = json.strip_prefix('"').and_then(|json| json.strip_suffix('"')).unwrap_or_default();
    put(json.to_owned());
    put(in_ascii(json));
    for (small, blank) in [(false, "%20"), (true, "%20"), (false, "+")] {
        put(percent_encoded(value, small, blank));
    }
    for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
        put(engine.encode(value));
    }
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        for before in 0..3 {
            // Of what bits of the text around have a part in, nothing is known.
            let text = engine.encode([&vec![0; before], value.as_bytes()].concat());
            let last = text.len() - usize::from(!(before + value.len()).is_multiple_of(3));
            put(text[[0, 2, 3][before]..last].to_owned());
        }
    }
    forms.retain(|form| form.len() >= BYTES_MIN);
    forms
}

/// JSON as those write it that take no chance with other characters.
fn in_ascii(json: &str) -> String {
    let escaped = |c: char| -> String {
        if c.is_ascii() {
            return c.into();
        }
        c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    };
    json.chars().map(escaped).collect()
}

/// Everything but RFC 3986's unreserved characters.
fn percent_encoded(text: &str, small: bool, blank: &str) -> String {
    let encoded = |byte: u8| match byte {
        b' ' => blank.to_owned(),
        _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).into(),
        _ if small => format!("%{byte:02x}"),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
}

/// One stream of bytes on its way.
#[derive(Debug)]
pub(crate) struct Hiding {
    redactor: Arc<Redactor>,
    state: StateID,
    /// Came, and is not given yet: it may be the beginning of a secret.
    held: Vec<u8>,
    /// What of it is known to be part of a secret: places that do not overlap, in order.
    found: Vec<Found>,
}

#[derive(Debug)]
struct Found {
    from: usize,
    to: usize,
    /// What is written in its place; `None` = that was given already.
    mark: Option<Arc<str>>,
}

impl Hiding {
    pub(crate) fn new(redactor: Arc<Redactor>) -> Self {
        Self { state: redactor.start, redactor, held: Vec::new(), found: Vec::new() }
    }

    /// What it looks for.
    pub(crate) fn redactor(&self) -> &Arc<Redactor> {
        &self.redactor
    }

    /// Takes a piece; gives what can be given of all that came.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let before = self.held.len();
        self.held.extend_from_slice(piece);
        for (at, byte) in piece.iter().enumerate() {
            let automaton = &self.redactor.automaton;
            self.state = automaton.next_state(Anchored::No, self.state, *byte);
            if automaton.is_match(self.state) {
                let ends =
                    (0..automaton.match_len(self.state)).map(|n| automaton.match_pattern(self.state, n));
                let Some(longest) = ends.max_by_key(|pattern| automaton.pattern_len(*pattern)) else {
                    continue;
                };
                let to = before + at + 1;
                // What began earlier than what is held was no secret by then.
                let from = to.saturating_sub(automaton.pattern_len(longest));
                let mark = self.redactor.marks.get(longest.as_usize()).cloned();
                self.find(Found { from, to, mark });
            }
        }
        let may_go_on = self.redactor.seen.get(&self.state).map_or(0, |(bytes, _)| *bytes);
        self.give(self.held.len().saturating_sub(may_go_on))
    }

    /// The rest. Where it ends within a secret, that is hidden, too: a command that is killed leaves no half of one.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let end = self.held.len();
        if let Some((bytes, mark)) = self.redactor.seen.get(&self.state)
            && *bytes >= BYTES_MIN
        {
            let rest = Found { from: end.saturating_sub(*bytes), to: end, mark: Some(Arc::clone(mark)) };
            self.find(rest);
        }
        self.state = self.redactor.start;
        self.give(end)
    }

    /// Secrets that overlap are one place: half of the second would else be left.
    fn find(&mut self, mut found: Found) {
        while let Some(last) = self.found.pop_if(|last| last.to > found.from) {
            if last.from <= found.from {
                (found.from, found.mark) = (last.from, last.mark);
            }
        }
        self.found.push(found);
    }

    /// Gives all before this place; nothing that comes later can begin there.
    fn give(&mut self, until: usize) -> Vec<u8> {
        let (mut given, mut at) = (Vec::with_capacity(until), 0);
        for Found { from, to, mark } in self.found.extract_if(.., |found| found.from < until) {
            given.extend_from_slice(&self.held[at..from]);
            given.extend_from_slice(mark.as_deref().unwrap_or_default().as_bytes());
            at = to;
        }
        let rest = at.saturating_sub(until);
        given.extend_from_slice(&self.held[at.min(until)..until]);
        self.held.drain(..until);
        for found in &mut self.found {
            (found.from, found.to) = (found.from - until, found.to - until);
        }
        if rest > 0 {
            self.found.insert(0, Found { from: 0, to: rest, mark: None });
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn redactor(secrets: &[(&str, &str)]) -> Arc<Redactor> {
        let secrets =
            secrets.iter().map(|(name, value)| (SecretName::parse(name).unwrap(), (*value).to_owned()));
        Arc::new(Redactor::new(&secrets.collect()).unwrap())
    }

    /// In pieces of this size.
    fn streamed(redactor: &Arc<Redactor>, text: &[u8], size: usize) -> Vec<u8> {
        let mut hiding = Hiding::new(Arc::clone(redactor));
        let mut given: Vec<u8> = text.chunks(size).flat_map(|piece| hiding.push(piece)).collect();
        given.extend(hiding.finish());
        given
    }

    #[track_caller]
    fn check(redactor: &Arc<Redactor>, text: &str, expected: &str) {
        assert_eq!(redactor.clean(text), expected);
        for size in 1..=text.len() {
            let given = streamed(redactor, text.as_bytes(), size);
            assert_eq!(String::from_utf8(given).unwrap(), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_secret_is_hidden_in_every_form_that_programs_print() {
        let value = "p/ss \"w\u{f6}rd\"\\+?";
        let secret = redactor(&[("db", value)]);
        for form in [
            value,
            r#"p/ss \"wörd\"\\+?"#,
            r#"p/ss \"w\u00f6rd\"\\+?"#,
            "p%2Fss%20%22w%C3%B6rd%22%5C%2B%3F",
            "p%2fss%20%22w%c3%b6rd%22%5c%2b%3f",
            "p%2Fss+%22w%C3%B6rd%22%5C%2B%3F",
            &STANDARD.encode(value),
            &URL_SAFE.encode(value),
        ] {
            check(&secret, &format!("<{form}>"), "<[secret:db]>");
        }
        // Basic authentication, whatever the name before it: no three characters of base64 that the secret alone makes are left.
        for user in ["a", "ab", "abc", "abcd"] {
            let encoded = STANDARD.encode(format!("{user}:{value}:x"));
            let clean = secret.clean(&encoded);
            let left: usize = clean.split("[secret:db]").map(str::len).sum();
            let around = user.len() + 1 + 2;
            assert!(
                clean.contains("[secret:db]") && left <= around.div_ceil(3) * 4 + 4,
                "{encoded}: {clean}"
            );
        }
    }

    #[test]
    fn each_line_of_a_key_is_hidden_by_itself() {
        let key = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA\r\nwJ4n\n-----END KEY-----";
        let secret = redactor(&[("key", key)]);
        check(&secret, &format!("a {key} b"), "a [secret:key] b");
        check(&secret, "  MIIEowIBAAKCAQEA\n", "  [secret:key]\n");
        check(&secret, "wJ4n", "wJ4n"); // shorter lines than a secret may be
    }

    #[test]
    fn secrets_that_overlap_leave_nothing_of_each_other() {
        let secrets = redactor(&[("a", "abcdefgh"), ("b", "efghijkl"), ("c", "xxabcdefghij")]);
        check(&secrets, "abcdefghijkl", "[secret:a]");
        check(&secrets, "abcdefghefghijkl", "[secret:a][secret:b]"); // next to each other
        check(&secrets, "abcdefgh-efghijkl", "[secret:a]-[secret:b]");
        check(&secrets, "xxabcdefghijkl!", "[secret:c]!");
        check(&secrets, "xxabcdefgh!", "xx[secret:a]!");
        check(&redactor(&[("r", "aaaaaaaa")]), &"a".repeat(30), "[secret:r]");
    }

    #[test]
    fn what_ends_within_a_secret_shows_no_half_of_it() {
        let secret = redactor(&[("a", "abcdefghijklmnop")]);
        check(&secret, "so: abcdefghijklmno", "so: [secret:a]");
        check(&secret, "so: abcdefg", "so: abcdefg");
        check(&secret, "so: abcdefghijklmnox", "so: abcdefghijklmnox");
    }

    #[test]
    fn what_is_no_secret_is_given_at_once() {
        let mut hiding = Hiding::new(redactor(&[("a", "abcdefgh")]));
        assert_eq!(hiding.push(b"begin\n"), b"begin\n");
        assert_eq!(hiding.push(b"so: abc"), b"so: ");
        assert_eq!(hiding.push(b"defg"), b"");
        assert_eq!(hiding.push(b"x"), b"abcdefgx");
        assert_eq!(format!("{hiding:?}").matches("abcdefgh").count(), 0);
    }

    /// What is left where every byte of every place of every pattern is hidden, and places that overlap are one.
    fn plainly(patterns: &[Vec<u8>], text: &[u8]) -> Vec<u8> {
        let mut places: Vec<(usize, usize)> = Vec::new();
        for from in 0..text.len() {
            let found =
                patterns.iter().filter(|pattern| text[from..].starts_with(pattern)).map(Vec::len).max();
            let Some(bytes) = found else { continue };
            match places.last_mut().filter(|(_, to)| *to > from) {
                Some((_, to)) => *to = (*to).max(from + bytes),
                None => places.push((from, from + bytes)),
            }
        }
        let (mut left, mut at) = (Vec::new(), 0);
        for (from, to) in places {
            left.extend_from_slice(&text[at..from]);
            left.push(b'*');
            at = to;
        }
        left.extend_from_slice(&text[at..]);
        left
    }

    #[test]
    fn however_it_comes_in_pieces_it_is_as_if_it_were_looked_at_as_a_whole() {
        let mut dice = 1_u64;
        let mut roll = |sides: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from((dice >> 33) % sides).unwrap()
        };
        for round in 0..2_000 {
            let mut word = |max: u64| -> Vec<u8> { (0..=roll(max)).map(|_| b"ab"[roll(2)]).collect() };
            let patterns: Vec<Vec<u8>> = (0..1 + round % 4).map(|_| word(6)).collect();
            let text = word(40);
            let marks = patterns.iter().map(|pattern| (pattern.clone(), Arc::from("*")));
            let redactor = Arc::new(Redactor::of(&marks.collect()).unwrap());
            let expected = plainly(&patterns, &text);
            for size in [1, 2, 3, 7, 41] {
                let given = streamed(&redactor, &text, size);
                let mut what = String::new();
                let _infallible = write!(what, "{patterns:?} in {text:?}, pieces of {size}");
                assert_eq!(given, expected, "{what}");
            }
        }
    }
}
