//! Tokens that Pulsar believes: JWT with HMAC-SHA-256 (RFC 7519, RFC 7515), of which it knows the key.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// A token for `role` that is valid for so long; `None`: for ever.
pub fn token(key: &[u8], role: &str, valid: Option<Duration>) -> String {
    let header = serde_json::json!({"alg": "HS256"});
    let mut claims = serde_json::json!({"sub": role});
    if let Some(valid) = valid {
        let end = SystemTime::now() + valid;
        let seconds = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        claims["exp"] = seconds.into();
    }
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let text = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("any length will do"));
    mac.update(text.as_bytes());
    format!("{text}.{}", encode(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signature is what Python's `hmac` makes of it.
    #[test]
    fn a_token_is_what_others_expect() {
        let token = token(b"0123456789abcdef0123456789abcdef", "admin", None);
        let mut parts = token.split('.');
        let (header, claims) = (parts.next().unwrap(), parts.next().unwrap());
        assert_eq!(header, "eyJhbGciOiJIUzI1NiJ9");
        assert_eq!(claims, "eyJzdWIiOiJhZG1pbiJ9");
        assert_eq!(
            parts.next().unwrap(),
            "0bxzb1SDWhnB92NzINxpHEYH5S-sdhp-eIIKOtGDgyg"
        );
    }
}
