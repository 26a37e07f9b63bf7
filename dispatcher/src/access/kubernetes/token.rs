//! Tokens of service accounts, checked without the API server: JSON Web Tokens (RFC 7519) against the cluster's own keys.
//!
//! Only what Kubernetes signs with is understood: RS256, ES256 and ES384 (RFC 7518, section 3.1).

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use jiff::Timestamp;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

use super::reviews::Identity;

/// Most keys of a cluster: while they are rotated there are two.
const MOST_KEYS: usize = 64;

/// Clocks differ, in seconds: a token from this far ahead is taken.
const SKEW: i64 = 30;

/// What everything that a service account is called begins with.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// What a token says of itself, whether or not that is true.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    pub iss: String,
    #[serde(default)]
    pub sub: String,
    #[serde(default, deserialize_with = "one_or_more")]
    pub aud: Vec<String>,
    /// When it expires, in seconds since 1970.
    #[serde(default)]
    pub exp: Option<i64>,
    /// From when on it counts, in seconds since 1970.
    #[serde(default)]
    pub nbf: Option<i64>,
    #[serde(default, rename = "kubernetes.io")]
    bound: Bound,
}

/// To what a token is bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Bound {
    #[serde(default)]
    serviceaccount: Named,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Named {
    #[serde(default)]
    uid: Option<String>,
}

/// One audience or several (RFC 7519, section 4.1.3).
fn one_or_more<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Audience::deserialize(from)? {
        Audience::One(one) => vec![one],
        Audience::Several(several) => several,
    })
}

/// Why a token is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "this is not a token of a cluster; make one with kubectl create token NAME --audience {audience}"
    )]
    Read { audience: Arc<str> },
    #[error(
        "the token is for {}, not for {audience}; make one with kubectl create token NAME --audience {audience}, or \
         project one with that audience",
        if given.is_empty() { "nobody".to_owned() } else { given.join(", ") }
    )]
    Address {
        audience: Arc<str>,
        given: Vec<String>,
    },
    #[error("the token has expired")]
    Expire,
    #[error("the token does not count yet: the clocks differ, perhaps")]
    Begin,
    #[error("the token was not signed by this cluster")]
    Verify,
    #[error("the token is of nobody that can be known while the API server is away")]
    Know,
}

/// Whether a token could be good at all: it can be read, is for us, and has not expired. Asks nobody.
pub(super) fn look(token: &str, audience: &Arc<str>, now: Timestamp) -> Result<Claims, Refused> {
    let claims: Option<Claims> = (token.split('.').nth(1))
        .and_then(|claims| BASE64.decode(claims).ok())
        .and_then(|claims| serde_json::from_slice(&claims).ok());
    let is_jwt = token.split('.').count() == 3;
    let Some(claims) = claims.filter(|_| is_jwt) else {
        return Err(Refused::Read {
            audience: Arc::clone(audience),
        });
    };
    if !claims.aud.iter().any(|given| **given == **audience) {
        return Err(Refused::Address {
            audience: Arc::clone(audience),
            given: claims.aud,
        });
    }
    if claims.exp.is_some_and(|exp| exp <= now.as_second()) {
        return Err(Refused::Expire);
    }
    Ok(claims)
}

/// The keys with which a cluster signs, and what it calls itself.
#[derive(Debug, Default)]
pub(super) struct Keys {
    issuer: String,
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    public: Public,
}

#[derive(Debug)]
enum Public {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
}

/// A JSON Web Key (RFC 7517), as far as it matters here.
#[derive(Deserialize)]
struct Jwk {
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
    kty: String,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
}

impl Keys {
    /// Whether there are none.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Reads what `/.well-known/openid-configuration` and `/openid/v1/jwks` answered; keys of other kinds are left out.
    pub(super) fn read(configuration: &str, jwks: &str) -> serde_json::Result<Self> {
        let Configuration { issuer } = serde_json::from_str(configuration)?;
        let Jwks { keys } = serde_json::from_str(jwks)?;
        let keys = keys.into_iter().take(MOST_KEYS).filter_map(|key| {
            let key: Jwk = serde_json::from_value(key).ok()?;
            let public = match (key.kty.as_str(), key.crv.as_str()) {
                ("RSA", _) => Public::Rsa {
                    n: BASE64.decode(&key.n).ok()?,
                    e: BASE64.decode(&key.e).ok()?,
                },
                ("EC", "P-256") => Public::P256(point(&key)?),
                ("EC", "P-384") => Public::P384(point(&key)?),
                _ => return None,
            };
            Some(Key {
                id: key.kid,
                public,
            })
        });
        Ok(Self {
            issuer,
            keys: keys.collect(),
        })
    }

