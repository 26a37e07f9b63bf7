//! What is wrong is found, and its place told.

use std::fmt::Write as _;

use super::*;

#[test]
fn broken_yaml() {
    let folder = Folder::with(&[("a.yaml", "kind: Channel\nspec: [a, b\nmetadata: x\n")]);
    expect_one(&folder, "a.yaml:3  /spec/1: not YAML: ");
}

#[test]
fn a_yaml_bomb() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{items}]").unwrap();
    }
    let folder = Folder::with(&[("bomb.yaml", &bomb), ("mail.yaml", MAIL)]);
    expect_one(&folder, "bomb.yaml:6  /a5/");
    assert!(folder.problems()[0].contains("with all aliases (*name) expanded"));
    assert!(folder.catalog.current().channels.contains_key("shop/mail"));
}

#[test]
fn an_unknown_field_is_named_with_those_that_are_known() {
    let mail = MAIL.replace("  medium: email\n", "  medium: email\n  medum: sms\n");
    let folder = Folder::with(&[("mail.yaml", &mail)]);
    expect_one(
        &folder,
        "mail.yaml:7 Channel shop/mail /spec/medum: unknown field",
    );
    let problem = &folder.problems()[0];
    assert!(
        problem.contains("rateLimit") && problem.contains("medium"),
        "{problem}"
    );
}

#[test]
fn a_field_of_the_wrong_type() {
    let mail = MAIL.replace("    log: {}\n", "    log: {}\n    timeoutSeconds: soon\n");
    let folder = Folder::with(&[("mail.yaml", &mail)]);
    expect_one(
        &folder,
        "mail.yaml:10 Channel shop/mail /spec/providers/0/timeoutSeconds: ",
    );
}

#[test]
fn no_api_version() {
    let mail = MAIL.replace("apiVersion: herald.dev/v1alpha1\n", "");
    let folder = Folder::with(&[("mail.yaml", &mail)]);
    expect_one(
        &folder,
        "mail.yaml:1 Channel shop/mail /apiVersion: is missing: write apiVersion: herald.dev/v1alpha1",
    );
}

#[test]
fn a_version_or_a_kind_that_does_not_exist() {
    let folder = Folder::with(&[("mail.yaml", &MAIL.replace("v1alpha1", "v9"))]);
    expect_one(
        &folder,
        "mail.yaml:1 Channel shop/mail /apiVersion: must be herald.dev/v1alpha1",
    );
    let folder = Folder::with(&[("mail.yaml", &MAIL.replace("kind: Channel", "kind: Chanel"))]);
    expect_one(&folder, "mail.yaml:2  /kind: must be one of Channel, ");
}

#[test]
fn duplicate_names_each_naming_the_other_file() {
    let folder = Folder::with(&[("a.yaml", MAIL), ("b/c.yaml", &format!("---\n{MAIL}"))]);
    assert_eq!(
        folder.problems(),
        [
            "a.yaml:4 Channel shop/mail /metadata/name: Channel shop/mail is declared in b/c.yaml:2 as well: \
             remove one of them",
            "b/c.yaml:5 Channel shop/mail /metadata/name: Channel shop/mail is declared in a.yaml:1 as well: \
             remove one of them",
        ]
    );
    // Nobody can say which is meant.
    assert!(folder.catalog.current().channels.is_empty());
}

#[test]
fn the_same_name_in_another_namespace_or_of_another_kind_is_no_duplicate() {
    let other = MAIL.replace("  name: mail\n", "  name: mail\n  namespace: bank\n");
    let folder = Folder::with(&[
        ("a.yaml", MAIL),
        ("b.yaml", &other),
        ("c.yaml", &group("mail", "recipient: ada")),
    ]);
    assert_eq!(folder.problems(), [""; 0]);
    assert_eq!(folder.catalog.current().channels.len(), 2);
}

#[test]
fn a_group_cycle() {
    let folder = Folder::with(&[
        ("a.yaml", &group("a", "group: b")),
        ("b.yaml", &group("b", "group: a")),
    ]);
    assert_eq!(
        folder.problems(),
        [
            "a.yaml:6 RecipientGroup shop/a /spec/members/0/group: the group contains itself: a → b → a",
            "b.yaml:6 RecipientGroup shop/b /spec/members/0/group: the group contains itself: b → a → b",
        ]
    );
    assert!(folder.catalog.current().groups.is_empty());
}

#[test]
fn a_provider_of_another_medium() {
    let mail = MAIL.replace(
        "    log: {}\n",
        "    webhook: {url: \"https://shop.example/hook\"}\n",
    );
    let folder = Folder::with(&[("mail.yaml", &mail)]);
    expect_one(&folder, "mail.yaml:9 Channel shop/mail /spec/providers/0");
    assert!(
        folder.problems()[0].contains("webhook"),
        "{:?}",
        folder.problems()
    );
}

