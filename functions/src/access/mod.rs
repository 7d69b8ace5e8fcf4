//! Who calls, and whether that may do what it asks for: the gate through which every request goes, under Lambda and in local-dev alike.
//!
//! The gate says who calls and puts that beside the request ([`Gate::through`]); the route's right is checked; then the handler looks at the jobs that
//! are meant. Each part fails closed: a request that no gate has seen has no caller, and without one no handler serves it.

mod bearer;
pub mod command;
mod failures;
mod jwt;
pub(crate) mod manage;
mod oidc;
mod refused;
mod right;
mod tokens;

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use common::api::errno::Kind;
use common::clock::{Clock, Timestamp};
use common::config::{self, Auth, Settings};
use common::domain::access::{Means, Principal, Role};
use common::domain::job::JobName;
use common::domain::token::Secret;
use common::kv::Kv;
use lambda_http::http::Method;
use lambda_http::http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use lambda_http::{Body, Request};

use self::bearer::Shown;
use self::failures::Failures;
use self::oidc::Oidc;
use self::refused::Refused;
pub use self::right::Right;
pub(crate) use self::right::{check, nobody, out_of_reach};
use self::tokens::{Bootstrap, Tokens};
use crate::http::{Refusal, Response, refuse};
use crate::{Route, caller};

/// The function that makes tokens, which alone takes the bootstrap token.
pub(crate) const CREATES: &str = "token_create";

/// The caller that the gate has put beside a request. Beside one that it has not seen stands nobody, who reaches no job.
#[must_use]
pub fn principal(request: &Request) -> Principal {
    request.extensions().get().cloned().unwrap_or_else(|| Principal {
        name: "nobody".to_owned(),
        role: Role::Viewer,
        // No job's name has this character.
        prefix: "/".to_owned(),
        means: Means::Open,
    })
}

/// Refuses a job that is not the caller's, in words that do not tell whether it is there.
pub(crate) fn reach(principal: &Principal, job: &JobName) -> Result<(), Refusal> {
    if principal.reaches(job) { Ok(()) } else { Err(out_of_reach(principal)) }
}

/// Until when what the caller has shown is good; stands beside a request whose caller has shown something that ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GoodUntil(pub(crate) Timestamp);

/// Whom a token stands for, and until when.
struct Known {
    principal: Principal,
    until: Option<Timestamp>,
}

/// Says who calls.
pub struct Gate(How);

enum How {
    /// Nobody is asked: a function that has nothing but published files.
    Published,
    /// Nobody is asked, and everybody may everything.
    Open,
    /// Everybody is asked.
    Guarded(Box<Guarded>),
}

struct Guarded {
    tokens: Tokens,
    bootstrap: Option<Bootstrap>,
    oidc: Option<Oidc>,
    failures: Failures,
    refused: Refused,
}

/// Why a request was not let in.
enum Stopped {
    /// Nothing was shown.
    Unknown,
    /// What was shown is worth nothing; the reason is for the log only: to the caller all are the same.
    Wrong(&'static str),
    /// Too many like this came from there.
    TooMany,
    /// It cannot be said, or there is more to say.
    Refused(Refusal),
}

impl Gate {
    /// The gate of a function that has nothing but published files, and opens no store.
    #[must_use]
    pub fn published() -> Self {
        Self(How::Published)
    }

    /// Lets everybody in as [`Principal::anybody`]. Only for where nobody comes near: a developer's own machine.
    #[must_use]
    pub fn open() -> Self {
        Self(How::Open)
    }

    /// Lets in who shows a token that is known in `kv`, or one of the OpenID provider that the settings name.
    #[must_use]
    pub fn guarded(kv: Arc<dyn Kv>, clock: Arc<dyn Clock>, settings: &Settings) -> Self {
        let bootstrap = settings.has_bootstrap_token().then(|| Bootstrap::new(settings));
        let oidc = Oidc::new(&settings.oidc, Arc::clone(&clock));
        let guarded = Guarded {
            tokens: Tokens::new(Arc::clone(&kv), Arc::clone(&clock)),
            bootstrap,
            oidc,
            failures: Failures::default(),
            refused: Refused::new(kv, clock),
        };
        Self(How::Guarded(Box::new(guarded)))
    }

    /// The gate of a Lambda function.
    ///
    /// # Errors
    /// `CRON_AUTH=open` where AWS runs the function: the API would be everybody's who knows its address.
    pub(crate) fn of_function(
        settings: &Settings,
        kv: Arc<dyn Kv>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        match settings.auth {
            Some(Auth::Open) if config::is_on_lambda() => {
                Err("CRON_AUTH=open is for a developer's own machine, and this is Lambda: leave it out"
                    .to_owned())
            }
            Some(Auth::Open) => Ok(Self::open()),
            Some(Auth::Required) | None => Ok(Self::guarded(kv, clock, settings)),
        }
    }

