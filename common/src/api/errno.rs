//! The one table from a kind of failure to its HTTP status and `errno`.

/// Why a request was not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The request is wrong; the message says where.
    BadRequest,
    /// It was sent from where nobody may send it: a page of another site, or under a name that is not this server's.
    Forbidden,
    /// Nobody has said who it is, or what was said is not true (any more).
    Unauthorized,
    /// It is known who it is, and that may not do this.
    NotAllowed,
    /// Too many wrong tokens came from there.
    TooMany,
    /// No such route, or no such job.
    NotFound,
    /// The route does not take this method.
    MethodNotAllowed,
    /// Somebody else changed the same thing meanwhile, again and again.
    Conflict,
    /// The body is over the limit.
    TooLarge,
    /// The body is neither a form nor JSON.
    UnsupportedMediaType,
    /// The `Idempotency-Key` belongs to another request.
    KeyReused,
    /// A store did not answer in time, or refused us.
    Unavailable,
    /// A bug.
    Internal,
}

impl Kind {
    /// HTTP status and `errno`. -1 is what the seed answers for every failure; clients of the seed test for "not 0". What a client mends by
    /// another token, or by waiting, has an `errno` of its own.
    #[must_use]
    pub const fn code(self) -> (u16, i32) {
        match self {
            Self::BadRequest => (400, -1),
            Self::Forbidden => (403, -1),
            Self::Unauthorized => (401, -2),
            Self::NotAllowed => (403, -3),
            Self::TooMany => (429, -4),
            Self::NotFound => (404, -1),
            Self::MethodNotAllowed => (405, -1),
            Self::Conflict => (409, -1),
            Self::TooLarge => (413, -1),
            Self::UnsupportedMediaType => (415, -1),
            Self::KeyReused => (422, -1),
            Self::Unavailable => (503, -1),
            Self::Internal => (500, -1),
        }
    }
}
