//! Herald's four resources: what people declare, whether it is right, and what follows from it. No I/O.
//!
//! # Layout
//!
//! - [`channel`], [`template`], [`group`], [`schedule`]: the four kinds, a module each.
//! - [`priority`], [`medium`], [`address`], [`shared`]: what they share.
//! - [`names`]: what topics are called; [`render`]: what is said.
//! - [`validate`]: what a problem is; [`pattern`]: the patterns of the schemas.

pub mod address;
pub mod channel;
pub mod group;
pub mod medium;
pub mod names;
pub mod pattern;
pub mod priority;
pub mod render;
pub mod schedule;
pub mod shared;
pub mod template;
pub mod validate;

pub use address::{Address, RecipientRef, Who};
pub use channel::{
    Autoscaling, Channel, ChannelSpec, ChannelStatus, ClassShare, DeletionPolicy, LogOutcome,
    LogRule, LogSpec, OnUnknown, Provider, ProviderSpec, RateLimit, SmtpSpec, SmtpTls, WebhookSpec,
    retry_delay,
};
pub use group::{RecipientGroup, RecipientGroupSpec, RecipientGroupStatus};
pub use medium::Medium;
pub use priority::Priority;
pub use schedule::{Schedule, ScheduleSpec, ScheduleStatus};
pub use shared::{LabelSelector, NameRef};
pub use template::{
    Content, Deduplication, EmailContent, NotificationTemplate, NotificationTemplateSpec,
    NotificationTemplateStatus, Route, Routing, Sample, SmsContent, Strategy, WebhookContent,
};
pub use validate::{Problem, Validate};
