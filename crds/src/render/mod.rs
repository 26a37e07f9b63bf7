//! Rendering: a definition and parameters become a message. Sandboxed: no files, no network, no clock.
//!
//! # Layout
//!
//! - here: [`Compiled`], a definition made ready once, rendered for every recipient.
//! - [`mod@rendered`]: what comes out; [`mod@error`]: what can go wrong.
//! - [`mod@parameters`]: what goes in, and whether it is right.
//! - `run`: one message being rendered; `includes`: which partials a block needs; `unknown`: filters, tests, functions
//!   and variables that are not there; `names`: what blocks and partials are called in the engine; `text`: HTML as plain text.
//!
//! # Limits
//!
//! Each block may burn [`FUEL`], all blocks of a message together may print [`MAX_RENDERED`] bytes, and macros and
//! includes nest only so deep. The engine charges fuel for work and for memory alike, so neither a loop for ever nor a
//! variable of a gigabyte gets far; what is printed is cut off while it is printed.

pub mod error;
pub(crate) mod includes;
pub(crate) mod names;
pub mod parameters;
pub mod rendered;
mod run;
#[cfg(test)]
mod tests;
mod text;
mod unknown;

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::{Environment, UndefinedBehavior, Value as Evaluated};
use serde_json::Value;

use crate::{Content, Definition, EmailContent, Medium, Problem};

pub(crate) use error::syntax_problem;
pub use error::{Place, RenderError};
pub use parameters::{Parameters, REDACTED, Recipient, redact};
pub use rendered::Rendered;

use parameters::{Context, Schema};
use run::Run;

/// The most bytes of one message, all its parts together.
pub const MAX_RENDERED: usize = 1024 * 1024;

/// What one block may burn: one for each instruction, and one for each 64 bytes that are made or looked through. A
/// message that prints a table of a thousand rows burns a tenth of it.
pub const FUEL: u64 = 500_000;

/// The most bytes of a deduplication key.
pub const MAX_KEY: usize = 1024;

/// How deep loops, macros and includes may nest: an include counts ten, a macro four, a loop one.
const NESTING: usize = 300;

/// A definition made ready: every block of every locale compiled, once. Cheap to render from, from many threads.
#[derive(Debug)]
pub struct Compiled {
    definition: Arc<Definition>,
    name: Arc<str>,
    environment: Environment<'static>,
    /// The translations, then the default content: the order in which a tag is looked for.
    languages: Vec<Language>,
    key: Option<Block>,
    schema: Option<Schema>,
}

/// What is said in one language.
#[derive(Debug)]
struct Language {
    tag: Arc<str>,
    email: Option<Email>,
    sms: Option<Block>,
    webhook: Option<Webhook>,
}

#[derive(Debug)]
struct Email {
    subject: Block,
    html: Option<Block>,
    text: Option<Block>,
    reply_to: Option<Block>,
    headers: BTreeMap<String, Block>,
}

#[derive(Debug)]
struct Webhook {
    /// `None`: the provider's default.
    body: Option<Block>,
}

/// One piece of template language.
#[derive(Debug)]
struct Block {
    /// What the engine calls it.
    name: String,
    pointer: Arc<str>,
    locale: Arc<str>,
}

impl Compiled {
    /// Compiles a definition, looks for everything that it calls and reads, and renders each of its samples.
    ///
    /// Errors: every block that does not compile or calls a filter, test or function that is not there; variables that
    /// are none of the declared parameters, if they are declared; what is wrong with its includes and its JSON Schema;
    /// and every sample that does not render, with its path (`/spec/samples/0`).
    pub fn new(definition: Arc<Definition>) -> Result<Self, Vec<Problem>> {
        let compiled = Self::without_samples(definition)?;
        let mut problems = compiled.check_names();
        let is_known = problems.is_empty();
        problems.extend(compiled.check_samples(is_known));
        if problems.is_empty() {
            Ok(compiled)
        } else {
            Err(problems)
        }
    }

    /// Compiles a definition that was in force once, without another look at what it calls or at its samples: what was
    /// accepted must be rendered.
    pub fn without_samples(definition: Arc<Definition>) -> Result<Self, Vec<Problem>> {
        let mut problems = definition.check();
        let spec = &definition.template;
        let schema = match spec.parameters.as_ref() {
            Some(schema) => Schema::new(schema, &spec.sensitive)
                .map_err(|found| problems.extend(found))
                .ok(),
            None => None,
        };
        if !problems.is_empty() {
            return Err(problems);
        }

        let mut environment = environment();
        for (path, source) in definition.blocks() {
            let name = names::block_name(&definition.name, &path);
            if let Err(error) = environment.add_template_owned(name, source.to_owned()) {
                problems.push(syntax_problem(&path, &error));
            }
        }
        for (full, source) in definition.all_partials() {
            for name in names::partial_names(&full) {
                if let Err(error) = environment.add_template_owned(name, source.to_owned()) {
                    let problem = syntax_problem("/spec/partials", &error);
                    problems.push(Problem::new(
                        problem.path,
                        format!("{full:?} {}", problem.message),
                    ));
                }
            }
        }
        if !problems.is_empty() {
            problems.sort_unstable();
            problems.dedup();
            return Err(problems);
        }

        let language =
            |base: String, tag: &str, content| Language::new(&definition.name, &base, tag, content);
        let languages = spec
            .translations
            .iter()
            .map(|(tag, content)| {
                let base = format!("/spec/translations/{}", crate::validate::escape(tag));
                language(base, tag, content)
            })
            .chain([language(
                "/spec/content".to_owned(),
                spec.default_locale(),
                &spec.content,
            )])
            .collect();
        let key = spec.deduplication.is_some().then(|| {
            Block::new(
                &definition.name,
                "/spec/deduplication/key".to_owned(),
                &spec.default_locale().into(),
            )
        });
        Ok(Self {
            name: definition.name.as_str().into(),
            languages,
            key,
            schema,
            environment,
            definition,
        })
    }

