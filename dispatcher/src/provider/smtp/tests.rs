mod server;

use std::path::Path;
use std::time::Duration;

use herald_crds::{NameRef, SmtpSpec, SmtpTls};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::provider::fixtures::{context, delivery, mail};
use server::{Act, Options, Server, certify};

/// Long enough for whatever comes to an end.
const TIMEOUT: Duration = Duration::from_secs(20);

/// For what never comes to an end.
const SHORT: Duration = Duration::from_millis(300);

/// For what never comes to an end after much that does.
const AFTER_ALL: Duration = Duration::from_secs(4);

const ALICE: &str = "alice@shop.example";

fn spec(port: u16) -> SmtpSpec {
    SmtpSpec {
        host: "localhost".to_owned(),
        port: Some(port.into()),
        tls: Some(SmtpTls::None),
        from: "Shop <orders@shop.example>".to_owned(),
        allow_private_addresses: true,
        ..SmtpSpec::default()
    }
}

fn named(name: &str) -> NameRef {
    NameRef {
        name: name.to_owned(),
    }
}

fn smtp_for(spec: &SmtpSpec, root: &Path) -> Smtp {
    Smtp::new("main", spec, &context(root)).unwrap()
}

fn smtp(server: &Server) -> Smtp {
    smtp_for(&spec(server.address.port()), Path::new("/nowhere"))
}

async fn send(smtp: &Smtp) -> Outcome {
    smtp.send(&delivery(ALICE, mail()), TIMEOUT).await
}

/// Sends through a server that does `act` at `at` on every connection.
async fn meet(at: &'static str, act: Act, timeout: Duration) -> Outcome {
    let server = Server::start(Options::default(), move |_, command| {
        let meant = match at {
            "" | "." => command == at,
            verb => command.starts_with(verb),
        };
        meant.then_some(act)
    })
    .await;
    smtp(&server).send(&delivery(ALICE, mail()), timeout).await
}

fn sent() -> Outcome {
    Outcome::Sent {
        provider_id: Some("4F3B2A".to_owned()),
    }
}

#[tokio::test]
async fn mails_go_over_one_connection_one_after_the_other() {
    for offers in ["PIPELINING SIZE_100000", "8BITMIME"] {
        let server = Server::start(
            Options {
                offers,
                ..Options::default()
            },
            |_, _| None,
        )
        .await;
        let smtp = smtp(&server);
        for _ in 0..3 {
            assert_eq!(send(&smtp).await, sent());
        }
        assert_eq!(server.connections(), 1, "{offers}");
        assert_eq!(
            server.verbs(0),
            [
                "EHLO", "MAIL", "RCPT", "DATA", ".", "MAIL", "RCPT", "DATA", ".", "MAIL", "RCPT",
                "DATA", "."
            ]
        );
        let met = server.met(0);
        assert!(met[1].starts_with("MAIL FROM:<orders@shop.example>"));
        assert_eq!(met[1].contains(" SIZE="), offers.contains("SIZE"));
        assert_eq!(met[2], "RCPT TO:<alice@shop.example>");
        assert!(met[4].contains("Your order is on its way.\r\n"));
    }
}

#[tokio::test]
async fn a_refused_recipient_is_told_without_its_address_and_leaves_the_connection_usable() {
    for offers in ["PIPELINING", "8BITMIME"] {
        let server = Server::start(
            Options {
                offers,
                ..Options::default()
            },
            |_, command| match command {
                "RCPT TO:<alice@shop.example>" => Some(Act::Say(
                    "550 5.1.1 <Alice@shop.example>: no On its way here",
                )),
                _ => None,
            },
        )
        .await;
        let smtp = smtp(&server);
        let Outcome::Permanent {
            reason,
            address_gone: true,
        } = send(&smtp).await
        else {
            panic!("not gone");
        };
        assert_eq!(&*reason.code, "smtp-5.1.1");
        assert_eq!(reason.detail, "550 5.1.1 <…>: no … here");
        let bob = delivery("bob@shop.example", mail());
        if offers == "PIPELINING" {
            // The server waited for a content: leaving was the only way to send none.
            assert_eq!(smtp.send(&bob, TIMEOUT).await, sent());
            assert_eq!(server.connections(), 2);
            assert!(!server.verbs(0).contains(&".".to_owned()));
        } else {
            assert_eq!(smtp.send(&bob, TIMEOUT).await, sent());
            assert_eq!(server.connections(), 1);
            assert_eq!(server.verbs(0)[3], "RSET");
        }
    }
}

