//! What a change of the folder does to what is in force.

use super::*;

#[test]
fn a_broken_edit_keeps_the_last_good_version_and_a_mended_one_takes_over() {
    let folder = Folder::with(&[("mail.yaml", MAIL), ("welcome.yaml", WELCOME)]);
    let first = folder.catalog.current();
    for broken in [
        "{",
        "a: [",
        &WELCOME.replace("{{ name }}", "{{ name"),
        &WELCOME.replace("subject: Welcome", "subjct: Hi"),
        &WELCOME.replace("kind: NotificationTemplate", "kind: Template"),
        &WELCOME.replace("name: welcome", "nam: welcome"),
        &WELCOME.replace("name: mail", "name: fax"),
        &format!("{WELCOME}---\n{WELCOME}"),
    ] {
        let snapshot = folder.change("welcome.yaml", broken);
        assert!(!snapshot.problems.is_empty(), "{broken}");
        let (old, new) = (
            &first.templates["shop/welcome"],
            &snapshot.templates["shop/welcome"],
        );
        assert!(Arc::ptr_eq(old, new), "{broken}");
    }
    let snapshot = folder.change(
        "welcome.yaml",
        &WELCOME.replace("subject: Welcome", "subject: Hi"),
    );
    assert_eq!(said(&snapshot), [""; 0]);
    assert_eq!(subject(&snapshot), "Hi");
    let [old, new] = [&first, &snapshot].map(|s| s.templates["shop/welcome"].hash.clone());
    assert_ne!(old, new);
    assert!(Arc::ptr_eq(
        &first.channels["shop/mail"],
        &snapshot.channels["shop/mail"]
    ));
}

#[test]
fn what_is_broken_from_the_start_is_not_in_force_until_it_is_mended() {
    let folder = Folder::with(&[("mail.yaml", "{")]);
    assert!(folder.catalog.current().channels.is_empty());
    assert_eq!(folder.change("mail.yaml", MAIL).channels.len(), 1);
}

#[test]
fn deleting_is_deleting() {
    let both = format!("{MAIL}---\n{}", group("vip", "recipient: ada"));
    let folder = Folder::with(&[
        ("both.yaml", &both),
        ("other.yaml", &group("a", "recipient: bob")),
    ]);
    let snapshot = folder.change("both.yaml", MAIL);
    assert_eq!(
        snapshot.groups.keys().map(|n| &**n).collect::<Vec<_>>(),
        ["shop/a"]
    );
    let snapshot = folder.remove("other.yaml");
    assert!(snapshot.groups.is_empty());
    assert_eq!(snapshot.channels.len(), 1);
    assert_eq!(said(&snapshot), [""; 0]);
}

#[test]
fn what_stands_beside_something_broken_is_still_taken_over() {
    let folder = Folder::with(&[
        ("a.yaml", &group("a", "recipient: ada")),
        ("b.yaml", &group("b", "recipient: bob")),
    ]);
    put_file(&folder.dir, "a.yaml", "{");
    let snapshot = folder.change("b.yaml", &group("b", "group: a"));
    assert_eq!(
        snapshot.groups["shop/b"].spec.members[0].group.as_deref(),
        Some("a")
    );
    assert_eq!(
        snapshot.groups["shop/a"].spec.members[0]
            .recipient
            .as_deref(),
        Some("ada")
    );
    expect_one(&folder, "a.yaml:");
}

#[test]
fn old_and_new_versions_never_make_a_circle_together() {
    let folder = Folder::with(&[
        ("a.yaml", &group("a", "group: b")),
        ("b.yaml", &group("b", "recipient: bob")),
    ]);
    // As written there is no circle, but a's new version is broken and its old one contains b.
    put_file(&folder.dir, "a.yaml", &group("a", "recipient: \"!\""));
    let snapshot = folder.change("b.yaml", &group("b", "group: a"));
    assert_eq!(
        snapshot.groups["shop/a"].spec.members[0].group.as_deref(),
        Some("b")
    );
    assert_eq!(
        snapshot.groups["shop/b"].spec.members[0]
            .recipient
            .as_deref(),
        Some("bob")
    );
    assert_eq!(snapshot.problems.len(), 2, "{:#?}", said(&snapshot));
}

#[test]
fn a_template_changes_with_what_it_includes() {
    let brand = "apiVersion: herald.dev/v1alpha1\nkind: NotificationTemplate\nmetadata: {name: brand}\nspec:\n  \
                 routing: {channels: [{name: mail}]}\n  content: {email: {subject: x, text: y}}\n  \
                 partials: {footer: FOOT}\n";
    let welcome = WELCOME.replace("{{ name }}", "{% include \"brand/footer\" %}");
    let folder = Folder::with(&[
        ("mail.yaml", MAIL),
        ("welcome.yaml", &welcome),
        ("brand.yaml", &brand.replace("FOOT", "one")),
    ]);
    assert_eq!(folder.problems(), [""; 0]);
    let first = folder.catalog.current();
    let second = folder.change("brand.yaml", &brand.replace("FOOT", "two"));
    let [old, new] = [&first, &second].map(|s| &s.templates["shop/welcome"]);
    assert_ne!(old.hash, new.hash);
    assert_eq!(new.compiled.definition().partials["brand/footer"], "two");
}