    /// Whether a token says that it is signed with one of these keys, and is not: nobody can take it for good.
    pub(super) fn is_forged(&self, token: &str, claims: &Claims) -> bool {
        let Some((header, signed, signature)) = parts(token) else {
            return true;
        };
        let mut keys = self
            .keys
            .iter()
            .filter(|key| key.id == header.kid)
            .peekable();
        claims.iss == self.issuer
            && keys.peek().is_some()
            && !keys.any(|key| key.signed(&header.alg, signed, &signature))
    }

    /// Whose token this is: its signature, issuer and times are right. It was [looked](look) at before.
    pub(super) fn verify(
        &self,
        token: &str,
        claims: &Claims,
        now: Timestamp,
    ) -> Result<Identity, Refused> {
        let Some((header, signed, signature)) = parts(token) else {
            return Err(Refused::Verify);
        };
        let mut keys = self.keys.iter().filter(|key| key.id == header.kid);
        if claims.iss != self.issuer || !keys.any(|key| key.signed(&header.alg, signed, &signature))
        {
            return Err(Refused::Verify);
        }
        // A token of a cluster always expires.
        if claims.exp.is_none_or(|exp| exp <= now.as_second()) {
            return Err(Refused::Expire);
        }
        if claims.nbf.is_some_and(|nbf| nbf > now.as_second() + SKEW) {
            return Err(Refused::Begin);
        }
        let who = claims.sub.strip_prefix(SERVICE_ACCOUNT);
        let Some((namespace, name)) = who.and_then(|who| who.split_once(':')) else {
            return Err(Refused::Know);
        };
        let mut identity = Identity::of_service_account(namespace, name);
        identity.uid.clone_from(&claims.bound.serviceaccount.uid);
        Ok(identity)
    }
}

/// A token's header, what of it is signed, and the signature; `None`: it is none.
fn parts(token: &str) -> Option<(Header, &[u8], Vec<u8>)> {
    let (signed, signature) = token.rsplit_once('.')?;
    let header = BASE64.decode(signed.split('.').next()?).ok()?;
    let header = serde_json::from_slice(&header).ok()?;
    Some((header, signed.as_bytes(), BASE64.decode(signature).ok()?))
}

impl Key {
    fn signed(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        let verified = match (&self.public, algorithm) {
            (Public::Rsa { n, e }, "RS256") => RsaPublicKeyComponents { n, e }.verify(
                &signature::RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
            (Public::P256(point), "ES256") => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
            }
            (Public::P384(point), "ES384") => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, signature)
            }
            _ => return false,
        };
        verified.is_ok()
    }
}

/// An uncompressed point (SEC 1, section 2.3.3).
fn point(key: &Jwk) -> Option<Vec<u8>> {
    let mut point = vec![4];
    point.extend(BASE64.decode(&key.x).ok()?);
    point.extend(BASE64.decode(&key.y).ok()?);
    Some(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7515, appendix A.2.
    #[test]
    fn a_signature_with_rsa_is_verified_and_one_of_something_else_is_not() {
        let jwks = r#"{"keys": [{"kty": "RSA", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}]}"#;
        let signed = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        let keys = Keys::read(r#"{"issuer": "joe"}"#, jwks).unwrap();
        let signature = BASE64.decode(signature).unwrap();
        let [key] = &keys.keys[..] else {
            panic!("{keys:?}");
        };
        assert!(key.signed("RS256", signed.as_bytes(), &signature));
        assert!(!key.signed("RS256", &signed.as_bytes()[1..], &signature));
        // The key says what it is for, not the token.
        assert!(!key.signed("ES256", signed.as_bytes(), &signature));
        assert!(!key.signed("none", signed.as_bytes(), b""));
    }
}
