//! Who calls the API, and what that caller may do.

use serde::{Deserialize, Serialize};

use crate::domain::job::JobName;

/// What a caller may do; each role may do what those before it may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads jobs, records, outputs and workers.
    Viewer,
    /// Also runs, kills, pauses and resumes jobs that are there.
    Operator,
    /// Also saves, imports, rolls back and deletes jobs: runs any command on the fleet.
    Editor,
    /// Also changes what holds for the whole fleet, and who may do what.
    Admin,
}

impl Role {
    /// All roles, the least first.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Editor, Self::Admin];

    /// The role's name in tokens, claims and messages.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Editor => "editor",
            Self::Admin => "admin",
        }
    }

    /// The role of that name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.word() == word)
    }
}

/// By what a caller is known.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Means {
    /// By nothing: the API is open to everybody who reaches it.
    Open,
    /// By a token of ours, with this id.
    Token(String),
    /// By a token of an OpenID provider, for this subject.
    Jwt(String),
    /// By the secret that only makes the first admin token.
    Bootstrap,
}

/// A caller that was let in.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Principal {
    /// The token's name, or the subject; for people who read the audit.
    pub name: String,
    /// What the caller may do.
    pub role: Role,
    /// Only with jobs whose names begin so; empty = with all, and with the fleet.
    pub prefix: String,
    /// By what the caller is known.
    pub means: Means,
}

impl Principal {
    /// Whoever calls an API that is open.
    #[must_use]
    pub fn anybody() -> Self {
        Self { name: "anybody".to_owned(), role: Role::Admin, prefix: String::new(), means: Means::Open }
    }

    /// Whether the caller may do what asks for `role`.
    #[must_use]
    pub fn may(&self, role: Role) -> bool {
        self.role >= role
    }

    /// Whether the caller may see and, by the role, touch the job.
    #[must_use]
    pub fn reaches(&self, job: &JobName) -> bool {
        self.reaches_name(job.as_str())
    }

    /// As [`Self::reaches`], for what may be no name of a job.
    #[must_use]
    pub fn reaches_name(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }

    /// What is common to the names that are asked for by their beginning and those that the caller reaches: the beginning of all of them;
    /// `None` = no name is both.
    #[must_use]
    pub fn narrowed<'a>(&'a self, prefix: &'a str) -> Option<&'a str> {
        if prefix.starts_with(&self.prefix) {
            Some(prefix)
        } else {
            Some(self.prefix.as_str()).filter(|own| own.starts_with(prefix))
        }
    }

    /// Whether the caller has all jobs, and with them the fleet.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.prefix.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_by_prefix_is_narrowed_to_what_the_caller_reaches() {
        let with = |prefix: &str| Principal { prefix: prefix.to_owned(), ..Principal::anybody() };
        for (own, asked, both) in [
            ("", "", Some("")),
            ("", "a", Some("a")),
            ("team-", "", Some("team-")),
            ("team-", "t", Some("team-")),
            ("team-", "team-a", Some("team-a")),
            ("team-", "teams", None),
            ("team-", "b", None),
        ] {
            assert_eq!(with(own).narrowed(asked), both, "{own:?} {asked:?}");
        }
        assert!(with("team-").reaches_name("team-a") && !with("team-").reaches_name("team"));
    }

    #[test]
    fn roles_are_known_by_their_words() {
        assert!(Role::ALL.into_iter().all(|role| Role::parse(role.word()) == Some(role)));
        assert_eq!((Role::parse("Admin"), Role::parse("")), (None, None));
        assert!(Role::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
