//! `herald render`: what a template says.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use herald_crds::Medium;
use herald_crds::render::{Recipient, RenderError, Rendered};
use serde_json::{Map, Value, json};

use super::{BAD, BOLD, CliError, DIM, harmless, lint, paint, parameters};
use crate::catalog::folder::FolderCatalog;
use crate::catalog::{Catalog as _, Snapshot, TemplateInForce};

/// The sample that is rendered unless another is asked for.
const USUAL_SAMPLE: &str = "typical";

/// What its help says.
pub(super) const HELP: &str = "Shows what a template says, over every medium that it has a block for. Nothing is sent.\n\n\
    Without --parameters it is rendered with one of its samples: the one called typical, else the first. \
    It exits with 0 if everything rendered, 1 if something did not, 2 if there is nothing to render.\n\n\
    Examples:\n  \
    herald render notifications/ order-shipped\n  \
    herald render notifications/ order-shipped --sample korean --medium email\n  \
    herald render notifications/ order-shipped -p '{order: {id: A-1, total: 12}}'\n  \
    herald render notifications/ order-shipped -o html > order.html";

/// Shows what a template says, over every medium that it has a block for.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of YAML.
    dir: PathBuf,
    /// The template: its name, or namespace/name.
    template: String,
    /// The parameters: a file of JSON or YAML, - for standard input, or the object itself.
    #[arg(long, short, value_name = "OBJECT|FILE|-", conflicts_with = "sample")]
    parameters: Option<String>,
    /// The sample of the template that is rendered.
    #[arg(long, value_name = "NAME")]
    sample: Option<String>,
    /// Language tag of the recipient, such as ko or pt-BR. Default: the sample's, else the template's.
    #[arg(long, value_name = "TAG")]
    locale: Option<String>,
    /// This medium alone.
    #[arg(long, value_parser = medium)]
    medium: Option<Medium>,
    /// How it is shown.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// The namespace of resources that name none.
    #[arg(long, default_value = "default")]
    namespace: String,
}

/// How messages are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
    /// The mail's HTML alone.
    Html,
}

fn medium(name: &str) -> Result<Medium, String> {
    name.parse().map_err(|_| {
        let known = Medium::ALL.map(Medium::as_str).join(", ");
        format!("no such medium; there are {known}")
    })
}

/// What came of one medium.
type Message = (Medium, Result<Rendered, RenderError>);

/// Writes the messages to `out`; exits with 1 if the template is broken, the parameters do not fit, or something did
/// not render.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let catalog = FolderCatalog::open(&args.dir, &args.namespace).map_err(CliError::OpenFolder)?;
    let snapshot = catalog.current();
    let Some(template) = find(&snapshot, args)? else {
        let broken: Vec<_> = problems_of(&snapshot, args).cloned().collect();
        let report = lint::lines(&args.dir, &broken);
        out.write_all(report.as_bytes()).map_err(CliError::Print)?;
        return Ok(ExitCode::FAILURE);
    };
    let (parameters, sample_locale) = chosen(args, template)?;
    let mut report = String::new();
    let mut failed = false;
    if let Err(problems) = template.compiled.check_parameters(&parameters) {
        failed = true;
        if args.output == Output::Text {
            for problem in problems {
                let place = format!("parameters{}", problem.path);
                let _ = writeln!(
                    report,
                    "{}: {}",
                    paint(BAD, &harmless(&place)),
                    harmless(&problem.message)
                );
            }
        } else {
            let errors: Vec<_> = problems
                .iter()
                .map(|p| json!({"path": p.path, "message": p.message}))
                .collect();
            let _ = writeln!(report, "{:#}", json!({"errors": errors}));
        }
    } else {
        let locale = args.locale.clone().or(sample_locale);
        let locale = locale.unwrap_or_else(|| template.resource.spec.default_locale().to_owned());
        let messages = render(args, template, parameters, &locale);
        failed |= messages.iter().any(|(_, message)| message.is_err());
        report = match args.output {
            Output::Text => text(template, &locale, &messages),
            Output::Json => json(template, &locale, messages),
            Output::Html => html(messages)?,
        };
    }
    out.write_all(report.as_bytes()).map_err(CliError::Print)?;
    Ok(ExitCode::from(u8::from(failed)))
}

