//! The HTTP client of the AWS crates, for what else a program calls: it is in every program already. And how a small document is read from a
//! fixed address over TLS.

use std::time::Duration;

use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Connector, ConnectorBuilder};
use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorSettings};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;

use crate::causes;
use crate::clock::timeout;

/// A connection is there within this, or there is no way.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// How TLS is spoken.
#[must_use]
pub fn tls() -> Provider {
    Provider::Rustls(CryptoMode::Ring)
}

/// What opens connections, with TLS to `https` addresses. Making it reads the certificates of the system's authorities: keep it where there are
/// many calls. A connection is there within the first limit, an answer begins within the second.
#[must_use]
pub fn connector(connect_limit: Duration, answer_limit: Duration) -> Connector {
    limited(connect_limit, answer_limit).tls_provider(tls()).build()
}

/// The same for `http` addresses alone. No certificates are read.
#[must_use]
pub fn plain_connector(connect_limit: Duration, answer_limit: Duration) -> Connector {
    limited(connect_limit, answer_limit).build_http()
}

fn limited(connect_limit: Duration, answer_limit: Duration) -> ConnectorBuilder {
    let limits = HttpConnectorSettings::builder().connect_timeout(connect_limit).read_timeout(answer_limit);
    Connector::builder().connector_settings(limits.build())
}

/// Gets what is at an address beginning with `https://`, of at most `bytes_max`, within `limit` as a whole. Redirects are not followed: where
/// they lead nobody has said.
///
/// # Errors
/// What is in the way, in words.
pub async fn get(url: &str, bytes_max: usize, limit: Duration) -> Result<Vec<u8>, String> {
    if !url.starts_with("https://") {
        return Err(format!("{url} does not begin with https://"));
    }
    let connector = connector(CONNECT_LIMIT, limit);
    let mut request = HttpRequest::new(SdkBody::empty());
    request.set_uri(url).map_err(|e| causes::in_words(&e))?;
    request.headers_mut().insert("accept", "application/json");
    let read = async {
        let answer = connector.call(request).await.map_err(|e| causes::in_words(&e))?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(format!("{url} answers {status}"));
        }
        let mut body = ByteStream::new(answer.into_body());
        let mut bytes = Vec::new();
        while let Some(some) = body.next().await {
            bytes.extend_from_slice(&some.map_err(|e| causes::in_words(&e))?);
            if bytes.len() > bytes_max {
                return Err(format!("{url} answers with more than {bytes_max} bytes"));
            }
        }
        Ok(bytes)
    };
    timeout(limit, read).await.map_err(|elapsed| format!("{url}: {elapsed}"))?
}
