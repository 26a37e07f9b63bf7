//! The patterns of the schemas, each with the words that explain it.
//!
//! They keep to what RE2 (the API server), `regex` and ECMA 262 read alike.

use std::sync::LazyLock;

use regex::Regex;

/// A DNS label (RFC 1123): what resources of Kubernetes and of Herald are called.
pub const DNS_LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// A DNS subdomain (RFC 1123): what Secrets, `ConfigMap`s and service accounts are called.
pub const DNS_SUBDOMAIN: &str =
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// A host name or an IP address, without a port.
pub const HOST: &str = r"^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$|^[0-9A-Fa-f:.]+$";
/// A recipient's id in the directory.
pub const RECIPIENT_ID: &str = "^[A-Za-z0-9][-A-Za-z0-9._@:+]*$";
/// A mail address, as far as a pattern can tell; [`crate::address::check_email`] tells more.
pub const EMAIL: &str = r"^[^@\s<>]+@[^@\s<>]+$";
/// A telephone number in the E.164 form.
pub const PHONE: &str = r"^\+[1-9][0-9]{6,14}$";
/// An absolute http or https URL, as far as a pattern can tell.
pub const HTTP_URL: &str = r"^https?://[^\s/?#]+[^\s]*$";
/// A language tag (BCP 47), without extensions.
pub const LOCALE: &str = "^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$";
/// A JSON Pointer (RFC 6901) to something inside a document.
pub const JSON_POINTER: &str = "^(/([^/~]|~[01])*)+$";
/// One line: no control characters.
pub const LINE: &str = r"^[^\x00-\x1f\x7f]*$";
/// A local date and time, to the minute or the second.
pub const LOCAL_TIME: &str = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?$";
/// An environment variable's name.
pub const ENV_NAME: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
/// A header field's name (RFC 9110, RFC 5322).
pub const HEADER_NAME: &str = "^[A-Za-z0-9][-A-Za-z0-9_]*$";
/// A label's key (Kubernetes): a name, perhaps with a DNS subdomain and a slash before it.
pub const LABEL_KEY: &str =
    r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
/// A label's value (Kubernetes).
pub const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// Every pattern, with what it asks for as the end of a sentence that begins with "must be".
const ALL: [(&str, &str); 15] = [
    (
        DNS_LABEL,
        "a DNS label: lower-case letters, digits and '-', with a letter or digit at both ends",
    ),
    (
        DNS_SUBDOMAIN,
        "a DNS name: lower-case letters, digits, '-' and '.'",
    ),
    (
        HOST,
        "a host name or an IP address, without scheme and port",
    ),
    (
        RECIPIENT_ID,
        "a recipient's id: letters, digits and . _ @ : + -, with a letter or digit first",
    ),
    (EMAIL, "a mail address such as alice@shop.example"),
    (
        PHONE,
        "a telephone number in the E.164 form, such as +821012345678",
    ),
    (HTTP_URL, "an absolute http or https URL"),
    (LOCALE, "a language tag such as ko or pt-BR"),
    (JSON_POINTER, "a JSON Pointer such as /order/id"),
    (LINE, "one line, without control characters"),
    (LOCAL_TIME, "a local date and time such as 2026-12-24T18:00"),
    (
        ENV_NAME,
        "an environment variable's name: letters, digits and '_'",
    ),
    (
        HEADER_NAME,
        "a header field's name: letters, digits, '-' and '_'",
    ),
    (LABEL_KEY, "a label's key such as tier or shop.example/tier"),
    (
        LABEL_VALUE,
        "a label's value: letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    ),
];

static COMPILED: LazyLock<Vec<(&str, &str, Option<Regex>)>> = LazyLock::new(|| {
    let compile = |(pattern, words)| (pattern, words, Regex::new(pattern).ok());
    ALL.into_iter().map(compile).collect()
});

/// Whether `text` is what `pattern`, one of the above, describes; if not, what it must be.
///
/// A pattern that is not one of the above accepts everything: a test holds the schemas to these.
pub fn check(pattern: &str, text: &str) -> Result<(), &'static str> {
    match COMPILED.iter().find(|(known, ..)| *known == pattern) {
        Some((_, words, Some(regex))) if !regex.is_match(text) => Err(words),
        _ => Ok(()),
    }
}

/// Whether this is one of the patterns above.
#[cfg(test)]
pub(crate) fn is_known(pattern: &str) -> bool {
    COMPILED
        .iter()
        .any(|(known, _, regex)| *known == pattern && regex.is_some())
}

/// Whether what the pattern describes may be somebody's, so that a message about it does not show it.
pub(crate) fn is_personal(pattern: &str) -> bool {
    [EMAIL, PHONE, HTTP_URL, RECIPIENT_ID].contains(&pattern)
}
