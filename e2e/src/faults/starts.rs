//! Starts that must fail, with a sentence that says why and what to do; and the key of the first one.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::StatusCode;

use super::{accepted, ended};
use crate::process::Running;
use crate::server::{self, Setup};

/// How long a start may take to fail.
const FAIL: Duration = Duration::from_secs(20);

/// The start fails, and says all of `words`.
async fn fails(setup: &Setup, command: &mut Command, words: &[&str]) -> anyhow::Result<()> {
    let log = setup.log.with_extension("failed.log");
    let mut running = Running::start("herald", command, &log)?;
    let status = running.wait(FAIL).await?;
    let said = fs::read_to_string(&log)?;
    ensure!(!status.success(), "it started, and should not have: {said}");
    for word in words {
        ensure!(said.contains(word), "it does not say {word:?}: {said}");
    }
    Ok(())
}

/// Somebody else listens on the port.
pub async fn a_port_that_is_taken(setup: &Setup) -> anyhow::Result<()> {
    let _taken = TcpListener::bind(("127.0.0.1", setup.port)).context("cannot take the port")?;
    let port = setup.port.to_string();
    fails(setup, &mut setup.command(), &[&port, "--listen"]).await
}

/// Another herald works with the same files; it is not disturbed.
pub async fn a_second_one(setup: &Setup) -> anyhow::Result<()> {
    let mut first = setup.start()?;
    let api = setup.api()?;
    server::ready(&mut first, &api).await?;
    let second = Setup {
        port: crate::process::free_port()?,
        ..setup.clone()
    };
    fails(
        &second,
        &mut second.command(),
        &["another herald", "--state"],
    )
    .await?;
    accepted(
        &api,
        "after-the-second",
        "a@b.example",
        "still here",
        "quick",
    )
    .await?;
    Ok(())
}

/// A Channel that logs to nowhere in particular writes where herald prints, and that keeps nobody waiting.
pub async fn a_channel_that_prints(setup: &Setup) -> anyhow::Result<()> {
    let mut running = setup.start()?;
    let api = setup.api()?;
    server::ready(&mut running, &api).await?;
    let id = accepted(&api, "printed", "a@b.example", "in print", "printed").await?;
    ended(&api, &[id]).await?;
    let said = fs::read_to_string(&setup.log)?;
    let lines = said.lines().filter(|line| line.contains("in print"));
    ensure!(lines.count() == 1, "not printed once: {said}");
    Ok(())
}

/// Its files cannot be made in the folder; elsewhere they can.
pub async fn a_folder_that_is_read_only(setup: &Setup) -> anyhow::Result<()> {
    let bind = || {
        let folder = &setup.declared;
        let mount = |arguments: &[&str]| {
            let status = Command::new("mount").args(arguments).arg(folder).status();
            status.is_ok_and(|status| status.success())
        };
        let source = folder.display().to_string();
        mount(&["--bind", &source])
            .then(|| Mounted(folder.clone()))
            .filter(|_| mount(&["-o", "remount,ro,bind"]))
    };
    // Permissions do not keep root from writing.
    let mounted = if rustix::process::geteuid().is_root() {
        let Some(mounted) = bind() else {
            println!("           skipped: root may not mount here");
            return Ok(());
        };
        Some(mounted)
    } else {
        fs::set_permissions(&setup.declared, fs::Permissions::from_mode(0o555))?;
        None
    };
    let mut command = Command::new(&setup.herald);
    command
        .arg("local")
        .arg(&setup.declared)
        .args(["--listen", &format!("127.0.0.1:{}", setup.port)]);
    fails(setup, &mut command, &[".herald", "--state"]).await?;
    let mut elsewhere = setup.start()?;
    server::ready(&mut elsewhere, &setup.api()?).await?;
    elsewhere.kill();
    if mounted.is_none() {
        fs::set_permissions(&setup.declared, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Something mounted by this program; unmounted when dropped.
pub struct Mounted(pub std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The first start prints a key that works, later ones print none.
pub async fn the_first_key(setup: &Setup) -> anyhow::Result<()> {
    let keyless = || {
        let mut command = setup.command();
        command.env_remove("HERALD_API_KEY");
        command
    };
    let keys = || -> anyhow::Result<Vec<String>> {
        let said = fs::read_to_string(&setup.log)?;
        let mut keys: Vec<String> = said
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
            .filter(|word| word.starts_with("hk_"))
            .map(str::to_owned)
            .collect();
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    };
    let api = setup.api()?;
    for start in ["first", "second"] {
        let mut running = Running::start("herald", &mut keyless(), &setup.log)?;
        server::ready(&mut running, &api).await?;
        // It is ready before it says so.
        let begin = Instant::now();
        let found = loop {
            let found = keys()?;
            if !found.is_empty() || begin.elapsed() > FAIL {
                break found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        ensure!(
            found.len() == 1,
            "after the {start} start {} keys were printed",
            found.len()
        );
        let list = reqwest::Client::new().get(api.url("/v1/namespaces/load/notifications"));
        for (key, expected) in [
            (found[0].as_str(), StatusCode::OK),
            ("hk_wrong", StatusCode::UNAUTHORIZED),
        ] {
            let answer = list.try_clone().context("a GET can be repeated")?;
            let status = answer.bearer_auth(key).send().await?.status();
            ensure!(
                status == expected,
                "in the {start} life a key was answered {status}, not {expected}"
            );
        }
        running.kill();
    }
    Ok(())
}
