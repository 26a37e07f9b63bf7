//! The groups that a request names, as they were at acceptance.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use herald_crds::RecipientGroupSpec;

use crate::catalog::Snapshot;
use crate::fanout::definitions::MOST_BYTES as MOST_UNPACKED;
use crate::id::FullName;
use crate::message::DefinitionHash;

/// Most bytes of a packed definition.
pub(super) const MOST_PACKED: usize = 256 * 1024;

/// Most sets of groups whose packed form is kept.
const KEPT: usize = 256;

/// A definition as it travels: its hash, and base64 of zstd of its canonical JSON.
pub(super) type Packed = (DefinitionHash, Arc<str>);

/// Why groups have no definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoDefinition {
    /// `group` names a group, `missing`, that is not there.
    Missing {
        /// The group that was named in the request.
        root: FullName,
        /// The one that names the missing one.
        group: FullName,
        /// The missing one.
        missing: FullName,
    },
    /// Packed they have more than 256 KiB.
    TooLarge,
}

/// Closes and packs sets of groups, and remembers those of the catalog's present state.
#[derive(Debug, Default)]
pub(super) struct Groups(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// The state that they are of.
    snapshot: Option<Arc<Snapshot>>,
    packed: HashMap<Vec<FullName>, Packed>,
}

impl Groups {
    /// The definition of `roots`, which are sorted and in `snapshot`: they and every group they contain.
    pub(super) fn definition(
        &self,
        snapshot: &Arc<Snapshot>,
        roots: &[FullName],
    ) -> Result<Packed, NoDefinition> {
        if let Some(packed) = self.kept(snapshot, roots) {
            return Ok(packed);
        }
        let packed = pack(&closure(snapshot, roots)?)?;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_current = kept
            .snapshot
            .as_ref()
            .is_some_and(|of| Arc::ptr_eq(of, snapshot));
        if !is_current || kept.packed.len() >= KEPT {
            kept.packed.clear();
            kept.snapshot = Some(Arc::clone(snapshot));
        }
        kept.packed.insert(roots.to_vec(), packed.clone());
        Ok(packed)
    }

    fn kept(&self, snapshot: &Arc<Snapshot>, roots: &[FullName]) -> Option<Packed> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = kept.snapshot.as_ref()?;
        if !Arc::ptr_eq(of, snapshot) {
            return None;
        }
        kept.packed.get(roots).cloned()
    }
}

/// Every group that can be reached from `roots`.
fn closure<'a>(
    snapshot: &'a Snapshot,
    roots: &'a [FullName],
) -> Result<BTreeMap<&'a str, &'a RecipientGroupSpec>, NoDefinition> {
    let mut found = BTreeMap::new();
    for root in roots {
        let mut open: Vec<(FullName, FullName)> = vec![(Arc::clone(root), Arc::clone(root))];
        while let Some((from, name)) = open.pop() {
            let Some((name, group)) = snapshot.groups.get_key_value(&name) else {
                return Err(NoDefinition::Missing {
                    root: Arc::clone(root),
                    group: from,
                    missing: name,
                });
            };
            if found.insert(&**name, &group.spec).is_some() {
                continue;
            }
            let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
            for inner in group.spec.members.iter().filter_map(|m| m.group.as_deref()) {
                open.push((Arc::clone(name), format!("{namespace}/{inner}").into()));
            }
        }
    }
    Ok(found)
}

fn pack(groups: &BTreeMap<&str, &RecipientGroupSpec>) -> Result<Packed, NoDefinition> {
    let mut value = serde_json::to_value(groups).unwrap_or_default();
    value.sort_all_objects();
    let json = value.to_string();
    if json.len() > MOST_UNPACKED {
        return Err(NoDefinition::TooLarge);
    }
    let hash = herald_crds::definition::hash_json(&json);
    let packed = zstd::encode_all(json.as_bytes(), 0)
        .map(|zipped| STANDARD.encode(zipped))
        .ok()
        .filter(|packed| packed.len() <= MOST_PACKED)
        .ok_or(NoDefinition::TooLarge)?;
    Ok((hash.into(), packed.into()))
}

#[cfg(test)]
mod tests {
    use herald_crds::{RecipientGroup, RecipientRef};

    use super::*;

    fn group(members: &[&str]) -> Arc<RecipientGroup> {
        let member = |name: &&str| RecipientRef {
            group: Some((*name).to_owned()),
            ..RecipientRef::default()
        };
        let spec = RecipientGroupSpec {
            members: members.iter().map(member).collect(),
            managed: true,
            ..RecipientGroupSpec::default()
        };
        Arc::new(RecipientGroup::new("unnamed", spec))
    }

    fn snapshot(groups: &[(&str, &[&str])]) -> Arc<Snapshot> {
        let groups = groups
            .iter()
            .map(|(name, members)| ((*name).into(), group(members)));
        Arc::new(Snapshot {
            groups: groups.collect(),
            ..Snapshot::default()
        })
    }

    fn names(packed: &Packed) -> Vec<String> {
        let zipped = STANDARD.decode(&*packed.1).unwrap();
        let json = zstd::decode_all(&*zipped).unwrap();
        let groups: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&json).unwrap();
        groups.into_keys().collect()
    }

    #[test]
    fn the_closure_has_every_group_once_also_in_a_circle() {
        let snapshot = snapshot(&[
            ("shop/a", &["b", "c"]),
            ("shop/b", &["c"]),
            ("shop/c", &["a"]),
            ("shop/d", &[]),
        ]);
        let packed = Groups::default().definition(&snapshot, &["shop/a".into()]);
        assert_eq!(names(&packed.unwrap()), ["shop/a", "shop/b", "shop/c"]);
    }

    #[test]
    fn a_missing_inner_group_is_named_with_the_one_that_names_it() {
        let snapshot = snapshot(&[("shop/a", &["b"]), ("shop/b", &["gone"])]);
        let refused = Groups::default().definition(&snapshot, &["shop/a".into()]);
        assert_eq!(
            refused,
            Err(NoDefinition::Missing {
                root: "shop/a".into(),
                group: "shop/b".into(),
                missing: "shop/gone".into(),
            })
        );
    }

    #[test]
    fn what_is_remembered_is_of_the_present_state_alone() {
        let groups = Groups::default();
        let roots = ["shop/a".into()];
        let before = snapshot(&[("shop/a", &[])]);
        let after = snapshot(&[("shop/a", &["b"]), ("shop/b", &[])]);
        let first = groups.definition(&before, &roots).unwrap();
        assert_eq!(groups.definition(&before, &roots), Ok(first.clone()));
        assert_ne!(groups.definition(&after, &roots), Ok(first.clone()));
        assert_eq!(groups.definition(&before, &roots), Ok(first));
    }
}
