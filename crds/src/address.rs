//! Where somebody is reached, and who is meant.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{Medium, Problem, pattern};

/// Where somebody is reached: what a recipient of the directory has, or what a sender gives instead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.email) || has(self.phone) || has(self.webhook)")
    .message("an address needs at least one of email, phone and webhook"))]
pub struct Address {
    /// Mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 254), regex(pattern = pattern::EMAIL))]
    pub email: Option<String>,
    /// Telephone number in the E.164 form, such as +821012345678: for text messages and calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = pattern::PHONE))]
    pub phone: Option<String>,
    /// http or https URL of a system that takes webhooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = pattern::HTTP_URL))]
    pub webhook: Option<String>,
    /// Language tag (BCP 47) that chooses the translation. Default: the template's defaultLocale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 35), regex(pattern = pattern::LOCALE))]
    pub locale: Option<String>,
}

impl Address {
    /// The endpoint that `medium` sends to; `None` if this address has none for it.
    ///
    /// Push, chat and inbox always answer `None`: they reach recipients of the directory, not addresses.
    pub fn usable(&self, medium: Medium) -> Option<&str> {
        match medium {
            Medium::Email => self.email.as_deref(),
            Medium::Sms | Medium::Voice => self.phone.as_deref(),
            Medium::Webhook => self.webhook.as_deref(),
            Medium::Push | Medium::Chat | Medium::Inbox => None,
        }
    }
}

/// Who is meant: exactly one of somebody in the directory, everybody in a group, or a bare address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("[has(self.recipient), has(self.group), has(self.address)].exists_one(x, x)")
    .message("give exactly one of recipient, group and address"))]
pub struct RecipientRef {
    /// Id of a recipient in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = pattern::RECIPIENT_ID))]
    pub recipient: Option<String>,
    /// Name of a RecipientGroup of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40), regex(pattern = pattern::DNS_LABEL))]
    pub group: Option<String>,
    /// Somebody outside the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
}

/// What a [`RecipientRef`] says, as Rust can match it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'a> {
    /// The recipient of the directory with this id.
    Recipient(&'a str),
    /// Everybody in the group of this name.
    Group(&'a str),
    /// Somebody outside the directory.
    Address(&'a Address),
}

impl RecipientRef {
    /// Who is meant; `None` unless exactly one member is set.
    pub fn who(&self) -> Option<Who<'_>> {
        match (&self.recipient, &self.group, &self.address) {
            (Some(id), None, None) => Some(Who::Recipient(id)),
            (None, Some(name), None) => Some(Who::Group(name)),
            (None, None, Some(address)) => Some(Who::Address(address)),
            _ => None,
        }
    }
}

impl Address {
    /// Everything that is wrong with it; `at` is the JSON Pointer of the address itself.
    ///
    /// No schema is asked: this is what every inline recipient of a request goes through.
    pub fn problems(&self, at: &str) -> Vec<Problem> {
        let Self {
            email,
            phone,
            webhook,
            locale,
        } = self;
        let mut problems = Vec::new();
        let mut check = |field: &str, result: Result<(), &str>| {
            if let Err(words) = result {
                problems.push(Problem::new(
                    format!("{at}/{field}"),
                    format!("must be {words}"),
                ));
            }
        };
        if let Some(email) = email {
            check("email", check_email(email));
        }
        if let Some(phone) = phone {
            check("phone", pattern::check(pattern::PHONE, phone));
        }
        if let Some(webhook) = webhook {
            check("webhook", check_url(webhook));
        }
        if let Some(locale) = locale {
            check("locale", check_locale(locale));
        }
        if email.is_none() && phone.is_none() && webhook.is_none() {
            let message = "an address needs at least one of email, phone and webhook";
            problems.push(Problem::new(at, message));
        }
        problems
    }
}

impl RecipientRef {
    /// Everything that is wrong with it; `at` is its own JSON Pointer.
    pub fn problems(&self, at: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.who().is_none() {
            let message = "give exactly one of recipient, group and address";
            problems.push(Problem::new(at, message));
        }
        if let Some(id) = &self.recipient
            && let Err(words) = check_recipient_id(id)
        {
            problems.push(Problem::new(
                format!("{at}/recipient"),
                format!("must be {words}"),
            ));
        }
        if let Some(group) = &self.group
            && (group.len() > 40 || pattern::check(pattern::DNS_LABEL, group).is_err())
        {
            let message =
                "must be the name of a RecipientGroup: a DNS label of at most 40 characters";
            problems.push(Problem::new(format!("{at}/group"), message));
        }
        if let Some(address) = &self.address {
            problems.extend(address.problems(&format!("{at}/address")));
        }
        problems
    }
}

/// Whether `text` is an id that the directory takes; if not, what it must be.
pub fn check_recipient_id(text: &str) -> Result<(), &'static str> {
    if text.len() > 128 {
        return Err("at most 128 characters long");
    }
    pattern::check(pattern::RECIPIENT_ID, text)
}

/// Whether `text` is a language tag that Herald takes; if not, what it must be.
pub fn check_locale(text: &str) -> Result<(), &'static str> {
    if text.len() > 35 {
        return Err("at most 35 characters long");
    }
    pattern::check(pattern::LOCALE, text)
}

