//! Images without a container engine: an archive as the OCI's image layout describes it, of programs and what they load.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Who runs in a container unless its pod says otherwise: nobody known.
const USER: &str = "65532:65532";

/// An image to be made.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its name with a registry's and a tag, which pods use.
    pub name: &'a str,
    /// The program that it starts.
    pub entrypoint: &'a str,
    /// Programs, each with its place in the image. What they load is added.
    pub programs: &'a [(PathBuf, &'a str)],
    /// Other files, likewise.
    pub files: &'a [(PathBuf, &'a str)],
}

impl Image<'_> {
    /// Writes it to the archive `path`, by way of files beside it.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let layer = path.with_extension("layer");
        self.layer(&layer)?;
        let digest = digest(&mut BufReader::new(File::open(&layer)?))?;
        let written = self.archive(path, &layer, &digest);
        fs::remove_file(&layer).context("cannot remove the layer")?;
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// One uncompressed layer: it is read once, from this disk.
    fn layer(&self, path: &Path) -> anyhow::Result<()> {
        let mut files: Vec<(PathBuf, String)> = Vec::new();
        let mut loaded = BTreeSet::new();
        for (program, place) in self.programs {
            files.push((program.clone(), (*place).to_owned()));
            loaded.extend(libraries(program)?);
        }
        // What is loaded is where it is here.
        files.extend(loaded.into_iter().map(|library| {
            let place = library.display().to_string();
            (library, place)
        }));
        let others = self.files.iter();
        files.extend(others.map(|(file, place)| (file.clone(), (*place).to_owned())));
        let out = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut layer = tar::Builder::new(BufWriter::new(out));
        layer.follow_symlinks(true);
        // containerd does not know GNU's way to leave holes out.
        layer.sparse(false);
        layer.mode(tar::HeaderMode::Deterministic);
        folder(&mut layer, "tmp", 0o1777)?;
        let mut folders = BTreeSet::new();
        for (file, place) in &files {
            let place = Path::new(place.trim_start_matches('/'));
            let mut above: Vec<&Path> = place.ancestors().skip(1).collect();
            above.reverse();
            for parent in above {
                if !parent.as_os_str().is_empty() && folders.insert(parent.to_owned()) {
                    folder(&mut layer, &parent.to_string_lossy(), 0o755)?;
                }
            }
            layer
                .append_path_with_name(file, place)
                .with_context(|| format!("cannot add {}", file.display()))?;
        }
        layer.into_inner()?.flush()?;
        Ok(())
    }

    fn archive(&self, path: &Path, layer: &Path, layer_digest: &str) -> anyhow::Result<()> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::to_vec(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "User": USER,
                "Entrypoint": [self.entrypoint],
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        }))?;
        let config_digest = digest(&mut &*config)?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config_digest, config.len() as u64),
            "layers": [descriptor("layer.v1.tar", layer_digest, fs::metadata(layer)?.len())],
        }))?;
        let manifest_digest = digest(&mut &*manifest)?;
        let mut entry = descriptor("manifest.v1+json", &manifest_digest, manifest.len() as u64);
        entry["annotations"] = json!({"io.containerd.image.name": self.name});
        entry["platform"] = json!({"architecture": architecture, "os": "linux"});
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;

        let mut archive = tar::Builder::new(BufWriter::new(File::create(path)?));
        let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
        file(&mut archive, "oci-layout", version)?;
        file(&mut archive, "index.json", &index)?;
        for (digest, content) in [(&config_digest, &config), (&manifest_digest, &manifest)] {
            file(&mut archive, &format!("blobs/sha256/{digest}"), content)?;
        }
        archive.sparse(false);
        archive.append_path_with_name(layer, format!("blobs/sha256/{layer_digest}"))?;
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": format!("sha256:{digest}"),
        "size": size,
    })
}

fn folder(archive: &mut tar::Builder<impl Write>, path: &str, mode: u32) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(mode);
    archive.append_data(&mut header, format!("{path}/"), io::empty())
}

fn file(archive: &mut tar::Builder<impl Write>, path: &str, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, path, content)
}

/// The SHA-256 of what can be read, in hexadecimal digits.
fn digest(content: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match content.read(&mut buffer)? {
            0 => break,
            length => hash.update(&buffer[..length]),
        }
    }
    let mut digits = String::with_capacity(64);
    for byte in hash.finalize() {
        use std::fmt::Write as _;
        let _ = write!(digits, "{byte:02x}");
    }
    Ok(digits)
}

/// The libraries that a program loads; none for one that is linked whole.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let whole = [&output.stdout, &output.stderr]
        .iter()
        .any(|said| String::from_utf8_lossy(said).contains("not a dynamic executable"));
    ensure!(
        output.status.success() || whole,
        "ldd cannot read {}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the loader: `/lib64/ld-linux-x86-64.so.2 (0x…)`.
    let paths = text.lines().filter_map(|line| {
        let path = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        let (path, _) = path.split_once(" (")?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok(paths.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_what_its_descriptors_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shell.tar");
        let extra = folder.path().join("extra");
        fs::write(&extra, "hello").unwrap();
        let image = Image {
            name: "herald.test/shell:1",
            entrypoint: "/usr/bin/sh",
            programs: &[(PathBuf::from("/bin/sh"), "/usr/bin/sh")],
            files: &[(extra, "/etc/extra")],
        };
        image.write(&path).unwrap();

        let mut blobs = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(File::open(&path).unwrap())
            .entries()
            .unwrap()
        {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            blobs.insert(name, content);
        }
        let parse = |content: &[u8]| serde_json::from_slice::<Value>(content).unwrap();
        let follow = |descriptor: &Value| {
            let named = descriptor["digest"].as_str().unwrap().to_owned();
            let name = named.replace("sha256:", "blobs/sha256/");
            let content = blobs[&name].clone();
            let found = format!("sha256:{}", digest(&mut &*content).unwrap());
            assert_eq!(
                (found, content.len() as u64),
                (named, descriptor["size"].as_u64().unwrap())
            );
            content
        };
        let index = parse(&blobs["index.json"]);
        let name = &index["manifests"][0]["annotations"]["io.containerd.image.name"];
        assert_eq!(name, "herald.test/shell:1");
        let manifest = parse(&follow(&index["manifests"][0]));
        let config = parse(&follow(&manifest["config"]));
        assert_eq!(config["config"]["User"], USER);
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );

        let layer = follow(&manifest["layers"][0]);
        let mut modes = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(&*layer).entries().unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            modes.insert(name, entry.header().mode().unwrap());
        }
        assert_eq!(modes["usr/bin/sh"], 0o755);
        assert_eq!(modes["etc/extra"], 0o644);
        assert_eq!(modes["tmp/"], 0o1777);
        assert!(
            modes.keys().any(|name| name.contains("libc.so")),
            "{modes:?}"
        );
    }
}
