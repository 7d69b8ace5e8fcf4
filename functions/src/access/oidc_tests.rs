//! Tokens of a provider that signs by RSA, P-256 and Ed25519, and what attackers make of them. The RSA key in `testdata` signs these tests' tokens
//! and is good for nothing else: ring makes none.

use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::clock::Timestamp;
use common::domain::token::Secret;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp::from_ms(1_795_219_200_000);
const ISSUER: &str = "https://login.example.com/t";

struct StoppedClock;

#[async_trait]
impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        NOW
    }

    async fn sleep_until(&self, _deadline: Timestamp) {}
}

struct Signer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        Self {
            rsa: RsaKeyPair::from_pkcs8(include_bytes!("testdata/rsa.pk8")).unwrap(),
            p256: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, p256.as_ref(), &random).unwrap(),
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
            random,
        }
    }

    fn jwks(&self) -> Value {
        let rsa: RsaPublicKeyComponents<Vec<u8>> = self.rsa.public().into();
        let point = self.p256.public_key().as_ref();
        json!({"keys": [
            {"kid": "rsa", "kty": "RSA", "use": "sig", "alg": "RS256", "n": encoded(&rsa.n),
                "e": encoded(&rsa.e)},
            {"kid": "ec", "kty": "EC", "crv": "P-256", "x": encoded(&point[1..33]), "y": encoded(&point[33..])},
            {"kid": "ed", "kty": "OKP", "crv": "Ed25519", "x": encoded(self.ed.public_key().as_ref())},
            {"kid": "secret", "kty": "oct", "k": encoded(b"0123456789abcdef0123456789abcdef")},
            {"kid": "locks", "kty": "OKP", "crv": "Ed25519", "use": "enc", "x": encoded(self.ed.public_key().as_ref())},
            {"kid": "short", "kty": "RSA", "n": encoded(&[0xc1; 64]), "e": "AQAB"},
            {"kty": "OKP", "crv": "Ed25519", "x": encoded(self.ed.public_key().as_ref())},
        ]})
    }

    /// A token of these very texts, signed by the key that `by` names.
    fn raw(&self, by: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encoded(header.as_bytes()), encoded(claims.as_bytes()));
        let signature = match by {
            "rsa" => {
                let mut signature = vec![0; self.rsa.public().modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &self.random, signed.as_bytes(), &mut signature).unwrap();
                signature
            }
            "ec" => self.p256.sign(&self.random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            _ => self.ed.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        format!("{signed}.{}", encoded(&signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.raw("ed", r#"{"alg":"EdDSA","kid":"ed"}"#, &claims.to_string())
    }
}

fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn seconds() -> i64 {
    NOW.ms() / 1000
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "cron", "sub": "ada", "exp": seconds() + 300, "fleetcron_role": "editor"})
}

/// Claims that are these but for one, or without it where that is null.
fn but(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().shift_remove(name)),
        value => claims[name] = value,
    }
    claims
}

#[derive(Default)]
struct Provider {
    documents: Mutex<Vec<(String, Vec<u8>)>>,
    asked: Mutex<Vec<String>>,
}

impl Provider {
    fn says(&self, url: &str, document: &Value) {
        self.documents.lock().unwrap().insert(0, (url.to_owned(), document.to_string().into_bytes()));
    }
}

#[async_trait]
impl Fetch for Provider {
    async fn get(&self, url: &str) -> Result<Vec<u8>, String> {
        self.asked.lock().unwrap().push(url.to_owned());
        let documents = self.documents.lock().unwrap();
        documents
            .iter()
            .find(|(at, _)| at == url)
            .map(|(_, text)| text.clone())
            .ok_or_else(|| "away".to_owned())
    }
}

fn oidc(provider: &Arc<Provider>, settings: OidcSettings) -> Oidc {
    Oidc::with(&settings, Arc::new(StoppedClock), Arc::clone(provider) as Arc<dyn Fetch>).unwrap()
}

fn settings() -> OidcSettings {
    OidcSettings {
        issuer: Some(ISSUER.to_owned()),
        audience: Some("cron".to_owned()),
        jwks_url: Some("https://login.example.com/keys".to_owned()),
        ..OidcSettings::default()
    }
}

