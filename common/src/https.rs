//! Reads a small document from a fixed address over TLS, by the client that secrets are read with: it is in every program already.

use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorSettings};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;

use crate::causes;
use crate::clock::timeout;

/// A connection is there within this, or there is no way.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Gets what is at an address beginning with `https://`, of at most `bytes_max`, within `limit` as a whole. Redirects are not followed: where
/// they lead nobody has said.
///
/// # Errors
/// What is in the way, in words.
pub async fn get(url: &str, bytes_max: usize, limit: Duration) -> Result<Vec<u8>, String> {
    if !url.starts_with("https://") {
        return Err(format!("{url} does not begin with https://"));
    }
    let settings =
        HttpConnectorSettings::builder().connect_timeout(CONNECT_LIMIT).read_timeout(limit).build();
    let tls = Provider::Rustls(CryptoMode::Ring);
    let connector = Connector::builder().connector_settings(settings).tls_provider(tls).build();
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
