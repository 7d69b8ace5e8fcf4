//! Secrets kept by AWS: Secrets Manager and Parameter Store.
//!
//! Region, credentials and addresses are found as every AWS program finds them (aws-config). The two calls are signed here instead of
//! pulling in `aws-sdk-ssm` for one of its operations, which alone builds for most of a minute.

use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::HttpConnector as _;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use aws_types::service_config::ServiceConfigKey;
use futures::future::join_all;
use serde_json::{Value, json};

use super::{Problem, Service, Source, Vault};
use crate::causes;
use crate::clock::{self, Clock as _, SystemClock};
use crate::https;
use crate::ids::backoff;

/// Inside a region a connection takes milliseconds. What takes a second will not come: there is no route.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// An answer takes some ten milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The address of an EC2 instance's own data is no network away; elsewhere nobody answers there, and a laptop should say so soon.
const INSTANCE_LIMIT: Duration = Duration::from_millis(500);
/// A request is sent so often at most when there is no route or AWS is overloaded.
const ATTEMPTS: u32 = 2;
/// Pause before the second, in ms.
const PAUSE_MS: u64 = 100;
const PAUSE_MS_MAX: u64 = 400;

/// AWS. Nothing is looked up before the first read.
#[derive(Debug, Default)]
pub struct Aws;

#[async_trait]
impl Vault for Aws {
    async fn read(&self, sources: &[Source]) -> Vec<Result<String, Problem>> {
        match Session::open(sources).await {
            Ok(session) => join_all(sources.iter().map(|source| session.read(source))).await,
            Err(problem) => vec![Err(problem); sources.len()],
        }
    }
}

/// What all calls of one reading share.
struct Session {
    config: SdkConfig,
    credentials: Credentials,
    connector: Connector,
}

impl Session {
    async fn open(sources: &[Source]) -> Result<Self, Problem> {
        let provider = ProviderConfig::default()
            .with_http_client(Builder::new().tls_provider(https::tls()).build_https());
        let instance = imds::Client::builder()
            .configure(&provider)
            .connect_timeout(INSTANCE_LIMIT)
            .read_timeout(INSTANCE_LIMIT)
            .max_attempts(1)
            .build();
        let named = sources.iter().find_map(Source::region).map(|region| Region::new(region.to_owned()));
        // An empty variable is how templates say "not set"; AWS's own chain would take it for a region without a name.
        let given = |region: Option<Region>| region.filter(|region| !region.as_ref().is_empty());
        let profile = ProfileFileRegionProvider::builder().configure(&provider).build();
        let mut region = given(EnvironmentVariableRegionProvider::new().region().await);
        if region.is_none() {
            region = given(profile.region().await).or(named);
        }
        if region.is_none() {
            // Last, since it costs a wait where there is none.
            let own =
                ImdsRegionProvider::builder().configure(&provider).imds_client(instance.clone()).build();
            region = given(ProvideRegion::region(&own).await);
        }
        let region = region.ok_or(Problem::NoRegion)?;
        let chain = DefaultCredentialsChain::builder()
            .configure(provider.with_region(Some(region.clone())))
            .region(region.clone())
            .imds_client(instance)
            .build()
            .await;
        let credentials =
            chain.provide_credentials().await.map_err(|e| Problem::NoCredentials(causes::in_words(&e)))?;
        let config =
            aws_config::defaults(BehaviorVersion::latest()).region(region).no_credentials().load().await;
        Ok(Self { config, credentials, connector: https::connector(CONNECT_LIMIT, ANSWER_LIMIT) })
    }

    async fn read(&self, source: &Source) -> Result<String, Problem> {
        let (target, body) = match source.service {
            Service::SecretsManager => ("secretsmanager.GetSecretValue", json!({"SecretId": source.name})),
            Service::Ssm => ("AmazonSSM.GetParameter", json!({"Name": source.name, "WithDecryption": true})),
        };
        let answer = self.call(source, target, &body.to_string()).await?;
        let text = match source.service {
            Service::SecretsManager if answer["SecretString"].is_null() => return Err(Problem::Binary),
            Service::SecretsManager => answer["SecretString"].as_str(),
            Service::Ssm => answer["Parameter"]["Value"].as_str(),
        };
        text.map(str::to_owned).ok_or_else(|| Problem::Failed("the answer holds no value".to_owned()))
    }

    fn region(&self, source: &Source) -> String {
        // A secret is asked for where it is kept.
        let own = || self.config.region().map(|region| region.as_ref().to_owned());
        source.region().map(str::to_owned).or_else(own).unwrap_or_default()
    }

    /// The address of a service, and whether somebody set it.
    fn endpoint(&self, service: Service, region: &str) -> (String, bool) {
        let key = ServiceConfigKey::builder()
            .service_id(match service {
                Service::SecretsManager => "Secrets Manager",
                Service::Ssm => "SSM",
            })
            .env("AWS_ENDPOINT_URL")
            .profile("endpoint_url")
            .build();
        let own = key.ok().and_then(|key| self.config.service_config()?.load_config(key));
        let general = || self.config.endpoint_url().map(str::to_owned);
        if let Some(url) = own.or_else(general).filter(|url| !url.is_empty()) {
            return (url, true);
        }
        let fips = self.config.use_fips().unwrap_or(false);
        let dual_stack = self.config.use_dual_stack().unwrap_or(false);
        (format!("https://{}", host(service, region, fips, dual_stack)), false)
    }

