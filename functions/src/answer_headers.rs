//! What every answer says to browsers, whoever makes it.

use lambda_http::http::HeaderMap;
use lambda_http::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

/// Each with its value, where the answer has none of its own. There is no `Access-Control-…` among them: no page of another origin reads an answer
/// or sends a token.
const ALWAYS: [(HeaderName, &str); 6] = [
    // What is asked for changes every second; a cached answer is a wrong one, and may be for another's eyes.
    (CACHE_CONTROL, "no-store"),
    // JSON is not to be shown as a page: in it stands what anybody wrote.
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    // Names of jobs are in the addresses.
    (REFERRER_POLICY, "no-referrer"),
    // No page of another origin loads it as a picture or a script, or holds a handle to its window.
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Adds what the answer does not say by itself.
pub(crate) fn complete(headers: &mut HeaderMap) {
    for (name, value) in ALWAYS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}
