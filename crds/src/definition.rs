//! A template with everything it includes: what a notification is rendered from, for ever.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::render::{self, includes, names};
use crate::validate::escape;
use crate::{Content, NotificationTemplate, NotificationTemplateSpec, Problem, ResourceSet};

/// The most partials of other templates that one may include, directly or not.
const MOST_PARTIALS: usize = 64;

/// The deepest that partials may include each other.
const DEEPEST: usize = 16;

/// The closure of a template: it, and everything that it includes. Named by its [`hash`](Self::hash), so that a
/// notification can be rendered, retried and shown as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Definition {
    /// The template's namespace.
    pub namespace: String,
    /// The template's name.
    pub name: String,
    /// The template itself, with its own partials.
    pub template: NotificationTemplateSpec,
    /// The partials of other templates, by full name (`brand/footer`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partials: BTreeMap<String, String>,
}

impl Definition {
    /// Gathers what `template` includes; `lookup` finds another template of the same namespace.
    ///
    /// Errors: what does not parse, a partial that is missing or includes itself, an include whose name is computed,
    /// `extends` and `import`; with the path of the block that leads there.
    pub fn close<'a>(
        template: &NotificationTemplate,
        lookup: impl Fn(&str) -> Option<&'a NotificationTemplateSpec>,
    ) -> Result<Self, Vec<Problem>> {
        let metadata = &template.metadata;
        let mut definition = Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            template: template.spec.clone(),
            partials: BTreeMap::new(),
        };
        let foreign = definition.walk(|full| {
            let (owner, partial) = full.split_once('/')?;
            lookup(owner)?.partials.get(partial).map(String::as_str)
        })?;
        definition.partials = foreign;
        Ok(definition)
    }

    /// The definition of a template of `set`. `None`: there is no such template. Errors as for [`close`](Self::close).
    pub fn of(
        set: &ResourceSet,
        namespace: &str,
        name: &str,
    ) -> Option<Result<Self, Vec<Problem>>> {
        let find = |name: &str| {
            let key = (namespace.to_owned(), name.to_owned());
            set.templates.get(&key)
        };
        Some(Self::close(find(name)?, |name| {
            find(name).map(|template| &template.spec)
        }))
    }

    /// What is wrong with what it includes; empty for every definition that [`close`](Self::close) made.
    pub fn check(&self) -> Vec<Problem> {
        self.walk(|full| self.partials.get(full).map(String::as_str))
            .err()
            .unwrap_or_default()
    }

    /// Its JSON with all keys sorted and no spaces: the same definition is the same bytes.
    pub fn canonical_json(&self) -> String {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value.sort_all_objects();
        value.to_string()
    }

    /// Its name: `sha256:` and the digest of [`canonical_json`](Self::canonical_json) in 64 hexadecimal digits.
    pub fn hash(&self) -> String {
        hash_json(&self.canonical_json())
    }

    /// Whether some parameters must never be stored or shown after sending.
    pub fn has_sensitive_parameters(&self) -> bool {
        !self.template.sensitive.is_empty()
    }

    /// Each piece of template language in it but the partials: JSON Pointer and source.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (String, &str)> {
        let translations = self.template.translations.iter().map(|(tag, content)| {
            let base = format!("/spec/translations/{}", escape(tag));
            (base, content)
        });
        let key = self.template.deduplication.as_ref().map(|deduplication| {
            (
                "/spec/deduplication/key".to_owned(),
                deduplication.key.as_str(),
            )
        });
        std::iter::once(("/spec/content".to_owned(), &self.template.content))
            .chain(translations)
            .flat_map(|(base, content)| content_blocks(&base, content))
            .chain(key)
    }

    /// Every partial there is, own and foreign, by full name.
    pub(crate) fn all_partials(&self) -> impl Iterator<Item = (String, &str)> {
        let own = self
            .template
            .partials
            .iter()
            .map(|(name, source)| (names::full(&self.name, name), source.as_str()));
        let foreign = self
            .partials
            .iter()
            .map(|(full, source)| (full.clone(), source.as_str()));
        own.chain(foreign)
    }

    /// The full names of the partials that its blocks include, directly or through others. Own partials that are meant
    /// for other templates alone are none of them.
    pub(crate) fn included_by_blocks(&self) -> HashSet<String> {
        let sources: HashMap<String, &str> = self.all_partials().collect();
        let mut included = HashSet::new();
        let mut left: Vec<(String, &str)> = self
            .blocks()
            .map(|(_, source)| (self.name.clone(), source))
            .collect();
        while let Some((owner, source)) = left.pop() {
            for (name, _) in includes::read(source).unwrap_or_default().names {
                let full = names::full(&owner, &name);
                if let Some(source) = sources.get(&full)
                    && included.insert(full.clone())
                {
                    let owner = full.split_once('/').map_or("", |(owner, _)| owner);
                    left.push((owner.to_owned(), source));
                }
            }
        }
        included
    }

    /// Follows every include from every block and own partial; returns the foreign partials that it met.
    fn walk<'a>(
        &'a self,
        find: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<BTreeMap<String, String>, Vec<Problem>> {
        let mut walk = Walk {
            definition: self,
            find,
            path: String::new(),
            above: Vec::new(),
            seen: BTreeSet::new(),
            foreign: BTreeMap::new(),
            problems: Vec::new(),
        };
        for (name, source) in &self.template.partials {
            walk.path = format!("/spec/partials/{}", escape(name));
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.is_empty() || !name.chars().all(is_plain) {
                walk.problem(
                    "a partial's name consists of letters, digits, '-', '_' and '.'".to_owned(),
                );
                continue;
            }
            let full = names::full(&self.name, name);
            if walk.seen.insert(full.clone()) {
                walk.visit(&self.name, source, Some(&full));
            }
        }
        for (path, source) in self.blocks() {
            walk.path = path;
            walk.visit(&self.name, source, None);
        }
        walk.problems.sort_unstable();
        walk.problems.dedup();
        if walk.problems.is_empty() {
            Ok(walk.foreign)
        } else {
            Err(walk.problems)
        }
    }
}