#[test]
fn a_route_to_a_channel_that_is_not_there() {
    let folder = Folder::with(&[("welcome.yaml", WELCOME)]);
    expect_one(
        &folder,
        "welcome.yaml:8 NotificationTemplate shop/welcome /spec/routing/channels/0/name: there is no Channel shop/mail",
    );
}

#[test]
fn a_route_to_a_channel_that_is_broken_says_whose_fault_it_is() {
    let mail = MAIL.replace("  - name: main\n", "  - name: MAIN\n");
    let folder = Folder::with(&[("mail.yaml", &mail), ("welcome.yaml", WELCOME)]);
    let problems = folder.problems();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].starts_with("mail.yaml:8 Channel shop/mail /spec/providers/0/name: "));
    assert!(problems[1].ends_with("there is no Channel shop/mail (among those without problems)"));
    assert!(folder.catalog.current().templates.is_empty());
}

fn welcome_with(text: &str) -> Folder {
    let welcome = WELCOME.replace("Hello {{ name }}", &format!("{text:?}"));
    Folder::with(&[("mail.yaml", MAIL), ("welcome.yaml", &welcome)])
}

#[test]
fn a_template_that_does_not_compile() {
    expect_one(
        &welcome_with("Hello\n{% if %}"),
        "welcome.yaml:12 NotificationTemplate shop/welcome /spec/content/email/text: does not compile: line 2: ",
    );
}

#[test]
fn a_template_that_loops_for_ever() {
    let folder = welcome_with(
        "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
    );
    expect_one(
        &folder,
        "welcome.yaml:14 NotificationTemplate shop/welcome /spec/samples/0: sample \"typical\" does not render: ",
    );
    assert!(
        folder.problems()[0].contains("too much work"),
        "{:?}",
        folder.problems()
    );
}

#[test]
fn a_template_that_prints_a_hundred_megabytes() {
    let line = "x".repeat(10_000);
    let folder = welcome_with(&format!(
        "{{% for a in range(10000) %}}{line}{{% endfor %}}"
    ));
    expect_one(
        &folder,
        "welcome.yaml:14 NotificationTemplate shop/welcome /spec/samples/0: sample \"typical\" does not render: ",
    );
    assert!(
        folder.problems()[0].contains("longer than 1048576 bytes"),
        "{:?}",
        folder.problems()
    );
}

#[test]
fn a_template_that_includes_itself() {
    let welcome = WELCOME
        .replace("Hello {{ name }}", "'{% include \"a\" %}'")
        .replace(
            "  samples:",
            "  partials:\n    a: '{% include \"b\" %}'\n    b: '{% include \"a\" %}'\n  samples:",
        );
    let folder = Folder::with(&[("mail.yaml", MAIL), ("welcome.yaml", &welcome)]);
    let problems = folder.problems();
    assert!(!problems.is_empty());
    let begins = "welcome.yaml:14 NotificationTemplate shop/welcome /spec/partials/a: ";
    assert!(problems[0].starts_with(begins), "{problems:#?}");
    assert!(problems[0].contains("includes itself: "), "{problems:#?}");
}

#[test]
fn a_sample_that_lacks_a_parameter() {
    let welcome = WELCOME.replace("{name: Ada}", "{}");
    let folder = Folder::with(&[("mail.yaml", MAIL), ("welcome.yaml", &welcome)]);
    expect_one(
        &folder,
        "welcome.yaml:14 NotificationTemplate shop/welcome /spec/samples/0: ",
    );
    assert!(
        folder.problems()[0].contains("`name`: it is undefined"),
        "{:?}",
        folder.problems()
    );
}

#[test]
fn everything_in_several_files_at_once_in_the_order_of_files_and_lines() {
    let folder = Folder::with(&[
        ("c.yaml", &MAIL.replace("medium: email", "medium: pigeon")),
        (
            "a.yaml",
            &format!("{}---\n{}", group("a", "group: x"), group("b", "group: y")),
        ),
        ("b.yaml", "{"),
    ]);
    let places: Vec<_> = (folder.catalog.current().problems.iter())
        .map(|p| (p.file.clone().unwrap(), p.line))
        .collect();
    let expected = [("a.yaml", 6), ("a.yaml", 13), ("b.yaml", 1), ("c.yaml", 6)];
    assert_eq!(places, expected.map(|(file, line)| (file.to_owned(), line)));
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = FolderCatalog::open(dir.path().join("nowhere"), "shop").unwrap_err();
    assert!(matches!(error, ScanError::ListFolder { .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn folders_in_a_circle_end() {
    let folder = Folder::with(&[("mail.yaml", MAIL)]);
    std::os::unix::fs::symlink(folder.dir.path(), folder.dir.path().join("self")).unwrap();
    assert_eq!(folder.catalog.reload_now().channels.len(), 1);
    assert_eq!(folder.problems(), [""; 0]);
}
