//! Who sends a request, as far as that can be known: it stands in what the request leaves behind.

use std::net::IpAddr;

use common::domain::access::{Means, Principal};
use common::shortened::shortened;
use lambda_http::http::header::USER_AGENT;
use lambda_http::request::RequestContext;
use lambda_http::{Request, RequestExt as _};

/// Longest user agent that is kept, in bytes: browsers have some 120.
const AGENT_BYTES_MAX: usize = 200;

/// The address at the other end of a connection, put beside a request by who serves without a gateway.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// The address that a request comes from, as the gateway or the server has seen it.
pub(crate) fn address(request: &Request) -> Option<IpAddr> {
    match request.request_context_ref() {
        Some(RequestContext::ApiGatewayV2(context)) => context.http.source_ip.as_deref()?.parse().ok(),
        _ => request.extensions().get::<Peer>().map(|peer| peer.0),
    }
}

/// By what the gate knows the caller.
fn known(request: &Request) -> Option<String> {
    let Principal { name, means, .. } = request.extensions().get()?;
    match means {
        Means::Open => None,
        Means::Token(id) => Some(format!("{name} (token {id})")),
        Means::Jwt(subject) => Some(format!("{name} (subject {subject})")),
        Means::Bootstrap => Some("the bootstrap token".to_owned()),
    }
}

/// The caller in words: the token or subject that the gate has let in, the identity that the gateway has checked, the address that it saw, and what the program calls itself:
/// `arn:aws:iam::123456789012:user/x from 203.0.113.7 (curl/8.5.0)`. No header tells the address: anybody could write it. `None` when
/// nothing of this is known.
pub(crate) fn of(request: &Request) -> Option<String> {
    let (mut identity, mut address) =
        (None, request.extensions().get::<Peer>().map(|peer| peer.0.to_string()));
    if let Some(RequestContext::ApiGatewayV2(context)) = request.request_context_ref() {
        let iam = context.authorizer.as_ref().and_then(|authorizer| authorizer.iam.as_ref());
        identity = iam.and_then(|iam| iam.user_arn.clone());
        address = context.http.source_ip.clone();
    }
    let address = address.filter(|address| !address.is_empty());
    let identity = match (known(request), identity.filter(|identity| !identity.is_empty())) {
        (Some(known), Some(identity)) => Some(format!("{known}, {identity}")),
        (known, identity) => known.or(identity),
    };
    let from = match (identity, address) {
        (Some(identity), Some(address)) => Some(format!("{identity} from {address}")),
        (identity, address) => identity.or(address),
    };
    let agent = request.headers().get(USER_AGENT).map(|agent| String::from_utf8_lossy(agent.as_bytes()));
    let agent = agent.map(|agent| shortened(agent.trim().to_owned(), AGENT_BYTES_MAX));
    match agent.filter(|agent| !agent.is_empty()) {
        Some(agent) => Some(format!("{} ({agent})", from.as_deref().unwrap_or("an unknown address"))),
        None => from,
    }
}

#[cfg(test)]
mod tests {
    use lambda_http::Body;

    use super::*;

    fn request(agent: Option<&str>) -> Request {
        let mut request = Request::new(Body::Empty);
        agent.map(|agent| request.headers_mut().insert(USER_AGENT, agent.parse().unwrap()));
        request
    }

    fn through_gateway(authorizer: &str, agent: Option<&str>) -> Request {
        let context = format!(
            r#"{{"authorizer":{authorizer},"http":{{"method":"POST","sourceIp":"203.0.113.7"}},"timeEpoch":0}}"#
        );
        let context = RequestContext::ApiGatewayV2(serde_json::from_str(&context).unwrap());
        request(agent).with_request_context(context)
    }

    #[test]
    fn a_caller_is_named_by_what_others_have_seen_of_it() {
        let with_peer = |mut request: Request| {
            request.extensions_mut().insert(Peer([127, 0, 0, 1].into()));
            request
        };
        let user = r#"{"iam":{"userArn":"arn:aws:iam::1:user/x"}}"#;
        for (request, expected) in [
            (request(Some("curl/8")), "an unknown address (curl/8)".to_owned()),
            (with_peer(request(Some(" curl/8 "))), "127.0.0.1 (curl/8)".to_owned()),
            (through_gateway("null", None), "203.0.113.7".to_owned()),
            (
                through_gateway(user, Some("curl/8")),
                "arn:aws:iam::1:user/x from 203.0.113.7 (curl/8)".to_owned(),
            ),
            (with_peer(request(Some(&"x".repeat(500)))), format!("127.0.0.1 ({}…)", "x".repeat(200))),
        ] {
            assert_eq!(of(&request), Some(expected));
        }
        let mut known = with_peer(request(Some("curl/8")));
        known.extensions_mut().insert(Principal {
            name: "deploy".to_owned(),
            means: Means::Token("0123456789ab".to_owned()),
            ..Principal::anybody()
        });
        assert_eq!(of(&known).as_deref(), Some("deploy (token 0123456789ab) from 127.0.0.1 (curl/8)"));
        let mut forged = with_peer(request(None));
        forged.headers_mut().insert("x-forwarded-for", "10.9.8.7".parse().unwrap());
        assert_eq!(of(&forged).as_deref(), Some("127.0.0.1"));
        assert_eq!(of(&request(None)), None);
    }
}
