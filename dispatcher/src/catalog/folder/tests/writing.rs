//! Resources that come over HTTP become files.

use super::*;

fn channel() -> Value {
    json!({"spec": {"medium": "email", "providers": [{"name": "main", "log": {}}]}})
}

#[test]
fn a_new_resource_gets_a_file_of_its_own_and_is_in_force_at_once() {
    let folder = Folder::with(&[]);
    assert!(
        folder
            .catalog
            .put(Kind::Channel, "shop", "mail", channel())
            .unwrap()
    );
    assert_eq!(folder.catalog.current().channels.len(), 1);
    assert_eq!(
        folder.read("channels/mail.yaml"),
        "apiVersion: herald.dev/v1alpha1\nkind: Channel\nmetadata:\n  name: mail\n  namespace: shop\nspec:\n  \
         medium: email\n  providers:\n  - log: {}\n    name: main\n"
    );
    // What was written reads back as what is in force.
    let before = folder.catalog.current();
    let after = folder.catalog.reload_now();
    assert!(Arc::ptr_eq(&before, &after));
    assert_eq!(
        fs::read_dir(folder.dir.path().join("channels"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn a_known_resource_is_replaced_where_it_stands() {
    let folder = Folder::with(&[("sub/x.yml", MAIL)]);
    let mut wanted = channel();
    wanted["spec"]["description"] = json!("Ours");
    assert!(
        !folder
            .catalog
            .put(Kind::Channel, "shop", "mail", wanted)
            .unwrap()
    );
    assert!(folder.read("sub/x.yml").contains("description: Ours"));
    let snapshot = folder.catalog.reload_now();
    assert_eq!(
        snapshot.channels["shop/mail"].spec.description.as_deref(),
        Some("Ours")
    );
}

#[test]
fn other_namespaces_have_other_files() {
    let folder = Folder::with(&[]);
    folder
        .catalog
        .put(Kind::Channel, "shop", "mail", channel())
        .unwrap();
    folder
        .catalog
        .put(Kind::Channel, "bank", "mail", channel())
        .unwrap();
    assert!(
        folder
            .read("channels/bank.mail.yaml")
            .contains("namespace: bank")
    );
    assert_eq!(folder.catalog.reload_now().channels.len(), 2);
}

#[test]
fn what_would_be_wrong_is_refused_and_changes_nothing() {
    let folder = Folder::with(&[("mail.yaml", MAIL), ("welcome.yaml", WELCOME)]);
    let before = folder.catalog.current();
    let mut wrong = channel();
    wrong["spec"]["concurrency"] = json!(0);
    let error = folder
        .catalog
        .put(Kind::Channel, "shop", "mail", wrong)
        .unwrap_err();
    let WriteError::Refuse(problems) = error else {
        panic!("{error}")
    };
    assert_eq!(problems[0].path, "/spec/concurrency");
    assert_eq!(folder.read("mail.yaml"), MAIL);
    assert!(Arc::ptr_eq(&before, &folder.catalog.current()));

    // Good by itself, but welcome routes here and has nothing to say.
    let template = json!({"spec": {"routing": {"channels": [{"name": "mail"}]}, "content": {"sms": {"text": "x"}}}});
    let error = folder
        .catalog
        .put(Kind::NotificationTemplate, "shop", "other", template)
        .unwrap_err();
    assert!(matches!(error, WriteError::Refuse(_)), "{error}");
    assert!(!folder.dir.path().join("notificationtemplates").exists());
    assert_eq!(folder.catalog.extent().files, 2);
}

#[test]
fn what_contradicts_the_call_or_leaves_the_folder_is_refused() {
    let folder = Folder::with(&[]);
    for (name, body, path) in [
        ("mail", json!({"kind": "Schedule"}), "/kind"),
        (
            "mail",
            json!({"metadata": {"name": "fax"}}),
            "/metadata/name",
        ),
        (
            "mail",
            json!({"metadata": {"namespace": "bank"}}),
            "/metadata/namespace",
        ),
        ("mail", json!([]), ""),
        ("mail", json!({"metadata": 1}), "/metadata"),
        ("../../etc/x", channel(), "/metadata/name"),
        (".", channel(), "/metadata/name"),
    ] {
        let error = folder
            .catalog
            .put(Kind::Channel, "shop", name, body)
            .unwrap_err();
        let WriteError::Refuse(problems) = error else {
            panic!("{error}")
        };
        assert_eq!(problems[0].path, path);
    }
    assert_eq!(fs::read_dir(folder.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_holds_more_is_left_to_its_author() {
    let both = format!("{}---\n{MAIL}", group("vip", "recipient: ada"));
    let folder = Folder::with(&[("both.yaml", &both)]);
    let put = folder
        .catalog
        .put(Kind::Channel, "shop", "mail", channel())
        .unwrap_err();
    let delete = folder
        .catalog
        .delete(Kind::Channel, "shop", "mail")
        .unwrap_err();
    for error in [put, delete] {
        let said = error.to_string();
        assert_eq!(
            said,
            "both.yaml declares it on line 8 among other things: edit that file instead"
        );
    }
    assert_eq!(folder.read("both.yaml"), both);
}

#[test]
fn a_file_in_the_way_is_not_overwritten() {
    let folder = Folder::with(&[("channels/mail.yaml", "# notes\n")]);
    let error = folder
        .catalog
        .put(Kind::Channel, "shop", "mail", channel())
        .unwrap_err();
    assert!(matches!(error, WriteError::Overwrite { .. }), "{error}");
    assert_eq!(folder.read("channels/mail.yaml"), "# notes\n");
}

#[test]
fn deleting_takes_the_file_and_the_resource() {
    let folder = Folder::with(&[("mail.yaml", MAIL)]);
    folder
        .catalog
        .delete(Kind::Channel, "shop", "mail")
        .unwrap();
    assert!(folder.catalog.current().channels.is_empty());
    assert!(!folder.dir.path().join("mail.yaml").exists());
    let again = folder
        .catalog
        .delete(Kind::Channel, "shop", "mail")
        .unwrap_err();
    assert_eq!(
        again.to_string(),
        "there is no Channel shop/mail in the folder"
    );
}

#[test]
fn a_write_that_fails_leaves_everything_as_it_was() {
    // A file where the folder of channels would have to be.
    let folder = Folder::with(&[("channels", "")]);
    let error = folder
        .catalog
        .put(Kind::Channel, "shop", "mail", channel())
        .unwrap_err();
    assert!(matches!(error, WriteError::WriteFile { .. }), "{error}");
    assert!(folder.catalog.current().channels.is_empty());
    assert_eq!(folder.catalog.extent().files, 0);
}

#[test]
fn a_read_only_folder_is_said_to_be_one() {
    use std::io::{Error, ErrorKind};
    for kind in [ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied] {
        let error = WriteError::writing("channels/mail.yaml".to_owned(), Error::from(kind));
        assert!(
            error.to_string().contains("the folder is read-only"),
            "{error}"
        );
    }
}
