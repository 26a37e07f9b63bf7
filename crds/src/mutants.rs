//! Documents that are wrong in one known way each, made from good ones: for the tests of whatever checks documents.

mod broken;

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::validate::{FREE_OBJECT_BYTES, escape};
use crate::{Kind, crd};

use broken::{break_bound, break_rule};

/// A document with one thing wrong.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// What is wrong: the place in the schema and the bound (`Channel.concurrency maximum`), or the rule.
    pub name: String,
    /// The document.
    pub document: Value,
    /// Where it is wrong: a problem that is told must be here or below.
    pub path: String,
}

/// Every mutant of a good document of one of the kinds: for each bound of the schema that the document touches, for
/// each CEL rule there, and for each rule that only `validate()` knows. None for a document of no kind.
pub fn mutants(document: &Value) -> Vec<Mutant> {
    let Some(kind) = document["kind"].as_str().and_then(|kind| kind.parse().ok()) else {
        return Vec::new();
    };
    let mut maker = Maker {
        document,
        mutants: Vec::new(),
    };
    maker.bounds(
        crd::spec_schema(kind),
        &document["spec"],
        kind.as_str(),
        "/spec",
    );
    maker.metadata();
    match kind {
        Kind::Channel => maker.channel(),
        Kind::NotificationTemplate => maker.template(),
        Kind::RecipientGroup => maker.group(),
        Kind::Schedule => maker.schedule(),
    }
    maker.mutants
}

/// Every bound and CEL rule of a kind's schema, called as the mutants that break it. Rules that compare with what was
/// there before are not among them.
pub fn bounds(kind: Kind) -> Vec<String> {
    let mut names = Vec::new();
    walk(crd::spec_schema(kind), kind.as_str(), &mut names);
    names
}

fn walk(schema: &Value, place: &str, names: &mut Vec<String>) {
    for bound in BOUNDS {
        // One below zero is no length.
        if schema
            .get(bound)
            .is_some_and(|value| *value != 0 || bound == "minimum")
        {
            names.push(format!("{place} {bound}"));
        }
    }
    for required in strings(&schema["required"]) {
        names.push(format!("{place} required {required}"));
    }
    if ["map", "set"]
        .iter()
        .any(|kind| schema["x-kubernetes-list-type"] == *kind)
    {
        names.push(format!("{place} duplicate"));
    }
    for message in rules(schema) {
        names.push(format!("{place} rule: {message}"));
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        walk(schema, &format!("{place}.{name}"), names);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            walk(&schema[inner], &format!("{place}[]"), names);
        }
    }
}

const BOUNDS: [&str; 10] = [
    "enum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "pattern",
];

/// The messages of a schema's rules that do not compare with what was there before.
fn rules(schema: &Value) -> impl Iterator<Item = &str> {
    let rules = schema["x-kubernetes-validations"].as_array();
    rules
        .into_iter()
        .flatten()
        .filter(|rule| {
            !rule["rule"]
                .as_str()
                .is_some_and(|rule| rule.contains("oldSelf"))
        })
        .filter_map(|rule| rule["message"].as_str())
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

struct Maker<'a> {
    document: &'a Value,
    mutants: Vec<Mutant>,
}

