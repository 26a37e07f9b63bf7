//! Whether a Schedule can be sent. Pure.

use herald_crds::{Kind, ResourceSet, Schedule, Validate as _};
use kube::ResourceExt as _;

use crate::status::{Because, Verdict, sentence};

/// What is wrong with a Schedule of `set`; `None`: nothing.
pub fn validate(schedule: &Schedule, set: &ResourceSet) -> Option<Verdict> {
    let problems = schedule.validate();
    if !problems.is_empty() {
        let because = Because::new("InvalidSpec", sentence(&problems));
        return Some(Verdict::Stalled(because));
    }
    let (namespace, name) = (
        schedule.namespace().unwrap_or_default(),
        schedule.name_any(),
    );
    let findings = set.problems().into_iter().filter(|finding| {
        finding.kind == Kind::Schedule && finding.namespace == namespace && finding.name == name
    });
    let (waits, stalls): (Vec<_>, Vec<_>) = findings.partition(|finding| finding.waits);
    let told = |findings: &[herald_crds::Finding]| sentence(findings.iter().map(|f| &f.problem));
    if !stalls.is_empty() {
        Some(Verdict::Stalled(Because::new(
            "CannotBeSent",
            told(&stalls),
        )))
    } else if !waits.is_empty() {
        Some(Verdict::Waiting(Because::new(
            "ReferenceMissing",
            told(&waits),
        )))
    } else {
        None
    }
}
