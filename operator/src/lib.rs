//! Herald's operator.
//!
//! # Layout
//!
//! - [`pulsar_admin`]: Pulsar's tenants, namespaces, topics, policies and grants; knows no Kubernetes.

pub mod pulsar_admin;
