//! The container image: the `Dockerfile` is built as it stands, and what comes out is looked into, and run.
//!
//! Without an engine's daemon and without a registry: [`buildah`] builds, and [`builder`] makes what it begins with, from
//! Debian's packages and this machine's toolchain. [`content`]: what is in an image.

mod buildah;
mod builder;
mod content;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::process;
use crate::server::{self, Api, KEY};
use buildah::Buildah;
use builder::Builder;
use content::Content;

/// Who runs in it, by number. The user's name is `nonroot`.
const USER: u32 = 65532;

/// What it consists of beside the base.
const PROGRAMS: [&str; 3] = ["herald", "herald-dispatcher", "herald-operator"];

/// The image.
const IMAGE: &str = "localhost/herald:tried";

/// Stages of the `Dockerfile`, and what they are kept as: what no name leads to is cleared away.
const STAGES: [(&str, &str); 2] = [
    ("base", "localhost/herald-base:tried"),
    ("build", "localhost/herald-build:tried"),
];

/// A container of it.
const CONTAINER: &str = "herald-tried";

/// How long a stage may take, where everything has to be fetched and compiled on a busy machine.
const BUILD: Duration = Duration::from_mins(30);

/// Where programs look for whom to trust.
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// Zones that people are in, one of them at three quarters of an hour.
const ZONES: [&str; 3] = ["Europe/Berlin", "America/New_York", "Asia/Kathmandu"];

/// Runs it. An error says what was not as it has to be.
pub async fn run(folder: &Path) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "root builds images here: sudo --preserve-env"
    );
    let begin = Instant::now();
    let say = |words: &str| println!("{:>7.1} s  {words}", begin.elapsed().as_secs_f64());
    process::need(&["cargo", "buildah"])?;
    let builder = Builder::of_this_machine()?;
    let cache = process::cache().join(format!("image-{}", builder.key()));
    let buildah = Buildah::open(&cache, folder).await?;
    if !buildah.has(builder::NAME)? {
        builder.make(&buildah).await?;
        say(&format!("builder: made, {builder}"));
    }
    for (stage, name) in STAGES {
        build(&buildah, name, &["--target", stage]).await?;
        say(&format!("stage {stage}: built"));
    }
    build(&buildah, IMAGE, &[]).await?;
    // What was built before and is no longer part of these.
    buildah.ask(&["rmi", "--prune"])?;

    let archive = folder.join("image.tar");
    buildah.ask(&[
        "push",
        IMAGE,
        &format!("docker-archive:{}", archive.display()),
    ])?;
    let content = Content::read(&archive)?;
    fs::remove_file(&archive).context("cannot remove the archive")?;
    say(&format!("image: {}", configured(&content)?));
    say(&format!("nothing else: {}", bare(&content)?));
    say(&format!("base: {}", base(&content)?));

    buildah.ask(&["from", "--pull-never", "--name", CONTAINER, IMAGE])?;
    say(&format!("programs: {}", programs(&buildah)?));
    say(&format!("served: {}", serves(&buildah, folder).await?));
    say(&format!("trust: {}", trusts(&buildah)?));
    say("all as it has to be");
    Ok(())
}

/// Builds a stage of the `Dockerfile`, or all of it, in the profile that needs no optimization.
async fn build(buildah: &Buildah, name: &str, further: &[&str]) -> anyhow::Result<()> {
    let mut command = buildah.command();
    command
        .args(["build", "--isolation", "chroot", "--pull-never", "--layers"])
        .args(["--build-arg", &format!("BUILDER={}", builder::NAME)])
        .args(["--build-arg", "PROFILE=dev", "--tag", name])
        .args(builder::mounts())
        .args(further)
        .arg(process::repository());
    buildah.run(name, &mut command, BUILD).await
}

