//! W3C trace context: to which trace a request or a run belongs, as it is handed on (`traceparent`).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::job::JobName;
use super::run::RunId;
use crate::clock::Timestamp;
use crate::ids::random_id;

/// The header by which a context travels.
pub const HEADER: &str = "traceparent";
/// The variable by which a command gets it.
pub const VARIABLE: &str = "TRACEPARENT";

/// A trace: everything that one cause has led to. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(u128);

impl TraceId {
    /// What a sampler looks at: 63 bits that are as good as random.
    #[must_use]
    pub fn low_bits(self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.0.to_be_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One piece of work in a trace. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(u64);

impl SpanId {
    /// One that nobody else has.
    #[must_use]
    pub fn random() -> Self {
        Self(u64::from_str_radix(&random_id()[..16], 16).unwrap_or_default().max(1))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Where in which trace somebody is, as told to whoever comes next: their work belongs to the trace, below the span.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// The spans of the trace are kept.
    pub sampled: bool,
}

impl TraceContext {
    /// A new trace, and its first span.
    #[must_use]
    pub fn random() -> Self {
        let trace = u128::from_str_radix(&random_id(), 16).unwrap_or_default().max(1);
        Self { trace: TraceId(trace), span: SpanId::random(), sampled: false }
    }

    /// The trace that begins with a fire of the schedule, or with a request that came without one, and in it the span of this run of it.
    ///
    /// Made of what its record, its environment and its lines in the log say, so that each finds the others. All attempts at a fire, and its runs
    /// on every worker, share the trace; no two of them share a span. Two fires share neither: a run id is unique in the life of a store, and
    /// the plan time tells runs apart of a store that was put back, the job those of fleets that share nothing but the receiver of their
    /// traces. Hashed, so that all bits are as good as random, which samplers rely on.
    #[must_use]
    pub fn of_run(run_id: &RunId, job: &JobName, plan_time: Timestamp) -> Self {
        // Neither run ids nor names have a NUL character.
        let of = |id: &str| format!("{id}\0{job}\0{}", plan_time.ms());
        let first = run_id.as_str().split(['~', '.']).next().unwrap_or_default();
        Self {
            trace: TraceId(xxh3_128(of(first).as_bytes()).max(1)),
            span: SpanId(xxh3_64(of(run_id.as_str()).as_bytes()).max(1)),
            sampled: false,
        }
    }

    /// Reads a header's value, strictly: what is not well-formed is as good as none, and the trace begins anew (so says the standard).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (first, rest) = text.split_at_checked(55)?;
        let mut parts = first.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version = hex(version, 2)?;
        // A later version may have more behind these four; 255 is forbidden.
        let is_whole = if version == 0 { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
        if parts.next().is_some() || version == 255 || !is_whole {
            return None;
        }
        let (trace, span) = (hex(trace, 32)?, hex(span, 16)?);
        let (trace, span) =
            (Some(trace).filter(|id| *id != 0)?, u64::try_from(span).ok().filter(|id| *id != 0)?);
        Some(Self { trace: TraceId(trace), span: SpanId(span), sampled: hex(flags, 2)? & 1 == 1 })
    }
}

/// So many hex digits, none of them a capital.
fn hex(digits: &str, length: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (digits.len() == length && digits.bytes().all(is_digit)).then(|| u128::from_str_radix(digits, 16).ok())?
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl Serialize for TraceContext {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads a stored context. One that cannot be read is none: what carries it is worth more.
///
/// # Errors
/// It is no text.
pub fn stored<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TraceContext>, D::Error> {
    Ok(TraceContext::parse(&String::deserialize(deserializer)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_strictly() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = TraceContext::parse(good).unwrap();
        assert_eq!((read.to_string(), read.sampled), (good.to_owned(), true));
        for (text, sampled) in [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", Some(false)),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", Some(true)),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some(true)),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes", Some(true)),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.what-comes", None),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes", None),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1", None),
            ("00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331_01", None),
            (" 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("00-öf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("", None),
        ] {
            assert_eq!(TraceContext::parse(text).map(|context| context.sampled), sampled, "{text}");
        }
    }

    #[test]
    fn all_runs_of_a_fire_share_its_trace_and_no_two_a_span() {
        let (job, at) = (JobName::parse("a").unwrap(), Timestamp::from_ms(1_800_000_000_000));
        let of = |id: &str| TraceContext::of_run(&RunId::from_text(id), &job, at);
        let first = of("7f-12");
        for other in ["7f-12.2", "7f-12~9c", "7f-12~9c.2"] {
            assert_eq!(of(other).trace, first.trace, "{other}");
            assert_ne!(of(other).span, first.span, "{other}");
        }
        let elsewhere = TraceContext::of_run(&RunId::from_text("7f-12"), &JobName::parse("b").unwrap(), at);
        let later = TraceContext::of_run(&RunId::from_text("7f-12"), &job, at.plus_ms(1000));
        for other in [of("7f-13"), elsewhere, later] {
            assert!(other.trace != first.trace && other.span != first.span, "{other}");
        }
        // What other versions have to make of the same run.
        assert_eq!(first.to_string(), "00-2ee84bbfbb125ead5dd28aaca6193de7-5d92554c2838405f-00");
        assert_eq!(TraceContext::parse(&first.to_string()), Some(first));
        assert_ne!(TraceContext::random().trace, TraceContext::random().trace);
    }
}
