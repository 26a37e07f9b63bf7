//! What the watches have told so far. Pure.

use std::collections::BTreeMap;

use herald_crds::set::NamespaceLabels;

use super::watch::{Event, Object, Source};
use crate::catalog::assemble::Everything;
use crate::catalog::declared::Declared;
use crate::catalog::{FullName, Untold};

/// What all watches have told.
pub(super) struct Held {
    states: Vec<State>,
}

/// What one watch has told.
struct State {
    source: Source,
    /// Whether it has told all at least once.
    listed: bool,
    /// Whether nobody waits for that any longer.
    without: bool,
    now: Contents,
    /// What it tells anew; `None`: it is telling changes.
    coming: Option<Contents>,
}

#[derive(Default)]
struct Contents {
    declared: BTreeMap<FullName, Declared>,
    labels: NamespaceLabels,
}

impl Held {
    pub(super) fn new(sources: Vec<Source>) -> Self {
        let state = |source| State {
            source,
            listed: false,
            without: false,
            now: Contents::default(),
            coming: None,
        };
        Self {
            states: sources.into_iter().map(state).collect(),
        }
    }

    /// What a watch is of.
    pub(super) fn source(&self, index: usize) -> &Source {
        &self.states[index].source
    }

    /// Whether every watch has told all at least once, or is done without.
    pub(super) fn is_complete(&self) -> bool {
        let mut states = self.states.iter();
        states.all(|state| state.listed || state.without)
    }

    /// Does without what a watch has never told; answers whether that is news.
    pub(super) fn do_without(&mut self, index: usize) -> bool {
        let state = &mut self.states[index];
        !state.listed && !std::mem::replace(&mut state.without, true)
    }

    /// Where it cannot be told what is declared. In a namespace that is gone, nothing is.
    fn untold(&self) -> Untold {
        let mut untold = Untold::default();
        for state in &self.states {
            if let Source::Resources(kind, Some(namespace)) = &state.source {
                untold.counted.insert(namespace.clone());
                if !state.listed && !self.is_gone(namespace) {
                    untold.unread.insert((*kind, namespace.clone()));
                }
            }
        }
        untold
    }

    /// Whether it was told that there is no such namespace.
    fn is_gone(&self, namespace: &str) -> bool {
        self.states.iter().any(|state| {
            matches!(&state.source, Source::Namespaces(Some(name)) if name == namespace)
                && state.listed
                && !state.now.labels.contains_key(namespace)
        })
    }

    /// Takes in what a watch tells; answers whether something else is declared now.
    pub(super) fn take(&mut self, index: usize, event: Event) -> bool {
        let state = &mut self.states[index];
        match event {
            Event::Begin => {
                state.coming = Some(Contents::default());
                false
            }
            Event::Found(object) => {
                state.coming.get_or_insert_default().put(object);
                false
            }
            Event::Listed => {
                let all = state.coming.take().unwrap_or_default();
                let was_listed = std::mem::replace(&mut state.listed, true);
                let differs = !was_listed || !all.says_the_same(&state.now);
                state.now = all;
                differs
            }
            Event::Applied(object) => state.now.put(object),
            Event::Gone(name) => state.now.remove(&name),
        }
    }

    /// Everything that is declared.
    pub(super) fn everything(&self) -> Everything<'_> {
        let mut everything = Everything {
            untold: self.untold(),
            ..Everything::default()
        };
        for state in &self.states {
            let declared = state.now.declared.values().map(|declared| (None, declared));
            everything.declared.extend(declared);
            everything.namespace_labels.extend(state.now.labels.clone());
        }
        everything
    }
}

impl Contents {
    /// Puts something in; answers whether that is news.
    fn put(&mut self, object: Object) -> bool {
        match object {
            Object::Resource(name, declared) => {
                let before = self.declared.get(&name);
                let is_new = !before.is_some_and(|before| before.says_the_same(&declared));
                if is_new {
                    self.declared.insert(name, *declared);
                }
                is_new
            }
            Object::Labels(name, labels) => {
                let before = self.labels.insert(name.to_string(), labels.clone());
                before != Some(labels)
            }
        }
    }

    fn remove(&mut self, name: &FullName) -> bool {
        let declared = self.declared.remove(name).is_some();
        let labels = self.labels.remove(&**name).is_some();
        declared || labels
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let Self { declared, labels } = self;
        *labels == other.labels
            && declared.len() == other.declared.len()
            && declared.iter().all(|(name, declared)| {
                (other.declared.get(name)).is_some_and(|other| other.says_the_same(declared))
            })
    }
}
