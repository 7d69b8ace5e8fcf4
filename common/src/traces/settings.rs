//! OpenTelemetry's own variables, of which these are understood. All others are left alone: they may be meant for jobs.

use std::fmt;

use crate::secrets::Reference;

/// Where spans go.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What goes with them; may hold a password.
pub(crate) const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
/// Which part of the traces that begin here is kept.
const RATIO: &str = "OTEL_TRACES_SAMPLER_ARG";

/// The variables, each with what it is for.
pub(crate) const VARIABLES: [(&str, &str); 3] = [
    (ENDPOINT, "receiver of traces (OTLP over HTTP), like http://127.0.0.1:4318; unset = no traces"),
    (
        HEADERS,
        "headers for it, like api-key=…, several with commas; or a reference to a secret of AWS that has them",
    ),
    (
        RATIO,
        "part of the traces begun here that is kept, from 0 to 1 (default 1); who calls decides for their own",
    ),
];

/// What somebody has said about traces.
#[derive(Clone, PartialEq, Eq)]
pub struct TraceSettings {
    endpoint: Option<String>,
    pub(super) headers: Headers,
    /// Of the 2^63 that a trace's low bits may be.
    pub(super) sampled_below: u64,
}

/// What goes with spans.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Headers {
    /// Names and values.
    Given(Vec<(String, String)>),
    /// A secret has them.
    Kept(Reference),
}

impl Default for TraceSettings {
    /// No traces.
    fn default() -> Self {
        Self { endpoint: None, headers: Headers::Given(Vec::new()), sampled_below: ALL }
    }
}

const ALL: u64 = 1 << 63;

impl TraceSettings {
    /// Takes the value of one of [`VARIABLES`].
    ///
    /// # Errors
    /// What it should look like.
    pub(crate) fn take(&mut self, variable: &str, value: &str) -> Result<(), String> {
        match variable {
            ENDPOINT => self.endpoint = Some(endpoint(value)?),
            HEADERS => {
                self.headers = match Reference::parse(value) {
                    Some(reference) => Headers::Kept(reference?),
                    None => Headers::Given(headers(value).ok_or("it is not like api-key=abc,other=def")?),
                }
            }
            RATIO => self.sampled_below = sampled_below(value).ok_or("it is not a number from 0 to 1")?,
            _ => {}
        }
        Ok(())
    }

    /// Where spans are sent to; `None` = nowhere.
    pub(super) fn url(&self) -> Option<String> {
        self.endpoint.as_ref().map(|endpoint| format!("{}/v1/traces", endpoint.trim_end_matches('/')))
    }
}

impl fmt::Debug for TraceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The headers may hold a password.
        f.debug_struct("TraceSettings").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

fn endpoint(value: &str) -> Result<String, String> {
    let url = url::Url::parse(value).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    url.map(String::from).ok_or_else(|| "it is not like http://127.0.0.1:4318".to_owned())
}

/// Headers in their one text.
pub(super) fn headers(value: &str) -> Option<Vec<(String, String)>> {
    value.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(header).collect()
}

fn header(pair: &str) -> Option<(String, String)> {
    let (name, value) = pair.split_once('=')?;
    let (name, value) = (name.trim().to_ascii_lowercase(), unescape(value.trim())?);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_value = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    (!name.is_empty() && name.bytes().all(is_name) && value.bytes().all(is_value)).then_some((name, value))
}

/// Percent-encoding undone, as the standard has it in values of headers.
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        plain.push(char::from(u8::from_str_radix(digits, 16).ok()?));
        plain.push_str(rest);
    }
    Some(plain)
}

fn sampled_below(value: &str) -> Option<u64> {
    let ratio = value.trim().parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "from 0 to 2^63, which both types have; of the digits behind the fiftieth bit nobody counts on any"
    )]
    Some((ratio * ALL as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(variable: &str, value: &str) -> Result<TraceSettings, String> {
        let mut settings = TraceSettings::default();
        settings.take(variable, value).map(|()| settings)
    }

    #[test]
    fn the_receiver_is_where_the_standard_says() {
        let url = |value| taken(ENDPOINT, value).ok().and_then(|settings| settings.url());
        for base in ["http://127.0.0.1:4318", "http://127.0.0.1:4318/"] {
            assert_eq!(url(base).as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
        }
        assert_eq!(url("https://a.example/otlp").as_deref(), Some("https://a.example/otlp/v1/traces"));
        for bad in ["127.0.0.1:4318", "grpc://a", "http://u:p@a", "http://a/?b", "localhost"] {
            assert_eq!(url(bad), None, "{bad}");
        }
        assert_eq!(TraceSettings::default().url(), None);
    }

    #[test]
    fn headers_are_a_list_with_escapes_and_never_shown() {
        let settings = taken(HEADERS, "Api-Key = a%20b , x=1=2").unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert!(settings.headers == Headers::Given(vec![pair("api-key", "a b"), pair("x", "1=2")]));
        let kept = taken(HEADERS, "secretsmanager:traces#headers").unwrap();
        assert!(
            matches!(&kept.headers, Headers::Kept(reference) if reference.key.as_deref() == Some("headers"))
        );
        assert!(taken(HEADERS, "secretsmanager:").is_err());
        assert!(!format!("{settings:?}").contains("a b"));
        for bad in ["hunter2", "a b=c", "=c", "a=%0d%0a", "a=%zz", "a=%2"] {
            let refused = taken(HEADERS, bad).unwrap_err();
            assert!(!refused.contains(bad), "{refused}");
        }
    }

    #[test]
    fn a_ratio_is_a_part_of_all_low_bits() {
        let below = |value| taken(RATIO, value).map(|settings| settings.sampled_below).ok();
        assert_eq!([below("0"), below("1"), below("0.25")], [Some(0), Some(ALL), Some(ALL / 4)]);
        assert_eq!([below("1.1"), below("-1"), below("NaN"), below("x")], [None; 4]);
    }
}
