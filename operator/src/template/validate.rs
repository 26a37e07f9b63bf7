//! Whether a template can be rendered and has somewhere to go. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use herald_crds::render::Compiled;
use herald_crds::{
    Definition, Kind, Medium, NotificationTemplate, Problem, ResourceSet, Validate as _,
};
use kube::ResourceExt as _;

use crate::status::{Because, Verdict, sentence};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What it is when it is rendered; `None`: it does not compile.
    pub compiled: Option<Facts>,
    /// What is wrong; `None`: nothing.
    pub verdict: Option<Verdict>,
    /// The templates whose partials it includes; `None`: it does not compile, so any may be missed.
    pub includes: Option<BTreeSet<String>>,
}

/// What a template is when it is rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its definition's name.
    pub hash: String,
    /// The mediums it has something to say over.
    pub mediums: Vec<Medium>,
    /// The languages it speaks.
    pub locales: Vec<String>,
}

/// Looks at a template of `set`.
pub fn validate(template: &NotificationTemplate, set: &ResourceSet) -> Outcome {
    let stalled = |reason, problems: &[Problem]| Outcome {
        compiled: None,
        verdict: Some(Verdict::Stalled(Because::new(reason, sentence(problems)))),
        includes: None,
    };
    let namespace = template.namespace().unwrap_or_default();
    let name = template.name_any();
    let problems = template.validate();
    if !problems.is_empty() {
        return stalled("InvalidSpec", &problems);
    }
    let definition = match Definition::of(set, &namespace, &name) {
        Some(Ok(definition)) => definition,
        Some(Err(problems)) => return not_compiled(&name, &problems),
        None => return stalled("InvalidSpec", &[]),
    };
    let owners = definition.partials.keys();
    let includes = owners.filter_map(|full| Some(full.split_once('/')?.0.to_owned()));
    let includes = includes.collect();
    let hash = definition.hash();
    let compiled = match Compiled::new(Arc::new(definition)) {
        Ok(compiled) => compiled,
        Err(problems) => return stalled("DoesNotRender", &problems),
    };
    let findings = set.problems().into_iter().filter(|finding| {
        finding.kind == Kind::NotificationTemplate
            && finding.namespace == namespace
            && finding.name == name
    });
    let (waits, stalls): (Vec<_>, Vec<_>) = findings.partition(|finding| finding.waits);
    let told = |findings: &[herald_crds::Finding]| sentence(findings.iter().map(|f| &f.problem));
    let verdict = if !stalls.is_empty() {
        Some(Verdict::Stalled(Because::new(
            "InvalidRoute",
            told(&stalls),
        )))
    } else if !waits.is_empty() {
        Some(Verdict::Waiting(Because::new(
            "ChannelMissing",
            told(&waits),
        )))
    } else {
        None
    };
    Outcome {
        compiled: Some(Facts {
            hash,
            mediums: template.spec.mediums().collect(),
            locales: compiled.locales().map(str::to_owned).collect(),
        }),
        verdict,
        includes: Some(includes),
    }
}

/// A partial of another template that is not there may still come; everything else wants an edit.
fn not_compiled(name: &str, problems: &[Problem]) -> Outcome {
    let own = format!(" in template {name:?}");
    let is_missing = |problem: &Problem| {
        problem.message.contains("there is no partial") && !problem.message.ends_with(&own)
    };
    let because = |reason| Because::new(reason, sentence(problems));
    let verdict = if problems.iter().all(is_missing) {
        Verdict::Waiting(because("PartialMissing"))
    } else {
        Verdict::Stalled(because("DoesNotCompile"))
    };
    Outcome {
        compiled: None,
        verdict: Some(verdict),
        includes: None,
    }
}
