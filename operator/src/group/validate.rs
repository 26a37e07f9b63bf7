//! Whether a group can be resolved. Pure.

use herald_crds::{Kind, RecipientGroup, ResourceSet, Validate as _};
use kube::ResourceExt as _;

use crate::status::{Because, Verdict, sentence};

/// What is wrong with a group of `set`; `None`: nothing.
pub fn validate(group: &RecipientGroup, set: &ResourceSet) -> Option<Verdict> {
    let problems = group.validate();
    if !problems.is_empty() {
        let because = Because::new("InvalidSpec", sentence(&problems));
        return Some(Verdict::Stalled(because));
    }
    let (namespace, name) = (group.namespace().unwrap_or_default(), group.name_any());
    let findings = set.problems().into_iter().filter(|finding| {
        finding.kind == Kind::RecipientGroup
            && finding.namespace == namespace
            && finding.name == name
    });
    let (waits, stalls): (Vec<_>, Vec<_>) = findings.partition(|finding| finding.waits);
    let told = |findings: &[herald_crds::Finding]| sentence(findings.iter().map(|f| &f.problem));
    if !stalls.is_empty() {
        Some(Verdict::Stalled(Because::new("Circle", told(&stalls))))
    } else if !waits.is_empty() {
        Some(Verdict::Waiting(Because::new("GroupMissing", told(&waits))))
    } else {
        None
    }
}
