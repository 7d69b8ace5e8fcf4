//! Looks when the certificates end that the stores are reached with, and says so in time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::certificates::{self, Reminder};
use common::clock::{self, Clock, Timestamp};
use common::config::CertificateUse;

use crate::status::Status;

/// The files are read this often: whoever renews them sees it in the metrics soon.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A file that holds certificates, and what has been seen of it.
#[derive(Debug)]
struct Seen {
    what: CertificateUse,
    file: PathBuf,
    /// When it ends, as it was last readable: what is half written is tried again.
    end: Option<Timestamp>,
    reminder: Reminder,
}

/// Looks at these files for as long as the worker lives.
pub(crate) async fn keep_looking(
    files: Vec<(CertificateUse, PathBuf)>,
    status: Arc<Status>,
    clock: Arc<dyn Clock>,
) {
    let seen = |(what, file)| Seen { what, file, end: None, reminder: Reminder::default() };
    let mut all: Vec<Seen> = files.into_iter().map(seen).collect();
    while !all.is_empty() {
        let now = clock.now();
        let looked = tokio::task::spawn_blocking(move || {
            all.iter_mut().for_each(|seen| seen.look(now));
            all
        });
        let Ok(looked) = looked.await else { return }; // the runtime ends
        all = looked;
        for Seen { what, end, .. } in &all {
            status.note_certificate(*what, *end);
        }
        clock::sleep(LOOK_EVERY).await;
    }
}

impl Seen {
    fn look(&mut self, now: Timestamp) {
        if let Some(end) = read(self.what, &self.file) {
            self.end = Some(end);
        }
        if let Some(end) = self.reminder.due(self.end, now) {
            let (what, file) = (self.what.as_str(), self.file.display());
            let then = match self.what {
                CertificateUse::EtcdCa | CertificateUse::EtcdClient => "it is read by itself",
                // Its driver reads them once.
                CertificateUse::MongoDbCa | CertificateUse::MongoDbClient => "and restart the worker",
            };
            if end.ms_since(now) <= 0 {
                tracing::error!(what, %file, %end, "a certificate has ended: put a new one in its place, {then}");
            } else {
                tracing::warn!(what, %file, %end, "a certificate ends soon: put a new one in its place, {then}");
            }
        }
    }
}

/// When what is in the file no longer does. What is shown to others holds as long as each part of its chain; of several CAs it is not known here
/// which one the other side is signed by, and a file may hold a hundred: the last one counts.
fn read(what: CertificateUse, file: &Path) -> Option<Timestamp> {
    let ends = certificates::ends(&std::fs::read(file).ok()?);
    if what.is_ca() { ends.into_iter().max() } else { ends.into_iter().min() }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    use super::*;

    /// A certificate that ends with this year's beginning, as PEM.
    fn ends(year: i32, is_ca: bool) -> String {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    #[test]
    fn a_chain_ends_with_its_first_part_and_a_file_of_cas_with_its_last() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("both.pem");
        for is_ca in [false, true] {
            let key = KeyPair::generate().unwrap().serialize_pem();
            std::fs::write(&file, ends(2040, is_ca) + &ends(2030, is_ca) + &key).unwrap();
            assert_eq!(read(CertificateUse::EtcdClient, &file), Some(at("2030-01-01T00:00:00Z")));
            assert_eq!(read(CertificateUse::EtcdCa, &file), Some(at("2040-01-01T00:00:00Z")));
        }
        std::fs::write(&file, ends(9999, false)).unwrap();
        assert_eq!(read(CertificateUse::EtcdClient, &file), Some(at("9999-01-01T00:00:00Z")));
        assert_eq!(read(CertificateUse::EtcdCa, &dir.path().join("none.pem")), None);
    }

    #[test]
    fn a_certificate_that_ends_soon_is_told_each_day_until_it_is_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("client.pem");
        std::fs::write(&file, ends(2030, false)).unwrap();
        let mut seen = Seen {
            what: CertificateUse::EtcdClient,
            file: file.clone(),
            end: None,
            reminder: Reminder::default(),
        };
        let end = at("2030-01-01T00:00:00Z");
        let mut warned = |days: i64| {
            seen.look(end.plus_ms(-days * 24 * 3600 * 1000));
            seen.reminder.last()
        };
        assert_eq!(warned(15), None);
        let first = warned(13);
        assert!(first.is_some());
        assert_eq!(warned(13), first);
        assert!(warned(12) > first);
        // Half of a renewal.
        let renewed = ends(2040, false);
        std::fs::write(&file, &renewed[..100]).unwrap();
        assert!(warned(11) > first);
        std::fs::write(&file, renewed).unwrap();
        assert_eq!(warned(11), None);
        assert_eq!(seen.end, Some(at("2040-01-01T00:00:00Z")));
    }
}
