//! What is declared becomes what is in force: what is wrong between resources, templates compiled, last good versions. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use herald_crds::definition::hash_json;
use herald_crds::render::Compiled;
use herald_crds::set::NamespaceLabels;
use herald_crds::{
    Definition, Finding, Kind, NotificationTemplate, Problem, Resource, ResourceSet, Validate,
};

use super::declared::{Declared, Identity, label};
use super::{DeclaredProblem, FullName, Snapshot, TemplateInForce, Untold};

/// The largest definition, packed, in bytes: messages on the broker carry it.
pub const MAX_PACKED: usize = 256 * 1024;

/// How hard definitions are compressed: they are packed once and travel often.
const COMPRESSION: i32 = 9;

/// Everything that is declared, wherever it comes from.
#[derive(Default)]
pub(super) struct Everything<'a> {
    /// The resources, each with its file; `None` in a cluster.
    pub declared: Vec<(Option<&'a str>, &'a Declared)>,
    /// What was declared and may still be meant to be: it cannot be read so far that one could tell.
    pub kept: Vec<&'a Identity>,
    /// The labels of namespaces.
    pub namespace_labels: NamespaceLabels,
    /// What is wrong already.
    pub problems: Vec<DeclaredProblem>,
    /// Where it is not everything.
    pub untold: Untold,
}

/// Says what is in force now that all this is declared and `before` was in force.
///
/// What has a problem is not, but its last good version is, if there was one. Only whether it is suspended counts as it is
/// declared now: nothing that is wrong with the rest may keep somebody from stopping it.
pub(super) fn assemble(everything: Everything<'_>, before: &Snapshot) -> Snapshot {
    let mut assembly = Assembly::gather(everything, before);
    assembly.check_each();
    assembly.check_between();
    assembly.compile();
    assembly.settle()
}

/// A resource that is declared, or may still be meant to be.
#[derive(Default)]
struct Entry<'a> {
    /// Where it is declared: more than one place is a problem. Empty: it was, in a file that cannot be read now.
    places: Vec<(Option<&'a str>, &'a Declared)>,
    /// Whether it has a problem, so that its last good version stays in force.
    broken: bool,
}

impl<'a> Entry<'a> {
    /// The resource as declared; `None` if it cannot be read or is declared twice.
    fn resource(&self) -> Option<&'a Resource> {
        match self.places[..] {
            [(_, declared)] => declared.resource.as_ref(),
            _ => None,
        }
    }
}

struct Assembly<'a> {
    before: &'a Snapshot,
    entries: BTreeMap<Identity, Entry<'a>>,
    problems: Vec<DeclaredProblem>,
    untold: Untold,
    /// What is declared; where that cannot be read, what was in force. So nobody is blamed for others' mistakes.
    declared: ResourceSet,
    /// Templates that compile.
    compiled: BTreeMap<FullName, Arc<TemplateInForce>>,
}

impl<'a> Assembly<'a> {
    fn gather(everything: Everything<'a>, before: &'a Snapshot) -> Self {
        let Everything {
            declared: all,
            kept,
            namespace_labels,
            mut problems,
            untold,
        } = everything;
        let mut entries: BTreeMap<Identity, Entry<'a>> = BTreeMap::new();
        for (file, declared) in all {
            if let Some(identity) = &declared.identity {
                let entry = entries.entry(identity.clone()).or_default();
                entry.places.push((file, declared));
            } else {
                let located = declared.problems.iter();
                problems.extend(located.map(|problem| declared.locate(file, problem)));
            }
        }
        for identity in kept {
            entries.entry(identity.clone()).or_default();
        }
        let mut declared = ResourceSet::default();
        declared.namespace_labels = namespace_labels;
        for (identity, entry) in &entries {
            let resource = entry.resource().cloned();
            if let Some(resource) = resource.or_else(|| last_good(before, identity)) {
                // Every resource that was read has its namespace by now.
                declared.insert(resource, "");
            }
        }
        Self {
            before,
            entries,
            problems,
            untold,
            declared,
            compiled: BTreeMap::new(),
        }
    }