#[tokio::test]
async fn a_pipelining_server_that_refuses_the_recipient_and_data_is_spoken_to_further() {
    let server = Server::start(Options::default(), {
        let refused = AtomicBool::new(false);
        move |_, command| match command {
            "RCPT TO:<alice@shop.example>" => {
                refused.store(true, Ordering::Relaxed);
                Some(Act::Say("550 5.1.1 unknown"))
            }
            "DATA" if refused.swap(false, Ordering::Relaxed) => {
                Some(Act::Say("554 5.5.1 no valid recipients"))
            }
            _ => None,
        }
    })
    .await;
    let smtp = smtp(&server);
    let refused = send(&smtp).await;
    assert!(
        matches!(refused, Outcome::Permanent { reason, address_gone: true } if &*reason.code == "smtp-5.1.1")
    );
    let bob = delivery("bob@shop.example", mail());
    assert_eq!(smtp.send(&bob, TIMEOUT).await, sent());
    assert_eq!(server.connections(), 1);
    assert_eq!(server.verbs(0)[4], "RSET");
}

#[tokio::test]
async fn only_after_the_final_dot_is_the_outcome_unknown() {
    for (at, act, code) in [
        ("", Act::Close, "reset"),
        ("", Act::Hang, "timeout"),
        ("", Act::Say("HTTP/1.1 400 Bad Request"), "protocol"),
        ("EHLO", Act::Close, "reset"),
        ("MAIL", Act::Hang, "timeout"),
        ("RCPT", Act::Close, "reset"),
        ("DATA", Act::Hang, "timeout"),
        ("DATA", Act::Close, "reset"),
        ("DATA", Act::Say("250 what?"), "protocol"),
    ] {
        let most = if code == "timeout" { SHORT } else { TIMEOUT };
        let outcome = meet(at, act, most).await;
        assert!(
            matches!(&outcome, Outcome::Transient(r) if &*r.code == code),
            "{at} {act:?}: {outcome:?}"
        );
    }
    for (act, code) in [
        (Act::Close, "reset"),
        (Act::Hang, "timeout"),
        (Act::Say("what?"), "protocol"),
    ] {
        let most = if code == "timeout" {
            AFTER_ALL
        } else {
            TIMEOUT
        };
        let outcome = meet(".", act, most).await;
        assert!(
            matches!(&outcome, Outcome::Unknown(r) if &*r.code == code),
            "{act:?}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_reply_after_the_content_decides_by_its_code() {
    let outcome = meet(".", Act::Say("451 4.3.0 later"), TIMEOUT).await;
    assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "smtp-4.3.0"));
    let outcome = meet(".", Act::Say("554 5.7.1 spam"), TIMEOUT).await;
    assert!(
        matches!(outcome, Outcome::Permanent { reason, address_gone: false } if &*reason.code == "smtp-5.7.1")
    );
    let outcome = meet(".", Act::Last("421 4.3.2 shutting down"), TIMEOUT).await;
    assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "smtp-4.3.2"));
    let outcome = meet("", Act::Last("421 4.7.0 too many connections"), TIMEOUT).await;
    assert!(matches!(
        outcome,
        Outcome::Throttled {
            retry_after: None,
            ..
        }
    ));
}

