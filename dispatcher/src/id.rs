//! Ids: what makes a repeat recognisable.
//!
//! Ids are derived, not drawn, wherever a repeat must meet its first: a notification's from its Idempotency-Key, a
//! delivery's from what it is. They are lower-case hexadecimal wherever a person or JSON sees them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

macro_rules! hex_id {
    ($name:ident, $bytes:literal) => {
        impl $name {
            /// Its bytes, as SQL stores them.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// From the bytes that SQL stored; `None` if there are not exactly as many as an id has.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let mut text = [0_u8; $bytes * 2];
                for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
                    pair[0] = DIGITS[usize::from(byte >> 4)];
                    pair[1] = DIGITS[usize::from(byte & 15)];
                }
                f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;

            fn from_str(text: &str) -> Result<Self, MalformedId> {
                let malformed = || MalformedId {
                    expected: $bytes * 2,
                };
                if text.len() != $bytes * 2 {
                    return Err(malformed());
                }
                let mut bytes = [0_u8; $bytes];
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                    let digit = |c: u8| match c {
                        b'0'..=b'9' => Ok(c - b'0'),
                        b'a'..=b'f' => Ok(c - b'a' + 10),
                        _ => Err(malformed()),
                    };
                    *byte = digit(pair[0])? << 4 | digit(pair[1])?;
                }
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "an id of {} hexadecimal digits", $bytes * 2)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

/// A resource's full name, `namespace/name`.
pub type FullName = Arc<str>;

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id: {expected} lower-case hexadecimal digits are expected")]
pub struct MalformedId {
    /// How many digits an id of this kind has.
    pub expected: usize,
}

/// One accepted notification: 128 bits, 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NotificationId([u8; 16]);

hex_id!(NotificationId, 16);

impl NotificationId {
    /// The id of whatever `sender` sends in `namespace` under this Idempotency-Key: the same for every repeat.
    pub fn from_key(namespace: &str, sender: &str, key: &str) -> Self {
        let digest = hash(&[namespace, sender, key]);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(bytes)
    }

    /// An id for a notification without an Idempotency-Key.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// One message to one recipient on one channel: 96 bits, 24 hexadecimal digits.
///
/// The first 32 bits are the notification's and the next 32 the recipient's [`order`], so that rows resolved in that
/// order grow the store's index at one end; the last 32 are of everything that makes the delivery what it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId([u8; 12]);

hex_id!(DeliveryId, 12);

impl DeliveryId {
    /// The id of the delivery to `recipient` at `endpoint` over `channel` (`namespace/name`).
    ///
    /// `step` counts the steps of an escalation and `revision` the revisions of a notification; both are 0 so far.
    pub fn new(
        notification: &NotificationId,
        recipient: &str,
        channel: &str,
        step: u16,
        endpoint: &str,
        revision: u16,
    ) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(notification.0);
        for part in [recipient, channel, endpoint] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(step.to_le_bytes());
        hasher.update(revision.to_le_bytes());
        let digest = hasher.finalize();
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&notification.0[..4]);
        // A bare address has no recipient to tell it from others of the notification.
        let who = if recipient.is_empty() {
            endpoint
        } else {
            recipient
        };
        bytes[4..8].copy_from_slice(&order(who).to_be_bytes());
        bytes[8..].copy_from_slice(&digest[..4]);
        Self(bytes)
    }
}

/// Where a recipient stands when the members of a group are resolved: by hash, which is as good as any order and the
/// one in which delivery ids grow.
pub fn order(recipient: &str) -> u32 {
    let digest = hash(&[recipient]);
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// SHA-256 over parts, each preceded by its length, so that no two lists of parts look alike.
pub fn hash(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_the_same_id_every_time_and_parts_do_not_run_into_each_other() {
        let id = NotificationId::from_key("shop", "orders", "1");
        assert_eq!(id, NotificationId::from_key("shop", "orders", "1"));
        assert_ne!(id, NotificationId::from_key("shop", "order", "s1"));
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn what_is_not_an_id_says_how_many_digits_one_has() {
        for wrong in [
            "",
            "xyz",
            "ABCDEFABCDEFABCDEFABCDEF",
            "g00000000000000000000000",
        ] {
            let error = wrong.parse::<DeliveryId>().unwrap_err();
            assert!(error.to_string().contains("24"));
        }
    }

    #[test]
    fn bare_addresses_of_one_notification_do_not_share_ids() {
        let notification = NotificationId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        // Their digests agree in the last 32 bits of the id.
        let [one, other] = ["user22932@customers.example", "user40555@customers.example"]
            .map(|endpoint| DeliveryId::new(&notification, "", "shop/mail", 0, endpoint, 0));
        assert_eq!(one.as_bytes()[8..], other.as_bytes()[8..]);
        assert_ne!(one, other);
    }

    #[test]
    fn deliveries_of_one_notification_are_ordered_as_their_recipients() {
        let notification = NotificationId::random();
        let mut people: Vec<String> = (0..100).map(|n| format!("person-{n}")).collect();
        people.sort_by_key(|p| order(p));
        let ids: Vec<DeliveryId> = people
            .iter()
            .map(|p| DeliveryId::new(&notification, p, "shop/mail", 0, "a@b.example", 0))
            .collect();
        assert!(ids.is_sorted());
    }
}