    /// What it was compiled from.
    pub const fn definition(&self) -> &Arc<Definition> {
        &self.definition
    }

    /// Checks parameters against the template's JSON Schema; without one, that they are an object.
    ///
    /// The paths are JSON Pointers into `parameters`. Values of sensitive parameters are not quoted.
    pub fn check_parameters(&self, parameters: &Value) -> Result<(), Vec<Problem>> {
        if !parameters.is_object() {
            return Err(vec![Problem::new("", "parameters must be an object")]);
        }
        self.schema
            .as_ref()
            .map_or(Ok(()), |schema| schema.check(parameters))
    }

    /// Makes parameters ready: once for a notification, not for each recipient. Does not check them.
    pub fn prepare(&self, parameters: impl Into<Arc<Value>>) -> Parameters {
        Parameters::new(parameters.into())
    }

    /// Renders one message.
    ///
    /// `locale` is the language tag that is looked for, in any case: `pt-BR`, then `pt`, then the default locale, each
    /// medium's block by itself. A mail's `replyTo` and headers, which are not language, come from the default locale
    /// where the translation has none.
    ///
    /// Parameters that do not fit the JSON Schema are an error only where a block stumbles over them.
    pub fn render(
        &self,
        medium: Medium,
        locale: &str,
        parameters: &Parameters,
        recipient: &Arc<Recipient>,
    ) -> Result<Rendered, RenderError> {
        let mut run = Run {
            compiled: self,
            context: Evaluated::from_object(Context {
                parameters: parameters.value.clone(),
                recipient: Some(Arc::clone(recipient)),
            }),
            left: MAX_RENDERED,
        };
        let missing = || RenderError::FindBlock {
            template: Arc::clone(&self.name),
            medium,
            locale: locale.to_owned(),
        };
        match medium {
            Medium::Email => {
                let email = self
                    .find(locale, |language| language.email.as_ref())
                    .ok_or_else(missing)?;
                run.email(
                    email,
                    self.default_language()
                        .and_then(|language| language.email.as_ref()),
                )
            }
            Medium::Sms => {
                let text = self
                    .find(locale, |language| language.sms.as_ref())
                    .ok_or_else(missing)?;
                run.block(text).map(|text| Rendered::Sms { text })
            }
            Medium::Webhook => {
                let webhook = self
                    .find(locale, |language| language.webhook.as_ref())
                    .ok_or_else(missing)?;
                run.webhook(webhook.body.as_ref(), parameters)
            }
            Medium::Voice | Medium::Push | Medium::Chat | Medium::Inbox => Err(missing()),
        }
    }

    /// The key by which messages that say the same again are known; `None`: the template has none, and nothing is
    /// dropped. It sees the parameters alone, not the recipient. At most [`MAX_KEY`] bytes.
    pub fn deduplication_key(
        &self,
        parameters: &Parameters,
    ) -> Result<Option<String>, RenderError> {
        let Some(block) = &self.key else {
            return Ok(None);
        };
        let mut run = Run {
            compiled: self,
            context: Evaluated::from_object(Context {
                parameters: parameters.value.clone(),
                recipient: None,
            }),
            left: MAX_KEY,
        };
        run.block(block).map(Some).map_err(|error| match error {
            RenderError::Fit { place, .. } => RenderError::Fit {
                place,
                limit: MAX_KEY,
            },
            error => error,
        })
    }

    /// The language tags it speaks: the default first, then the translations in their order.
    pub fn locales(&self) -> impl Iterator<Item = &str> {
        let (default, translations) = match self.languages.split_last() {
            Some((default, translations)) => (Some(default), translations),
            None => (None, &[][..]),
        };
        default
            .into_iter()
            .chain(translations)
            .map(|language| &*language.tag)
    }

    /// The default content, which is the last.
    fn default_language(&self) -> Option<&Language> {
        self.languages.last()
    }

    /// The first of `pt-BR`, `pt`, default locale that has what is asked for.
    fn find<'a, T>(&'a self, locale: &str, of: impl Fn(&'a Language) -> Option<T>) -> Option<T> {
        let mut wanted = locale;
        while !wanted.is_empty() {
            let found = self
                .languages
                .iter()
                .filter(|language| language.tag.eq_ignore_ascii_case(wanted))
                .find_map(&of);
            if found.is_some() {
                return found;
            }
            wanted = wanted.rsplit_once('-').map_or("", |(shorter, _)| shorter);
        }
        self.default_language().and_then(&of)
    }