#[tokio::test]
async fn a_server_that_hangs_up_within_the_content_is_heard_out() {
    let server = Server::start(Options::default(), |_, command| {
        (command == "DATA").then_some(Act::Last("354 go on\r\n552 5.3.4 too large"))
    })
    .await;
    let mut large = delivery(ALICE, mail());
    if let Rendered::Email { text, .. } = &mut large.content {
        *text = "much to say\n".repeat(500_000);
    }
    let outcome = smtp(&server).send(&large, TIMEOUT).await;
    assert!(
        matches!(&outcome, Outcome::Permanent { reason, .. } if &*reason.code == "smtp-5.3.4"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_connection_that_the_server_closed_meanwhile_is_replaced_and_costs_nothing() {
    // Hung up after the first mail; at the next mail's first command; with a last word at that moment.
    type Fault = fn(usize, &str) -> Option<Act>;
    let after_the_mail: Fault = |number, command| {
        (number == 0 && command == ".").then_some(Act::Last("250 2.0.0 Ok: queued as 4F3B2A"))
    };
    let at_the_next: Fault =
        |number, command| (number == 0 && command == "MAIL again").then_some(Act::Close);
    let with_a_last_word: Fault = |number, command| {
        (number == 0 && command == "MAIL again").then_some(Act::Last("421 4.4.2 idle too long"))
    };
    for fault in [after_the_mail, at_the_next, with_a_last_word] {
        let mails = std::sync::atomic::AtomicUsize::new(0);
        let server = Server::start(Options::default(), move |number, command| {
            let again = command.starts_with("MAIL") && mails.fetch_add(1, Ordering::Relaxed) > 0;
            fault(number, if again { "MAIL again" } else { command })
        })
        .await;
        let smtp = smtp(&server);
        assert_eq!(send(&smtp).await, sent());
        assert_eq!(send(&smtp).await, sent());
        assert_eq!(server.connections(), 2);
        let contents = |n| server.verbs(n).iter().filter(|v| *v == ".").count();
        assert_eq!((contents(0), contents(1)), (1, 1));
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_on_every_new_connection_is_not_tried_for_ever() {
    let server = Server::start(Options::default(), |_, command| {
        command.starts_with("MAIL").then_some(Act::Close)
    })
    .await;
    let outcome = send(&smtp(&server)).await;
    assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "reset"));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn nobody_listening_is_transient() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let outcome = send(&smtp_for(&spec(port), Path::new("/nowhere"))).await;
    assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "connect"));
}

#[tokio::test]
async fn a_private_server_needs_the_leave_of_both_the_channel_and_the_configuration() {
    let server = Server::start(Options::default(), |_, _| None).await;
    for (channel, configuration) in [(true, false), (false, true), (false, false)] {
        let mut spec = spec(server.address.port());
        spec.allow_private_addresses = channel;
        let mut context = context(Path::new("/nowhere"));
        context.allow_private_addresses = configuration;
        for host in ["localhost", "127.0.0.1"] {
            host.clone_into(&mut spec.host);
            let outcome = send(&Smtp::new("main", &spec, &context).unwrap()).await;
            assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "refused-address"));
        }
    }
    assert_eq!(server.connections(), 0);
}

fn write_login(root: &Path) {
    std::fs::create_dir(root.join("ses")).unwrap();
    std::fs::write(root.join("ses/username"), "shop\n").unwrap();
    std::fs::write(root.join("ses/password"), "hunter2\n").unwrap();
}

#[tokio::test]
async fn authentication_uses_what_the_server_offers() {
    let folder = tempfile::tempdir().unwrap();
    write_login(folder.path());
    for (offers, expected) in [
        ("AUTH_LOGIN_PLAIN", &["AUTH PLAIN AHNob3AAaHVudGVyMg=="][..]),
        ("AUTH_LOGIN", &["AUTH LOGIN", "c2hvcA==", "aHVudGVyMg=="]),
    ] {
        let server = Server::start(
            Options {
                offers,
                ..Options::default()
            },
            |_, command| match command {
                "AUTH LOGIN" | "c2hvcA==" => Some(Act::Say("334 VXNlcm5hbWU6")),
                "aHVudGVyMg==" => Some(Act::Say("235 2.7.0 welcome")),
                _ => None,
            },
        )
        .await;
        let mut spec = spec(server.address.port());
        spec.credentials_ref = Some(named("ses"));
        assert_eq!(send(&smtp_for(&spec, folder.path())).await, sent());
        assert_eq!(server.met(0)[1..=expected.len()], *expected);
    }
}