/// What the image says of itself.
fn configured(content: &Content) -> anyhow::Result<String> {
    let told = &content.config["config"];
    ensure!(
        told["User"] == format!("{USER}:{USER}"),
        "the user is {}",
        told["User"]
    );
    ensure!(
        told["Entrypoint"] == serde_json::json!(["/usr/bin/herald"]) && told["Cmd"].is_null(),
        "it starts {} with {}",
        told["Entrypoint"],
        told["Cmd"]
    );
    for label in ["title", "description", "licenses"] {
        let name = format!("org.opencontainers.image.{label}");
        let value = told["Labels"][&name].as_str().unwrap_or_default();
        ensure!(!value.is_empty(), "the label {name} is missing");
    }
    let programs = PROGRAMS.iter().map(|name| {
        let file = content.file(&format!("usr/bin/{name}"))?;
        Ok(file.size)
    });
    let programs = programs.sum::<anyhow::Result<u64>>()?;
    Ok(format!(
        "user {USER}, three labels, {} MB, of them {} MB programs",
        content.size() / 1_000_000,
        programs / 1_000_000,
    ))
}

/// That nothing can be done with it but run its programs.
fn bare(content: &Content) -> anyhow::Result<String> {
    let mut libraries = 0;
    for (path, file) in content.files() {
        ensure!(file.mode & 0o6000 == 0, "{path} runs as somebody else");
        ensure!(file.mode & 0o002 == 0, "anybody may write {path}");
        ensure!(!file.begins_with(b"#!"), "{path} is a script");
        if file.mode & 0o111 == 0 {
            continue;
        }
        if path.starts_with("lib") && path.contains(".so") {
            libraries += 1;
            continue;
        }
        let program = path.strip_prefix("usr/bin/");
        ensure!(
            program.is_some_and(|program| PROGRAMS.contains(&program)),
            "{path} can be executed"
        );
    }
    for name in PROGRAMS {
        let program = content.file(&format!("usr/bin/{name}"))?;
        ensure!(
            program.mode & 0o777 == 0o755 && program.owner == 0,
            "{name} is not root's alone to change"
        );
    }
    Ok(format!(
        "of {} files only the programs and {libraries} parts of the C library can be executed; no script, nothing setuid, \
         nothing that anybody may write",
        content.files().count()
    ))
}

/// What programs expect of a system.
fn base(content: &Content) -> anyhow::Result<String> {
    let passwd = content.text("etc/passwd")?;
    ensure!(
        passwd.contains(&format!("nonroot:x:{USER}:{USER}:")),
        "nobody is called nonroot: {passwd}"
    );
    // Debian's, each of them, and none of this machine's.
    let given = content
        .files()
        .filter(|(path, _)| path.starts_with("usr/share/ca-certificates/"))
        .count();
    let authorities = content.text(AUTHORITIES)?;
    let trusted = authorities.matches("BEGIN CERTIFICATE").count();
    ensure!(
        trusted > 100 && trusted == given,
        "{trusted} authorities are trusted, of {given}"
    );
    for zone in ZONES {
        let file = content.file(&format!("usr/share/zoneinfo/{zone}"))?;
        ensure!(file.begins_with(b"TZif"), "{zone} is no time zone");
    }
    let zones = content
        .files()
        .filter(|(path, file)| path.starts_with("usr/share/zoneinfo/") && file.begins_with(b"TZif"))
        .count();
    let mut packages = Vec::new();
    for (path, _) in content.files() {
        let Some(name) = path.strip_prefix("var/lib/dpkg/status.d/") else {
            continue;
        };
        if name.ends_with(".md5sums") {
            continue;
        }
        let record = content.text(path)?;
        let field = |key: &str| {
            let value = record.lines().find_map(|line| line.strip_prefix(key));
            value.with_context(|| format!("{path} does not say {key}"))
        };
        ensure!(field("Package: ")? == name, "{path} is about another");
        packages.push(format!("{name} {}", field("Version: ")?));
    }
    for file in ["libc6", "libgcc-s1", "ca-certificates", "tzdata"] {
        let known = packages.iter().any(|package| package.starts_with(file));
        ensure!(known, "no scanner can know of {file}");
    }
    Ok(format!(
        "{trusted} authorities, {zones} time zones, {}",
        packages.join(", ")
    ))
}