#[test]
fn the_medium_of_a_channel_cannot_change() {
    let folder = Folder::with(&[("mail.yaml", MAIL)]);
    let snapshot = folder.change("mail.yaml", &MAIL.replace("medium: email", "medium: sms"));
    expect_one(&folder, "mail.yaml:6 Channel shop/mail /spec/medium: ");
    assert_eq!(snapshot.channels["shop/mail"].spec.medium, Medium::Email);
}

#[test]
fn nothing_is_told_when_nothing_changed() {
    let folder = Folder::with(&[("mail.yaml", MAIL)]);
    let mut changes = folder.catalog.changes();
    changes.mark_unchanged();
    folder.catalog.reload_now();
    folder.change("mail.yaml", MAIL);
    assert!(!changes.has_changed().unwrap());
    folder.change("mail.yaml", &format!("# a comment\n{MAIL}"));
    assert!(changes.has_changed().unwrap());
}

#[test]
fn a_folder_that_cannot_be_looked_through_changes_nothing_but_says_so() {
    let folder = Folder::with(&[("mail.yaml", MAIL)]);
    let moved = folder.dir.path().with_extension("moved");
    fs::rename(folder.dir.path(), &moved).unwrap();
    let snapshot = folder.catalog.reload_now();
    assert_eq!(snapshot.channels.len(), 1);
    assert!(
        snapshot.problems[0].message.contains("cannot be read"),
        "{:?}",
        said(&snapshot)
    );
    fs::rename(&moved, folder.dir.path()).unwrap();
    assert_eq!(said(&folder.catalog.reload_now()), [""; 0]);
}

#[test]
fn half_of_a_change_does_not_come_into_force() {
    let folder = Folder::with(&[("mail.yaml", MAIL)]);
    let catalog = &folder.catalog;
    let named = |name: &str| MAIL.replace("name: mail", &format!("name: {name}"));
    put_file(&folder.dir, "more.yaml", &named("one"));
    let unquiet = catalog.look_again(&Unquiet::default());
    put_file(
        &folder.dir,
        "more.yaml",
        &format!("{}---\n{}", named("one"), named("two")),
    );
    let unquiet = catalog.look_again(&unquiet);
    assert_eq!(catalog.current().channels.len(), 1);
    catalog.look_again(&unquiet);
    assert_eq!(catalog.current().channels.len(), 3);
}

#[test]
fn a_folder_that_never_rests_is_read_all_the_same() {
    let folder = Folder::with(&[("mail.yaml", MAIL)]);
    let mut unquiet = Unquiet::default();
    for round in 0..=MOST_UNQUIET_LOOKS {
        assert_eq!(folder.catalog.current().channels.len(), 1);
        let name = format!("{round}.yaml");
        put_file(
            &folder.dir,
            &name,
            &MAIL.replace("name: mail", &format!("name: m{round}")),
        );
        unquiet = folder.catalog.look_again(&unquiet);
    }
    assert!(folder.catalog.current().channels.len() > 1);
}

#[tokio::test]
async fn a_change_is_noticed_without_being_told() {
    let folder = Folder::with(&[("mail.yaml", MAIL)]);
    let mut changes = folder.catalog.changes();
    changes.mark_unchanged();
    let watching = tokio::spawn(Arc::clone(&folder.catalog).keep_looking(Duration::from_millis(1)));
    put_file(&folder.dir, "vip.yaml", &group("vip", "recipient: ada"));
    changes.changed().await.unwrap();
    assert_eq!(folder.catalog.current().groups.len(), 1);
    fs::remove_file(folder.dir.path().join("vip.yaml")).unwrap();
    changes.changed().await.unwrap();
    assert!(folder.catalog.current().groups.is_empty());
    watching.abort();
}

#[test]
fn an_edit_waits_for_seconds_at_most_however_long_a_look_takes() {
    let every = LOOK_EVERY;
    let changing = Unquiet {
        look: Some(Look::new()),
        looks: 1,
    };
    for (took, quiet) in [(1, 1000), (10, 2000), (430, 5000), (60_000, 5000)] {
        let took = Duration::from_millis(took);
        let pause = pause_after(&Unquiet::default(), took, every);
        assert_eq!(pause, Duration::from_millis(quiet), "{took:?}");
        assert_eq!(pause_after(&changing, took, every), every, "{took:?}");
    }
}