#[tokio::test]
async fn with_another_password_a_connection_of_the_old_one_is_not_used_again() {
    let folder = tempfile::tempdir().unwrap();
    write_login(folder.path());
    let options = Options {
        offers: "AUTH_PLAIN",
        ..Options::default()
    };
    let server = Server::start(options, |_, _| None).await;
    let mut spec = spec(server.address.port());
    spec.credentials_ref = Some(named("ses"));
    let smtp = smtp_for(&spec, folder.path());
    for _ in 0..2 {
        assert_eq!(send(&smtp).await, sent());
    }
    assert_eq!(server.connections(), 1);
    // As a mount does it: a new file takes the place of the old one.
    std::fs::write(folder.path().join("ses/new"), "hunter3").unwrap();
    std::fs::rename(
        folder.path().join("ses/new"),
        folder.path().join("ses/password"),
    )
    .unwrap();
    for _ in 0..2 {
        assert_eq!(send(&smtp).await, sent());
    }
    assert_eq!(server.connections(), 2);
    assert_eq!(server.met(1)[1], "AUTH PLAIN AHNob3AAaHVudGVyMw==");
}

#[tokio::test]
async fn a_wrong_password_kills_no_mail_and_appears_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    write_login(folder.path());
    let server = Server::start(
        Options {
            offers: "AUTH_PLAIN",
            ..Options::default()
        },
        |_, command| {
            command
                .starts_with("AUTH")
                .then_some(Act::Say("535 5.7.8 shop may not come in with hunter2"))
        },
    )
    .await;
    let mut spec = spec(server.address.port());
    spec.credentials_ref = Some(named("ses"));
    let Outcome::Transient(reason) = send(&smtp_for(&spec, folder.path())).await else {
        panic!("not transient");
    };
    assert_eq!(&*reason.code, "smtp-5.7.8");
    assert_eq!(reason.detail, "535 5.7.8 … may not come in with …");

    spec.credentials_ref = Some(named("absent"));
    let outcome = send(&smtp_for(&spec, folder.path())).await;
    assert!(
        matches!(outcome, Outcome::Transient(r) if &*r.code == "credentials" && r.detail.contains("absent"))
    );
}

#[tokio::test]
async fn tls_and_starttls_trust_the_given_authority_for_the_servers_name() {
    for (tls, implicit) in [(SmtpTls::Tls, true), (SmtpTls::StartTls, false)] {
        for (certified, expected) in [("localhost", true), ("other.example", false)] {
            let folder = tempfile::tempdir().unwrap();
            let server = Server::start(
                Options {
                    offers: "PIPELINING STARTTLS",
                    tls: Some(certify(certified, folder.path())),
                    implicit,
                },
                |_, _| None,
            )
            .await;
            let mut spec = spec(server.address.port());
            spec.tls = Some(tls);
            spec.ca_ref = Some(named("corp-ca"));
            let smtp = smtp_for(&spec, folder.path());
            if expected {
                assert_eq!(send(&smtp).await, sent());
                assert_eq!(send(&smtp).await, sent());
                assert_eq!(server.connections(), 1);
                continue;
            }
            let outcome = send(&smtp).await;
            assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "tls"));
            assert!(!server.verbs(0).contains(&"MAIL".to_owned()));

            // Nor does an authority that it was not told of suffice.
            spec.ca_ref = Some(named("corp-ca"));
            certify("localhost", folder.path());
            let outcome = send(&smtp_for(&spec, folder.path())).await;
            assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "tls"));
        }
    }
}