/// The template that is meant; `None` if it is declared and broken.
fn find<'a>(snapshot: &'a Snapshot, args: &Args) -> Result<Option<&'a TemplateInForce>, CliError> {
    let wanted = &args.template;
    let full = if wanted.contains('/') {
        wanted.clone()
    } else {
        format!("{}/{wanted}", args.namespace)
    };
    if let Some(found) = snapshot.templates.get(full.as_str()) {
        return Ok(Some(found));
    }
    if problems_of(snapshot, args).next().is_some() {
        return Ok(None);
    }
    let by_name = |name: &str| {
        name.rsplit_once('/')
            .is_some_and(|(_, name)| name == wanted)
    };
    let matching: Vec<_> = (snapshot.templates.iter())
        .filter(|(name, _)| by_name(name))
        .collect();
    match matching[..] {
        [(_, found)] => Ok(Some(found)),
        [] => {
            let known: Vec<_> = snapshot
                .templates
                .keys()
                .take(20)
                .map(|name| &**name)
                .collect();
            Err(CliError::FindTemplate(format!(
                "there is no NotificationTemplate {wanted} in {}; there are: {}",
                args.dir.display(),
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            )))
        }
        _ => {
            let names: Vec<_> = matching.iter().map(|(name, _)| &***name).collect();
            Err(CliError::FindTemplate(format!(
                "{wanted} is the name of several templates: say which of {}",
                names.join(", ")
            )))
        }
    }
}

/// What is wrong with the template that is meant.
fn problems_of<'a>(
    snapshot: &'a Snapshot,
    args: &'a Args,
) -> impl Iterator<Item = &'a crate::catalog::DeclaredProblem> {
    let in_any = format!("/{}", args.template);
    snapshot.problems.iter().filter(move |problem| {
        let name = problem.resource.strip_prefix("NotificationTemplate ");
        name.is_some_and(|name| name == args.template || name.ends_with(&in_any))
    })
}

/// The parameters, and the locale that goes with them.
fn chosen(args: &Args, template: &TemplateInForce) -> Result<(Value, Option<String>), CliError> {
    if let Some(text) = &args.parameters {
        return Ok((Value::Object(parameters::read(text)?), None));
    }
    let samples = &template.resource.spec.samples;
    let none = Value::Object(Map::new());
    if samples.is_empty()
        && args.sample.is_none()
        && let Err(missing) = template.compiled.check_parameters(&none)
    {
        return Err(CliError::FindSamples {
            template: args.template.clone(),
            missing: missing
                .into_iter()
                .map(|p| p.message)
                .collect::<Vec<_>>()
                .join("; "),
        });
    }
    let sample = match &args.sample {
        Some(wanted) => {
            let found = samples.iter().find(|sample| sample.name == *wanted);
            Some(found.ok_or_else(|| {
                let names: Vec<_> = samples.iter().map(|sample| sample.name.as_str()).collect();
                CliError::FindSample {
                    template: args.template.clone(),
                    sample: wanted.clone(),
                    known: if names.is_empty() {
                        "none".to_owned()
                    } else {
                        names.join(", ")
                    },
                }
            })?)
        }
        None => samples
            .iter()
            .find(|s| s.name == USUAL_SAMPLE)
            .or(samples.first()),
    };
    let parameters = sample.and_then(|sample| sample.parameters.clone());
    let locale = sample.and_then(|sample| sample.locale.clone());
    Ok((Value::Object(parameters.unwrap_or_default()), locale))
}