    /// Reports a problem of a resource, at each place where it is declared.
    fn report(&mut self, identity: &Identity, problem: &Problem) {
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.broken = true;
            let located = entry.places.iter();
            self.problems
                .extend(located.map(|(file, declared)| declared.locate(*file, problem)));
        }
    }

    /// What is wrong with each by itself, and with its change.
    fn check_each(&mut self) {
        for (identity, entry) in &mut self.entries {
            for (file, declared) in &entry.places {
                let found = declared.problems.iter();
                self.problems
                    .extend(found.map(|problem| declared.locate(*file, problem)));
                for (other, again) in &entry.places {
                    if !std::ptr::eq(*declared, *again) {
                        let message = format!(
                            "{} is declared in {}:{} as well: remove one of them",
                            label(identity),
                            other.unwrap_or_default(),
                            again.line()
                        );
                        let problem = Problem::new("/metadata/name", message);
                        self.problems.push(declared.locate(*file, &problem));
                    }
                }
            }
            entry.broken = match entry.places[..] {
                [(_, declared)] => declared.resource.is_none() || !declared.problems.is_empty(),
                _ => true,
            };
            if let ([(file, declared)], Some(resource)) = (&entry.places[..], entry.resource()) {
                for problem in change_problems(self.before, identity, resource) {
                    self.problems.push(declared.locate(*file, &problem));
                    entry.broken = true;
                }
            }
        }
    }

    /// What is wrong between them.
    fn check_between(&mut self) {
        for finding in self.declared.problems() {
            self.report(&identity_of(&finding), &finding.problem);
        }
    }

    /// Compiles the templates. Of a place that has a problem already, nothing more is said.
    fn compile(&mut self) {
        let templates: Vec<_> = (self.entries.iter())
            .filter_map(|(identity, entry)| match entry.resource() {
                Some(Resource::NotificationTemplate(template)) => {
                    Some((identity.clone(), &**template))
                }
                _ => None,
            })
            .collect();
        for (identity, template) in templates {
            let before = self.before.templates.get(&identity.1);
            match compile(template, &self.declared, before) {
                Ok(compiled) => {
                    self.compiled.insert(Arc::clone(&identity.1), compiled);
                }
                Err(problems) => {
                    let name = label(&identity);
                    let known: BTreeSet<_> = (self.problems.iter())
                        .filter(|problem| problem.resource == name)
                        .map(|problem| problem.path.clone())
                        .collect();
                    let entry = &self.entries[&identity];
                    let located = problems.iter().flat_map(|problem| {
                        let places = entry.places.iter();
                        places.map(|(file, declared)| declared.locate(*file, problem))
                    });
                    let new: Vec<_> = located.filter(|p| !known.contains(&p.path)).collect();
                    self.problems.extend(new);
                    if let Some(entry) = self.entries.get_mut(&identity) {
                        entry.broken = true;
                    }
                }
            }
        }
    }

    /// Chooses the version of each that is in force, so that they fit each other.
    fn settle(mut self) -> Snapshot {
        while self.entries.values().any(|entry| entry.broken) {
            let mut in_force = ResourceSet::default();
            in_force
                .namespace_labels
                .clone_from(&self.declared.namespace_labels);
            for (identity, entry) in &self.entries {
                let resource = match entry.resource() {
                    Some(resource) if !entry.broken => Some(resource.clone()),
                    _ => last_good(self.before, identity),
                };
                if let Some(resource) = resource {
                    in_force.insert(resource, "");
                }
            }
            let mut new = in_force.problems();
            new.retain(|finding| {
                let entry = self.entries.get(&identity_of(finding));
                entry.is_some_and(|entry| !entry.broken)
            });
            if new.is_empty() {
                break;
            }
            for mut finding in new {
                finding.problem.message += " (among those without problems)";
                self.report(&identity_of(&finding), &finding.problem);
            }
        }
        self.snapshot()
    }

    fn snapshot(self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let before = self.before;
        for (identity, entry) in &self.entries {
            let name = &identity.1;
            let new = entry.resource().filter(|_| !entry.broken);
            match identity.0 {
                Kind::Channel => {
                    let new = match new {
                        Some(Resource::Channel(resource)) => Some(&**resource),
                        _ => None,
                    };
                    choose(&mut snapshot.channels, &before.channels, name, new);
                }
                Kind::RecipientGroup => {
                    let new = match new {
                        Some(Resource::RecipientGroup(resource)) => Some(&**resource),
                        _ => None,
                    };
                    choose(&mut snapshot.groups, &before.groups, name, new);
                }
                Kind::Schedule => {
                    let new = match new {
                        Some(Resource::Schedule(resource)) => Some(&**resource),
                        _ => None,
                    };
                    choose(&mut snapshot.schedules, &before.schedules, name, new);
                }
                Kind::NotificationTemplate => {
                    let new = new.and_then(|_| self.compiled.get(name));
                    if let Some(template) = new.or_else(|| before.templates.get(name)) {
                        let template = Arc::clone(template);
                        snapshot.templates.insert(Arc::clone(name), template);
                    }
                }
            }
            if entry.broken
                && let Some(declared) = entry.resource()
            {
                suspend_as(&mut snapshot, name, declared);
            }
        }
        snapshot.namespace_labels = self.declared.namespace_labels;
        snapshot.untold = self.untold;
        snapshot.problems = self.problems;
        snapshot.problems.sort_by(|a, b| {
            let place = |p: &DeclaredProblem| (p.file.clone(), p.line);
            (place(a), &a.path, &a.message).cmp(&(place(b), &b.path, &b.message))
        });
        snapshot.problems.dedup();
        snapshot
    }
}

