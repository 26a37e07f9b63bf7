//! What every catalog promises, wherever things are declared: one test for each promise, for each side.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Catalog, Snapshot};

pub(super) const MAIL: &str = "\
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: mail, namespace: shop}
spec:
  medium: email
  providers: [{name: main, log: {}}]
";

pub(super) const WELCOME: &str = "\
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: welcome, namespace: shop}
spec:
  routing: {channels: [{name: mail}]}
  content: {email: {subject: Welcome, text: \"Hello {{ name }}\"}}
  samples: [{name: typical, parameters: {name: Ada}}]
";

pub(super) fn group(name: &str, member: &str) -> String {
    format!(
        "apiVersion: herald.dev/v1alpha1\nkind: RecipientGroup\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{members: [{{{member}}}]}}\n"
    )
}

/// A place where things are declared, and its catalog.
#[async_trait]
pub(super) trait Subject: Sized + Send + Sync {
    async fn new() -> Self;
    fn catalog(&self) -> &dyn Catalog;
    /// Declares a resource, anew or otherwise than before.
    fn put(&self, name: &str, yaml: &str);
    /// Declares it no longer.
    fn delete(&self, plural: &str, name: &str);
    /// What is in force once all changes so far were taken in; there was at least one that changes something.
    async fn settled(&self) -> Arc<Snapshot>;
}

fn subject(snapshot: &Snapshot) -> &str {
    let template = &snapshot.templates["shop/welcome"].resource;
    &template.spec.content.email.as_ref().unwrap().subject
}

fn said(snapshot: &Snapshot) -> Vec<String> {
    let said = snapshot.problems.iter();
    said.map(|p| format!("{} {}: {}", p.resource, p.path, p.message))
        .collect()
}

pub(super) async fn a_broken_edit_keeps_the_last_good_version_and_a_mended_one_takes_over<
    S: Subject,
>() {
    let place = S::new().await;
    place.put("mail", MAIL);
    place.put("welcome", WELCOME);
    let first = place.settled().await;
    assert_eq!(said(&first), [""; 0]);
    for (broken, path) in [
        (
            WELCOME.replace("{{ name }}", "{{ name"),
            "/spec/content/email/text",
        ),
        (
            WELCOME.replace("subject: Welcome", "subjct: Hi"),
            "/spec/content/email/subj",
        ),
        (
            WELCOME.replace("name: mail", "name: fax"),
            "/spec/routing/channels/0/name",
        ),
    ] {
        place.put("welcome", &broken);
        let snapshot = place.settled().await;
        let said = said(&snapshot);
        assert!(
            said[0].starts_with(&format!("NotificationTemplate shop/welcome {path}")),
            "{said:?}"
        );
        let versions = [&first, &snapshot].map(|s| &s.templates["shop/welcome"]);
        assert!(Arc::ptr_eq(versions[0], versions[1]), "{broken}");
        // What stands beside it is as it was.
        assert!(Arc::ptr_eq(
            &first.channels["shop/mail"],
            &snapshot.channels["shop/mail"]
        ));
    }
    place.put(
        "welcome",
        &WELCOME.replace("subject: Welcome", "subject: Hi"),
    );
    let snapshot = place.settled().await;
    assert_eq!(said(&snapshot), [""; 0]);
    assert_eq!(subject(&snapshot), "Hi");
}

pub(super) async fn what_is_broken_can_be_suspended_all_the_same<S: Subject>() {
    let place = S::new().await;
    let weekly = "apiVersion: herald.dev/v1alpha1\nkind: Schedule\nmetadata: {name: weekly, namespace: shop}\n\
                  spec:\n  schedule: 0 9 * * MON\n  template: welcome\n  parameters: {name: Ada}\n  \
                  recipients: [{address: {email: ada@reader.example}}]\n";
    place.put("mail", MAIL);
    place.put("welcome", WELCOME);
    place.put("weekly", weekly);
    let first = place.settled().await;
    assert_eq!(said(&first), [""; 0]);
    let suspended = |snapshot: &Snapshot| {
        let Snapshot {
            channels,
            templates,
            schedules,
            ..
        } = snapshot;
        [
            channels["shop/mail"].spec.suspend,
            templates["shop/welcome"].resource.spec.suspend,
            schedules["shop/weekly"].spec.suspend,
        ]
    };
    let suspend = |yaml: &str| yaml.replace("spec:\n", "spec:\n  suspend: true\n");
    let broken = [
        MAIL.replace("medium: email", "medium: sms"),
        WELCOME.replace("name: mail", "name: fax"),
        weekly.replace("template: welcome", "template: gone"),
    ];
    for ((name, yaml), is) in ["mail", "welcome", "weekly"].iter().zip(&broken).zip(1..) {
        place.put(name, &suspend(yaml));
        let snapshot = place.settled().await;
        let expected = [is >= 1, is >= 2, is >= 3];
        assert_eq!(suspended(&snapshot), expected, "{:?}", said(&snapshot));
        assert_eq!(subject(&snapshot), "Welcome");
        assert!(!said(&snapshot).is_empty());
    }
    place.put("welcome", &broken[1]);
    let snapshot = place.settled().await;
    assert_eq!(suspended(&snapshot), [true, false, true]);
    let [before, after] = [&first, &snapshot].map(|s| &s.templates["shop/welcome"]);
    assert!(Arc::ptr_eq(&before.compiled, &after.compiled));
}

pub(super) async fn the_order_in_which_things_are_declared_does_not_matter<S: Subject>() {
    let place = S::new().await;
    place.put("welcome", WELCOME);
    let snapshot = place.settled().await;
    assert!(snapshot.templates.is_empty());
    assert_eq!(snapshot.problems.len(), 1, "{:?}", said(&snapshot));
    place.put("mail", MAIL);
    let snapshot = place.settled().await;
    assert_eq!(said(&snapshot), [""; 0]);
    assert_eq!(subject(&snapshot), "Welcome");
}

pub(super) async fn what_is_declared_no_longer_is_not_in_force<S: Subject>() {
    let place = S::new().await;
    place.put("a", &group("a", "recipient: ada"));
    place.put("b", &group("b", "recipient: bob"));
    assert_eq!(place.settled().await.groups.len(), 2);
    place.delete("recipientgroups", "a");
    let snapshot = place.settled().await;
    let names: Vec<_> = snapshot.groups.keys().map(|name| &**name).collect();
    assert_eq!(names, ["shop/b"]);
}

pub(super) async fn something_broken_from_the_start_keeps_nothing_else_out<S: Subject>() {
    let place = S::new().await;
    place.put("a", &group("a", "recipent: ada"));
    place.put("b", &group("b", "recipient: bob"));
    let snapshot = place.settled().await;
    let names: Vec<_> = snapshot.groups.keys().map(|name| &**name).collect();
    assert_eq!(names, ["shop/b"]);
    assert!(!snapshot.problems.is_empty());
    place.put("a", &group("a", "recipient: ada"));
    let snapshot = place.settled().await;
    assert_eq!((snapshot.groups.len(), said(&snapshot)), (2, vec![]));
}

pub(super) async fn a_channel_that_allows_namespaces_by_label_knows_their_labels<S: Subject>() {
    let place = S::new().await;
    let allowed =
        "spec:\n  allowedNamespaces: {from: Selector, selector: {matchLabels: {team: shop}}}\n";
    let mail = MAIL
        .replace("namespace: shop", "namespace: platform")
        .replace("spec:\n", allowed);
    place.put("mail", &mail);
    place.put(
        "welcome",
        &WELCOME.replace("{name: mail}", "{name: mail, namespace: platform}"),
    );
    let snapshot = place.settled().await;
    assert!(
        said(&snapshot)[0].contains("does not allow templates of namespace shop"),
        "{:?}",
        said(&snapshot)
    );
    let labelled =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: shop}}\n";
    place.put("shop", labelled);
    let snapshot = place.settled().await;
    assert_eq!(said(&snapshot), [""; 0]);
    assert_eq!(snapshot.namespace_labels["shop"]["team"], "shop");
}