fn scene() -> (Signer, Arc<Provider>, Oidc) {
    let (signer, provider) = (Signer::new(), Arc::<Provider>::default());
    provider.says("https://login.example.com/keys", &signer.jwks());
    let oidc = oidc(&provider, settings());
    (signer, provider, oidc)
}

/// `wrong`, `not allowed`, `unavailable`, or the role.
async fn outcome(oidc: &Oidc, token: &str) -> String {
    match oidc.principal(token).await {
        Ok(known) => known.principal.role.word().to_owned(),
        Err(Stopped::Wrong(why)) => format!("wrong: {why}"),
        Err(Stopped::Refused(refusal)) => format!("{:?}", refusal.kind),
        Err(Stopped::Unknown | Stopped::TooMany) => panic!("not its business"),
    }
}

#[tokio::test]
async fn a_token_signed_by_a_key_of_the_provider_is_taken() {
    let (signer, _, oidc) = scene();
    for (by, header) in [
        ("rsa", r#"{"alg":"RS256","kid":"rsa","typ":"JWT"}"#),
        ("ec", r#"{"alg":"ES256","kid":"ec","typ":"at+jwt"}"#),
        ("ed", r#"{"kid":"ed","alg":"EdDSA"}"#),
    ] {
        let token = signer.raw(by, header, &claims().to_string());
        assert_eq!(outcome(&oidc, &token).await, "editor", "{by}");
        let Known { principal, until } = oidc.principal(&token).await.ok().unwrap();
        assert_eq!(until, Some(NOW.plus_ms(300_000)));
        assert_eq!((principal.name.as_str(), principal.prefix.as_str()), ("ada", ""));
        assert_eq!(principal.means, Means::Jwt("ada".to_owned()));
    }
}

#[tokio::test]
async fn what_is_not_signed_by_the_key_that_it_names_is_refused() {
    let (signer, _, oidc) = scene();
    let good = claims().to_string();
    // What brings its own key, or says where one is, is verified by the provider's all the same.
    let own = json!({"alg": "EdDSA", "kid": "ed", "jku": "https://evil.example/keys", "x5u": "https://evil.example/x",
        "jwk": {"kty": "OKP", "crv": "Ed25519", "x": encoded(Signer::new().ed.public_key().as_ref())}});
    let stranger = Signer::new();
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid}).to_string();
    let rows = [
        ("another key", stranger.raw("ed", &header("EdDSA", "ed"), &good)),
        ("its own key", stranger.raw("ed", &own.to_string(), &good)),
        ("another's name", signer.raw("ed", &header("EdDSA", "ec"), &good)),
        ("another algorithm", signer.raw("ed", &header("RS256", "ed"), &good)),
        ("rsa as ec", signer.raw("rsa", &header("ES256", "rsa"), &good)),
        ("a key for encryption", signer.raw("ed", &header("EdDSA", "locks"), &good)),
        ("no kid", signer.raw("ed", r#"{"alg":"EdDSA"}"#, &good)),
        ("an empty kid", signer.raw("ed", &header("EdDSA", ""), &good)),
        ("none", format!("{}.{}.", encoded(header("none", "ed").as_bytes()), encoded(good.as_bytes()))),
        ("None", signer.raw("ed", &header("None", "ed"), &good)),
        ("HS256 by the secret", signer.raw("ed", &header("HS256", "secret"), &good)),
        ("HS256 by the public key", signer.raw("ed", &header("HS256", "rsa"), &good)),
        ("PS256", signer.raw("rsa", &header("PS256", "rsa"), &good)),
        ("RS512", signer.raw("rsa", &header("RS512", "rsa"), &good)),
        ("a short key", signer.raw("rsa", &header("RS256", "short"), &good)),
        ("crit", signer.raw("ed", r#"{"alg":"EdDSA","kid":"ed","crit":["exp"]}"#, &good)),
        ("b64", signer.raw("ed", r#"{"alg":"EdDSA","kid":"ed","b64":false}"#, &good)),
        ("a token to log out", signer.raw("ed", r#"{"alg":"EdDSA","kid":"ed","typ":"logout+jwt"}"#, &good)),
        ("alg twice", signer.raw("ed", r#"{"alg":"none","alg":"EdDSA","kid":"ed"}"#, &good)),
        ("a list", signer.raw("ed", r#"["EdDSA"]"#, &good)),
        (
            "a claim twice",
            signer.raw("ed", &header("EdDSA", "ed"), &good.replacen('{', r#"{"fleetcron_role":"admin","#, 1)),
        ),
    ];
    for (what, token) in &rows {
        assert!(outcome(&oidc, token).await.starts_with("wrong"), "{what}");
    }
    // Each changed part breaks the signature.
    let token = signer.token(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    let other = encoded(but("fleetcron_role", json!("admin")).to_string().as_bytes());
    let zeros = encoded(&[0; 64]);
    for changed in [
        format!("{}.{other}.{}", parts[0], parts[2]),
        format!("{}.{}.{zeros}", parts[0], parts[1]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.{}=", parts[0], parts[1], parts[2]),
        format!("{token}.{}", parts[2]),
        "a.b.c".to_owned(),
        "..".to_owned(),
        format!("{}.{}.{}", "A".repeat(4000), "A".repeat(3000), parts[2]),
    ] {
        assert!(outcome(&oidc, &changed).await.starts_with("wrong"), "{changed}");
    }
    // P-256 knows signatures of zeros that a careless verifier takes.
    let null = format!("{}.{}.{zeros}", encoded(header("ES256", "ec").as_bytes()), encoded(good.as_bytes()));
    assert!(outcome(&oidc, &null).await.starts_with("wrong"));
}

#[tokio::test]
async fn claims_are_looked_at_each() {
    let (signer, _, oidc) = scene();
    let at = seconds();
    let rows = [
        (but("iss", json!("https://login.example.com")), false),
        (but("iss", json!("https://login.example.com/t/")), false),
        (but("iss", Value::Null), false),
        (but("aud", json!("other")), false),
        (but("aud", Value::Null), false),
        (but("aud", json!(["other", "cron"])), true),
        (but("aud", json!(["other"])), false),
        (but("aud", json!({"cron": "cron"})), false),
        (but("exp", Value::Null), false),
        (but("exp", json!("2030")), false),
        (but("exp", json!(at - 59)), true),
        (but("exp", json!(at - 60)), false),
        (but("exp", json!(at as f64 + 0.5)), true),
        (but("nbf", json!(at + 60)), true),
        (but("nbf", json!(at + 61)), false),
        (but("nbf", json!("now")), false),
        (but("iat", json!(at + 61)), false),
        (but("sub", Value::Null), false),
        (but("sub", json!("")), false),
        (but("sub", json!("a\nb")), false),
        (but("sub", json!("a".repeat(256))), false),
    ];
    for (claims, good) in rows {
        let got = outcome(&oidc, &signer.token(&claims)).await;
        assert_eq!(got == "editor", good, "{claims}: {got}");
        assert!(good || got.starts_with("wrong"), "{claims}: {got}");
    }
}

#[tokio::test]
async fn role_and_prefix_come_from_claims_and_are_never_guessed() {
    let (signer, provider, oidc_plain) = scene();
    for (role, expected) in [
        (json!(["x", "viewer", "operator"]), "operator"),
        (json!("Admin"), "NotAllowed"),
        (json!("admin viewer"), "NotAllowed"),
        (json!([]), "NotAllowed"),
        (json!({"admin": true}), "NotAllowed"),
        (Value::Null, "NotAllowed"),
    ] {
        assert_eq!(
            outcome(&oidc_plain, &signer.token(&but("fleetcron_role", role.clone()))).await,
            expected,
            "{role}"
        );
    }
    let nested = OidcSettings {
        role_claim: Some("realm_access.roles".to_owned()),
        prefix_claim: Some("team".to_owned()),
        ..settings()
    };
    let oidc = oidc(&provider, nested);
    for (team, expected) in [
        (json!("team-"), Some("team-")),
        (json!("*"), Some("")),
        (json!(""), None),
        (json!("a/b"), None),
        (json!(["team-"]), None),
        (Value::Null, None),
    ] {
        let mut claims = but("team", team.clone());
        claims["realm_access"] = json!({"roles": ["admin"]});
        let got = oidc.principal(&signer.token(&claims)).await.ok().map(|known| known.principal);
        assert_eq!(got.as_ref().map(|principal| principal.prefix.as_str()), expected, "{team}");
        assert!(got.is_none_or(|principal| principal.role == Role::Admin));
    }
}

#[tokio::test]
async fn the_provider_says_where_its_keys_are_and_is_asked_seldom() {
    let (signer, provider) = (Signer::new(), Arc::<Provider>::default());
    let found = OidcSettings { jwks_url: None, ..settings() };
    let url = "https://login.example.com/t/.well-known/openid-configuration";
    for (document, good) in [
        (json!({"issuer": "https://evil.example", "jwks_uri": "https://login.example.com/keys"}), false),
        (json!({"issuer": ISSUER, "jwks_uri": "http://login.example.com/keys"}), false),
        (json!({"issuer": ISSUER, "jwks_uri": "https://login.example.com/none"}), false),
        (json!({"issuer": ISSUER, "jwks_uri": "https://login.example.com/keys"}), true),
    ] {
        provider.says("https://login.example.com/keys", &signer.jwks());
        provider.says(url, &document);
        let oidc = oidc(&provider, found.clone());
        let expected = if good { "editor" } else { "Unavailable" };
        assert_eq!(outcome(&oidc, &signer.token(&claims())).await, expected, "{document}");
    }
    // Keys that are not there are asked for once, however many tokens name one; those that are there stay good when the provider is away.
    let oidc = oidc(&provider, settings());
    assert_eq!(outcome(&oidc, &signer.token(&claims())).await, "editor");
    provider.documents.lock().unwrap().clear();
    provider.asked.lock().unwrap().clear();
    for n in 0..20 {
        let token = signer.raw(
            "ed",
            &json!({"alg": "EdDSA", "kid": format!("k{n}")}).to_string(),
            &claims().to_string(),
        );
        assert!(outcome(&oidc, &token).await.starts_with("wrong"));
    }
    assert_eq!(outcome(&oidc, &signer.token(&claims())).await, "editor");
    assert!(provider.asked.lock().unwrap().is_empty(), "it was asked within the same minute");
}

#[tokio::test]
async fn a_key_that_the_provider_changes_is_found_when_it_is_asked_again_and_the_old_one_is_none_then() {
    let (old, provider, oidc) = scene();
    let new = Signer::new();
    let by_new = new.raw("ed", r#"{"alg":"EdDSA","kid":"new"}"#, &claims().to_string());
    let key =
        json!({"kid": "new", "kty": "OKP", "crv": "Ed25519", "x": encoded(new.ed.public_key().as_ref())});
    let mut both = old.jwks();
    both["keys"].as_array_mut().unwrap().push(key.clone());
    let url = "https://login.example.com/keys";
    assert_eq!(outcome(&oidc, &old.token(&claims())).await, "editor");

    // It is published and used at once: who was asked a moment ago is not asked again for it.
    provider.says(url, &both);
    assert!(outcome(&oidc, &by_new).await.starts_with("wrong"));
    oidc.held.lock().await.asked = None; // a minute later
    assert_eq!(outcome(&oidc, &by_new).await, "editor");
    assert_eq!(outcome(&oidc, &old.token(&claims())).await, "editor");

    // The provider lets the old one go: nobody asks for it anew, until the keys are an hour old.
    provider.says(url, &json!({"keys": [key]}));
    assert_eq!(outcome(&oidc, &old.token(&claims())).await, "editor");
    *oidc.held.lock().await = Held::default(); // asked again, as each hour
    assert!(outcome(&oidc, &old.token(&claims())).await.starts_with("wrong"));
    assert_eq!(outcome(&oidc, &by_new).await, "editor");
}

#[tokio::test]
async fn a_token_of_one_kind_is_never_tried_as_another() {
    let (_, provider, oidc) = scene();
    let ours = Secret::random().unwrap();
    assert!(!super::super::jwt::looks_like_one(ours.reveal()));
    assert!(outcome(&oidc, ours.reveal()).await.starts_with("wrong"));
    assert!(provider.asked.lock().unwrap().is_empty());
    assert!(Secret::parse("a.b.c").is_none());
}
