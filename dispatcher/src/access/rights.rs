//! Everything that anybody may be asked for: a scope of an API key, and what stands for it in Kubernetes' RBAC.

use std::fmt;

use herald_crds::Priority;

use crate::accept::Scope;

/// The API group of everything here.
pub const GROUP: &str = "herald.dev";

/// What is done, as RBAC calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Verb {
    /// One thing is read.
    Get,
    /// Several are.
    List,
    /// Something new is made.
    Create,
    /// Something is replaced.
    Update,
    /// Something is changed in part.
    Patch,
    /// Something is taken away.
    Delete,
    /// Something is used for sending.
    Use,
}

/// Something that a caller may be allowed. A thing's name comes beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Right {
    /// What an API key must hold.
    pub scope: Scope,
    /// What is done.
    pub verb: Verb,
    /// To what kind of thing of the group [`GROUP`]: a plural. Some are resources, most are only names.
    pub resource: &'static str,
    /// To what part of it; empty: to all of it.
    pub subresource: &'static str,
}

impl Right {
    const fn new(scope: Scope, verb: Verb, resource: &'static str) -> Self {
        Self::part(scope, verb, resource, "")
    }

    const fn part(
        scope: Scope,
        verb: Verb,
        resource: &'static str,
        subresource: &'static str,
    ) -> Self {
        Self {
            scope,
            verb,
            resource,
            subresource,
        }
    }

