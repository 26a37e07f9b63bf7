//! Where a server listens: on this machine, or in the network of a cluster beside its pods.

use std::ffi::OsStr;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::process;

/// A network, and the address to listen at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Place {
    pub host: String,
    /// The first process of the node whose network it is; `None`: this machine's.
    node: Option<i32>,
}

impl Place {
    /// This machine.
    pub fn here() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            node: None,
        }
    }

    /// A node, by its first process, with its address.
    pub fn node(first: i32, host: &str) -> Self {
        Self {
            host: host.to_owned(),
            node: Some(first),
        }
    }

    /// Whether it is this machine's.
    pub fn is_here(&self) -> bool {
        self.node.is_none()
    }

    /// A program in that network; as another user, by user and group, or as this program's own.
    pub fn command(&self, program: impl AsRef<OsStr>, other: Option<(u32, u32)>) -> Command {
        let Some(first) = self.node else {
            let mut command = Command::new(program);
            if let Some((user, group)) = other {
                use std::os::unix::process::CommandExt as _;
                command.uid(user).gid(group);
            }
            return command;
        };
        let mut command = Command::new("nsenter");
        command.args(["--target", &first.to_string(), "--net"]);
        // Entering is root's: becoming somebody else comes after it.
        if let Some((user, group)) = other {
            command.args([
                "--setuid",
                &user.to_string(),
                "--setgid",
                &group.to_string(),
            ]);
        }
        command.arg("--").arg(program);
        command
    }

    /// A port to listen on: any that is free, or in a network of its own the usual one.
    pub fn port(&self, usual: u16) -> anyhow::Result<u16> {
        match self.node {
            None => process::free_port(),
            Some(_) => Ok(usual),
        }
    }
}