    /// Serves a request to `route` by `handler`, if its caller may ask for that.
    pub async fn through<F>(
        &self,
        route: &Route,
        request: Request,
        handler: impl FnOnce(Request) -> F,
    ) -> Response
    where
        F: Future<Output = Response>,
    {
        let head = request.method() == Method::HEAD;
        let mut response = match self.admit(route, request).await {
            Ok(request) => return handler(request).await,
            Err(refused) => refused,
        };
        if head {
            *response.body_mut() = Body::Empty;
        }
        response
    }

    /// The request with its caller beside it; or the answer to one who is not let in.
    async fn admit(&self, route: &Route, mut request: Request) -> Result<Request, Response> {
        // Nobody but this gate says who calls.
        request.extensions_mut().remove::<Principal>();
        request.extensions_mut().remove::<GoodUntil>();
        if route.right != Right::Public {
            let principal = match &self.0 {
                How::Open => Principal::anybody(),
                // It would serve what is not published without asking: that function was given the wrong gate.
                How::Published => return Err(stopped(route, None, &Stopped::Unknown)),
                How::Guarded(guarded) => {
                    let known = guarded
                        .authenticate(route, &request)
                        .await
                        .map_err(|why| stopped(route, caller::address(&request), &why))?;
                    known.until.map(|until| request.extensions_mut().insert(GoodUntil(until)));
                    known.principal
                }
            };
            request.extensions_mut().insert(principal);
        }
        match check(route, &request) {
            Ok(()) => Ok(request),
            Err(refusal) => {
                let by = caller::of(&request);
                tracing::warn!(by, route = route.path, method = %request.method(), "not allowed");
                Err(refuse(refusal.kind, refusal.message))
            }
        }
    }
}

impl Guarded {
    async fn authenticate(&self, route: &Route, request: &Request) -> Result<Known, Stopped> {
        let address = caller::address(request);
        let mut answered = match bearer::shown(request.headers()) {
            Shown::Nothing => return Err(Stopped::Unknown),
            Shown::Token(token) => self.known(route, token, address).await,
            Shown::Nonsense(why) => Err(Stopped::Wrong(why)),
        };
        if matches!(answered, Err(Stopped::Wrong(_))) {
            if self.failures.are_too_many(address) {
                answered = Err(Stopped::TooMany);
            } else {
                self.failures.count(address);
            }
        }
        if matches!(answered, Err(Stopped::Wrong(_) | Stopped::TooMany)) {
            self.refused.count(request);
        }
        answered
    }

    /// Who the bearer of the token is. Which of the kinds a token is of is told by how it looks, and one that looks like a kind is tried as that kind
    /// alone: nothing that one of them refuses is taken by another.
    async fn known(&self, route: &Route, shown: &str, address: Option<IpAddr>) -> Result<Known, Stopped> {
        if let Some(secret) = Secret::parse(shown) {
            // What is known already costs nothing: whoever shares an address with somebody who guesses goes on working.
            if let Some(known) = self.tokens.remembered(&secret) {
                return Ok(known);
            }
            if self.failures.are_too_many(address) {
                return Err(Stopped::TooMany);
            }
            return self.tokens.look_up(&secret).await;
        }
        if let Some(oidc) = &self.oidc
            && jwt::looks_like_one(shown)
        {
            return oidc.principal(shown).await;
        }
        if self.failures.are_too_many(address) {
            return Err(Stopped::TooMany);
        }
        match &self.bootstrap {
            Some(bootstrap) if route.function == CREATES => bootstrap.principal(shown).await,
            _ => Err(Stopped::Wrong("it is no token of any kind that is taken here")),
        }
    }
}

/// The answer to somebody who is not let in, and the log's line: never with what was shown.
fn stopped(route: &Route, address: Option<IpAddr>, why: &Stopped) -> Response {
    let address = address.map(|address| address.to_string());
    match why {
        Stopped::Unknown => {
            tracing::debug!(address, route = route.path, "a call without a token");
            let mut response = refuse(Kind::Unauthorized, nobody().message);
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"fleetcron\""));
            response
        }
        Stopped::Wrong(reason) => {
            tracing::warn!(address, route = route.path, reason, "a token was refused");
            let message = "the token is not known, or not any more: it may have expired or been revoked; ask an admin for another one";
            let mut response = refuse(Kind::Unauthorized, message);
            let challenge = HeaderValue::from_static("Bearer realm=\"fleetcron\", error=\"invalid_token\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            response
        }
        Stopped::TooMany => {
            tracing::debug!(address, route = route.path, "too many refused tokens");
            let message = "too many wrong tokens came from your address: wait a minute, and see to the token that is sent";
            let mut response = refuse(Kind::TooMany, message);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("60"));
            response
        }
        Stopped::Refused(refusal) => refuse(refusal.kind, refusal.message.clone()),
    }
}
