//! A folder: what is found wrong in it, what is in force, what follows a change.

mod contract;
mod reload;
mod writing;
mod wrong;

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use herald_crds::{Kind, Medium};

const MAIL: &str = "\
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata:
  name: mail
spec:
  medium: email
  providers:
  - name: main
    log: {}
";

const WELCOME: &str = "\
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata:
  name: welcome
spec:
  routing:
    channels:
    - name: mail
  content:
    email:
      subject: Welcome
      text: Hello {{ name }}
  samples:
  - name: typical
    parameters: {name: Ada}
";

fn group(name: &str, member: &str) -> String {
    format!(
        "apiVersion: herald.dev/v1alpha1\nkind: RecipientGroup\nmetadata: {{name: {name}}}\n\
         spec:\n  members:\n  - {member}\n"
    )
}

/// A folder and its catalog.
struct Folder {
    dir: TempDir,
    catalog: Arc<FolderCatalog>,
}

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            put_file(&dir, name, text);
        }
        let catalog = Arc::new(FolderCatalog::open(dir.path(), "shop").unwrap());
        Self { dir, catalog }
    }

    /// Changes a file, and reads again.
    fn change(&self, name: &str, text: &str) -> Arc<Snapshot> {
        put_file(&self.dir, name, text);
        self.catalog.reload_now()
    }

    fn remove(&self, name: &str) -> Arc<Snapshot> {
        fs::remove_file(self.dir.path().join(name)).unwrap();
        self.catalog.reload_now()
    }

    /// What is wrong, as `file:line resource path: message`.
    fn problems(&self) -> Vec<String> {
        said(&self.catalog.current())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

fn put_file(dir: &TempDir, name: &str, text: &str) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn said(snapshot: &Snapshot) -> Vec<String> {
    let said = snapshot.problems.iter().map(|p| {
        let file = p.file.as_deref().unwrap_or("-");
        format!("{file}:{} {} {}: {}", p.line, p.resource, p.path, p.message)
    });
    said.collect()
}

fn subject(snapshot: &Snapshot) -> &str {
    let template = &snapshot.templates["shop/welcome"].resource;
    &template.spec.content.email.as_ref().unwrap().subject
}

/// One problem, which begins as told.
#[track_caller]
fn expect_one(folder: &Folder, beginning: &str) {
    let problems = folder.problems();
    assert!(
        problems.len() == 1 && problems[0].starts_with(beginning),
        "expected {beginning:?}, got {problems:#?}"
    );
}

#[test]
fn a_channel_that_allows_namespaces_by_label_knows_those_of_the_folder() {
    let mail = MAIL.replace("name: mail", "name: mail, namespace: platform").replace(
        "metadata:\n  name: mail, namespace: platform\nspec:\n",
        "metadata: {name: mail, namespace: platform}\nspec:\n  allowedNamespaces: {from: Selector, selector: \
         {matchLabels: {team: shop}}}\n",
    );
    let welcome = WELCOME.replace("- name: mail\n", "- {name: mail, namespace: platform}\n");
    let namespace =
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {team: shop}\n";
    let folder = Folder::with(&[("mail.yaml", &mail), ("welcome.yaml", &welcome)]);
    expect_one(
        &folder,
        "welcome.yaml:8 NotificationTemplate shop/welcome /spec/routing/channels/0/namespace: Channel platform/mail does \
         not allow templates of namespace shop",
    );
    let snapshot = folder.change("namespaces.yaml", namespace);
    assert_eq!(said(&snapshot), [""; 0]);
    assert_eq!(snapshot.namespace_labels["shop"]["team"], "shop");

    // The namespace's own name is a label without being one.
    let by_name = mail.replace("team: shop", "kubernetes.io/metadata.name: shop");
    folder.change("mail.yaml", &by_name);
    folder.remove("namespaces.yaml");
    assert_eq!(folder.problems(), [""; 0]);

    folder.change(
        "namespaces.yaml",
        &namespace.replace("team: shop", "team: 7"),
    );
    expect_one(
        &folder,
        "namespaces.yaml:5  /metadata/labels/team: must be a string",
    );
}

#[test]
fn a_slip_in_a_namespace_takes_no_label_away() {
    let shop = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {team: shop, tier: gold}\n";
    let bank = shop.replace("shop", "bank");
    let folder = Folder::with(&[("namespaces.yaml", &format!("{shop}---\n{bank}"))]);
    let labels =
        |snapshot: &Snapshot, namespace: &str| snapshot.namespace_labels[namespace].clone();
    let before = labels(&folder.catalog.current(), "shop");
    assert_eq!(before.len(), 2);
    for slip in [("tier: gold", "tier: 7"), ("name: shop", "nmae: shop")] {
        let wrong = shop.replace(slip.0, slip.1);
        let bank = bank.replace("gold", "silver");
        let snapshot = folder.change("namespaces.yaml", &format!("{wrong}---\n{bank}"));
        assert_eq!(folder.problems().len(), 1);
        assert_eq!(labels(&snapshot, "shop"), before, "{slip:?}");
        assert_eq!(labels(&snapshot, "bank")["tier"], "silver", "{slip:?}");
    }
    let snapshot = folder.change("namespaces.yaml", &bank);
    assert!(
        !snapshot.namespace_labels.contains_key("shop"),
        "it is gone, and no slip"
    );
}

#[test]
fn a_good_folder_is_in_force_and_what_is_not_ours_is_passed_over() {
    let folder = Folder::with(&[
        ("mail.yaml", MAIL),
        ("deep/er/welcome.yml", WELCOME),
        (
            "secret.yaml",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n",
        ),
        ("kustomization.yaml", "resources: [mail.yaml]\n"),
        ("notes.txt", "kind: Channel"),
        (".hidden/broken.yaml", "{"),
        (".broken.yaml", "{"),
        ("secrets/smtp/password.yaml", "{"),
    ]);
    assert_eq!(folder.problems(), [""; 0]);
    let snapshot = folder.catalog.current();
    assert_eq!(snapshot.channels["shop/mail"].spec.medium, Medium::Email);
    assert_eq!(subject(&snapshot), "Welcome");
    assert_eq!(
        folder.catalog.extent(),
        Extent {
            files: 4,
            resources: 2
        }
    );
}

#[test]
fn a_list_is_its_items_and_their_lines_are_those_of_the_file() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: herald.dev/v1alpha1\n  kind: Channel\n  \
                metadata: {name: mail}\n  spec:\n    medium: email\n    providers: []\n\
                - {apiVersion: v1, kind: ConfigMap}\n";
    let folder = Folder::with(&[("all.yaml", list)]);
    expect_one(
        &folder,
        "all.yaml:9 Channel shop/mail /items/0/spec/providers: ",
    );
}