fn render(
    args: &Args,
    template: &TemplateInForce,
    parameters: Value,
    locale: &str,
) -> Vec<Message> {
    let parameters = template.compiled.prepare(parameters);
    let recipient = Arc::new(Recipient {
        id: Some("sample".into()),
        locale: locale.into(),
        ..Recipient::default()
    });
    let mediums = match (args.medium, args.output) {
        (Some(medium), _) => vec![medium],
        (None, Output::Html) => vec![Medium::Email],
        (None, _) => template.resource.spec.mediums().collect(),
    };
    let render = |medium| {
        let message = template
            .compiled
            .render(medium, locale, &parameters, &recipient);
        (medium, message)
    };
    mediums.into_iter().map(render).collect()
}

fn text(template: &TemplateInForce, locale: &str, messages: &[Message]) -> String {
    let mut report = String::new();
    let name = &template.compiled.definition().name;
    let _ = writeln!(
        report,
        "{} {}",
        paint(BOLD, &harmless(name)),
        paint(DIM, &format!("{} in {}", template.hash, harmless(locale)))
    );
    for (medium, message) in messages {
        let _ = writeln!(report, "\n{}", paint(BOLD, &format!("── {medium} ──")));
        match message {
            Err(error) => {
                let _ = writeln!(
                    report,
                    "{} {}",
                    paint(BAD, "does not render:"),
                    harmless(&error.to_string())
                );
            }
            Ok(Rendered::Email {
                subject,
                html,
                text,
                reply_to,
                headers,
            }) => {
                let mut field = |name: &str, value: &str| {
                    let name = paint(DIM, &format!("{}:", harmless(name)));
                    let _ = writeln!(report, "{name} {}", harmless(value));
                };
                field("Subject", subject);
                if let Some(reply_to) = reply_to {
                    field("Reply-To", reply_to);
                }
                for (name, value) in headers {
                    field(name, value);
                }
                let _ = writeln!(report, "\n{}", harmless(text).trim_end());
                if let Some(html) = html {
                    let hint = format!("(and {} bytes of HTML: see it with -o html)", html.len());
                    let _ = writeln!(report, "{}", paint(DIM, &hint));
                }
            }
            Ok(Rendered::Sms { text }) => {
                let _ = writeln!(report, "{}", harmless(text).trim_end());
            }
            Ok(Rendered::Webhook { body, parameters }) => {
                let event = parameters.as_ref().map(|data| format!("{data:#}"));
                let said = body.as_deref().or(event.as_deref()).unwrap_or_default();
                if body.is_none() {
                    let _ = writeln!(
                        report,
                        "{}",
                        paint(DIM, "(a CloudEvent with this as its data)")
                    );
                }
                let _ = writeln!(report, "{}", harmless(said).trim_end());
            }
        }
    }
    report
}

fn json(template: &TemplateInForce, locale: &str, messages: Vec<Message>) -> String {
    let definition = template.compiled.definition();
    let mut said = Map::new();
    let mut errors = Vec::new();
    for (medium, message) in messages {
        match message {
            // It is an object whose only member is the medium.
            Ok(rendered) => {
                if let Ok(Value::Object(member)) = serde_json::to_value(rendered) {
                    said.extend(member);
                }
            }
            Err(error) => errors.push(json!({"medium": medium, "message": error.to_string()})),
        }
    }
    let report = json!({
        "template": format!("{}/{}", definition.namespace, definition.name),
        "definition": *template.hash,
        "locale": locale,
        "messages": said,
        "errors": errors,
    });
    format!("{report:#}\n")
}

/// The mail's HTML.
fn html(messages: Vec<Message>) -> Result<String, CliError> {
    for (_, message) in messages {
        match message {
            Ok(Rendered::Email {
                html: Some(mut html),
                ..
            }) => {
                if !html.ends_with('\n') {
                    html.push('\n');
                }
                return Ok(html);
            }
            Ok(_) => {}
            Err(error) => return Err(CliError::ShowHtml(error.to_string())),
        }
    }
    Err(CliError::ShowHtml(
        "the template has no mail in HTML".to_owned(),
    ))
}

#[cfg(test)]
mod tests;
