//! The option `mode`: a job that runs on every worker (`broadcast`). A fire of it, or a request for a run of it, becomes one request for each
//! worker that there is at that time; the run of each is claimed by that worker alone.

use serde::{Deserialize, Serialize};

use super::request::Request;
use super::run::RunId;
use super::worker::Sid;

/// Where a fire runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// On one worker.
    #[default]
    Single,
    /// On every worker that has the labels that the job wants.
    Broadcast,
}

impl Mode {
    pub(super) const ALL: [(Self, &'static str); 2] =
        [(Self::Single, "single"), (Self::Broadcast, "broadcast")];
}

/// The worker that a run is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Its id.
    pub worker: String,
    /// Its session: only under it is the run claimed.
    pub sid: Sid,
}

/// What one transaction makes of the request `whole`, whose id is `run_id`, or of a fire that was claimed under it: requests for the first
/// `at_once` of the workers that it names, and what is left of it, under its own id, for the others. So a crash between two such transactions
/// leaves a request for the rest, which whoever lives goes on with.
#[must_use]
pub fn spread(run_id: &RunId, whole: &Request, at_once: usize) -> Vec<(RunId, Request)> {
    let (first, later) = whole.targets.split_at(at_once.min(whole.targets.len()));
    let mut part = whole.clone();
    part.targets = Vec::new();
    let of_one = |target: &Target| {
        let mut request = part.clone();
        request.target = Some(target.clone());
        (run_id.of_worker(target.sid), request)
    };
    let mut requests: Vec<_> = first.iter().map(of_one).collect();
    if !later.is_empty() {
        part.targets = later.to_vec();
        requests.push((run_id.clone(), part));
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::job::JobName;

    #[test]
    fn every_worker_gets_one_request_however_many_fit_at_once() {
        let target = |n: i64| Target { worker: format!("w{n}"), sid: Sid(n) };
        let (at, job) = (Timestamp::from_ms(1_800_000_000_000), JobName::parse("a").unwrap());
        for at_once in 1..=6 {
            let run_id = RunId::new(Sid(9), 1);
            let mut whole = Request::broadcast(job.clone(), at, at, (1..=5).map(target).collect(), "w1", at);
            let mut of_one = Vec::new();
            for _ in 0..5 {
                let mut put = spread(&run_id, &whole, at_once);
                assert!(put.len() <= at_once + 1);
                let rest = put.pop_if(|(id, _)| *id == run_id);
                of_one.extend(put);
                let Some((_, rest)) = rest else { break };
                assert_eq!(Request::decode(&rest.encode()).unwrap(), rest);
                whole = rest;
            }
            let ids: Vec<&str> = of_one.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(ids, ["9-1~1", "9-1~2", "9-1~3", "9-1~4", "9-1~5"], "{at_once}");
            for (n, (_, request)) in (1..).zip(&of_one) {
                assert_eq!((request.target.as_ref(), request.targets.len()), (Some(&target(n)), 0));
                assert_eq!(Request::decode(&request.encode()).unwrap(), *request);
            }
        }
    }
}
