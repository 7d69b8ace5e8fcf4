//! `GET /`: the web console, a page and its files, embedded. It opens no store: the page asks the other routes.

use common::api::errno::Kind;
use lambda_http::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH,
};
use lambda_http::http::{HeaderMap, Method, StatusCode};
use lambda_http::{Body, Request, RequestExt as _};

use crate::http::{READ, Response, refuse, with_headers, wrong_method};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

/// Nothing but our own files: a job's name, command or output can then bring no script along, whatever is in it. Trusted types besides: our
/// own scripts cannot make markup out of text even by mistake.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// A file of the console: its name below `/console/` (empty: the page itself), its content type, its text.
struct File {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! file {
    ($name:literal, $content_type:expr, $path:literal) => {
        File { name: $name, content_type: $content_type, text: include_str!(concat!("../console/", $path)) }
    };
}

static FILES: [File; 26] = [
    file!("", HTML, "index.html"),
    file!("app.js", SCRIPT, "app.js"),
    file!("audit.js", SCRIPT, "audit.js"),
    file!("calendars.js", SCRIPT, "calendars.js"),
    file!("core.js", SCRIPT, "core.js"),
    file!("dialogs.js", SCRIPT, "dialogs.js"),
    file!("faults.js", SCRIPT, "faults.js"),
    file!("fleet.js", SCRIPT, "fleet.js"),
    file!("form.js", SCRIPT, "form.js"),
    file!("htm.js", SCRIPT, "vendor/htm.js"),
    file!("job.js", SCRIPT, "job.js"),
    file!("jobs.js", SCRIPT, "jobs.js"),
    file!("options.js", SCRIPT, "options.js"),
    file!("parts.js", SCRIPT, "parts.js"),
    file!("preact-hooks.js", SCRIPT, "vendor/preact-hooks.js"),
    file!("preact.js", SCRIPT, "vendor/preact.js"),
    file!("preview.js", SCRIPT, "preview.js"),
    file!("record.js", SCRIPT, "record.js"),
    file!("run.js", SCRIPT, "run.js"),
    file!("running.js", SCRIPT, "running.js"),
    file!("signin.js", SCRIPT, "signin.js"),
    file!("style.css", STYLE, "style.css"),
    file!("texts.js", SCRIPT, "texts.js"),
    file!("tokens.js", SCRIPT, "tokens.js"),
    file!("versions.js", SCRIPT, "versions.js"),
    file!("workers.js", SCRIPT, "workers.js"),
];

/// The text's hash (XXH3): another text, another tag. It guards nothing, so it need not be hard to forge.
fn etag(text: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(text.as_bytes())))
        .expect("hex digits in quotes are a header value")
}

/// Serves `GET /` and `GET /console/{file}`.
#[must_use]
pub fn handle(request: Request) -> Response {
    if let Some(refused) = wrong_method(METHODS, request.method()) {
        return refused;
    }
    // What stands before it is the stage of an API Gateway, when there is one.
    let name = request.raw_http_path().rsplit_once("/console/").map_or("", |(_, name)| name);
    let mut response = match FILES.iter().find(|file| file.name == name) {
        Some(file) => file.response(request.headers()),
        None => refuse(Kind::NotFound, format!("the console has no file {name:?}: it begins at /")),
    };
    if request.method() == Method::HEAD || response.status() == StatusCode::NOT_MODIFIED {
        *response.body_mut() = Body::Empty;
    }
    response
}

impl File {
    /// The file, with 304 when the browser has it as it is.
    fn response(&self, asked: &HeaderMap) -> Response {
        let headers = [
            (CONTENT_TYPE, self.content_type),
            (CONTENT_SECURITY_POLICY, POLICY),
            // Asked for again each time, so that files of two versions never meet; what has not changed costs 304 and no body.
            (CACHE_CONTROL, "no-cache"),
        ];
        let etag = etag(self.text);
        let fresh = asked.get_all(IF_NONE_MATCH).iter().any(|known| names(known, &etag));
        let status = if fresh { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let mut response = with_headers(status, &headers, self.text);
        response.headers_mut().insert(ETAG, etag);
        response
    }
}

/// Whether an `If-None-Match` names the tag. What compressed the answer on its way has made the tag a weak one (`W/`): it is as good here.
fn names(header: &HeaderValue, etag: &HeaderValue) -> bool {
    let tags = header.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tags.map(|tag| tag.strip_prefix(b"W/").unwrap_or(tag)).any(|tag| tag == b"*" || tag == etag.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn get(path: &str, if_none_match: Option<&str>) -> Response {
        let mut builder = lambda_http::http::Request::builder().uri(path);
        if let Some(tags) = if_none_match {
            builder = builder.header(IF_NONE_MATCH, tags);
        }
        let request = builder.body(Body::Empty).unwrap();
        handle(lambda_http::RequestExt::with_raw_http_path(request, path))
    }

    #[test]
    fn a_browser_that_has_a_file_gets_304_and_no_body() {
        for path in ["/", "/console/app.js", "/prod/", "/prod/console/style.css"] {
            let first = get(path, None);
            assert_eq!(first.status(), 200, "{path}");
            let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
            for known in [tag.clone(), format!("\"other\", W/{tag}"), "*".to_owned()] {
                let again = get(path, Some(&known));
                assert_eq!(again.status(), 304, "{path} {known}");
                assert!(matches!(again.body(), Body::Empty) && again.headers()[ETAG] == tag.as_str());
            }
            assert_eq!(get(path, Some("\"other\"")).status(), 200, "{path}");
        }
        assert_ne!(get("/", None).headers()[ETAG], get("/console/app.js", None).headers()[ETAG]);
    }

    #[test]
    fn every_file_in_the_sources_is_served_and_preloaded() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/console");
        let served: BTreeSet<&str> = FILES.iter().map(|file| file.name).collect();
        let page = FILES.iter().find(|file| file.name.is_empty()).unwrap().text;
        let entries = [sources.clone(), sources.join("vendor")].map(|dir| std::fs::read_dir(dir).unwrap());
        for entry in entries.into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.ends_with(".js") && !name.ends_with(".css") {
                continue;
            }
            assert!(served.contains(name.as_str()), "{name} is not in FILES");
            // A file that the page does not name is found only after another was read: a round trip later.
            assert!(page.contains(&format!("=\"console/{name}\"")), "{name} is not in index.html");
        }
    }
}