    async fn call(&self, source: &Source, target: &str, body: &str) -> Result<Value, Problem> {
        let region = self.region(source);
        let (endpoint, custom) = self.endpoint(source.service, &region);
        for attempt in 1.. {
            let request = self.signed(source.service, &region, &endpoint, target, body)?;
            let answered = async {
                let answer = self.connector.call(request).await?;
                let status = answer.status().as_u16();
                let bytes = ByteStream::new(answer.into_body()).collect().await;
                let bytes = bytes.map_err(|e| ConnectorError::io(e.into()))?;
                Ok((status, bytes.into_bytes()))
            };
            let problem = match answered.await {
                Ok((200, bytes)) => {
                    return serde_json::from_slice(&bytes)
                        .map_err(|_unread| Problem::Failed("the answer is no JSON".to_owned()));
                }
                Ok((status, bytes)) => refusal(source, &region, status, &bytes),
                Err(error) => no_route(source.service, &region, &endpoint, custom, &error),
            };
            let passing = matches!(problem, Problem::NoRoute { .. } | Problem::Throttled(_));
            if !passing || attempt >= ATTEMPTS {
                return Err(problem);
            }
            clock::sleep(backoff(attempt, PAUSE_MS, PAUSE_MS_MAX)).await;
        }
        Err(Problem::Failed("no attempt was made".to_owned()))
    }

    fn signed(
        &self,
        service: Service,
        region: &str,
        endpoint: &str,
        target: &str,
        body: &str,
    ) -> Result<HttpRequest, Problem> {
        let failed = |e: &(dyn std::error::Error + 'static)| Problem::Failed(causes::in_words(e));
        let uri = format!("{}/", endpoint.trim_end_matches('/'));
        let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", target)];
        let identity = self.credentials.clone().into();
        let now = UNIX_EPOCH + Duration::from_millis(SystemClock.now().ms().unsigned_abs());
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(service.word())
            .time(now)
            .settings(SigningSettings::default())
            .build()
            .map_err(|e| failed(&e))?;
        let signable =
            SignableRequest::new("POST", &uri, headers.into_iter(), SignableBody::Bytes(body.as_bytes()))
                .map_err(|e| failed(&e))?;
        let (instructions, _signature) =
            sign(signable, &parameters.into()).map_err(|e| failed(&e))?.into_parts();
        let mut request = HttpRequest::new(SdkBody::from(body));
        request.set_method("POST").map_err(|e| failed(&e))?;
        request.set_uri(uri).map_err(|e| failed(&e))?;
        for (name, value) in headers {
            request.headers_mut().insert(name, value.to_owned());
        }
        let (added, _parameters) = instructions.into_parts();
        for header in added {
            request.headers_mut().insert(header.name(), header.value().to_owned());
        }
        Ok(request)
    }
}

/// The host of a service, by AWS's own rule for each partition.
fn host(service: Service, region: &str, fips: bool, dual_stack: bool) -> String {
    let word = service.word();
    let fips = if fips { "-fips" } else { "" };
    let (plain, dual) = if region.starts_with("cn-") {
        ("amazonaws.com.cn", "api.amazonwebservices.com.cn")
    } else if region.starts_with("us-isob-") {
        ("sc2s.sgov.gov", "sc2s.sgov.gov")
    } else if region.starts_with("us-iso-") {
        ("c2s.ic.gov", "c2s.ic.gov")
    } else if region.starts_with("eusc-") {
        ("amazonaws.eu", "api.amazonwebservices.eu")
    } else {
        ("amazonaws.com", "api.aws")
    };
    format!("{word}{fips}.{region}.{}", if dual_stack { dual } else { plain })
}

fn no_route(service: Service, region: &str, endpoint: &str, custom: bool, error: &ConnectorError) -> Problem {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host).to_owned();
    let why = if error.is_timeout() { "no answer in time".to_owned() } else { causes::in_words(error) };
    let advice = if custom {
        "AWS_ENDPOINT_URL (or that of the service, or the profile) says so; correct it, or open the way"
            .to_owned()
    } else {
        let word = service.word();
        format!(
            "in a VPC, add the interface endpoint com.amazonaws.{region}.{word} with private DNS and a security group that lets \
             this program's port 443 in, or a route through a NAT gateway; elsewhere, see to DNS and the firewall"
        )
    };
    Problem::NoRoute { host, why, advice }
}

