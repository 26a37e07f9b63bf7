//! What can go wrong when a template is rendered, said so that its author can cure it.

use std::fmt;
use std::sync::Arc;

use minijinja::{Environment, ErrorKind};

use crate::{Medium, Problem};

use super::{MAX_RENDERED, names};

/// The longest expression that an error quotes, in bytes.
const LONGEST_EXPRESSION: usize = 80;

/// Where in a template something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The template's name.
    pub template: Arc<str>,
    /// JSON Pointer of the block that was rendered, such as `/spec/translations/ko/email/html`.
    pub block: Arc<str>,
    /// The language tag of the block that was rendered.
    pub locale: Arc<str>,
    /// The partial that the line is in, as `template/partial`; `None`: the block itself.
    pub partial: Option<String>,
    /// The line, from 1; `None` if it cannot be told.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            template,
            block,
            locale,
            partial,
            line,
        } = self;
        write!(f, "template {template:?}, block {block} ({locale})")?;
        if let Some(partial) = partial {
            write!(f, ", partial {partial:?}")?;
        }
        if let Some(line) = line {
            write!(f, ", line {line}")?;
        }
        Ok(())
    }
}

/// Why a message could not be rendered. None of it quotes a parameter's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum RenderError {
    /// The template says nothing on this medium, in no language of the fallback.
    #[error(
        "template {template:?} has no {medium} block in {locale} nor in its default locale: add content.{medium}, or route it over other channels"
    )]
    FindBlock {
        /// The template's name.
        template: Arc<str>,
        /// The medium.
        medium: Medium,
        /// The language tag asked for.
        locale: String,
    },
    /// The template used something that is not there, or in a way that it cannot be used.
    #[error("{place}: {message}")]
    Evaluate {
        /// Where.
        place: Box<Place>,
        /// What, and what to do.
        message: String,
        /// It called a filter, test or function that nothing provides.
        unknown: bool,
    },
    /// It loops for too long, calls itself, or works on too much.
    #[error(
        "{place}: it does too much work; look for a loop over a long list, a loop in a loop, or a macro that calls itself"
    )]
    Work {
        /// Where.
        place: Box<Place>,
    },
    /// What it prints is longer than a delivery may be.
    #[error(
        "{place}: what it prints is longer than {limit} bytes; shorten it, or link to the rest"
    )]
    Fit {
        /// Where.
        place: Box<Place>,
        /// The most it may be: a whole delivery's, or that of a short block.
        limit: usize,
    },
    /// Something that must be one line printed several: a header field could be smuggled in.
    #[error(
        "{place}: it must print a single line, but a parameter brought a line break; remove it with a filter"
    )]
    KeepToOneLine {
        /// Where.
        place: Box<Place>,
    },
    /// The body of a webhook is not JSON.
    #[error("{place}: what it prints is not JSON ({message}); print values with the filter tojson")]
    PrintJson {
        /// Where.
        place: Box<Place>,
        /// What the JSON parser said, with line and column of the output.
        message: String,
    },
}

impl RenderError {
    /// A stable, short name of what went wrong, for metrics and searches.
    pub fn reason(&self) -> &'static str {
        self.into()
    }

    /// Where it happened; `None` if there was nothing to render.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::FindBlock { .. } => None,
            Self::Evaluate { place, .. }
            | Self::Work { place }
            | Self::Fit { place, .. }
            | Self::KeepToOneLine { place }
            | Self::PrintJson { place, .. } => Some(place),
        }
    }

    /// What minijinja said about the block at `place`.
    pub(super) fn from_engine(
        mut place: Place,
        error: &minijinja::Error,
        environment: &Environment<'_>,
    ) -> Self {
        let error = locate(&mut place, error);
        let place = Box::new(place);
        match error.kind() {
            ErrorKind::OutOfFuel => Self::Work { place },
            ErrorKind::WriteFailure => Self::Fit {
                place,
                limit: MAX_RENDERED,
            },
            _ => match explain(error) {
                Some(message) => {
                    let message = match expression(error, environment) {
                        Some(expression) => format!("`{expression}`: {message}"),
                        None => message,
                    };
                    let unknown = matches!(
                        error.kind(),
                        ErrorKind::UnknownFilter
                            | ErrorKind::UnknownTest
                            | ErrorKind::UnknownFunction
                    );
                    Self::Evaluate {
                        place,
                        message,
                        unknown,
                    }
                }
                None => Self::Work { place },
            },
        }
    }
}

/// What minijinja said when it read the block or partial at `path`.
pub(crate) fn syntax_problem(path: &str, error: &minijinja::Error) -> Problem {
    let message = explain(error).unwrap_or_else(|| "it is nested too deeply".to_owned());
    let line = error.line().unwrap_or(1);
    Problem::new(path, format!("does not compile: line {line}: {message}"))
}

/// Notes the innermost place of an error, and returns the error that happened there.
fn locate<'e>(place: &mut Place, outermost: &'e minijinja::Error) -> &'e minijinja::Error {
    let mut error = outermost;
    loop {
        if let Some(name) = error.name() {
            place.partial = names::partial(name).map(str::to_owned);
            place.line = error.line();
        }
        let source = std::error::Error::source(error);
        match source.and_then(|source| source.downcast_ref::<minijinja::Error>()) {
            Some(inner) => error = inner,
            None => return error,
        }
    }
}

/// The part of the template that an error is about, if it is short.
fn expression(error: &minijinja::Error, environment: &Environment<'_>) -> Option<String> {
    let template = environment.get_template(error.name()?).ok()?;
    let text = template.source().get(error.range()?)?.trim();
    let is_short = !text.is_empty() && text.len() <= LONGEST_EXPRESSION && !text.contains('\n');
    is_short.then(|| text.to_owned())
}

/// A sentence about an error, without any value in it. `None`: too much work.
fn explain(error: &minijinja::Error) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    if detail.contains("recursion limit") {
        return None;
    }
    Some(match error.kind() {
        ErrorKind::UndefinedError => {
            "it is undefined: pass it as a parameter, or ask first with `is defined` or the filter default".to_owned()
        }
        // minijinja quotes both numbers here.
        ErrorKind::InvalidOperation if detail.starts_with("unable to calculate") => {
            "a calculation has no result: a number is too large, or divided by zero".to_owned()
        }
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    })
}
