//! What a request shows of who sends it: the header `Authorization`, and nothing else. A token in an address would stand in logs, histories
//! and referrers; a cookie would be sent by pages of other sites.

use lambda_http::http::HeaderMap;
use lambda_http::http::header::AUTHORIZATION;

/// Longest token that is looked at, in bytes: tokens of OpenID providers with many groups have four thousand.
const BYTES_MAX: usize = 8 * 1024;

/// What was shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shown<'a> {
    /// No header.
    Nothing,
    /// A token; what it is worth is another question.
    Token(&'a str),
    /// What no client sends by accident; why.
    Nonsense(&'static str),
}

/// Reads the header strictly, so that whatever stands in front of us cannot have read another token in it than we do: one header, one blank,
/// one token of the characters that RFC 6750 allows.
pub(super) fn shown(headers: &HeaderMap) -> Shown<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Shown::Nothing };
    if values.next().is_some() {
        return Shown::Nonsense("the header Authorization came more than once");
    }
    let Ok(text) = value.to_str() else { return Shown::Nonsense("the header Authorization is not ASCII") };
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Shown::Nonsense("the header Authorization is of another scheme than Bearer");
    }
    if token.len() > BYTES_MAX {
        return Shown::Nonsense("the token is too long");
    }
    let known = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if token.is_empty() || !token.bytes().all(known) {
        return Shown::Nonsense("what follows Bearer is not one token");
    }
    Shown::Token(token)
}

#[cfg(test)]
mod tests {
    use lambda_http::http::HeaderValue;

    use super::*;

    #[test]
    fn one_header_with_one_token_is_read_and_nothing_else() {
        let long = format!("Bearer {}", "a".repeat(BYTES_MAX + 1));
        let rows: [(&[&str], Option<Option<&str>>); 17] = [
            (&[], Some(None)),
            (&["AWS4-HMAC-SHA256 Credential=x"], None),
            (&["Bearer abc"], Some(Some("abc"))),
            (&["bearer abc"], Some(Some("abc"))),
            (&["BEARER a.b-c_d~e+f/g="], Some(Some("a.b-c_d~e+f/g="))),
            (&["Bearer abc", "Bearer abc"], None),
            (&["Bearer abc", "Basic eDp5"], None),
            (&["Bearer  abc"], None),
            (&["Bearer abc "], None),
            (&["Bearer\tabc"], None),
            (&["Bearer abc, Bearer def"], None),
            (&["Bearer"], None),
            (&["Bearer "], None),
            (&["Bearerabc"], None),
            (&["Basic eDp5"], None),
            (&["abc"], None),
            (&[&long], None),
        ];
        for (values, expected) in rows {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            let got = match shown(&headers) {
                Shown::Nothing => Some(None),
                Shown::Token(token) => Some(Some(token)),
                Shown::Nonsense(_) => None,
            };
            assert_eq!(got, expected, "{values:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff").unwrap());
        assert!(matches!(shown(&headers), Shown::Nonsense(_)));
    }
}