/// That each of them starts there.
fn programs(buildah: &Buildah) -> anyhow::Result<String> {
    for name in PROGRAMS {
        let said = buildah.ask(&[
            "run",
            "--isolation",
            "chroot",
            CONTAINER,
            "--",
            name,
            "--version",
        ])?;
        let expected = format!("{name} {}", env!("CARGO_PKG_VERSION"));
        ensure!(said.trim() == expected, "{name} --version says {said:?}");
    }
    Ok(format!(
        "{} start, each of this version",
        PROGRAMS.join(", ")
    ))
}

/// Serves in it as whoever it runs as, and asks in it whether that answers.
async fn serves(buildah: &Buildah, folder: &Path) -> anyhow::Result<String> {
    let state = folder.join("state");
    let declared = folder.join("declared");
    for folder in [&state, &declared] {
        fs::create_dir(folder).context("cannot make a folder")?;
    }
    std::os::unix::fs::chown(&state, Some(USER), Some(USER)).context("cannot give it the state")?;
    let port = process::free_port()?;
    let mut command = buildah.command();
    command
        .args(["run", "--isolation", "chroot"])
        .args(["--env", &format!("HERALD_API_KEY={KEY}")])
        .args(["--volume", &format!("{}:/declared:ro", declared.display())])
        .args(["--volume", &format!("{}:/state", state.display())])
        .args([
            CONTAINER,
            "--",
            "herald",
            "local",
            "/declared",
            "--state",
            "/state",
        ])
        .args(["--listen", &format!("127.0.0.1:{port}")]);
    let mut running = buildah.start("herald in the image", &mut command)?;
    server::ready(&mut running, &Api::new(port)?).await?;
    let url = format!("http://127.0.0.1:{port}");
    let said = ping(buildah, &[], &url)?;
    running.kill();
    ensure!(said.contains("answers"), "herald ping says {said:?}");
    let written = fs::read_dir(&state)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(!written.is_empty(), "it kept nothing");
    for file in &written {
        use std::os::unix::fs::MetadataExt as _;
        let owner = file.metadata()?.uid();
        ensure!(owner == USER, "it writes as {owner}");
    }
    Ok(format!("herald local, as {USER}; herald ping finds it"))
}

/// That programs find whom to trust where they look: a client that speaks TLS cannot even be made without.
fn trusts(buildah: &Buildah) -> anyhow::Result<String> {
    let nobody = format!("https://127.0.0.1:{}", process::free_port()?);
    let found = ping(buildah, &[], &nobody)?;
    ensure!(found.contains("refused"), "{found}");
    let blind = ping(buildah, &["--env", "SSL_CERT_FILE=/dev/null"], &nobody)?;
    ensure!(blind.contains("No CA certificates"), "{blind}");
    Ok("herald ping speaks TLS, and does not where it finds no authorities".to_owned())
}

/// What `herald ping` says in the image, to either output.
fn ping(buildah: &Buildah, further: &[&str], server: &str) -> anyhow::Result<String> {
    let mut command = buildah.command();
    command
        .args(["run", "--isolation", "chroot"])
        .args(further)
        .args([CONTAINER, "--", "herald", "ping", "--server", server]);
    let output = command.output().context("cannot run buildah")?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_built_with_the_toolchain_of_this_repository() {
        let read = |name: &str| fs::read_to_string(process::repository().join(name)).unwrap();
        let toolchain = read("rust-toolchain.toml");
        let channel = toolchain
            .lines()
            .find_map(|line| line.strip_prefix("channel = "))
            .unwrap();
        let (minor, _) = channel.trim_matches('"').rsplit_once('.').unwrap();
        let builder = format!("ARG BUILDER=rust:{minor}-{}\n", builder::SUITE);
        assert!(read("Dockerfile").contains(&builder), "{builder}");
    }
}