    /// `resource` or `resource/subresource`, as a rule of a role has it.
    pub fn of(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

impl fmt::Display for Right {
    /// Such as `create notifications.herald.dev/cancel`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{GROUP}", self.verb, self.resource)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        Ok(())
    }
}

/// Send.
pub const SEND: Right = Right::new(Scope::NotificationsCreate, Verb::Create, "notifications");
/// Send what this template says.
pub const USE_TEMPLATE: Right = Right::new(
    Scope::NotificationsCreate,
    Verb::Use,
    "notificationtemplates",
);
/// Send to this group.
pub const USE_GROUP: Right = Right::new(Scope::NotificationsCreate, Verb::Use, "recipientgroups");
/// Name this channel instead of the template's routing.
pub const USE_CHANNEL: Right = Right::new(Scope::ChannelsUse, Verb::Use, "channels");
/// Send to a bare address, past the directory.
pub const USE_ADDRESSES: Right = Right::new(Scope::Addresses, Verb::Create, "addresses");
/// Ask what became of one notification.
pub const GET_NOTIFICATION: Right =
    Right::new(Scope::NotificationsRead, Verb::Get, "notifications");
/// Ask what became of notifications.
pub const LIST_NOTIFICATIONS: Right =
    Right::new(Scope::NotificationsRead, Verb::List, "notifications");
/// Ask what became of one delivery: to whom, and at which address.
pub const GET_DELIVERY: Right = Right::new(Scope::NotificationsRead, Verb::Get, "deliveries");
/// Ask the same of a notification's deliveries.
pub const LIST_DELIVERIES: Right = Right::new(Scope::NotificationsRead, Verb::List, "deliveries");
/// Cancel what waits.
pub const CANCEL: Right = Right::part(
    Scope::NotificationsCancel,
    Verb::Create,
    "notifications",
    "cancel",
);
/// Give what waits another class.
pub const PRIORITIZE: Right = Right::part(
    Scope::NotificationsPrioritize,
    Verb::Create,
    "notifications",
    "prioritize",
);
/// Read what was said.
pub const GET_CONTENT: Right = Right::new(Scope::Contents, Verb::Get, "contents");
/// Read what failed for good.
pub const LIST_DEAD_LETTERS: Right =
    Right::new(Scope::NotificationsRead, Verb::List, "deadletters");
/// Send what failed for good again.
pub const REPLAY_DEAD_LETTERS: Right =
    Right::part(Scope::DeadLetters, Verb::Create, "deadletters", "replay");
/// Give up what failed for good.
pub const DISCARD_DEAD_LETTERS: Right =
    Right::part(Scope::DeadLetters, Verb::Create, "deadletters", "discard");
/// Send a test over a channel.
pub const TEST_CHANNEL: Right = Right::part(Scope::ChannelsTest, Verb::Create, "channels", "test");
/// Read who is in a group.
pub const GET_MEMBERS: Right =
    Right::part(Scope::GroupsRead, Verb::Get, "recipientgroups", "members");
/// Change who is in a managed group.
pub const UPDATE_MEMBERS: Right = Right::part(
    Scope::GroupsWrite,
    Verb::Update,
    "recipientgroups",
    "members",
);
/// Read about one person of the directory.
pub const GET_RECIPIENT: Right = Right::new(Scope::RecipientsRead, Verb::Get, "recipients");
/// Read the directory.
pub const LIST_RECIPIENTS: Right = Right::new(Scope::RecipientsRead, Verb::List, "recipients");
/// Put many people into the directory.
pub const IMPORT_RECIPIENTS: Right = Right::new(Scope::RecipientsWrite, Verb::Create, "recipients");
/// Put somebody into the directory, or replace what it has of them.
pub const UPDATE_RECIPIENT: Right = Right::new(Scope::RecipientsWrite, Verb::Update, "recipients");
/// Change what the directory has of somebody.
pub const PATCH_RECIPIENT: Right = Right::new(Scope::RecipientsWrite, Verb::Patch, "recipients");
/// Take somebody out of the directory.
pub const DELETE_RECIPIENT: Right = Right::new(Scope::RecipientsWrite, Verb::Delete, "recipients");
/// Read one entry of the suppression list.
pub const GET_SUPPRESSION: Right = Right::new(Scope::RecipientsRead, Verb::Get, "suppressions");
/// Read the suppression list.
pub const LIST_SUPPRESSIONS: Right = Right::new(Scope::RecipientsRead, Verb::List, "suppressions");
/// Put an address on the suppression list.
pub const UPDATE_SUPPRESSION: Right =
    Right::new(Scope::RecipientsWrite, Verb::Update, "suppressions");
/// Take an address off the suppression list.
pub const DELETE_SUPPRESSION: Right =
    Right::new(Scope::RecipientsWrite, Verb::Delete, "suppressions");

/// Send in this class although the template says another; it is asked for by the class's name.
pub const fn use_priority(class: Priority) -> Right {
    Right::new(Scope::Priority(class), Verb::Use, "priorities")
}

/// What may be done to declared resources of a kind.
#[derive(Debug)]
pub struct Declaring {
    /// Read one.
    pub get: Right,
    /// Read all.
    pub list: Right,
    /// Declare one, or change it; in a cluster, Kubernetes does that.
    pub update: Right,
    /// Take one away; in a cluster, Kubernetes does that.
    pub delete: Right,
}

impl Declaring {
    const fn new(read: Scope, write: Scope, resource: &'static str) -> Self {
        Self {
            get: Right::new(read, Verb::Get, resource),
            list: Right::new(read, Verb::List, resource),
            update: Right::new(write, Verb::Update, resource),
            delete: Right::new(write, Verb::Delete, resource),
        }
    }
}

/// Templates.
pub const TEMPLATES: Declaring = Declaring::new(
    Scope::TemplatesRead,
    Scope::TemplatesWrite,
    "notificationtemplates",
);
/// Groups.
pub const GROUPS: Declaring =
    Declaring::new(Scope::GroupsRead, Scope::GroupsWrite, "recipientgroups");
/// Channels.
pub const CHANNELS: Declaring =
    Declaring::new(Scope::ChannelsRead, Scope::ChannelsWrite, "channels");
/// Schedules.
pub const SCHEDULES: Declaring =
    Declaring::new(Scope::SchedulesRead, Scope::SchedulesWrite, "schedules");