#[test]
fn what_was_exported_from_a_cluster_is_another_in_a_folder() {
    let exported = "name: mail\n  uid: u-1\n  creationTimestamp: \"2020-01-01T00:00:00Z\"\n  labels: {team: shop}";
    let folder = Folder::with(&[("mail.yaml", &MAIL.replace("name: mail", exported))]);
    assert_eq!(folder.problems(), [""; 0]);
    let current = folder.catalog.current();
    let metadata = &current.channels["shop/mail"].metadata;
    assert!(metadata.labels.is_some());
    assert!(metadata.uid.is_none() && metadata.creation_timestamp.is_none());
}

#[test]
fn what_travels_unpacks_to_the_definition_that_its_name_says() {
    use base64::Engine as _;
    let folder = Folder::with(&[("mail.yaml", MAIL), ("welcome.yaml", WELCOME)]);
    let snapshot = folder.catalog.current();
    let template = &snapshot.templates["shop/welcome"];
    let packed = base64::engine::general_purpose::STANDARD
        .decode(&*template.packed)
        .unwrap();
    let json = zstd::bulk::decompress(&packed, 1 << 20).unwrap();
    let json = String::from_utf8(json).unwrap();
    assert_eq!(herald_crds::definition::hash_json(&json), *template.hash);
    let definition: herald_crds::Definition = serde_json::from_str(&json).unwrap();
    assert_eq!(&definition, &**template.compiled.definition());
}

#[test]
fn a_definition_too_large_to_travel_is_refused() {
    // Noise, which does not compress.
    let mut state = 1_u64;
    let mut noise = || -> String {
        let next = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            char::from(b'a' + (state >> 60) as u8)
        };
        (0..60_000).map(next).collect()
    };
    let translations: Vec<_> = ('a'..='n')
        .map(|tag| format!("    x{tag}: {{email: {{subject: a, text: {}}}}}\n", noise()))
        .collect();
    let translations = format!("  translations:\n{}  samples:", translations.concat());
    let welcome = WELCOME.replace("  samples:", &translations);
    let folder = Folder::with(&[("mail.yaml", MAIL), ("welcome.yaml", &welcome)]);
    expect_one(
        &folder,
        "welcome.yaml:5 NotificationTemplate shop/welcome /spec: with all that it includes, compressed,",
    );
}