    /// What it calls and nothing provides, and what it reads and no parameter is.
    fn check_names(&self) -> Vec<Problem> {
        let spec = &self.definition.template;
        let undeclared = spec
            .parameters
            .as_ref()
            .and_then(parameters::declared)
            .map(|declared| {
                let included = self.definition.included_by_blocks();
                unknown::undeclared(&self.environment, declared, &included)
            });
        let mut problems: Vec<_> = unknown::unknown(&self.environment)
            .into_iter()
            .chain(undeclared.into_iter().flatten())
            .map(|found| {
                let message = format!("line {}: {}", found.line, found.message);
                match names::partial(&found.template) {
                    Some(full) => self.partial_problem(full, &message),
                    None => Problem::new(names::pointer(&found.template), message),
                }
            })
            .collect();
        problems.sort_unstable();
        problems.dedup();
        problems
    }

    /// What is wrong with a partial: at its own place if the template has it, else where partials are.
    fn partial_problem(&self, full: &str, message: &str) -> Problem {
        match full
            .strip_prefix(&*self.name)
            .and_then(|rest| rest.strip_prefix('/'))
        {
            Some(own) => Problem::new(
                format!("/spec/partials/{}", crate::validate::escape(own)),
                message,
            ),
            None => Problem::new("/spec/partials", format!("{full:?} {message}")),
        }
    }

    /// Renders every sample in its own locale, or in every one if it names none. Unless all that is called `is_known`,
    /// that something is not there has been said already.
    fn check_samples(&self, is_known: bool) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (index, sample) in self.definition.template.samples.iter().enumerate() {
            let path = format!("/spec/samples/{index}");
            let json = Arc::new(Value::Object(sample.parameters.clone().unwrap_or_default()));
            if let Err(found) = self.check_parameters(&json) {
                problems.extend(found.into_iter().map(|problem| {
                    Problem::new(
                        format!("{path}/parameters{}", problem.path),
                        problem.message,
                    )
                }));
                continue;
            }
            let parameters = self.prepare(json);
            let mut failed = |error: RenderError| {
                if !is_known && matches!(error, RenderError::Evaluate { unknown: true, .. }) {
                    return;
                }
                problems.push(Problem::new(
                    &path,
                    format!("sample {:?} does not render: {error}", sample.name),
                ));
            };
            if let Err(error) = self.deduplication_key(&parameters) {
                failed(error);
            }
            let locales: Vec<&str> = match &sample.locale {
                Some(locale) => vec![locale],
                None => self.locales().collect(),
            };
            for locale in locales {
                let recipient = Arc::new(Recipient {
                    id: Some("sample".into()),
                    locale: locale.into(),
                    labels: BTreeMap::new(),
                });
                for medium in self.definition.template.mediums() {
                    if let Err(error) = self.render(medium, locale, &parameters, &recipient) {
                        failed(error);
                    }
                }
            }
        }
        problems.dedup();
        problems
    }
}

impl Language {
    fn new(template: &str, base: &str, tag: &str, content: &Content) -> Self {
        let Content {
            email,
            sms,
            webhook,
        } = content;
        let tag: Arc<str> = tag.into();
        let block = |path: &str| Block::new(template, format!("{base}/{path}"), &tag);
        Self {
            email: email.as_ref().map(|email| {
                let EmailContent {
                    subject: _,
                    html,
                    text,
                    reply_to,
                    headers,
                } = email;
                Email {
                    subject: block("email/subject"),
                    html: html.as_ref().map(|_| block("email/html")),
                    text: text.as_ref().map(|_| block("email/text")),
                    reply_to: reply_to.as_ref().map(|_| block("email/replyTo")),
                    headers: headers
                        .keys()
                        .map(|name| {
                            let path = format!("email/headers/{}", crate::validate::escape(name));
                            (name.clone(), block(&path))
                        })
                        .collect(),
                }
            }),
            sms: sms.as_ref().map(|_| block("sms/text")),
            webhook: webhook.as_ref().map(|webhook| Webhook {
                body: webhook.body.as_ref().map(|_| block("webhook/body")),
            }),
            tag,
        }
    }
}

impl Block {
    fn new(template: &str, pointer: String, locale: &Arc<str>) -> Self {
        Self {
            name: names::block_name(template, &pointer),
            pointer: pointer.into(),
            locale: Arc::clone(locale),
        }
    }
}

/// The engine, before it knows any template.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(names::escape);
    environment.set_path_join_callback(|name, parent| names::join(name, parent).into());
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(NESTING);
    // In errors it would quote the template and every variable, and it is slow.
    environment.set_debug(false);
    // It prints every variable.
    environment.remove_global("debug");
    environment
}

impl Compiled {
    fn place(&self, block: &Block) -> Place {
        Place {
            template: Arc::clone(&self.name),
            block: Arc::clone(&block.pointer),
            locale: Arc::clone(&block.locale),
            partial: None,
            line: None,
        }
    }
}