/// The name of the definition whose canonical JSON is `json`.
pub fn hash_json(json: &str) -> String {
    let mut name = String::with_capacity(71);
    name.push_str("sha256:");
    for byte in Sha256::digest(json.as_bytes()) {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

fn content_blocks<'a>(base: &str, content: &'a Content) -> Vec<(String, &'a str)> {
    let Content {
        email,
        sms,
        webhook,
    } = content;
    let mut blocks = Vec::new();
    if let Some(email) = email {
        blocks.push((format!("{base}/email/subject"), email.subject.as_str()));
        let optional = [
            ("html", &email.html),
            ("text", &email.text),
            ("replyTo", &email.reply_to),
        ];
        for (field, source) in optional {
            blocks.extend(
                source
                    .as_deref()
                    .map(|source| (format!("{base}/email/{field}"), source)),
            );
        }
        for (name, source) in &email.headers {
            blocks.push((format!("{base}/email/headers/{}", escape(name)), source));
        }
    }
    if let Some(sms) = sms {
        blocks.push((format!("{base}/sms/text"), &sms.text));
    }
    if let Some(body) = webhook.as_ref().and_then(|webhook| webhook.body.as_deref()) {
        blocks.push((format!("{base}/webhook/body"), body));
    }
    blocks
}

struct Walk<'a, F> {
    definition: &'a Definition,
    /// Finds a foreign partial by full name.
    find: F,
    /// Where the problems of what is being visited belong.
    path: String,
    /// The partials that led here, outermost first.
    above: Vec<String>,
    seen: BTreeSet<String>,
    foreign: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl<'a, F: Fn(&str) -> Option<&'a str>> Walk<'a, F> {
    fn problem(&mut self, message: String) {
        self.problems.push(Problem::new(&self.path, message));
    }

    /// Visits a block of template `owner`, or its partial of that full name.
    fn visit(&mut self, owner: &str, source: &str, partial: Option<&str>) {
        let inside = match partial {
            Some(full) if !self.above.is_empty() || !self.path.starts_with("/spec/partials/") => {
                format!("partial {full:?}: ")
            }
            _ => String::new(),
        };
        let found = match includes::read(source) {
            Ok(found) => found,
            Err(error) => {
                let problem = render::syntax_problem(&self.path, &error);
                self.problem(format!("{inside}{}", problem.message));
                return;
            }
        };
        for (refused, line) in found.refused {
            self.problem(format!("{inside}line {line}: {refused}"));
        }
        let depth = self.above.len();
        self.above.extend(partial.map(str::to_owned));
        for (included, line) in found.names {
            let full = names::full(owner, &included);
            if let Err(message) = self.follow(&full) {
                self.problem(format!("{inside}line {line}: {message}"));
            }
        }
        self.above.truncate(depth);
    }

    /// Visits the partial of that full name, unless it has been visited. Errors: why it cannot.
    fn follow(&mut self, full: &str) -> Result<(), String> {
        if let Some(first) = self.above.iter().position(|above| above == full) {
            let circle = self.above[first..].join(" → ");
            return Err(format!("a partial includes itself: {circle} → {full}"));
        }
        if !self.seen.insert(full.to_owned()) {
            return Ok(());
        }
        if self.above.len() == DEEPEST {
            return Err(format!(
                "partials include each other more than {DEEPEST} deep"
            ));
        }
        let (owner, name) = full.split_once('/').unwrap_or(("", full));
        let source = if owner == self.definition.name {
            self.definition
                .template
                .partials
                .get(name)
                .map(String::as_str)
        } else {
            (self.find)(full)
        };
        let Some(source) = source else {
            return Err(format!(
                "there is no partial {name:?} in template {owner:?}"
            ));
        };
        if owner != self.definition.name {
            if self.foreign.len() == MOST_PARTIALS {
                return Err(format!(
                    "it includes more than {MOST_PARTIALS} partials of other templates"
                ));
            }
            self.foreign.insert(full.to_owned(), source.to_owned());
        }
        self.visit(owner, source, Some(full));
        Ok(())
    }
}