#[tokio::test]
async fn without_starttls_nothing_is_said_to_a_server_that_should_have_it() {
    let folder = tempfile::tempdir().unwrap();
    certify("localhost", folder.path());
    let server = Server::start(Options::default(), |_, _| None).await;
    let mut spec = spec(server.address.port());
    spec.tls = Some(SmtpTls::StartTls);
    spec.ca_ref = Some(named("corp-ca"));
    let outcome = send(&smtp_for(&spec, folder.path())).await;
    assert!(
        matches!(outcome, Outcome::Transient(r) if &*r.code == "tls" && r.detail.contains("STARTTLS"))
    );
    assert_eq!(server.verbs(0), ["EHLO"]);
}

#[tokio::test]
async fn words_slipped_in_before_the_handshake_are_not_taken_for_the_servers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(
        Options {
            offers: "STARTTLS",
            tls: Some(certify("localhost", folder.path())),
            implicit: false,
        },
        |_, command| (command == "STARTTLS").then_some(Act::Say("220 go on\r\n250 injected")),
    )
    .await;
    let mut spec = spec(server.address.port());
    spec.tls = Some(SmtpTls::StartTls);
    spec.ca_ref = Some(named("corp-ca"));
    let outcome = send(&smtp_for(&spec, folder.path())).await;
    assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "protocol"));
}

#[tokio::test]
async fn what_the_server_cannot_take_is_not_begun() {
    let server = Server::start(
        Options {
            offers: "SIZE_100",
            ..Options::default()
        },
        |_, _| None,
    )
    .await;
    let smtp = smtp(&server);
    let outcome = send(&smtp).await;
    assert!(
        matches!(outcome, Outcome::Permanent { reason, address_gone: false } if &*reason.code == "smtp-5.3.4")
    );
    let outcome = smtp
        .send(&delivery("jörg@shop.example", mail()), TIMEOUT)
        .await;
    assert!(matches!(outcome, Outcome::Permanent { reason, .. } if &*reason.code == "smtp-5.6.7"));
    assert_eq!(server.verbs(0), ["EHLO"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_sends_each_have_a_connection_and_no_more_are_kept_than_allowed() {
    let server = Server::start(Options::default(), |_, _| None).await;
    let smtp = Arc::new(smtp(&server));
    let mut sends = JoinSet::new();
    for n in 0..40 {
        let smtp = Arc::clone(&smtp);
        sends.spawn(async move {
            smtp.send(&delivery(&format!("{n}@shop.example"), mail()), TIMEOUT)
                .await
        });
    }
    assert!(
        sends
            .join_all()
            .await
            .into_iter()
            .all(|outcome| outcome == sent())
    );
    let mut kept = 0;
    while smtp.pool.take(None).await.is_some() {
        kept += 1;
    }
    assert!((1..=4).contains(&kept), "{kept}");
}

#[tokio::test]
async fn an_idle_connection_is_closed_with_a_word() {
    let server = Server::start(Options::default(), |_, _| None).await;
    let mut smtp = smtp(&server);
    smtp.pool = Pool::new(4, Duration::from_millis(50));
    assert_eq!(send(&smtp).await, sent());
    tokio::time::timeout(TIMEOUT, async {
        while server.verbs(0).last().is_none_or(|verb| verb != "QUIT") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn endless_replies_are_cut_off() {
    let line: &'static str = "x".repeat(100_000).leak();
    let lines: &'static str = "250-more\r\n".repeat(100).leak();
    for reply in [line, lines] {
        let outcome = meet("EHLO", Act::Say(reply), TIMEOUT).await;
        assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "protocol"));
    }
}

#[test]
fn a_sender_that_is_none_is_refused_at_once() {
    let mut spec = spec(25);
    "nobody".clone_into(&mut spec.from);
    let error = Smtp::new("main", &spec, &context(Path::new("/nowhere"))).unwrap_err();
    assert!(error.to_string().contains("main") && error.to_string().contains("nobody"));
}