pub(super) async fn a_template_changes_with_what_it_includes<S: Subject>() {
    let place = S::new().await;
    let brand = WELCOME
        .replace("name: welcome", "name: brand")
        .replace("Hello {{ name }}", "x")
        .replace(
            "  samples: [{name: typical, parameters: {name: Ada}}]\n",
            "  partials: {footer: one}\n",
        );
    place.put("mail", MAIL);
    place.put(
        "welcome",
        &WELCOME.replace("{{ name }}", "{% include 'brand/footer' %}"),
    );
    place.put("brand", &brand);
    let first = place.settled().await;
    assert_eq!(said(&first), [""; 0]);
    place.put("brand", &brand.replace("one", "two"));
    let snapshot = place.settled().await;
    let [before, after] = [&first, &snapshot].map(|s| &s.templates["shop/welcome"]);
    assert_ne!(before.hash, after.hash);
}

pub(super) async fn every_change_is_told_once_it_is_in_force<S: Subject>() {
    let place = S::new().await;
    let mut changes = place.catalog().changes();
    changes.mark_unchanged();
    place.put("a", &group("a", "recipient: ada"));
    let snapshot = place.settled().await;
    assert!(changes.has_changed().unwrap());
    assert!(Arc::ptr_eq(&changes.borrow_and_update(), &snapshot));
    assert!(Arc::ptr_eq(&place.catalog().current(), &snapshot));
}

/// The suite, for one side.
macro_rules! suite {
    ($subject:ty) => {
        $crate::catalog::contract::suite!(
            $subject:
            a_broken_edit_keeps_the_last_good_version_and_a_mended_one_takes_over,
            what_is_broken_can_be_suspended_all_the_same,
            the_order_in_which_things_are_declared_does_not_matter,
            what_is_declared_no_longer_is_not_in_force,
            something_broken_from_the_start_keeps_nothing_else_out,
            a_channel_that_allows_namespaces_by_label_knows_their_labels,
            a_template_changes_with_what_it_includes,
            every_change_is_told_once_it_is_in_force,
        );
    };
    ($subject:ty: $($promise:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                $crate::catalog::contract::$promise::<$subject>().await;
            }
        )*
    };
}

pub(super) use suite;
