//! Whether a recipient is right: the same rules for one request and for a million lines.

use std::collections::BTreeMap;

use herald_crds::address::{check_locale, check_recipient_id};
use herald_crds::validate::escape;
use herald_crds::{Problem, pattern};

use crate::store::Recipient;

/// Most labels of one recipient.
pub const MAX_LABELS: usize = 64;
/// Most characters of a label's key after its slash; before the slash there may be 253.
const MAX_LABEL_NAME: usize = 63;
/// Most bytes of a label's value: more than a selector can ask for, since templates read labels too.
const MAX_LABEL_VALUE: usize = 256;

/// Everything that is wrong with a recipient, with JSON Pointers into it; empty if it is good.
///
/// Addresses are checked as [`herald_crds::Address`] is, except that a recipient may have none: it can be known
/// before it can be reached. Pure, and without allocation for a good one.
pub fn problems(recipient: &Recipient) -> Vec<Problem> {
    let Recipient {
        id,
        locale,
        time_zone,
        addresses,
        labels,
    } = recipient;
    let mut problems = Vec::new();
    if let Err(words) = check_recipient_id(id) {
        problems.push(Problem::new("/id", format!("must be {words}")));
    }
    if let Some(locale) = locale
        && let Err(words) = check_locale(locale)
    {
        problems.push(Problem::new("/locale", format!("must be {words}")));
    }
    if let Some(zone) = time_zone
        && (zone.len() > 64 || jiff::tz::TimeZone::get(zone).is_err())
    {
        let message = "must be a time zone of the IANA database, such as Asia/Seoul";
        problems.push(Problem::new("/timeZone", message));
    }
    if addresses.locale.is_some() {
        let message =
            "a recipient's locale stands beside its addresses, not in them: move it to /locale";
        problems.push(Problem::new("/addresses/locale", message));
    } else if addresses.email.is_some() || addresses.phone.is_some() || addresses.webhook.is_some()
    {
        problems.extend(addresses.problems("/addresses"));
    }
    check_labels(labels, &mut problems);
    problems
}

fn check_labels(labels: &BTreeMap<String, String>, problems: &mut Vec<Problem>) {
    if labels.len() > MAX_LABELS {
        let message = format!(
            "may have at most {MAX_LABELS} labels (got {})",
            labels.len()
        );
        problems.push(Problem::new("/labels", message));
        return;
    }
    for (key, value) in labels {
        let name = key.rsplit('/').next().unwrap_or_default();
        let wrong = if name.len() > MAX_LABEL_NAME || key.len() > 254 + MAX_LABEL_NAME {
            Some(
                "a label's key may have at most 63 characters, and 253 before its slash".to_owned(),
            )
        } else if let Err(words) = pattern::check(pattern::LABEL_KEY, key) {
            Some(format!("the key must be {words}"))
        } else if value.len() > MAX_LABEL_VALUE {
            Some(format!(
                "a label's value may have at most {MAX_LABEL_VALUE} bytes"
            ))
        } else if let Err(words) = pattern::check(pattern::LINE, value) {
            Some(format!("the value must be {words}"))
        } else {
            None
        };
        if let Some(message) = wrong {
            problems.push(Problem::new(format!("/labels/{}", escape(key)), message));
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_crds::Address;

    use super::*;

    fn alice() -> Recipient {
        Recipient {
            id: "alice".to_owned(),
            locale: Some("pt-BR".to_owned()),
            time_zone: Some("Asia/Seoul".to_owned()),
            addresses: Address {
                email: Some("alice@shop.example".to_owned()),
                phone: Some("+821012345678".to_owned()),
                webhook: None,
                locale: None,
            },
            labels: BTreeMap::from([("tier".to_owned(), "vip".to_owned())]),
        }
    }

    #[test]
    fn a_good_recipient_has_no_problems_with_or_without_addresses() {
        assert_eq!(problems(&alice()), []);
        let unreachable = Recipient {
            addresses: Address::default(),
            ..alice()
        };
        assert_eq!(problems(&unreachable), []);
    }

    #[test]
    fn each_bound_is_reported_at_its_place() {
        let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let address = |set: fn(&mut Address)| {
            let mut recipient = alice();
            set(&mut recipient.addresses);
            recipient
        };
        let with = |set: &dyn Fn(&mut Recipient)| {
            let mut recipient = alice();
            set(&mut recipient);
            recipient
        };
        let cases = [
            ("/id", with(&|r| r.id = String::new())),
            ("/id", with(&|r| r.id = "a".repeat(129))),
            ("/id", with(&|r| r.id = "a b".to_owned())),
            ("/locale", with(&|r| r.locale = Some("korean!".to_owned()))),
            (
                "/timeZone",
                with(&|r| r.time_zone = Some("Mars/Olympus".to_owned())),
            ),
            (
                "/addresses/email",
                address(|a| a.email = Some("alice".to_owned())),
            ),
            (
                "/addresses/phone",
                address(|a| a.phone = Some("010-1234".to_owned())),
            ),
            (
                "/addresses/webhook",
                address(|a| a.webhook = Some("ftp://x.example".to_owned())),
            ),
            (
                "/addresses/locale",
                address(|a| a.locale = Some("ko".to_owned())),
            ),
            (
                "/labels",
                with(&|r| {
                    r.labels = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
                }),
            ),
            (
                "/labels/tier",
                with(&|r| r.labels = label("tier", &"x".repeat(257))),
            ),
            (
                "/labels/tier",
                with(&|r| r.labels = label("tier", "two\nlines")),
            ),
            (
                "/labels/no good",
                with(&|r| r.labels = label("no good", "x")),
            ),
        ];
        for (path, recipient) in cases {
            let found = problems(&recipient);
            assert_eq!(found.len(), 1, "{path}: {found:?}");
            assert_eq!(found[0].path, path);
        }
    }
}