/// Whether `text` is a mail address that Herald sends to; if not, what it must be.
///
/// What RFC 5321 (section 4.1.2) calls a Mailbox, without quoted local parts and address literals, which nobody's
/// customers have, and in ASCII: at most 64 octets before the @ and 254 altogether (section 4.5.3.1, erratum 1690).
pub fn check_email(text: &str) -> Result<(), &'static str> {
    const WORDS: &str = "a mail address such as alice@shop.example";
    let Some((local, domain)) = text.split_once('@') else {
        return Err(WORDS);
    };
    if text.len() > 254 || local.len() > 64 {
        return Err("a mail address of at most 254 characters, 64 of them before the @");
    }
    if !text.is_ascii() {
        return Err("a mail address in ASCII; write an international domain in its xn-- form");
    }
    let atom = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b))
    };
    if local.split('.').all(atom) && is_domain(domain) {
        Ok(())
    } else {
        Err(WORDS)
    }
}

fn is_domain(domain: &str) -> bool {
    domain.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// Whether `text` is a mailbox as a header has it, `orders@shop.example` or `Shop <orders@shop.example>`; if not,
/// what it must be.
pub fn check_mailbox(text: &str) -> Result<(), &'static str> {
    const WORDS: &str = "a mailbox such as \"Shop <orders@shop.example>\"";
    if text.chars().any(char::is_control) {
        return Err(WORDS);
    }
    match text.split_once('<') {
        None => check_email(text.trim()),
        Some((name, rest)) => match rest.trim_end().strip_suffix('>') {
            Some(address) if !name.contains(['>', '@']) => check_email(address),
            _ => Err(WORDS),
        },
    }
}

/// Whether `text` is a URL that Herald sends requests to; if not, what it must be.
///
/// Absolute, http or https, with a host, without a user, a password or a fragment, in printable ASCII.
pub fn check_url(text: &str) -> Result<(), &'static str> {
    const WORDS: &str = "an absolute http or https URL such as https://hooks.shop.example/herald";
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .ok_or(WORDS)?;
    if text.len() > 2048 {
        return Err("a URL of at most 2048 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a URL in ASCII, without spaces: write others as %XX");
    }
    if rest.contains('#') {
        return Err("a URL without a fragment (#…)");
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("a URL without user and password: credentials belong in a Secret");
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_is_good = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_domain(host.strip_suffix('.').unwrap_or(host)),
    };
    if port_is_good && host_is_good {
        Ok(())
    } else {
        Err(WORDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_addresses_are_told_from_what_is_none() {
        for good in [
            "alice@shop.example",
            "a.b+c@x-y.example",
            "o'hara@localhost",
        ] {
            assert_eq!(check_email(good), Ok(()), "{good}");
        }
        let long = format!("{}@shop.example", "a".repeat(65));
        let longer = format!("a@{}example", "a.".repeat(130));
        for bad in [
            "",
            "alice",
            "@shop.example",
            "alice@",
            "a@b@c",
            "a b@shop.example",
            "a..b@shop.example",
            ".a@shop.example",
            "a@-shop.example",
            "a@shop..example",
            "a@shop.example\r\nBcc: b@shop.example",
            "Alice <alice@shop.example>",
            "ålice@shop.example",
            &long,
            &longer,
        ] {
            assert!(check_email(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn mailboxes_may_have_a_name() {
        for good in [
            "orders@shop.example",
            "Shop <orders@shop.example>",
            "<orders@shop.example>",
            "가게 <orders@shop.example>",
        ] {
            assert_eq!(check_mailbox(good), Ok(()), "{good}");
        }
        for bad in [
            "Shop",
            "Shop <orders>",
            "Shop <orders@shop.example",
            "a@b.example <c@d.example>",
            "Shop\r\nBcc: x <a@b.example>",
        ] {
            assert!(check_mailbox(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn urls_are_absolute_and_carry_no_password() {
        for good in [
            "http://127.0.0.1:8090/webhook",
            "https://hooks.shop.example",
            "https://[::1]:8443/x?y=z",
            "http://shop?x",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "shop.example",
            "ftp://shop.example",
            "https://",
            "https:///x",
            "https://user:word@shop.example/",
            "https://shop.example/a b",
            "https://shop.example:0/",
            "https://shop.example:99999/",
            "https://shop.example/#a",
            "https://[zz]/",
            "https://shop_example/",
        ] {
            assert!(check_url(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_address_answers_for_its_mediums_alone() {
        let address = Address {
            phone: Some("+821012345678".to_owned()),
            ..Address::default()
        };
        assert_eq!(address.usable(Medium::Sms), Some("+821012345678"));
        assert_eq!(address.usable(Medium::Voice), Some("+821012345678"));
        assert_eq!(address.usable(Medium::Email), None);
        assert_eq!(address.usable(Medium::Inbox), None);
    }

    #[test]
    fn every_problem_of_a_recipient_is_told_with_its_path() {
        let recipient: RecipientRef = serde_json::from_value(serde_json::json!({
            "group": "VIP",
            "address": {"email": "nobody", "phone": "123", "webhook": "x", "locale": "?"},
        }))
        .unwrap();
        let problems = recipient.problems("/recipients/3");
        let paths: Vec<_> = problems.into_iter().map(|p| p.path).collect();
        assert_eq!(
            paths,
            [
                "/recipients/3",
                "/recipients/3/group",
                "/recipients/3/address/email",
                "/recipients/3/address/phone",
                "/recipients/3/address/webhook",
                "/recipients/3/address/locale",
            ]
        );
    }
}
