//! A receiver of webhooks that checks whom they are from (Standard Webhooks).

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;

use super::arrived::{Arrived, Webhook};

/// How far a timestamp may be off: an older request may be somebody's recording.
const TOLERANCE: Duration = Duration::from_secs(300);

/// Longest body.
const LONGEST_BODY: usize = 2 * 1024 * 1024;

/// What is said of a webhook that is from who it says.
const VERIFIED: &str = "signature verified";

/// Bytes of a signing secret that is made here.
const SECRET_BYTES: usize = 32;

/// A signing secret, `whsec_` and base64.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Reads it.
    pub fn new(text: &str) -> anyhow::Result<Self> {
        let text = text
            .strip_prefix("whsec_")
            .context("a signing secret begins with whsec_")?;
        let key = BASE64_STANDARD
            .decode(text)
            .context("a signing secret is base64 after whsec_")?;
        ensure!(!key.is_empty(), "the signing secret is empty");
        Ok(Self(key))
    }

    /// The secret in a file; one of chance is put there if there is none, which its owner alone can read.
    pub fn of_file(file: &Path) -> anyhow::Result<Self> {
        if !file.exists() {
            let folder = file.parent().context("a secret's file is in a folder")?;
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            let secret = BASE64_STANDARD.encode(rand::random::<[u8; SECRET_BYTES]>());
            File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(file)
                .and_then(|mut file| writeln!(file, "whsec_{secret}"))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::new(text.trim_end()).with_context(|| {
            format!(
                "{} holds no signing secret; remove it to have another made",
                file.display()
            )
        })
    }

    /// Whether one of the signatures is made with this secret.
    fn has_signed(&self, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
        let candidates = signatures
            .split(' ')
            .filter_map(|one| one.strip_prefix("v1,"));
        candidates
            .filter_map(|one| BASE64_STANDARD.decode(one).ok())
            .any(|signature| {
                let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
                    return false;
                };
                for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                    mac.update(part);
                }
                // Takes as long for a wrong signature as for a right one.
                mac.verify_slice(&signature).is_ok()
            })
    }
}

/// The receiver.
#[derive(Clone)]
struct Receiver {
    arrived: Arc<Arrived>,
    secret: Option<Secret>,
}

/// Takes webhooks at `/webhook`; with a secret, only those that are signed with it.
pub fn router(arrived: Arc<Arrived>, secret: Option<Secret>) -> Router {
    Router::new()
        .route("/webhook", post(receive))
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(Receiver { arrived, secret })
}

async fn receive(
    State(receiver): State<Receiver>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    let now = Timestamp::now();
    let checked = check(receiver.secret.as_ref(), &headers, &body, now);
    let answer = match checked {
        Ok(_) => (StatusCode::OK, ""),
        Err(why) => (StatusCode::UNAUTHORIZED, why),
    };
    let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    receiver.arrived.webhook(Webhook {
        number: 0,
        at: now,
        id: field("webhook-id").unwrap_or_default().to_owned(),
        signature: checked.unwrap_or_else(|why| why).to_owned(),
        headers: headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    answer
}

fn check(
    secret: Option<&Secret>,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<&'static str, &'static str> {
    let Some(secret) = secret else {
        return Ok("unsigned: the Channel has no credentialsRef");
    };
    let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(id), Some(timestamp), Some(signatures)) = (
        field("webhook-id"),
        field("webhook-timestamp"),
        field("webhook-signature"),
    ) else {
        return Err("not signed");
    };
    let sent = timestamp.parse().map_err(|_| "the timestamp is none")?;
    let sent = Timestamp::from_second(sent).map_err(|_| "the timestamp is none")?;
    if sent.duration_since(now).unsigned_abs() > TOLERANCE {
        return Err("too old");
    }
    if secret.has_signed(id, timestamp, body, signatures) {
        Ok(VERIFIED)
    } else {
        Err("signed with another secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with the reference implementation: `Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").sign(…)`.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SIGNATURE: &str = "v1,9o7UeFkn1GjVbcY4emAJruJCYqgH2EIf8u/slvVRBZI=";
    const SENT: i64 = 1_614_265_330;

    fn headers(signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_1".parse().unwrap());
        headers.insert("webhook-timestamp", SENT.to_string().parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        headers
    }

    fn checked(headers: &HeaderMap, body: &[u8], after: i64) -> Result<&'static str, &'static str> {
        let secret = Secret::new(SECRET).unwrap();
        let now = Timestamp::from_second(SENT + after).unwrap();
        check(Some(&secret), headers, body, now)
    }

    #[test]
    fn what_the_reference_implementation_signed_is_valid_and_nothing_else() {
        let body = br#"{"test": 2432232314}"#;
        assert_eq!(checked(&headers(SIGNATURE), body, 10), Ok(VERIFIED));
        let among_others = format!("v1,AAAA {SIGNATURE} v2,x");
        assert_eq!(checked(&headers(&among_others), body, 10), Ok(VERIFIED));
        assert!(checked(&headers(SIGNATURE), b"other", 10).is_err());
        assert!(checked(&headers("v1,AAAA"), body, 10).is_err());
        assert!(checked(&headers(SIGNATURE), body, 301).is_err());
        assert!(checked(&HeaderMap::new(), body, 0).is_err());
    }

    #[test]
    fn a_secret_is_made_once_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secrets/warehouse-signing/secret");
        let made = Secret::of_file(&file).unwrap();
        assert_eq!(made.0.len(), SECRET_BYTES);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(
            Secret::of_file(&file).unwrap().0 == made.0,
            "the same again"
        );
        let another = Secret::of_file(&folder.path().join("other")).unwrap();
        assert!(another.0 != made.0, "each is of chance");

        fs::write(&file, "").unwrap();
        let error = Secret::of_file(&file).err().unwrap().to_string();
        assert!(error.contains("remove it"), "{error}");
    }

    #[test]
    fn without_a_secret_everything_is_taken() {
        let taken = check(None, &HeaderMap::new(), b"", Timestamp::UNIX_EPOCH);
        assert!(taken.unwrap().starts_with("unsigned"));
    }

    #[test]
    fn a_secret_that_is_none_is_refused() {
        for wrong in ["MfKQ", "whsec_", "whsec_?"] {
            assert!(Secret::new(wrong).is_err(), "{wrong}");
        }
    }
}