/// Puts the new version in force, as the old value if it is the same; else the old one.
fn choose<R: Clone + PartialEq>(
    chosen: &mut BTreeMap<FullName, Arc<R>>,
    before: &BTreeMap<FullName, Arc<R>>,
    name: &FullName,
    new: Option<&R>,
) {
    let resource = match (new, before.get(name)) {
        (Some(new), Some(old)) if **old == *new => Arc::clone(old),
        (Some(new), _) => Arc::new(new.clone()),
        (None, Some(old)) => Arc::clone(old),
        (None, None) => return,
    };
    chosen.insert(Arc::clone(name), resource);
}

/// Has what is in force be suspended, or not, as it is declared now.
fn suspend_as(snapshot: &mut Snapshot, name: &FullName, declared: &Resource) {
    match declared {
        Resource::Channel(declared) => {
            if let Some(kept) = snapshot.channels.get_mut(name)
                && kept.spec.suspend != declared.spec.suspend
            {
                Arc::make_mut(kept).spec.suspend = declared.spec.suspend;
            }
        }
        Resource::NotificationTemplate(declared) => {
            if let Some(kept) = snapshot.templates.get_mut(name)
                && kept.resource.spec.suspend != declared.spec.suspend
            {
                let mut resource = kept.resource.clone();
                resource.spec.suspend = declared.spec.suspend;
                *kept = Arc::new(kept.of(resource));
            }
        }
        Resource::Schedule(declared) => {
            if let Some(kept) = snapshot.schedules.get_mut(name)
                && kept.spec.suspend != declared.spec.suspend
            {
                Arc::make_mut(kept).spec.suspend = declared.spec.suspend;
            }
        }
        Resource::RecipientGroup(_) => {}
    }
}

fn identity_of(finding: &Finding) -> Identity {
    let name = format!("{}/{}", finding.namespace, finding.name);
    (finding.kind, name.into())
}

/// The version of a resource that was in force.
fn last_good(before: &Snapshot, (kind, name): &Identity) -> Option<Resource> {
    Some(match kind {
        Kind::Channel => Resource::Channel(Box::new((**before.channels.get(name)?).clone())),
        Kind::NotificationTemplate => {
            let template = before.templates.get(name)?.resource.clone();
            Resource::NotificationTemplate(Box::new(template))
        }
        Kind::RecipientGroup => {
            Resource::RecipientGroup(Box::new((**before.groups.get(name)?).clone()))
        }
        Kind::Schedule => Resource::Schedule(Box::new((**before.schedules.get(name)?).clone())),
    })
}

/// What is wrong with `new` taking the place of what was in force.
fn change_problems(before: &Snapshot, identity: &Identity, new: &Resource) -> Vec<Problem> {
    let name = &identity.1;
    let found = match new {
        Resource::Channel(new) => before
            .channels
            .get(name)
            .map(|old| new.validate_change(old)),
        Resource::NotificationTemplate(new) => {
            let old = before.templates.get(name);
            old.map(|old| new.validate_change(&old.resource))
        }
        Resource::RecipientGroup(new) => {
            before.groups.get(name).map(|old| new.validate_change(old))
        }
        Resource::Schedule(new) => before
            .schedules
            .get(name)
            .map(|old| new.validate_change(old)),
    };
    found.unwrap_or_default()
}

/// Makes a template ready for use. What `before` has made already is not made again.
fn compile(
    template: &NotificationTemplate,
    declared: &ResourceSet,
    before: Option<&Arc<TemplateInForce>>,
) -> Result<Arc<TemplateInForce>, Vec<Problem>> {
    let namespace = template.metadata.namespace.as_deref().unwrap_or_default();
    let definition = Definition::close(template, |name| {
        let key = (namespace.to_owned(), name.to_owned());
        declared.templates.get(&key).map(|found| &found.spec)
    })?;
    let json = definition.canonical_json();
    let hash = hash_json(&json);
    if let Some(before) = before.filter(|before| *before.hash == hash) {
        return Ok(if before.resource == *template {
            Arc::clone(before)
        } else {
            Arc::new(before.of(template.clone()))
        });
    }
    let compiled = Compiled::new(Arc::new(definition))?;
    let packed = pack(&json).map_err(|message| vec![Problem::new("/spec", message)])?;
    Ok(Arc::new(TemplateInForce {
        resource: template.clone(),
        compiled: Arc::new(compiled),
        hash: hash.into(),
        packed: packed.into(),
    }))
}

/// A definition as it travels: base64 of zstd of its canonical JSON, at most [`MAX_PACKED`].
fn pack(json: &str) -> Result<String, String> {
    let packed = zstd::bulk::compress(json.as_bytes(), COMPRESSION)
        .map_err(|error| format!("the definition cannot be compressed: {error}"))?;
    let packed = BASE64.encode(packed);
    if packed.len() > MAX_PACKED {
        return Err(format!(
            "with all that it includes, compressed, the template has {} bytes; it may have {MAX_PACKED}: shorten it",
            packed.len()
        ));
    }
    Ok(packed)
}