/// What AWS's refusal means: `{"__type":"…#AccessDeniedException","message":"…"}`.
fn refusal(source: &Source, region: &str, status: u16, body: &[u8]) -> Problem {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let field = |names: [&str; 2]| names.iter().find_map(|name| body[*name].as_str()).unwrap_or_default();
    let code = field(["__type", "code"]).rsplit('#').next().unwrap_or_default();
    let message = field(["message", "Message"]);
    let says = match (code, message) {
        ("", _) => format!("HTTP status {status}"),
        (code, "") => code.to_owned(),
        (code, message) => format!("{code}: {message}"),
    };
    let read = match source.service {
        Service::SecretsManager => "secretsmanager:GetSecretValue",
        Service::Ssm => "ssm:GetParameter",
    };
    let about_the_key = message.contains("kms:")
        || message.contains("KMS")
        || message.contains("ciphertext")
        || matches!(code, "DecryptionFailure" | "InvalidKeyId" | "KMSAccessDeniedException");
    match code {
        "DecryptionFailure" | "InvalidKeyId" => denied("kms:Decrypt", source, says),
        "AccessDeniedException" | "AccessDenied" | "KMSAccessDeniedException" if about_the_key => {
            denied("kms:Decrypt", source, says)
        }
        "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => denied(read, source, says),
        "ResourceNotFoundException" | "ParameterNotFound" | "ParameterVersionNotFound" => {
            Problem::NotFound { region: region.to_owned(), says }
        }
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired" => Problem::BadCredentials(says),
        "ThrottlingException"
        | "Throttling"
        | "TooManyUpdates"
        | "RequestLimitExceeded"
        | "LimitExceededException" => Problem::Throttled(says),
        _ if status == 429 || status == 503 => Problem::Throttled(says),
        _ => Problem::Failed(says),
    }
}

fn denied(action: &'static str, source: &Source, says: String) -> Problem {
    let resource = match action {
        "kms:Decrypt" => format!("the key that encrypts {}", source.name),
        _ => source.name.clone(),
    };
    Problem::Denied { action, resource, says }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(service: Service) -> Source {
        Source { service, name: "fleetcron/etcd".to_owned() }
    }

    #[track_caller]
    fn check(service: Service, status: u16, body: &str, parts: &[&str]) {
        let said = refusal(&source(service), "eu-west-1", status, body.as_bytes()).to_string();
        for part in parts {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }

    #[test]
    fn a_refusal_names_the_permission() {
        let user = "User: arn:aws:sts::1:assumed-role/fleetcron-save/x is not authorized to perform: …";
        check(
            Service::SecretsManager,
            400,
            &json!({"__type": "AccessDeniedException", "Message": user}).to_string(),
            &["allow secretsmanager:GetSecretValue on fleetcron/etcd", "assumed-role/fleetcron-save"],
        );
        check(
            Service::Ssm,
            400,
            &json!({"__type": "com.amazon.ssm#AccessDeniedException", "message": user}).to_string(),
            &["allow ssm:GetParameter on fleetcron/etcd", "assumed-role/fleetcron-save"],
        );
        for body in [
            json!({"__type": "AccessDeniedException", "Message": "Access to KMS is not allowed"}),
            json!({"__type": "DecryptionFailure"}),
            json!({"__type": "AccessDeniedException", "message": "The ciphertext refers to a customer master key that …"}),
        ] {
            let parts = ["allow kms:Decrypt on the key that encrypts fleetcron/etcd"];
            check(Service::Ssm, 400, &body.to_string(), &parts);
        }
    }

    #[test]
    fn other_refusals_say_what_to_do() {
        let gone = r#"{"__type":"ResourceNotFoundException","Message":"Secrets Manager can't find it"}"#;
        check(Service::SecretsManager, 400, gone, &["none of that name in eu-west-1"]);
        check(Service::Ssm, 400, r#"{"__type":"ParameterNotFound"}"#, &["none of that name in eu-west-1"]);
        let token = r#"{"__type":"ExpiredTokenException","message":"The security token is expired"}"#;
        check(Service::Ssm, 400, token, &["refuses the credentials", "is expired"]);
        check(Service::Ssm, 400, r#"{"__type":"ThrottlingException"}"#, &["too many requests"]);
        check(Service::Ssm, 503, "<html>", &["too many requests", "HTTP status 503"]);
        check(Service::Ssm, 418, "", &["did not give it", "HTTP status 418"]);
    }

    #[test]
    fn hosts_are_those_of_the_partition() {
        for (region, fips, dual, expected) in [
            ("eu-west-1", false, false, "ssm.eu-west-1.amazonaws.com"),
            ("us-gov-west-1", true, false, "ssm-fips.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", false, false, "ssm.cn-north-1.amazonaws.com.cn"),
            ("eu-west-1", false, true, "ssm.eu-west-1.api.aws"),
        ] {
            assert_eq!(host(Service::Ssm, region, fips, dual), expected);
        }
    }

    #[test]
    fn a_missing_route_names_the_endpoint_to_add() {
        let error = ConnectorError::timeout("x".into());
        let endpoint = "https://secretsmanager.eu-west-1.amazonaws.com";
        let said = no_route(Service::SecretsManager, "eu-west-1", endpoint, false, &error).to_string();
        for part in [
            "no route to secretsmanager.eu-west-1.amazonaws.com",
            "com.amazonaws.eu-west-1.secretsmanager",
            "NAT",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
}
