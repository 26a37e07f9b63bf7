//! What is wrong with each kind is told, with what to do; what was mended becomes Ready.

use anyhow::ensure;
use serde_json::{Value, json};

use super::Stage;
use super::herald::{Team, condition, is, until_some};
use super::namespace::with_namespace;

/// One thing that is wrong.
struct Case {
    /// The bad resource, and what it needs to be bad.
    bad: Vec<Value>,
    /// `kind/name` of what it is told of.
    of: &'static str,
    told: Told,
    reason: &'static str,
    /// What the message has to say, among other things.
    says: String,
    /// What mends it.
    cure: Vec<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It has to be edited.
    Stalled,
    /// It waits for something else.
    Waiting,
}

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "stalled", async |_, namespace| {
        let team = stage.team(&namespace)?;
        team.apply(&[
            team.mail("mail"),
            team.template("good", "good", &["mail"]),
            group(&team, "good", "good@people.example"),
        ])?;
        team.ready("channel/mail").await?;
        let mut cases = templates(&team);
        cases.extend(channels(&team));
        cases.extend(groups(&team));
        cases.extend(schedules(&team));
        let taken = taken(&team);
        for case in cases.iter().chain([&taken]) {
            team.apply(&case.bad)?;
        }
        told(&team, &taken).await?;
        for case in &cases {
            told(&team, case).await?;
        }
        // A Secret without the label is none: it would be mounted by whoever can name it.
        team.apply(&[secret(&team, false)])?;
        let unlabelled = cases.iter().filter(|case| case.reason == "SecretMissing");
        for case in unlabelled {
            told(&team, case).await?;
        }
        for case in &cases {
            team.apply(&case.cure)?;
        }
        for case in &cases {
            let found = team.ready(case.of).await?;
            ensure!(
                condition(&found, "Stalled").is_none() && condition(&found, "Reconciling").is_none(),
                "{} is mended, and still told of: {}", case.of, found["status"]
            );
            event(&team, case.of, "Normal", None).await?;
        }
        // What is mended by nobody's edit: it is looked for.
        team.kubectl(&["delete", "serviceaccount", "herald-taken"])?;
        team.ready("channel/taken").await?;
        cases.push(taken);
        let stalled = cases.iter().filter(|case| case.told == Told::Stalled).count();
        Ok(format!(
            "{stalled} stalled and {} that waited for something said what to do, in a condition and an Event; mended, all ready",
            cases.len() - stalled
        ))
    })
    .await
}

/// Waits until it is told as it has to be, in a condition and in an Event.
async fn told(team: &Team<'_>, case: &Case) -> anyhow::Result<()> {
    let kind = match case.told {
        Told::Stalled => "Stalled",
        Told::Waiting => "Reconciling",
    };
    let expected = format!("{kind} with {}, which says {:?}", case.reason, case.says);
    team.until(case.of, &expected, |found| {
        let is_so = |kind: &str| {
            condition(found, kind).is_some_and(|condition| {
                let message = condition["message"].as_str().unwrap_or_default();
                condition["reason"] == case.reason && message.contains(&case.says)
            })
        };
        is(found, "Ready", "False") && is(found, kind, "True") && is_so("Ready") && is_so(kind)
    })
    .await?;
    event(team, case.of, "Warning", Some(case)).await
}

/// Waits for an Event of a resource.
async fn event(team: &Team<'_>, of: &str, kind: &str, case: Option<&Case>) -> anyhow::Result<()> {
    let (_, name) = of.split_once('/').unwrap_or_default();
    let about = format!("involvedObject.name={name},type={kind}");
    until_some(&format!("an Event of {of}, {kind}"), async || {
        let events = [
            "get",
            "events",
            "--output",
            "json",
            "--field-selector",
            &about,
        ];
        let events: Value = serde_json::from_str(&team.kubectl(&events)?)?;
        let is_it = |event: &Value| {
            let message = event["message"].as_str().unwrap_or_default();
            let of = of.split_once('/').map(|(kind, _)| kind);
            let kind = event["involvedObject"]["kind"]
                .as_str()
                .map(str::to_lowercase);
            kind.as_deref() == of
                && case.is_none_or(|case| {
                    event["reason"] == case.reason && message.contains(&case.says)
                })
        };
        let found = events["items"]
            .as_array()
            .is_some_and(|all| all.iter().any(is_it));
        Ok(found.then_some(()))
    })
    .await
}

fn templates(team: &Team<'_>) -> Vec<Case> {
    let good = |name: &str| vec![team.template(name, "good", &["mail"])];
    let stalled = |of: &'static str, reason, says: &str, bad: Value| Case {
        cure: good(of.split_once('/').unwrap_or_default().1),
        bad: vec![bad],
        of,
        told: Told::Stalled,
        reason,
        says: says.to_owned(),
    };
    let syntax = team.template("syntax", "{{ name", &["mail"]);
    let mut sample = team.template("sample", "to {{ name }}", &["mail"]);
    sample["spec"]["samples"] = json!([{"name": "typical", "parameters": {}}]);
    let mut nothing = team.template("nothing", "x", &["mail"]);
    nothing["spec"]["content"] = json!({"sms": {"text": "nothing for a mail"}});
    let mut schema = team.template("schema", "x", &["mail"]);
    schema["spec"]["parameters"] = json!({"type": "array"});
    vec![
        stalled(
            "notificationtemplate/syntax",
            "DoesNotCompile",
            "/spec/content/email/subject",
            syntax,
        ),
        stalled(
            "notificationtemplate/sample",
            "DoesNotRender",
            "/spec/samples/0",
            sample,
        ),
        stalled(
            "notificationtemplate/nothing",
            "InvalidRoute",
            "content has no email block",
            nothing,
        ),
        stalled(
            "notificationtemplate/schema",
            "InvalidSpec",
            "/spec/parameters/type",
            schema,
        ),
        Case {
            bad: vec![team.template("early", "early", &["late"])],
            of: "notificationtemplate/early",
            told: Told::Waiting,
            reason: "ChannelMissing",
            says: format!("there is no Channel {}/late", team.namespace),
            cure: vec![team.mail("late")],
        },
    ]
}

