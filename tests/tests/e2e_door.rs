//! The door of the API, on the real program: where `local-dev` listens and where it refuses to, TLS, and who is let in.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use local_dev::native::process::{Process, free_port};
use local_dev::native::workspace;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::fixtures::{SOON, TestDir, http, program, site};
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
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_than_this_machine_come_in_only_over_tls_and_with_a_token() {
    let dir = TestDir::new("door");
    let port = free_port().unwrap();
    let Made { certificate, key, ca } = made(&dir);
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
