//! `GET /`: the web console, a page and its two files, embedded. It opens no store: the page asks the other routes.

use common::api::errno::Kind;
use lambda_http::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName};
use lambda_http::http::{Method, StatusCode};
use lambda_http::{Body, Request};

use crate::http::{Call, READ, Response, refuse, with_headers, wrong_method};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

/// Nothing but our own files: a job's name, command or output can then bring no script along, whatever is in it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Serves `GET /` and `GET /console/{file}`.
#[must_use]
pub fn handle(request: Request) -> Response {
    if let Some(refused) = wrong_method(METHODS, request.method()) {
        return refused;
    }
    let head = request.method() == Method::HEAD;
    let call = Call::new(request);
    let mut response = file(call.path());
    if head {
        *response.body_mut() = Body::Empty;
    }
    response
}

fn file(path: &str) -> Response {
    // What stands before it is the stage of an API Gateway, when there is one.
    let (content_type, text) = match path.rsplit_once("/console/").map(|(_, file)| file) {
        None => ("text/html; charset=utf-8", include_str!("../console/index.html")),
        Some("app.js") => ("text/javascript; charset=utf-8", include_str!("../console/app.js")),
        Some("style.css") => ("text/css; charset=utf-8", include_str!("../console/style.css")),
        Some(other) => {
            return refuse(Kind::NotFound, format!("the console has no file {other:?}: it begins at /"));
        }
    };
    let headers = [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ];
    with_headers(StatusCode::OK, &headers, text)
}
