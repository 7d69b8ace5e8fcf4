//! What a route asks of its callers, and whether a caller has it.

use common::api::errno::Kind;
use common::domain::access::{Principal, Role};
use lambda_http::Request;
use lambda_http::http::Method;

use crate::Route;
use crate::http::Refusal;

/// What a caller must be. The table of routes has one for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Right {
    /// Anybody: the console's files, which hold nothing but what is published anyway.
    Public,
    /// Of this role, also with some jobs only: the handler looks at which.
    Scoped(Role),
    /// Of this role, with all jobs: it is about the whole fleet.
    Whole(Role),
    /// Reading is [`Right::Scoped`], writing is [`Right::Whole`].
    Mixed {
        /// To read.
        read: Role,
        /// To write.
        write: Role,
    },
}

impl Right {
    /// The role, and whether it must be one with all jobs; `None` = nobody is asked for anything.
    fn asked(self, method: &Method) -> Option<(Role, bool)> {
        match self {
            Self::Public => None,
            Self::Scoped(role) => Some((role, false)),
            Self::Whole(role) => Some((role, true)),
            Self::Mixed { read, .. } if *method == Method::GET || *method == Method::HEAD => {
                Some((read, false))
            }
            Self::Mixed { write, .. } => Some((write, true)),
        }
    }
}

/// Whether the caller that stands beside the request may ask this of the route; without one nobody may. A method that the route does not take is
/// left to the handler, which answers 405: that is no secret, though only callers who are let in hear of it.
pub(crate) fn check(route: &Route, request: &Request) -> Result<(), Refusal> {
    let method = request.method();
    let Some((role, whole)) = route.right.asked(method) else { return Ok(()) };
    let Some(principal) = request.extensions().get::<Principal>() else { return Err(nobody()) };
    if !route.methods.contains(&method.as_str()) {
        return Ok(());
    }
    if !principal.may(role) {
        let message = format!(
            "this needs the role {}, and yours is {}: ask an admin for a token with that role",
            role.word(),
            principal.role.word()
        );
        return Err(Refusal::new(Kind::NotAllowed, message));
    }
    if whole && !principal.is_whole() {
        let message = "this is about the whole fleet, and your token is for some jobs only: ask an admin for one without a prefix";
        return Err(Refusal::new(Kind::NotAllowed, message));
    }
    Ok(())
}

/// What is said to whoever has said nothing.
pub(crate) fn nobody() -> Refusal {
    Refusal::new(
        Kind::Unauthorized,
        "who calls is not known: send the header Authorization: Bearer <token>; an admin makes tokens (POST /token/create)",
    )
}

/// What is said about a job that is not the caller's, whether it is there or not.
pub(crate) fn out_of_reach(principal: &Principal) -> Refusal {
    let message = format!(
        "your token is for jobs whose names begin with {:?}: ask an admin for another one, or choose such a name",
        principal.prefix
    );
    Refusal::new(Kind::NotAllowed, message)
}
