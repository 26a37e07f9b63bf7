//! What stands in for the image that the `Dockerfile` begins with: a Debian, and in it the Rust toolchain of this machine.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use super::buildah::{Buildah, isolated, remove};
use crate::process;

/// Its name.
pub const NAME: &str = "localhost/herald-builder:tried";

/// The release of Debian.
pub const SUITE: &str = "bookworm";

/// Beside what every Debian has; a protocol compiler is for the `Dockerfile` to install.
const PACKAGES: &str = "ca-certificates,gcc,libc6-dev";

/// How it becomes an image. The folders are where the official image of Rust has them.
const RECIPE: &str = "FROM scratch
COPY root /
ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
";

/// Where this machine says whom it trusts, where that is not Debian's list alone.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How long either step may take.
const PATIENCE: Duration = Duration::from_mins(10);

/// A builder that can be made here.
#[derive(Debug)]
pub struct Builder {
    /// The folder of the toolchain.
    toolchain: PathBuf,
    /// Exactly which one it is.
    version: String,
    /// Where this machine has packages of the suite from; `None`: wherever debootstrap does.
    mirror: Option<String>,
}

impl Builder {
    /// With what this machine has, as it is configured.
    pub fn of_this_machine() -> anyhow::Result<Self> {
        let toolchain = PathBuf::from(ask("rustc", &["--print", "sysroot"])?.trim());
        ensure!(
            toolchain.join("bin/cargo").exists() && toolchain != Path::new("/usr"),
            "the toolchain in {} is no folder of its own, as rustup makes them",
            toolchain.display()
        );
        let format = "$(CODENAME) $(COMPONENT) $(REPO_URI)";
        let arguments = ["indextargets", "--format", format, "Created-By: Packages"];
        // One that has another suite, or no apt, has no mirror of this one.
        let listed = ask("apt-get", &arguments).unwrap_or_default();
        let wanted = format!("{SUITE} main ");
        let mirror = listed.lines().find_map(|line| line.strip_prefix(&wanted));
        Ok(Self {
            toolchain,
            version: ask("rustc", &["--version", "--verbose"])?,
            mirror: mirror.map(str::to_owned),
        })
    }

    /// Differs where what is made would.
    pub fn key(&self) -> String {
        let mut hash = Sha256::new();
        for part in [SUITE, PACKAGES, RECIPE, &self.version] {
            hash.update(part);
            hash.update([0]);
        }
        let digest = hash.finalize();
        let begin = digest.iter().take(6);
        let begin = begin.fold(0, |begin, byte| begin << 8 | u64::from(*byte));
        format!("{begin:012x}")
    }

    /// Makes the image.
    pub async fn make(&self, buildah: &Buildah) -> anyhow::Result<()> {
        let folder = buildah.temporary().join("builder");
        let root = folder.join("root");
        fs::create_dir_all(&folder).context("cannot make the builder's folder")?;
        let mut debootstrap = isolated("debootstrap");
        debootstrap
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
            .arg(&root)
            .args(&self.mirror);
        buildah
            .run("debootstrap", &mut debootstrap, PATIENCE)
            .await?;
        // Devices are for whoever runs it, and packages are unpacked.
        for name in ["dev", "var/cache/apt", "var/lib/apt/lists"] {
            for entry in fs::read_dir(root.join(name))?.flatten() {
                remove(&entry.path())?;
            }
        }
        let rust = root.join("usr/local/rust");
        fs::create_dir_all(rust.join("bin")).context("cannot make the toolchain's folder")?;
        for (from, to) in [("bin/cargo", "bin"), ("bin/rustc", "bin"), ("lib", ".")] {
            let mut copy = Command::new("cp");
            copy.arg("--archive")
                .arg(self.toolchain.join(from))
                .arg(rust.join(to));
            buildah.run("cp", &mut copy, PATIENCE).await?;
        }
        let recipe = folder.join("Containerfile");
        fs::write(&recipe, RECIPE).context("cannot write how the builder is made")?;
        let mut build = buildah.command();
        build
            .args(["build", "--isolation", "chroot", "--tag", NAME, "--file"])
            .arg(&recipe)
            .arg(&folder);
        buildah.run(NAME, &mut build, PATIENCE).await?;
        remove(&folder)
    }
}

impl fmt::Display for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.lines().next().unwrap_or_default();
        write!(f, "Debian {SUITE} with {version}")
    }
}

/// What a build sees of this machine without it becoming part of an image: whom it trusts, and where crates come from.
pub fn mounts() -> Vec<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let places = [
        (Some(PathBuf::from(AUTHORITIES)), AUTHORITIES),
        (
            cargo.map(|cargo| cargo.join("config.toml")),
            "/usr/local/cargo/config.toml",
        ),
    ];
    let there = places.into_iter().filter_map(|(here, there)| {
        let here = here.filter(|here| here.exists())?;
        Some(format!("--volume={}:{there}:ro", here.display()))
    });
    there.collect()
}

/// What a program of this machine says, asked in the repository.
fn ask(program: &str, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(process::repository())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
