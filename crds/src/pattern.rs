//! The patterns of the schemas, each with the sentence that explains it.
//!
//! They keep to what RE2 (the API server), `regex` and ECMA 262 read alike.

/// A DNS label (RFC 1123): what resources of Kubernetes and of Herald are called.
pub const DNS_LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// A DNS subdomain (RFC 1123): what Secrets, `ConfigMap`s and service accounts are called.
pub const DNS_SUBDOMAIN: &str =
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// A host name or an IP address, without a port.
pub const HOST: &str = r"^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$|^[0-9A-Fa-f:.]+$";
/// A recipient's id in the directory.
pub const RECIPIENT_ID: &str = "^[A-Za-z0-9][-A-Za-z0-9._@:+]*$";
/// A mail address, as far as a pattern can tell.
pub const EMAIL: &str = r"^[^@\s<>]+@[^@\s<>]+$";
/// A telephone number in the E.164 form.
pub const PHONE: &str = r"^\+[1-9][0-9]{6,14}$";
/// An absolute http or https URL.
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

/// What a pattern asks for, as the end of a sentence that begins with "must be".
pub fn explain(pattern: &str) -> Option<&'static str> {
    Some(match pattern {
        DNS_LABEL => {
            "a DNS label: lower-case letters, digits and '-', with a letter or digit at both ends"
        }
        DNS_SUBDOMAIN => "a DNS name: lower-case letters, digits, '-' and '.'",
        HOST => "a host name or an IP address, without scheme and port",
        RECIPIENT_ID => {
            "a recipient's id: letters, digits and . _ @ : + -, with a letter or digit first"
        }
        EMAIL => "a mail address such as alice@shop.example",
        PHONE => "a telephone number in the E.164 form, such as +821012345678",
        HTTP_URL => "an absolute http or https URL",
        LOCALE => "a language tag such as ko or pt-BR",
        JSON_POINTER => "a JSON Pointer such as /order/id",
        LINE => "one line, without control characters",
        LOCAL_TIME => "a local date and time such as 2026-12-24T18:00",
        ENV_NAME => "an environment variable's name: letters, digits and '_'",
        _ => return None,
    })
}
