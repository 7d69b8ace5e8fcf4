//! What surrounds a handler: the request's id in every line of the log and in the answer, its own line in the log, and panics.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use common::api::errno::Kind;
use common::clock::Stopwatch;
use common::traces::Tracer;
use futures::FutureExt as _;
use lambda_http::http::Method;
use lambda_http::http::header::{HeaderName, HeaderValue};
use lambda_http::request::RequestContext;
use lambda_http::{Request, RequestExt as _};
use tracing::Instrument as _;

use crate::access::Right;
use crate::http::{Errno, Response, again, refuse};
use crate::traces::{Said, Traced};
use crate::{answer_headers, idempotency};

/// By which a user can name a request to whoever reads the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The name of a request, beside it: what it changes is to name it.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// A request's name, and what its line in the log says of it.
pub struct Invocation {
    /// Names the request: Lambda's id, or one of our own.
    request_id: String,
    /// API Gateway's id of the same request, which stands in its access log.
    gateway_request_id: Option<String>,
    /// Whether it is the process's first; `None` where nobody counts, and the line is for debugging only: a console that asks every second
    /// would fill a terminal.
    cold: Option<bool>,
    /// The route's path, as in [`crate::ROUTES`]; never the query, which may hold what is none of the log's business.
    route: &'static str,
    method: Method,
    /// Whether it has an `Idempotency-Key`.
    named: bool,
    /// Its place in a trace, if it has one.
    traced: Option<Traced>,
}

impl Invocation {
    /// Of a request that a process serves for itself, for whichever route.
    #[must_use]
    pub fn of_local(request: &Request) -> Self {
        Self::of(request, common::ids::random_id(), "none")
    }

    /// Of a request that Lambda hands to a function. Which function it is was decided by the gateway; the path only tells which of its routes.
    pub(crate) fn of_lambda(request: &Request, function: &'static str, cold: bool) -> Self {
        let request_id = request.lambda_context_ref().map(|context| context.request_id.clone());
        let gateway_request_id = match request.request_context_ref() {
            Some(RequestContext::ApiGatewayV2(context)) => context.request_id.clone(),
            _ => None,
        };
        let request_id = request_id.unwrap_or_else(common::ids::random_id);
        Self { gateway_request_id, cold: Some(cold), ..Self::of(request, request_id, function) }
    }

    fn of(request: &Request, request_id: String, elsewhere: &'static str) -> Self {
        Self {
            request_id,
            gateway_request_id: None,
            cold: None,
            route: crate::route(request).map_or(elsewhere, |route| route.path),
            method: request.method().clone(),
            named: request.headers().contains_key(idempotency::HEADER),
            traced: None,
        }
    }

    /// Finds the request's place in a trace. `is_frozen`: with its answer its process is, so that what there is to say goes before.
    #[must_use]
    pub fn traced_by(self, tracer: &Tracer, request: &Request, is_frozen: bool) -> Self {
        // The console's files are asked for by every browser, and lead to nothing.
        let is_public = crate::route(request).is_some_and(|route| route.right == Right::Public);
        let traced = if is_public { None } else { Traced::of(request.headers(), tracer, is_frozen) };
        Self { traced, ..self }
    }

    /// Puts the request's name beside it, and its place in a trace.
    pub fn name(&self, request: &mut Request) {
        request.extensions_mut().insert(RequestId(self.request_id.clone()));
        if let Some(traced) = &self.traced {
            request.extensions_mut().insert(traced.context);
        }
    }

    /// Waits for `handling`, which serves the request. A panic is answered, too: it must not cost the process, and with it its connections.
    pub async fn observe<F>(mut self, handling: F) -> Response
    where
        F: Future<Output = Response>,
    {
        // At the level of errors, or a filter that lets only those through would drop the id with the span.
        let span = tracing::error_span!(
            "request",
            requestId = %self.request_id,
            gatewayRequestId = self.gateway_request_id.as_deref(),
            traceId = self.traced.as_ref().map(|traced| tracing::field::display(traced.context.trace))
        );
        async {
            let since = Stopwatch::start();
            let mut response = match AssertUnwindSafe(handling).catch_unwind().await {
                Ok(response) => response,
                Err(_said_by_the_hook) => self.panicked(),
            };
            if let Ok(id) = HeaderValue::from_str(&self.request_id) {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            answer_headers::complete(response.headers_mut());
            self.log(&response, &since);
            if let Some(traced) = self.traced.take() {
                let (method, route, request_id) = (&self.method, self.route, self.request_id.as_str());
                traced.end(Said { method, route, request_id, status: response.status() }).await;
            }
            response
        }
        .instrument(span)
        .await
    }

    fn panicked(&self) -> Response {
        tracing::error!("the handler panicked");
        let mut message =
            format!("this is a bug of Fleetcron: the log says more under the request id {}", self.request_id);
        if self.method == Method::POST {
            message = format!("{message}; the change may or may not have been made; {}", again(self.named));
        }
        refuse(Kind::Internal, message)
    }

    fn log(&self, response: &Response, since: &Stopwatch) {
        let (method, route, status) = (&self.method, self.route, response.status().as_u16());
        let errno = response.extensions().get::<Errno>().map(|errno| errno.0);
        let duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        match self.cold {
            Some(cold) => {
                tracing::info!(%method, route, status, errno, durationMs = duration_ms, cold, "request");
            }
            None => tracing::debug!(%method, route, status, errno, durationMs = duration_ms, "request"),
        }
    }
}

/// The path of a request as the table of routes has it: an API with a named stage puts the stage's name before it (`/prod/job/list`).
pub(crate) fn path(request: &Request) -> &str {
    let path = request.raw_http_path();
    let stage = match request.request_context_ref() {
        Some(RequestContext::ApiGatewayV2(context)) => context.stage.as_deref(),
        _ => None,
    };
    let rest = stage.and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage));
    match rest {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use lambda_http::Body;
    use lambda_http::http::StatusCode;

    use super::*;

    fn invocation(method: Method, key: Option<&'static str>) -> Invocation {
        let mut request = Request::new(Body::Empty);
        *request.method_mut() = method;
        key.map(|key| request.headers_mut().insert(idempotency::HEADER, HeaderValue::from_static(key)));
        Invocation::of(&request, "r-1".to_owned(), "none")
    }

    fn text(response: &Response) -> String {
        match response.body() {
            Body::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn every_answer_names_its_request() {
        let handling = std::future::ready(refuse(Kind::NotFound, "nothing"));
        let response = invocation(Method::GET, None).observe(handling).await;
        assert_eq!(response.headers()["x-request-id"], "r-1");
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_that_names_its_request() {
        let rows = [
            (Method::GET, None, "", "may or may not"),
            (Method::POST, None, "look, and send it again", "the same Idempotency-Key"),
            (Method::POST, Some("k"), "send it again with the same Idempotency-Key", "look, and"),
        ];
        for (method, key, said, unsaid) in rows {
            let handling = async { panic!("a test's own") };
            let response = invocation(method, key).observe(handling).await;
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(response.headers()["x-request-id"], "r-1");
            let body = text(&response);
            assert!(body.contains(r#""errno":-1"#) && body.contains("r-1"), "{body}");
            assert!(body.contains(said) && !body.contains(unsaid), "{body}");
        }
    }
}
