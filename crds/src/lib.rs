//! Herald's four resources: what people declare, whether it is right, and what follows from it. No I/O.
//!
//! # Layout
//!
//! - [`channel`], [`template`], [`group`], [`schedule`]: the four kinds, a module each; [`kind`]: a resource of any.
//! - [`priority`], [`medium`], [`address`], [`shared`]: what they share.
//! - [`validate`]: what a problem is; [`crd`]: the schemas and what they refuse; [`pattern`]: their patterns.
//! - [`set`]: all resources together, and what is wrong between them.
//! - [`names`]: what topics, subscriptions, labels and child objects are called.
//! - [`definition`]: a template with everything it includes; [`render`]: how it becomes a message; [`cron`]: when a Schedule is due.

#![allow(
    clippy::doc_markdown,
    reason = "doc comments of the resources are their schemas' descriptions: kubectl explain would show the backticks"
)]

pub mod address;
pub mod channel;
pub mod crd;
pub mod cron;
pub mod definition;
pub mod group;
pub mod kind;
pub mod medium;
#[doc(hidden)]
pub mod mutants;
pub mod names;
pub mod pattern;
pub mod priority;
pub mod render;
pub mod schedule;
pub mod set;
pub mod shared;
pub mod template;
pub mod validate;

pub use address::{Address, RecipientRef, Who};
pub use channel::{
    Autoscaling, Channel, ChannelSpec, ChannelStatus, ClassShare, DeletionPolicy, LogOutcome,
    LogRule, LogSpec, OnUnknown, Provider, ProviderSpec, RateLimit, SmtpSpec, SmtpTls, WebhookSpec,
};
pub use definition::Definition;
pub use group::{RecipientGroup, RecipientGroupSpec, RecipientGroupStatus};
pub use kind::{Kind, Resource};
pub use medium::Medium;
pub use names::{Relay, Topic, TopicKind};
pub use priority::Priority;
pub use schedule::{Schedule, ScheduleSpec, ScheduleStatus};
pub use set::{Finding, ResourceSet};
pub use shared::{LabelSelector, NameRef};
pub use template::{
    Content, Deduplication, EmailContent, NotificationTemplate, NotificationTemplateSpec,
    NotificationTemplateStatus, Route, Routing, Sample, SmsContent, Strategy, WebhookContent,
};
pub use validate::{Problem, Validate};
