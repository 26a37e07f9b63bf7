//! What an API key may do: scopes.

use std::fmt;
use std::str::FromStr;

use herald_crds::Priority;

/// Something a sender may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Send.
    NotificationsCreate,
    /// Ask what became of notifications.
    NotificationsRead,
    /// Cancel what waits.
    NotificationsCancel,
    /// Give what waits another class.
    NotificationsPrioritize,
    /// Send to a bare address, past the directory.
    Addresses,
    /// Read what was said.
    Contents,
    /// Name channels instead of the template's routing.
    ChannelsUse,
    /// Read what channels are declared, and how they are.
    ChannelsRead,
    /// Send a test over a channel.
    ChannelsTest,
    /// Change declared channels, where the API may.
    ChannelsWrite,
    /// Read the directory.
    RecipientsRead,
    /// Change the directory and the suppression list.
    RecipientsWrite,
    /// Read declared groups and their members.
    GroupsRead,
    /// Change the members of managed groups; change declared groups, where the API may.
    GroupsWrite,
    /// Read declared templates, and try them.
    TemplatesRead,
    /// Change declared templates, where the API may.
    TemplatesWrite,
    /// Read declared schedules.
    SchedulesRead,
    /// Change declared schedules, where the API may.
    SchedulesWrite,
    /// Replay and discard dead letters.
    DeadLetters,
    /// Send in this class although the template says another.
    Priority(Priority),
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 23] = [
        Self::NotificationsCreate,
        Self::NotificationsRead,
        Self::NotificationsCancel,
        Self::NotificationsPrioritize,
        Self::Addresses,
        Self::Contents,
        Self::ChannelsUse,
        Self::ChannelsRead,
        Self::ChannelsTest,
        Self::ChannelsWrite,
        Self::RecipientsRead,
        Self::RecipientsWrite,
        Self::GroupsRead,
        Self::GroupsWrite,
        Self::TemplatesRead,
        Self::TemplatesWrite,
        Self::SchedulesRead,
        Self::SchedulesWrite,
        Self::DeadLetters,
        Self::Priority(Priority::Critical),
        Self::Priority(Priority::High),
        Self::Priority(Priority::Normal),
        Self::Priority(Priority::Low),
    ];

    /// Its name, as keys hold it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotificationsCreate => "notifications:create",
            Self::NotificationsRead => "notifications:read",
            Self::NotificationsCancel => "notifications:cancel",
            Self::NotificationsPrioritize => "notifications:prioritize",
            Self::Addresses => "addresses",
            Self::Contents => "contents",
            Self::ChannelsUse => "channels:use",
            Self::ChannelsRead => "channels:read",
            Self::ChannelsTest => "channels:test",
            Self::ChannelsWrite => "channels:write",
            Self::RecipientsRead => "recipients:read",
            Self::RecipientsWrite => "recipients:write",
            Self::GroupsRead => "groups:read",
            Self::GroupsWrite => "groups:write",
            Self::TemplatesRead => "templates:read",
            Self::TemplatesWrite => "templates:write",
            Self::SchedulesRead => "schedules:read",
            Self::SchedulesWrite => "schedules:write",
            Self::DeadLetters => "deadletters",
            Self::Priority(Priority::Critical) => "priorities:critical",
            Self::Priority(Priority::High) => "priorities:high",
            Self::Priority(Priority::Normal) => "priorities:normal",
            Self::Priority(Priority::Low) => "priorities:low",
        }
    }

    fn bit(self) -> u32 {
        let index = Self::ALL.iter().position(|scope| *scope == self);
        index.map_or(0, |index| 1 << index)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a scope: give \"*\", one of {}, or a group of them such as \"notifications:*\"",
    names()
)]
pub struct UnknownScope {
    /// The text.
    pub name: String,
}

fn names() -> String {
    Scope::ALL.map(Scope::as_str).join(", ")
}

/// A set of scopes. Small, and copied freely.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u32);

impl Scopes {
    /// Every scope there is and will be: `*`.
    pub const EVERYTHING: Self = Self(u32::MAX);

    /// The set that these names say; names that are none, of a newer Herald perhaps, add nothing.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let sets = names.into_iter().filter_map(|name| name.parse().ok());
        Self(sets.fold(0, |all, Self(one)| all | one))
    }

    /// Whether `scope` is in the set.
    pub fn allow(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |all, scope| all | scope.bit()))
    }
}

impl FromStr for Scopes {
    type Err = UnknownScope;

    /// Reads one name: `*`, a scope, or a group of them such as `notifications:*`.
    fn from_str(name: &str) -> Result<Self, UnknownScope> {
        if name == "*" {
            return Ok(Self::EVERYTHING);
        }
        let prefix = name
            .strip_suffix('*')
            .filter(|prefix| prefix.ends_with(':'));
        let meant = Scope::ALL.into_iter().filter(|scope| {
            scope.as_str() == name || prefix.is_some_and(|p| scope.as_str().starts_with(p))
        });
        match meant.collect() {
            Self(0) => Err(UnknownScope {
                name: name.to_owned(),
            }),
            scopes => Ok(scopes),
        }
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::EVERYTHING {
            return f.write_str("*");
        }
        let held = Scope::ALL.into_iter().filter(|scope| self.allow(*scope));
        f.debug_set().entries(held.map(Scope::as_str)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_is_read_back_from_its_name_and_is_only_itself() {
        for scope in Scope::ALL {
            let set: Scopes = scope.as_str().parse().unwrap();
            for other in Scope::ALL {
                assert_eq!(set.allow(other), other == scope, "{scope} {other}");
            }
        }
    }

    #[test]
    fn a_star_stands_for_everything_and_a_group_for_its_members() {
        let everything = Scopes::from_names(["*"]);
        let notifications = Scopes::from_names(["notifications:*"]);
        for scope in Scope::ALL {
            assert!(everything.allow(scope));
            let meant = scope.as_str().starts_with("notifications:");
            assert_eq!(notifications.allow(scope), meant);
        }
    }

    #[test]
    fn a_name_that_is_no_scope_is_refused_and_adds_nothing() {
        for wrong in ["", "notification:create", "addresses:*", "prio*", "**"] {
            assert!(wrong.parse::<Scopes>().is_err(), "{wrong}");
            assert_eq!(Scopes::from_names([wrong]), Scopes::default());
        }
    }
}
