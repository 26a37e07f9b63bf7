//! Signatures of Standard Webhooks (<https://www.standardwebhooks.com>), version 1: HMAC-SHA256.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Most secrets that one request is signed with.
const MAX_SECRETS: usize = 4;

/// Accepts secrets with and without padding, since both are about.
const SECRET: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A signing secret that is none. Never says what it is instead.
#[derive(Debug, thiserror::Error)]
#[error(
    "the signing secret must be whsec_ and base64, or up to {MAX_SECRETS} of them separated by spaces while one replaces another"
)]
pub struct ParseSecretError;

/// The value of `webhook-signature`: one signature for each secret, so that receivers can change theirs at leisure.
///
/// `timestamp` is in seconds since 1970 and must be the value of `webhook-timestamp`.
pub fn sign(
    secrets: &str,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> Result<String, ParseSecretError> {
    let mut signatures = String::new();
    for (count, secret) in secrets.split_whitespace().enumerate() {
        let key = SECRET
            .decode(secret.strip_prefix("whsec_").unwrap_or(secret))
            .map_err(|_| ParseSecretError)?;
        if key.is_empty() || count == MAX_SECRETS {
            return Err(ParseSecretError);
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).map_err(|_| ParseSecretError)?;
        mac.update(id.as_bytes());
        mac.update(b".");
        mac.update(timestamp.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        if count > 0 {
            signatures.push(' ');
        }
        signatures.push_str("v1,");
        general_purpose::STANDARD.encode_string(mac.finalize().into_bytes(), &mut signatures);
    }
    if signatures.is_empty() {
        return Err(ParseSecretError);
    }
    Ok(signatures)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_vector_of_the_specification_s_libraries_is_met() {
        let signature = sign(
            SECRET,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(
            signature.unwrap(),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn while_a_secret_is_replaced_both_sign() {
        let both = sign(&format!("{SECRET} whsec_AAAA\n"), "id", 1, b"{}").unwrap();
        let one = sign(SECRET, "id", 1, b"{}").unwrap();
        let other = sign("AAAA", "id", 1, b"{}").unwrap();
        assert_eq!(both, format!("{one} {other}"));
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_repeated() {
        for wrong in ["", "whsec_", "whsec_***", "A A A A A", "not base64!"] {
            assert!(sign(wrong, "id", 1, b"").is_err(), "{wrong}");
        }
        assert!(!ParseSecretError.to_string().contains("MfKQ"));
    }
}
