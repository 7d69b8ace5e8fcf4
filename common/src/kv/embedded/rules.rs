//! What etcd demands of a transaction before it looks at any key. Pure.

use std::collections::BTreeSet;

use crate::kv::{Compare, Error, Key, OPS_MAX, Op, Span, Txn};

/// etcd's default limit on a request (`--max-request-bytes`).
const REQUEST_BYTES_MAX: usize = 3 << 19; // 1.5 MiB

/// Refuses what etcd would refuse whatever is stored.
///
/// # Errors
/// [`Error::Invalid`] with etcd's own words.
pub fn check(txn: &Txn) -> Result<(), Error> {
    check_counts_and_keys(txn, OPS_MAX)?;
    check_overlaps(&txn.then)?;
    check_overlaps(&txn.otherwise)?;
    // After the counts: those bound the depth.
    if bytes(txn) > REQUEST_BYTES_MAX {
        return Err(refusal("request is too large"));
    }
    Ok(())
}

fn refusal(why: &str) -> Error {
    Error::Invalid(why.to_owned())
}

/// A nested transaction has what its parent's longest list leaves of the limit.
fn check_counts_and_keys(txn: &Txn, ops_max: usize) -> Result<(), Error> {
    let ops = txn.when.len().max(txn.then.len()).max(txn.otherwise.len());
    if ops > ops_max {
        return Err(refusal("too many operations in txn request"));
    }
    if txn.when.iter().any(|compare| compared_key(compare).as_bytes().is_empty()) {
        return Err(refusal("key is not provided"));
    }
    for op in txn.then.iter().chain(&txn.otherwise) {
        match op {
            Op::Put { key, .. } if key.as_bytes().is_empty() => return Err(refusal("key is not provided")),
            Op::Txn(nested) => check_counts_and_keys(nested, ops_max - ops)?,
            Op::Put { .. } | Op::Delete(_) | Op::Range(_) => {}
        }
    }
    Ok(())
}

pub(super) fn compared_key(compare: &Compare) -> &Key {
    match compare {
        Compare::CreateRevision(key, ..)
        | Compare::ModRevision(key, ..)
        | Compare::Lease(key, _)
        | Compare::Value(key, _) => key,
        Compare::NoneIn(span) => &span.from,
    }
}

/// The keys that a list of operations puts and the ranges that it deletes. No key is put twice, nor put where the list or an
/// earlier nested transaction of it deletes; a nested one may delete what an earlier one puts (`checkIntervals` in etcd's
/// `api/v3rpc/key.go`).
fn check_overlaps(ops: &[Op]) -> Result<(BTreeSet<&Key>, Vec<&Span>), Error> {
    let duplicate = || refusal("duplicate key given in txn request");
    let mut puts = BTreeSet::new();
    let mut deletes: Vec<&Span> = Vec::new();
    deletes.extend(ops.iter().filter_map(|op| if let Op::Delete(span) = op { Some(span) } else { None }));
    for op in ops {
        let Op::Txn(nested) = op else { continue };
        let (then_puts, then_deletes) = check_overlaps(&nested.then)?;
        let (else_puts, else_deletes) = check_overlaps(&nested.otherwise)?;
        // Only one of the two branches is taken: what both put is put once.
        let nested_puts: BTreeSet<&Key> = then_puts.union(&else_puts).copied().collect();
        for key in nested_puts {
            if deletes.iter().any(|span| span.contains(key)) || !puts.insert(key) {
                return Err(duplicate());
            }
        }
        deletes.extend(then_deletes);
        deletes.extend(else_deletes);
    }
    for op in ops {
        let Op::Put { key, .. } = op else { continue };
        if deletes.iter().any(|span| span.contains(key)) || !puts.insert(key) {
            return Err(duplicate());
        }
    }
    Ok((puts, deletes))
}

fn bytes(txn: &Txn) -> usize {
    let compared = txn.when.iter().map(|compare| {
        let value = if let Compare::Value(_, value) = compare { value.len() } else { 0 };
        compared_key(compare).as_bytes().len() + value
    });
    let span =
        |span: &Span| span.from.as_bytes().len() + span.to.as_ref().map_or(0, |to| to.as_bytes().len());
    let done = txn.then.iter().chain(&txn.otherwise).map(|op| match op {
        Op::Put { key, value, .. } => key.as_bytes().len() + value.len(),
        Op::Delete(deleted) => span(deleted),
        Op::Range(range) => span(&range.span),
        Op::Txn(nested) => bytes(nested),
    });
    compared.sum::<usize>() + done.sum::<usize>()
}
