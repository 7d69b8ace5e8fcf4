//! The door of the API, on the real program: where `local-dev` listens and where it refuses to, TLS, and who is let in.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::clock::{Clock as _, SystemClock};
use local_dev::native::ports::free_port;
use local_dev::native::process::Process;
use local_dev::native::workspace;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519, PublicKeyData as _,
    SigningKey as _,
};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use serde_json::{Value, json};
use tests::fixtures::{SOON, TestDir, http, program, site, wait_for};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// `local-dev` that listens on all addresses, with these settings besides.
async fn start(dir: &TestDir, port: u16, settings: &[(&str, &str)]) -> Process {
    let mut command = Command::new(program("local-dev").await);
    command
        .env("CRON_LISTEN", format!("0.0.0.0:{port}"))
        .env("CRON_DATA_DIR", dir.path().join("data"))
        .env("CRON_WORKERS", "0")
        .envs(settings.iter().copied());
    Process::start("local-dev", command, &dir.path().join("log"), site(dir).guard.as_ref()).unwrap()
}

/// A certificate of 127.0.0.1, its key, both in files, and the CA that signed it.
struct Made {
    certificate: String,
    key: String,
    ca: reqwest::Certificate,
    ca_file: String,
}

fn made(dir: &TestDir) -> Made {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let own =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let put = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    Made {
        certificate: put("cert.pem", own.pem()),
        key: put("key.pem", key.serialize_pem()),
        ca: reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap(),
        ca_file: put("ca.pem", authority.pem()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_than_this_machine_come_in_only_over_tls_and_with_a_token() {
    let dir = TestDir::new("door");
    let port = free_port().unwrap();
    let Made { certificate, key, ca, .. } = made(&dir);
    let tls = [("CRON_TLS_CERT", certificate.as_str()), ("CRON_TLS_KEY", key.as_str())];
    let open = [tls[0], tls[1], ("CRON_AUTH", "open")];
    let mixed = [("CRON_TLS_CERT", certificate.as_str()), ("CRON_TLS_KEY", certificate.as_str())];
    for (settings, part) in [
        (&[][..], "it lacks TLS: CRON_TLS_CERT and CRON_TLS_KEY, or CRON_BEHIND_PROXY=1"),
        (&[("CRON_AUTH", "required")], "it lacks TLS"),
        (&open, "it lacks credentials: CRON_AUTH=required"),
        (&[("CRON_BEHIND_PROXY", "1"), ("CRON_AUTH", "open")], "it lacks credentials"),
        (&tls[..1], "CRON_TLS_CERT and CRON_TLS_KEY go together"),
        (&mixed, "has no private key in it"),
    ] {
        let mut refused = start(&dir, port, settings).await;
        assert!(!refused.wait(SOON).await.unwrap().success(), "{settings:?}");
        let said = refused.tail();
        assert!(said.contains(part), "{part:?} is not in {said}");
    }

    // While the API is this machine's alone, its first token is made.
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let own = [("CRON_LISTEN", address.to_string())];
    let own: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut local = start(&dir, port, &own).await;
    let url = format!("http://{address}");
    local.ready(async || http().get(&url).send().await.is_ok_and(|page| page.status() == 200)).await.unwrap();
    assert!(local.tail().contains("EVERYBODY"), "it does not say loudly that it is open: {}", local.tail());
    let wish = json!({"name": "viewer", "role": "viewer"});
    let answer = http().post(format!("{url}/token/create")).json(&wish).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    let token = answer["data"]["token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    local.stop(Signal::TERM, SOON).await;

    let mut local = start(&dir, port, &tls).await;
    let url = format!("https://{address}");
    let client =
        reqwest::Client::builder().add_root_certificate(ca).timeout(Duration::from_secs(60)).build().unwrap();
    local.ready(async || client.get(&url).send().await.is_ok()).await.unwrap();
    let page = client.get(&url).send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(page.headers()["strict-transport-security"].to_str().unwrap().starts_with("max-age="));
    assert!(http().get(&url).send().await.is_err(), "a client that does not know the CA");

    let list = format!("{url}/job/list");
    let asked = |token: &str| client.get(&list).header("authorization", format!("Bearer {token}")).send();
    assert_eq!(client.get(&list).send().await.unwrap().status(), 401);
    assert_eq!(asked(&format!("{}x", &token[..token.len() - 1])).await.unwrap().status(), 401);
    let jobs = asked(&token).await.unwrap();
    assert_eq!(jobs.status(), 200);
    assert!(jobs.text().await.unwrap().contains("sample-hello"));

    // Without TLS nobody gets an answer; what comes is a TLS alert.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /job/list HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut told = Vec::new();
    let _closed_or_reset = plain.read_to_end(&mut told).await;
    assert!(told.len() == 7 && told[0] == 21, "{told:?}");
    let healthy = || {
        let mut check = Command::new(workspace().join("infra/images/healthcheck.sh"));
        check
            .args(["CRON_LISTEN", "/"])
            .env("CRON_LISTEN", address.to_string())
            .env("CRON_TLS_CERT", &certificate);
        check.status().unwrap().success()
    };
    assert!(healthy(), "the image's health check does not know a server with TLS");
    local.signal(Signal::TERM);
    assert!(local.wait(SOON).await.unwrap().success());
    assert!(!healthy());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_replaced_by_another_and_the_old_one_is_nobodys() {
    const BOOTSTRAP: &str = "2b7e0c1f9d5a4683b0c4e1a2f6d83957";
    let dir = TestDir::new("door-tokens");
    let port = free_port().unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
    let settings =
        [("CRON_LISTEN", address.as_str()), ("CRON_AUTH", "required"), ("CRON_BOOTSTRAP_TOKEN", BOOTSTRAP)];
    let mut local = start(&dir, port, &settings).await;
    let url = format!("http://{address}");
    local.ready(async || http().get(&url).send().await.is_ok()).await.unwrap();
    let post = async |path: &str, token: &str, wish: Value| -> Value {
        let asked = http().post(format!("{url}{path}")).bearer_auth(token).json(&wish);
        let answer: Value = asked.send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["errno"], 0, "{path}: {answer}");
        answer["data"].clone()
    };
    let list = async |token: &str| {
        http().get(format!("{url}/job/list")).bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    let text = |made: &Value, field: &str| made[field].as_str().unwrap().to_owned();
    let admin = post("/token/create", BOOTSTRAP, json!({"name": "ada", "role": "admin"})).await;
    let admin = text(&admin, "token");
    let old = post("/token/create", &admin, json!({"name": "ci", "role": "viewer"})).await;
    assert_eq!(list(&text(&old, "token")).await, 200);

    // The runbook's order: the new one, its use, which is seen in the list, and then the end of the old one.
    let new = post("/token/create", &admin, json!({"name": "ci-2", "role": "viewer"})).await;
    assert_eq!((list(&text(&old, "token")).await, list(&text(&new, "token")).await), (200, 200));
    wait_for("the new token's use", SOON, async || {
        let tokens = http().get(format!("{url}/token/list")).bearer_auth(&admin).send().await.ok()?;
        let tokens: Value = tokens.json().await.ok()?;
        let of_new = tokens["data"].as_array()?.iter().find(|token| token["id"] == new["id"])?.clone();
        of_new["usedAt"].is_number().then_some(())
    })
    .await;
    post("/token/revoke", &admin, json!({"id": old["id"]})).await;
    wait_for("the old token to be nobody's", SOON, async || {
        (list(&text(&old, "token")).await == 401).then_some(())
    })
    .await;
    assert_eq!(list(&text(&new, "token")).await, 200);
    local.stop(Signal::TERM, SOON).await;
}

/// An OpenID provider: serves its documents over TLS, one a connection.
fn provide(listener: &TcpListener, tls: &Arc<ServerConfig>, documents: &[(&str, Value)]) {
    for stream in listener.incoming() {
        let (mut stream, mut session) = (stream.unwrap(), ServerConnection::new(Arc::clone(tls)).unwrap());
        let mut talk = rustls::Stream::new(&mut session, &mut stream);
        let mut asked = Vec::new();
        let mut some = [0; 1024];
        while !asked.ends_with(b"\r\n\r\n") {
            match talk.read(&mut some) {
                Ok(read @ 1..) => asked.extend_from_slice(&some[..read]),
                // It does not believe this certificate.
                _ => break,
            }
        }
        let asked = String::from_utf8(asked).unwrap();
        let found = documents.iter().find(|(path, _)| asked.starts_with(&format!("GET {path} ")));
        let Some((_, document)) = found else { continue };
        let text = document.to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
        talk.write_all((head + &text).as_bytes()).unwrap();
        session.send_close_notify();
        let _gone = session.complete_io(&mut stream);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_documents_come_over_tls_from_whom_the_machines_authorities_vouch_for() {
    let (dir, others) = (TestDir::new("provider"), TestDir::new("provider-others"));
    let Made { certificate, key, ca_file, .. } = made(&dir);
    let another_ca = made(&others).ca_file;
    let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(certificate).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let issuer = format!("https://{}", listener.local_addr().unwrap());
    let signer = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let documents = [
        (
            "/.well-known/openid-configuration",
            json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")}),
        ),
        (
            "/keys",
            json!({"keys": [{"kid": "k", "kty": "OKP", "crv": "Ed25519", "x": encoded(signer.der_bytes())}]}),
        ),
    ];
    // It ends with this process.
    let _serving = std::thread::spawn(move || provide(&listener, &Arc::new(tls), &documents));

    let expires = SystemClock.now().ms() / 1000 + 600;
    let claims =
        json!({"iss": issuer, "aud": "cron", "sub": "ada", "exp": expires, "fleetcron_role": "viewer"});
    let signed = [json!({"alg": "EdDSA", "kid": "k"}), claims]
        .map(|part| encoded(part.to_string().as_bytes()))
        .join(".");
    let token = format!("{signed}.{}", encoded(&signer.sign(signed.as_bytes()).unwrap()));

    for (authorities, expected) in [(&another_ca, 503), (&ca_file, 200)] {
        let port = free_port().unwrap();
        let address = format!("127.0.0.1:{port}");
        let settings = [
            ("CRON_LISTEN", address.as_str()),
            ("CRON_AUTH", "required"),
            ("CRON_OIDC_ISSUER", &issuer),
            ("CRON_OIDC_AUDIENCE", "cron"),
            ("SSL_CERT_FILE", authorities),
        ];
        let mut local = start(&dir, port, &settings).await;
        let url = format!("http://{address}");
        local
            .ready(async || http().get(&url).send().await.is_ok_and(|page| page.status() == 200))
            .await
            .unwrap();
        let who = http().get(format!("{url}/token/self")).header("authorization", format!("Bearer {token}"));
        let answer = who.send().await.unwrap();
        assert_eq!(answer.status(), expected, "{}", local.tail());
        if expected == 200 {
            let who: Value = answer.json().await.unwrap();
            let who = &who["data"];
            assert_eq!(
                (&who["means"], &who["id"], &who["role"]),
                (&json!("jwt"), &json!("ada"), &json!("viewer"))
            );
            assert_eq!(who["expiresAt"], expires * 1000);
        } else {
            assert!(local.tail().contains("the OpenID provider's keys cannot be had"), "{}", local.tail());
        }
        local.stop(Signal::TERM, SOON).await;
    }
}