fn channels(team: &Team<'_>) -> Vec<Case> {
    let provider = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut channel = team.mail(name);
        change(&mut channel["spec"]["providers"][0]["smtp"]);
        channel
    };
    let authority = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "corp-ca", "namespace": team.namespace},
        "data": {"ca.crt": "none that is used"},
    });
    vec![
        Case {
            bad: vec![provider("sender", &|smtp| smtp["from"] = json!("the desk"))],
            of: "channel/sender",
            told: Told::Stalled,
            reason: "InvalidSpec",
            says: "/spec/providers/0/smtp/from".to_owned(),
            cure: vec![team.mail("sender")],
        },
        Case {
            bad: vec![provider("login", &|smtp| {
                smtp["credentialsRef"] = json!({"name": "login"});
            })],
            of: "channel/login",
            told: Told::Waiting,
            reason: "SecretMissing",
            says: format!(
                "there is no Secret {}/login with the label herald.dev/credentials=true",
                team.namespace
            ),
            cure: vec![secret(team, true)],
        },
        Case {
            bad: vec![provider("trust", &|smtp| {
                smtp["tls"] = json!("StartTls");
                smtp["caRef"] = json!({"name": "corp-ca"});
            })],
            of: "channel/trust",
            told: Told::Waiting,
            reason: "ConfigMapMissing",
            says: format!("there is no ConfigMap {}/corp-ca", team.namespace),
            cure: vec![authority],
        },
    ]
}

/// A Channel whose children's name somebody else has: nothing of theirs becomes the Channel's, and goes with it.
fn taken(team: &Team<'_>) -> Case {
    let theirs = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "herald-taken", "namespace": team.namespace},
    });
    Case {
        bad: vec![theirs, team.mail("taken")],
        of: "channel/taken",
        told: Told::Stalled,
        reason: "NameTaken",
        says: format!(
            "ServiceAccount {}/herald-taken is somebody else's",
            team.namespace
        ),
        cure: Vec::new(),
    }
}

fn groups(team: &Team<'_>) -> Vec<Case> {
    let of = |name: &str, member: &str| {
        let spec = json!({"members": [{"group": member}]});
        team.resource("RecipientGroup", name, spec)
    };
    vec![
        Case {
            bad: vec![of("round", "about"), of("about", "round")],
            of: "recipientgroup/round",
            told: Told::Stalled,
            reason: "Circle",
            says: "round → about → round".to_owned(),
            cure: vec![group(team, "about", "about@people.example")],
        },
        Case {
            bad: vec![of("board", "absent")],
            of: "recipientgroup/board",
            told: Told::Waiting,
            reason: "GroupMissing",
            says: format!("there is no RecipientGroup {}/absent", team.namespace),
            cure: vec![group(team, "absent", "absent@people.example")],
        },
    ]
}

fn schedules(team: &Team<'_>) -> Vec<Case> {
    let schedule = |name: &str, template: &str, zone: &str| {
        let spec = json!({
            "schedule": "0 9 * * MON", "timeZone": zone, "template": template,
            "recipients": [{"group": "good"}],
        });
        team.resource("Schedule", name, spec)
    };
    let refused = |account: &str| {
        let mut refused = schedule("refused", "good", "UTC");
        refused["spec"]["schedule"] = json!("* * * * *");
        refused["spec"]["serviceAccountName"] = json!(account);
        refused
    };
    vec![
        Case {
            bad: vec![refused("default")],
            of: "schedule/refused",
            told: Told::Waiting,
            reason: "SendRefused",
            says: "may not".to_owned(),
            cure: vec![refused("sender")],
        },
        Case {
            bad: vec![schedule("orphan", "to-come", "UTC")],
            of: "schedule/orphan",
            told: Told::Waiting,
            reason: "ReferenceMissing",
            says: format!(
                "there is no NotificationTemplate {}/to-come",
                team.namespace
            ),
            cure: vec![team.template("to-come", "here it is", &["mail"])],
        },
        Case {
            bad: vec![schedule("far", "good", "Mars/Base")],
            of: "schedule/far",
            told: Told::Stalled,
            reason: "InvalidSpec",
            says: "/spec/timeZone".to_owned(),
            cure: vec![schedule("far", "good", "UTC")],
        },
    ]
}

fn group(team: &Team<'_>, name: &str, address: &str) -> Value {
    let spec = json!({"members": [{"address": {"email": address}}]});
    team.resource("RecipientGroup", name, spec)
}

fn secret(team: &Team<'_>, labelled: bool) -> Value {
    let mut secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "login", "namespace": team.namespace},
        "stringData": {"username": "desk", "password": "crocus"},
    });
    if labelled {
        secret["metadata"]["labels"] = json!({"herald.dev/credentials": "true"});
    }
    secret
}
