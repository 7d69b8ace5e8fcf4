//! Which requests a page of another site may have made a browser send.

use lambda_http::http::HeaderMap;
use lambda_http::http::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN};

/// What shows that a page of another site sends a request; `None` = nothing does.
///
/// A form may be posted from any page to any address, also to one that only this browser reaches; without this, opening a web page could save a
/// job, which is to run a command on the fleet, where no token is asked for, or a proxy knows its callers by cookies. No page can change these
/// headers; what has neither (curl, a program) is not a page.
pub(crate) fn evidence(headers: &HeaderMap) -> Option<String> {
    let mut sites = headers.get_all("sec-fetch-site").iter().peekable();
    if sites.peek().is_some() {
        // `same-site` is another host of the domain, or on this machine another port: whoever serves there is not us.
        let foreign = sites.find(|site| !is_own(site))?;
        return Some(format!("Sec-Fetch-Site: {}", String::from_utf8_lossy(foreign.as_bytes())));
    }
    // Older browsers, and all of them where the console is served without TLS to other machines, say only this. Which host they meant a proxy
    // may have changed; but no form and no page without our leave sends a token.
    if headers.get_all(AUTHORIZATION).iter().any(is_token) {
        return None;
    }
    let foreign = headers.get_all(ORIGIN).iter().find(|origin| !is_host(origin, headers.get(HOST)))?;
    Some(format!("Origin: {}", String::from_utf8_lossy(foreign.as_bytes())))
}

/// The same scheme, host and port, or somebody who typed the address.
fn is_own(site: &HeaderValue) -> bool {
    [b"same-origin".as_slice(), b"none"].iter().any(|own| site.as_bytes().eq_ignore_ascii_case(own))
}

fn is_token(authorization: &HeaderValue) -> bool {
    authorization.as_bytes().get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
}

/// Whether `http://localhost:8070` is the page's own host, which is `localhost:8070` here.
fn is_host(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let (Ok(origin), Some(Ok(host))) = (origin.to_str(), host.map(HeaderValue::to_str)) else { return false };
    let Some((scheme, own)) = origin.split_once("://") else { return false };
    let usual = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let bare = |authority: &str| authority.strip_suffix(usual).unwrap_or(authority).to_ascii_lowercase();
    bare(own) == bare(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&'static str, &'static str)], expected: Option<&str>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        assert_eq!(evidence(&map).as_deref(), expected, "{headers:?}");
    }

    #[test]
    fn pages_of_other_sites_are_known() {
        let host = ("host", "localhost:8070");
        check(&[host], None);
        for own in ["same-origin", "none", "Same-Origin"] {
            check(&[host, ("sec-fetch-site", own), ("origin", "http://a-proxy-changed.this")], None);
        }
        for (site, told) in [
            ("cross-site", "Sec-Fetch-Site: cross-site"),
            ("Cross-Site", "Sec-Fetch-Site: Cross-Site"),
            ("same-site", "Sec-Fetch-Site: same-site"),
            ("of-the-future", "Sec-Fetch-Site: of-the-future"),
        ] {
            check(&[host, ("sec-fetch-site", site), ("origin", "http://localhost:8070")], Some(told));
            check(&[host, ("sec-fetch-site", "none"), ("sec-fetch-site", site)], Some(told));
            // A token in it changes nothing: a browser that says so much is believed.
            check(&[host, ("sec-fetch-site", site), ("authorization", "Bearer x")], Some(told));
        }
        for own in ["http://localhost:8070", "http://LocalHost:8070"] {
            check(&[host, ("origin", own)], None);
        }
        check(&[("host", "cron.example"), ("origin", "https://cron.example")], None);
        check(&[("host", "cron.example:443"), ("origin", "https://cron.example")], None);
        for (other, told) in [
            ("http://evil.example", "Origin: http://evil.example"),
            ("http://localhost:3000", "Origin: http://localhost:3000"),
            ("http://localhost:8070.evil.example", "Origin: http://localhost:8070.evil.example"),
            ("null", "Origin: null"),
            ("", "Origin: "),
        ] {
            check(&[host, ("origin", other)], Some(told));
            check(&[("origin", other)], Some(told));
            check(&[host, ("origin", other), ("authorization", "Basic dTpw")], Some(told));
            check(&[host, ("origin", other), ("authorization", "bearer x")], None);
        }
    }
}
