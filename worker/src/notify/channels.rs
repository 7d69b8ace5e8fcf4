//! The ends of the channels: HTTP and SMTP. Secrets are read each time, so that one that was changed needs no restart.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use common::channels::{Channel, Email, Target, Tls};
use common::clock;
use common::secrets::Cached;
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls as SmtpTls, TlsParameters};
use lettre::{Address, AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use serde_json::Value;

use super::message::Letter;

/// A channel that does not answer within this has not taken the message.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Of an answer that refuses, so many bytes are said.
const SAID_MAX: usize = 200;

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// Try again.
    #[error("{0}")]
    Away(String),
    /// It takes messages, but not this one.
    #[error("refused: {0}")]
    Refused(String),
}

/// Sends to one channel.
#[derive(Debug)]
pub(super) struct Sender {
    channel: Channel,
    client: reqwest::Client,
    vault: Arc<Cached>,
}

impl Sender {
    /// A channel's, over this client, with secrets of this vault.
    pub(super) fn new(channel: Channel, client: reqwest::Client, vault: Arc<Cached>) -> Self {
        Self { channel, client, vault }
    }

    pub(super) async fn send(&self, letter: &Letter<'_>) -> Result<(), Problem> {
        match &self.channel {
            Channel::Webhook(target) => self.post(target, letter, &letter.json()).await,
            Channel::Slack(target) => self.post(target, letter, &letter.slack()).await,
            Channel::Email(email) => {
                let sending = clock::timeout(ANSWER_MAX, mail(email, letter, &self.vault)).await;
                sending.map_err(|elapsed| Problem::Away(elapsed.to_string()))?
            }
        }
    }

    async fn post(&self, target: &Target, letter: &Letter<'_>, body: &Value) -> Result<(), Problem> {
        let secret = |why: std::io::Error| Problem::Away(format!("a secret cannot be read: {why}"));
        let mut request = self.client.post(target.url.read(&self.vault).await.map_err(secret)?);
        for (name, value) in &target.headers {
            request = request.header(name, value.read(&self.vault).await.map_err(secret)?);
        }
        let request = request.header(CONTENT_TYPE, "application/json").header("Idempotency-Key", letter.id());
        // Its words may name the address, which is a secret.
        let away = |why: reqwest::Error| Problem::Away(why_of(&why.without_url()));
        let answer = request.body(body.to_string()).send().await.map_err(away)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let said = answer.text().await.unwrap_or_default();
        let said: String = said.chars().take(SAID_MAX).collect();
        // A redirection is not followed: it would take the message, and the secrets with it, elsewhere.
        let why = format!("it answers {status} {said:?}");
        Err(if matches!(status.as_u16(), 400 | 413 | 415 | 422) {
            Problem::Refused(why)
        } else {
            Problem::Away(why)
        })
    }
}

/// The client of all channels that speak HTTP.
pub(super) fn client() -> Result<reqwest::Client, reqwest::Error> {
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("fleetcron/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .timeout(ANSWER_MAX)
        .build()
}

/// An error with what caused it: the outermost alone says little.
fn why_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        text = format!("{text}: {why}");
        cause = why.source();
    }
    text
}

async fn mail(email: &Email, letter: &Letter<'_>, vault: &Cached) -> Result<(), Problem> {
    let bad = |why: &dyn std::error::Error| Problem::Refused(why_of(why));
    let mailbox = |address: &str| {
        Address::from_str(address).map(|address| Mailbox::new(None, address)).map_err(|why| bad(&why))
    };
    let mut message = lettre::Message::builder()
        .from(mailbox(&email.from)?)
        .subject(letter.subject())
        .message_id(Some(format!("<{}@fleetcron>", letter.id())))
        .header(ContentType::TEXT_PLAIN);
    for to in &email.to {
        message = message.to(mailbox(to)?);
    }
    let message = message.body(letter.text()).map_err(|why| bad(&why))?;

    let away = |why: &dyn std::error::Error| Problem::Away(why_of(why));
    let parameters = || TlsParameters::new_rustls(email.host.clone()).map_err(|why| away(&why));
    let tls = match email.tls {
        Tls::Implicit => SmtpTls::Wrapper(parameters()?),
        Tls::Starttls => SmtpTls::Required(parameters()?),
        Tls::None => SmtpTls::None,
    };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(email.host.as_str())
        .port(email.port)
        .tls(tls);
    if let (Some(user), Some(password)) = (&email.user, &email.password) {
        let password = password.read(vault).await.map_err(|why| away(&why))?;
        transport = transport.credentials(Credentials::new(user.clone(), password));
    }
    transport.build().send(message).await.map(|_taken| ()).map_err(|why| of_smtp(&why))
}

/// What a server says for good of this mail is a refusal, but for what it says of our name and password.
fn of_smtp(why: &smtp::Error) -> Problem {
    let about_us = why.status().is_some_and(|code| code.to_string().starts_with("53"));
    if why.is_permanent() && !about_us { Problem::Refused(why_of(why)) } else { Problem::Away(why_of(why)) }
}