impl Maker<'_> {
    /// A mutant in which the value at `path` is another.
    fn replace(&mut self, name: String, path: &str, value: Value) {
        let mut document = self.document.clone();
        if let Some(place) = document.pointer_mut(path) {
            *place = value;
            self.mutants.push(Mutant {
                name,
                document,
                path: path.to_owned(),
            });
        }
    }

    /// The last mutant is wrong in this member of what was replaced.
    fn told_at(&mut self, member: &str) {
        if let Some(last) = self.mutants.last_mut() {
            let _ = write!(last.path, "/{}", escape(member));
        }
    }

    /// A mutant with what `change` does to the spec, told at `path`; none if it does nothing.
    fn rule(&mut self, name: &str, path: &str, change: impl FnOnce(&mut Value) -> Option<()>) {
        let mut document = self.document.clone();
        if change(&mut document["spec"]).is_some() {
            self.mutants.push(Mutant {
                name: format!(
                    "{} {name}",
                    self.document["kind"].as_str().unwrap_or_default()
                ),
                document,
                path: path.to_owned(),
            });
        }
    }

    fn bounds(&mut self, schema: &Value, value: &Value, place: &str, path: &str) {
        for bound in BOUNDS {
            if let Some(broken) = break_bound(schema, bound, value) {
                self.replace(format!("{place} {bound}"), path, broken);
            }
        }
        let wrong = if value.is_boolean() {
            json!("maybe")
        } else {
            json!(true)
        };
        self.replace(format!("{place} type"), path, wrong);
        for message in rules(schema) {
            for broken in break_rule(message, value) {
                self.replace(format!("{place} rule: {message}"), path, broken);
            }
        }
        match value {
            Value::Object(object) => self.object(schema, object, place, path),
            Value::Array(items) => self.items(schema, items, place, path),
            _ => {}
        }
    }

    fn object(&mut self, schema: &Value, object: &Map<String, Value>, place: &str, path: &str) {
        if schema["x-kubernetes-preserve-unknown-fields"] == true {
            return;
        }
        for required in strings(&schema["required"]) {
            let mut broken = object.clone();
            broken.remove(required);
            self.replace(format!("{place} required {required}"), path, broken.into());
            self.told_at(required);
        }
        if schema["properties"].is_object() {
            let mut broken = object.clone();
            broken.insert("nonsense".to_owned(), json!(1));
            self.replace(format!("{place} unknown"), path, broken.into());
            self.told_at("nonsense");
        }
        for (key, value) in object {
            let path = format!("{path}/{}", escape(key));
            let (schema, place) = match schema["properties"].get(key) {
                Some(schema) => (schema, format!("{place}.{key}")),
                None => (&schema["additionalProperties"], format!("{place}[]")),
            };
            self.bounds(schema, value, &place, &path);
        }
    }

    fn items(&mut self, schema: &Value, items: &[Value], place: &str, path: &str) {
        let unique = ["map", "set"]
            .iter()
            .any(|kind| schema["x-kubernetes-list-type"] == *kind);
        if let Some(first) = items.first().filter(|_| unique) {
            let mut broken = items.to_vec();
            broken.push(first.clone());
            self.replace(format!("{place} duplicate"), path, broken.into());
        }
        for (index, item) in items.iter().enumerate() {
            self.bounds(
                &schema["items"],
                item,
                &format!("{place}[]"),
                &format!("{path}/{index}"),
            );
        }
    }

    fn metadata(&mut self) {
        let path = "/metadata/name";
        let names = [
            ("too long", json!("a".repeat(41))),
            ("no DNS label", json!("Shop_Mail")),
        ];
        for (what, name) in names {
            self.replace(format!("metadata.name {what}"), path, name);
        }
        self.replace("metadata.name missing".to_owned(), "/metadata", json!({}));
        self.told_at("name");
        self.replace(
            "another version".to_owned(),
            "/apiVersion",
            json!("herald.dev/v9"),
        );
        self.replace("another kind".to_owned(), "/kind", json!("Chanel"));
    }

    fn channel(&mut self) {
        let smtp = "/spec/providers/0/smtp";
        self.rule("providers of another medium", "/spec/providers/0", |spec| {
            let provider = &spec["providers"][0];
            let other = if provider.get("smtp").is_some() {
                "webhook"
            } else {
                "email"
            };
            provider.get("log").is_none().then_some(())?;
            spec["medium"] = json!(other);
            Some(())
        });
        self.rule("from is no mailbox", &format!("{smtp}/from"), |spec| {
            *spec.pointer_mut("/providers/0/smtp/from")? = json!("The shop");
            Some(())
        });
        self.rule("credentials in the clear", &format!("{smtp}/tls"), |spec| {
            let smtp = spec.pointer_mut("/providers/0/smtp")?;
            smtp["tls"] = json!("None");
            smtp["allowPrivateAddresses"] = json!(false);
            smtp["credentialsRef"] = json!({"name": "x"});
            Some(())
        });
        self.rule("a CA without TLS", &format!("{smtp}/caRef"), |spec| {
            let smtp = spec.pointer_mut("/providers/0/smtp")?;
            smtp["tls"] = json!("None");
            smtp["caRef"] = json!({"name": "x"});
            Some(())
        });
        let webhook = "/spec/providers/0/webhook";
        self.rule("url with a password", &format!("{webhook}/url"), |spec| {
            *spec.pointer_mut("/providers/0/webhook/url")? =
                json!("https://me:secret@shop.example/");
            Some(())
        });
        for name in ["Host", "webhook-signature", "X Y"] {
            let path = format!("{webhook}/headers/{name}");
            self.rule(&format!("header {name}"), &path, |spec| {
                spec.pointer_mut("/providers/0/webhook")?["headers"] = json!({name: "x"});
                Some(())
            });
        }
        self.rule("a url here and none there", "/spec/providers", |spec| {
            spec.pointer("/providers/0/webhook/url")?;
            let other = json!({"name": "other", "webhook": {}});
            spec["providers"].as_array_mut()?.push(other);
            Some(())
        });
        let rule = "/spec/providers/0/log/rules/1/recipient";
        self.rule("a rule that never counts", rule, |spec| {
            let rule = json!({"recipient": "*", "outcome": "Hang"});
            spec.pointer_mut("/providers/0/log")?["rules"] = json!([rule, rule]);
            Some(())
        });
        self.rule("shares of more than half", "/spec/priority", |spec| {
            spec["priority"] =
                json!({"high": {"sharePercent": 45}, "normal": {"sharePercent": 10}});
            Some(())
        });
        for (field, key, value) in [
            ("labels", "herald.dev/channel", "x"),
            ("labels", "tier", "not a value"),
            ("labels", "not a key", "x"),
            ("annotations", "herald.dev/x", "x"),
            ("serviceAccountAnnotations", "-", "x"),
            ("nodeSelector", "a/b/c", "x"),
        ] {
            let path = format!("/spec/pod/{field}/{}", escape(key));
            self.rule(&format!("pod.{field} {key}"), &path, |spec| {
                spec["pod"] = json!({field: {key: value}});
                Some(())
            });
        }
        for (name, index) in [("HERALD_X", 0), ("TWICE", 1)] {
            let path = format!("/spec/pod/env/{index}/name");
            self.rule(&format!("pod.env {name}"), &path, |spec| {
                let variable = json!({"name": name, "value": "x"});
                spec["pod"] = json!({"env": [variable, variable]});
                Some(())
            });
        }
        self.rule("pod.affinity too large", "/spec/pod/affinity", |spec| {
            let values = vec!["a".repeat(60); 400];
            let term =
                json!({"matchExpressions": [{"key": "a", "operator": "In", "values": values}]});
            let required = json!({"nodeSelectorTerms": [term]});
            spec["pod"] = json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": required}}});
            Some(())
        });
        self.rule(
            "no label of a namespace",
            "/spec/allowedNamespaces/selector",
            |spec| {
                let selector = json!({"matchLabels": {"a b": "x"}});
                spec["allowedNamespaces"] = json!({"from": "Selector", "selector": selector});
                Some(())
            },
        );
    }

    fn template(&mut self) {
        let large = "a".repeat(FREE_OBJECT_BYTES);
        self.rule("the same route twice", "/spec/routing/channels", |spec| {
            let routes = spec["routing"]["channels"].as_array_mut()?;
            let first = routes.first()?.clone();
            routes.push(first);
            Some(())
        });
        for (name, at, parameters) in [
            (
                "a remote $ref",
                "/properties/a/$ref",
                json!({"properties": {"a": {"$ref": "https://schemas.shop.example/a"}}}),
            ),
            (
                "another dialect",
                "/$schema",
                json!({"$schema": "http://json-schema.org/draft-07/schema#"}),
            ),
            (
                "parameters without names",
                "/type",
                json!({"type": "array"}),
            ),
            (
                "parameters that are no schema",
                "/required",
                json!({"required": "all"}),
            ),
            ("parameters too large", "", json!({"description": large})),
        ] {
            self.rule(name, &format!("/spec/parameters{at}"), |spec| {
                spec["parameters"] = parameters;
                spec["sensitive"] = json!([]);
                Some(())
            });
        }
        self.rule("sensitive leads nowhere", "/spec/sensitive/0", |spec| {
            spec["parameters"]["properties"].as_object()?;
            spec["sensitive"] = json!(["/kode"]);
            Some(())
        });
        self.rule(
            "a mail of more than 64 KiB",
            "/spec/content/email",
            |spec| {
                spec.pointer_mut("/content/email")?["html"] = json!("가".repeat(30_000));
                Some(())
            },
        );
        for (medium, field) in [("sms", "text"), ("webhook", "body")] {
            let path = format!("/spec/content/{medium}");
            self.rule(&format!("{medium} of more than 64 KiB"), &path, |spec| {
                spec["content"].get_mut(medium)?[field] = json!("가".repeat(30_000));
                Some(())
            });
        }
        for name in ["Subject", "bcc", "X:Y"] {
            let path = format!("/spec/content/email/headers/{name}");
            self.rule(&format!("header {name}"), &path, |spec| {
                spec.pointer_mut("/content/email")?["headers"] = json!({name: "x"});
                Some(())
            });
        }
        self.rule(
            "a header of two lines",
            "/spec/content/email/headers/X-A",
            |spec| {
                spec.pointer_mut("/content/email")?["headers"] = json!({"X-A": "x\r\nBcc: y"});
                Some(())
            },
        );
        for (what, locale) in [("no language", "deutsch!"), ("the default language", "EN")] {
            self.rule(
                &format!("a translation into {what}"),
                &format!("/spec/translations/{locale}"),
                |spec| {
                    spec["defaultLocale"] = json!("en");
                    spec["translations"] = json!({locale: spec["content"]});
                    Some(())
                },
            );
        }
        self.rule(
            "a translation of nothing",
            "/spec/translations/fr/sms",
            |spec| {
                spec["content"].as_object_mut()?.remove("sms");
                spec["content"]["webhook"] = json!({});
                spec["translations"] = json!({"fr": {"sms": {"text": "bonjour"}}});
                Some(())
            },
        );
        self.rule("a partial's name", "/spec/partials/a~1b", |spec| {
            spec["partials"] = json!({"a/b": "x"});
            Some(())
        });
        self.rule("partials too large", "/spec/partials", |spec| {
            spec["partials"] = json!({"a": large, "b": large, "c": "x"});
            Some(())
        });
        self.rule("a sample too large", "/spec/samples/0/parameters", |spec| {
            spec.pointer_mut("/samples/0")?["parameters"] = json!({"a": large});
            Some(())
        });
    }

    fn group(&mut self) {
        self.recipients("members");
        self.rule(
            "a selector's key",
            "/spec/selector/matchLabels/a b",
            |spec| {
                spec["selector"] = json!({"matchLabels": {"a b": "x"}});
                Some(())
            },
        );
        self.rule(
            "a selector's value",
            "/spec/selector/matchLabels/a",
            |spec| {
                spec["selector"] = json!({"matchLabels": {"a": "b c"}});
                Some(())
            },
        );
    }

    fn recipients(&mut self, field: &str) {
        self.rule(
            "the same recipient twice",
            &format!("/spec/{field}"),
            |spec| {
                let recipients = spec.get_mut(field)?.as_array_mut()?;
                let first = recipients.first()?.clone();
                recipients.push(first);
                Some(())
            },
        );
        for (member, bad) in [
            ("email", "a..b@shop.example"),
            ("webhook", "https://a:b@shop.example"),
        ] {
            let path = format!("/spec/{field}/0/address/{member}");
            self.rule(
                &format!("an address whose {member} is none"),
                &path,
                |spec| {
                    spec[field] = json!([{"address": {member: bad}}]);
                    Some(())
                },
            );
        }
    }

    fn schedule(&mut self) {
        self.recipients("recipients");
        for (what, cron) in [
            ("no cron", "60 9 * * *"),
            ("six fields", "0 0 9 * * *"),
            ("a day that never comes", "0 9 31 2 *"),
        ] {
            self.rule(what, "/spec/schedule", |spec| {
                *spec.get_mut("schedule")? = json!(cron);
                Some(())
            });
        }
        self.rule("a date that is none", "/spec/at", |spec| {
            *spec.get_mut("at")? = json!("2026-02-30T18:00");
            Some(())
        });
        self.rule("a time zone that is none", "/spec/timeZone", |spec| {
            spec["timeZone"] = json!("Mars/Base");
            Some(())
        });
        self.rule("parameters too large", "/spec/parameters", |spec| {
            spec["parameters"] = json!({"a": "a".repeat(FREE_OBJECT_BYTES)});
            Some(())
        });
    }
}
