//! The only module that draws random numbers.

/// 128 random bits as 32 hex digits: the name of a worker instance.
#[must_use]
pub fn random_id() -> String {
    #[expect(clippy::disallowed_methods, reason = "this is the module that may")]
    let id = uuid::Uuid::new_v4();
    id.simple().to_string()
}

/// 256 random bits of the operating system, for secrets.
///
/// # Errors
/// The operating system gives none.
pub fn random_secret() -> Result<[u8; 32], String> {
    let mut bytes = [0; 32];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_says_nothing| "the operating system gave no random bits".to_owned())?;
    Ok(bytes)
}

/// A number from 0 up to, not including, `bound` (0 for a bound of 0): for spreading retries.
#[must_use]
pub fn random_below(bound: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "this is the module that may")]
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    high.checked_rem(bound).unwrap_or(0)
}

/// A back-off that doubles from `base_ms` with every attempt (counted from 0) up to `max_ms`, drawn from its upper half
/// so that a fleet does not retry in step.
#[must_use]
pub fn backoff(attempt: u32, base_ms: u64, max_ms: u64) -> std::time::Duration {
    let full = base_ms.saturating_mul(1_u64 << attempt.min(20)).min(max_ms);
    std::time::Duration::from_millis(full / 2 + random_below(full / 2 + 1))
}
