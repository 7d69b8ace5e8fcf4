//! The store of records behind settings that refer to secrets: reads them on first use, and again when the store refuses the credentials.

use async_trait::async_trait;

use super::{Appended, Error, Place, RecordQuery, Removal, RunLog};
use crate::domain::audit::{Entry, EntryId};
use crate::domain::output::Chunk;
use crate::domain::record::Record;
use crate::domain::run::RunId;
use crate::history::{History, Query, Shelf};
use crate::secrets::{Refusal, Renewing};

impl Refusal for Error {
    fn unconfigured(why: String) -> Self {
        Self::Unconfigured(why)
    }

    fn is_denied(&self) -> bool {
        matches!(self, Self::Denied(_))
    }
}

#[async_trait]
impl RunLog for Renewing<dyn RunLog> {
    async fn prepare(&self) -> Result<(), Error> {
        self.call(|log| async move { log.prepare().await }).await
    }

    async fn append(&self, records: &[Record]) -> Result<Appended, Error> {
        self.call(|log| async move { log.append(records).await }).await
    }

    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, Error> {
        self.call(|log| async move { log.list(query).await }).await
    }

    async fn place(&self, query: &RecordQuery) -> Result<Option<Place>, Error> {
        self.call(|log| async move { log.place(query).await }).await
    }

    async fn get(&self, id: &str) -> Result<Option<Record>, Error> {
        self.call(|log| async move { log.get(id).await }).await
    }

    async fn put_output(&self, chunks: &[Chunk]) -> Result<(), Error> {
        self.call(|log| async move { log.put_output(chunks).await }).await
    }

    async fn output(&self, run_id: &RunId, after: u64) -> Result<Vec<Chunk>, Error> {
        self.call(|log| async move { log.output(run_id, after).await }).await
    }

    async fn jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, Error> {
        self.call(|log| async move { log.jobs(after, limit).await }).await
    }

    async fn remove(&self, what: &Removal, limit: u32) -> Result<u64, Error> {
        self.call(|log| async move { log.remove(what, limit).await }).await
    }
}

#[async_trait]
impl History for Renewing<dyn RunLog> {
    async fn prepare_history(&self) -> Result<(), Error> {
        self.call(|log| async move { log.prepare_history().await }).await
    }

    async fn keep(&self, entries: &[Entry]) -> Result<(), Error> {
        self.call(|log| async move { log.keep(entries).await }).await
    }

    async fn kept(&self, shelf: Shelf, query: &Query) -> Result<Vec<Entry>, Error> {
        self.call(|log| async move { log.kept(shelf, query).await }).await
    }

    async fn kept_jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, Error> {
        self.call(|log| async move { log.kept_jobs(after, limit).await }).await
    }

    async fn forget(
        &self,
        shelf: Shelf,
        name: Option<&str>,
        below: &EntryId,
        limit: u32,
    ) -> Result<u64, Error> {
        self.call(|log| async move { log.forget(shelf, name, below, limit).await }).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::history;
    use crate::secrets::tests::{Shelf, referring};
    use crate::secrets::{Problem, Vault};

    /// Takes the calls of whoever comes with `password`.
    struct Guarded {
        password: String,
        accepted: Arc<Mutex<String>>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    #[async_trait]
    impl RunLog for Guarded {
        async fn prepare(&self) -> Result<(), Error> {
            self.asked.lock().unwrap().push(self.password.clone());
            match self.password == *self.accepted.lock().unwrap() {
                true => Ok(()),
                false => Err(Error::Denied("Authentication failed.".to_owned())),
            }
        }

        async fn append(&self, _: &[Record]) -> Result<Appended, Error> {
            self.prepare().await.map(|()| Appended::default())
        }

        async fn list(&self, _: &RecordQuery) -> Result<Vec<Record>, Error> {
            self.prepare().await.map(|()| Vec::new())
        }

        async fn place(&self, _: &RecordQuery) -> Result<Option<Place>, Error> {
            self.prepare().await.map(|()| None)
        }

        async fn get(&self, _: &str) -> Result<Option<Record>, Error> {
            self.prepare().await.map(|()| None)
        }

        async fn put_output(&self, _: &[Chunk]) -> Result<(), Error> {
            self.prepare().await
        }

        async fn output(&self, _: &RunId, _: u64) -> Result<Vec<Chunk>, Error> {
            self.prepare().await.map(|()| Vec::new())
        }

        async fn jobs(&self, _: &str, _: u32) -> Result<Vec<String>, Error> {
            self.prepare().await.map(|()| Vec::new())
        }

        async fn remove(&self, _: &Removal, _: u32) -> Result<u64, Error> {
            self.prepare().await.map(|()| 0)
        }
    }

    #[async_trait]
    impl History for Guarded {
        async fn prepare_history(&self) -> Result<(), Error> {
            self.prepare().await
        }

        async fn keep(&self, _: &[Entry]) -> Result<(), Error> {
            self.prepare().await
        }

        async fn kept(&self, _: history::Shelf, _: &Query) -> Result<Vec<Entry>, Error> {
            self.prepare().await.map(|()| Vec::new())
        }

        async fn kept_jobs(&self, _: &str, _: u32) -> Result<Vec<String>, Error> {
            self.prepare().await.map(|()| Vec::new())
        }

        async fn forget(
            &self,
            _: history::Shelf,
            _: Option<&str>,
            _: &EntryId,
            _: u32,
        ) -> Result<u64, Error> {
            self.prepare().await.map(|()| 0)
        }
    }

    #[tokio::test]
    async fn a_rotated_password_costs_one_refused_call_and_nothing_to_the_caller() {
        let shelf = Arc::new(Shelf::default());
        let accepted = Arc::new(Mutex::new("first".to_owned()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let reference = referring("CRON_MONGODB_URI", "secretsmanager:s");
        let (wanted, at, by) = (reference.clone(), Arc::clone(&accepted), Arc::clone(&asked));
        let log: Renewing<dyn RunLog> =
            Renewing::new(vec![reference], Arc::clone(&shelf) as Arc<dyn Vault>, move |values| {
                let password = values.get(&wanted.reference).unwrap_or_default().to_owned();
                let (accepted, asked) = (Arc::clone(&at), Arc::clone(&by));
                Ok(Arc::new(Guarded { password, accepted, asked }) as Arc<dyn RunLog>)
            });
        shelf.put("s", Err(Problem::NoRegion));
        let Err(Error::Unconfigured(said)) = log.prepare().await else { panic!("must say why") };
        assert!(said.starts_with("CRON_MONGODB_URI=secretsmanager:s: no AWS region"), "{said}");
        assert_eq!(asked.lock().unwrap().len(), 0, "nothing was asked of the store");

        shelf.put("s", Ok("first"));
        while log.append(&[]).await.is_err() {
            crate::clock::sleep(std::time::Duration::from_millis(20)).await;
        }
        shelf.put("s", Ok("second"));
        *accepted.lock().unwrap() = "second".to_owned();
        log.append(&[]).await.unwrap();
        log.append(&[]).await.unwrap();
        assert_eq!(*asked.lock().unwrap(), ["first", "first", "second", "second"]);

        *accepted.lock().unwrap() = "third".to_owned();
        let query = RecordQuery { job_name: "job".to_owned(), limit: 1, ..RecordQuery::default() };
        assert!(matches!(log.list(&query).await, Err(Error::Denied(_))), "the secret is the same still");
    }
}
