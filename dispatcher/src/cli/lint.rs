//! `herald lint`: everything that is wrong with a folder of YAML.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::{BAD, BOLD, CliError, DIM, GOOD, count, harmless, paint};
use crate::catalog::folder::{Extent, FolderCatalog};
use crate::catalog::{Catalog as _, DeclaredProblem};

/// What its help says.
pub(super) const HELP: &str = "Says everything that is wrong with a folder of YAML: what is not YAML, unknown fields, values \
    out of bounds, references that lead nowhere, groups in a circle, templates that do not compile, call what is not \
    there, or whose samples do not render. Each with file, line and place. A Namespace is read for its labels, for \
    Channels that ask for some; documents of other kinds are passed over, as are hidden files and secrets/.\n\n\
    It exits with 0 if all is well, 1 if something is wrong, 2 if the folder cannot be read.\n\n\
    Examples:\n  \
    herald lint notifications/\n  \
    herald lint notifications/ --format github    # marks lines in a workflow\n  \
    herald lint notifications/ --format json | jq '.problems[].path'";

/// Says everything that is wrong with a folder of YAML.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder.
    dir: PathBuf,
    /// How the problems are told.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The namespace of resources that name none.
    #[arg(long, default_value = "default")]
    namespace: String,
}

/// How problems are told.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Format {
    /// A line for each, for people and editors.
    #[default]
    Text,
    /// Annotations of a GitHub workflow.
    Github,
    /// One JSON object.
    Json,
}

/// Writes what is wrong to `out`; exits with 1 if anything is.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let catalog = FolderCatalog::open(&args.dir, &args.namespace).map_err(CliError::OpenFolder)?;
    let problems = &catalog.current().problems;
    let report = match args.format {
        Format::Text => text(&args.dir, problems, catalog.extent()),
        Format::Github => github(&args.dir, problems, catalog.extent()),
        Format::Json => json(problems, catalog.extent()),
    };
    out.write_all(report.as_bytes()).map_err(CliError::Print)?;
    Ok(ExitCode::from(u8::from(!problems.is_empty())))
}

fn text(dir: &Path, problems: &[DeclaredProblem], extent: Extent) -> String {
    let mut report = lines(dir, problems);
    if problems.is_empty() {
        report += &paint(GOOD, "No problems");
    } else {
        report += &paint(BAD, &count(problems.len(), "problem"));
    }
    let _ = writeln!(report, " in {}", describe(extent));
    report
}

/// A line for each problem: `file:line: resource path: message`.
pub(super) fn lines(dir: &Path, problems: &[DeclaredProblem]) -> String {
    let mut lines = String::new();
    for problem in problems {
        let place = match &problem.file {
            Some(file) if problem.line > 0 => {
                format!("{}:{}", dir.join(file).display(), problem.line)
            }
            Some(file) => dir.join(file).display().to_string(),
            None => dir.display().to_string(),
        };
        let _ = write!(lines, "{}:", paint(BOLD, &harmless(&place)));
        for part in [&problem.resource, &problem.path] {
            if !part.is_empty() {
                let _ = write!(lines, " {}", paint(DIM, &harmless(part)));
            }
        }
        let message = harmless(&problem.message).replace('\n', "\n    ");
        let _ = writeln!(lines, ": {message}");
    }
    lines
}

/// Workflow commands; a line of its own says the sum.
fn github(dir: &Path, problems: &[DeclaredProblem], extent: Extent) -> String {
    let mut report = String::new();
    for problem in problems {
        report += "::error ";
        if let Some(file) = &problem.file {
            let file = dir.join(file).display().to_string();
            let _ = write!(
                report,
                "file={},line={},",
                property(&file),
                problem.line.max(1)
            );
        }
        let title = format!("{} {}", problem.resource, problem.path);
        let _ = writeln!(
            report,
            "title={}::{}",
            property(title.trim()),
            escape(&problem.message)
        );
    }
    let found = count(problems.len(), "problem");
    let _ = writeln!(report, "{found} in {}", describe(extent));
    report
}

/// The text of a workflow command, escaped as its runner expects.
fn escape(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// The value of a workflow command's property, escaped as its runner expects.
fn property(text: &str) -> String {
    escape(text).replace(':', "%3A").replace(',', "%2C")
}

fn json(problems: &[DeclaredProblem], extent: Extent) -> String {
    let report = json!({
        "problems": problems,
        "files": extent.files,
        "resources": extent.resources,
    });
    format!("{report:#}\n")
}

fn describe(extent: Extent) -> String {
    let files = count(extent.files, "file");
    format!("{}, {files}", count(extent.resources, "resource"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use herald_crds::mutants::mutants;
    use serde_json::Value;

    use super::*;
    use crate::catalog::yaml;

    const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/samples");

    fn lint(dir: &Path, format: Format) -> (ExitCode, String) {
        let args = Args {
            dir: dir.to_owned(),
            format,
            namespace: "default".to_owned(),
        };
        let mut out = Vec::new();
        let code = run(&args, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        (code, anstream::adapter::strip_str(&out).to_string())
    }

    /// A folder with a Channel that has a bound and a field wrong, and a file that is not YAML.
    fn wrong() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mail = "apiVersion: herald.dev/v1alpha1\nkind: Channel\nmetadata: {name: mail}\nspec:\n  medium: email\n  \
                    concurrency: 0\n  providers:\n  - name: main\n    log: {}\n";
        fs::write(dir.path().join("mail.yaml"), mail).unwrap();
        fs::write(dir.path().join("x,y.yaml"), "a: [\n").unwrap();
        dir
    }

    #[test]
    fn nothing_is_wrong_with_the_samples() {
        for samples in ["quickstart", "reference"] {
            let (code, out) = lint(&Path::new(SAMPLES).join(samples), Format::Text);
            assert_eq!(code, ExitCode::SUCCESS, "{out}");
            assert!(
                out.starts_with("No problems in ") && out.lines().count() == 1,
                "{out}"
            );
        }
    }

    #[test]
    fn every_mutant_of_a_sample_is_found_where_it_is_wrong() {
        let mut found = 0;
        for samples in ["quickstart", "reference"] {
            let entries = fs::read_dir(Path::new(SAMPLES).join(samples)).unwrap();
            // Beside the samples, `make run` keeps a folder of credentials.
            let files = entries.map(|entry| entry.unwrap().path());
            for file in files.filter(|path| path.is_file()) {
                let text = fs::read(file).unwrap();
                for document in yaml::read(&text).unwrap() {
                    // By itself, a resource lacks what it refers to: that is not what is looked for.
                    let known = problems_of(&document.value);
                    for mutant in mutants(&document.value) {
                        let new: Vec<_> = (problems_of(&mutant.document).into_iter())
                            .filter(|problem| !known.contains(problem))
                            .collect();
                        let is_there = |(path, line, _): &(String, u64, String)| {
                            path.starts_with(&mutant.path) && *line > 0
                        };
                        assert!(
                            new.iter().any(is_there),
                            "{}, {}: {new:#?}",
                            mutant.name,
                            mutant.path
                        );
                        found += 1;
                    }
                }
            }
        }
        assert!(found > 100, "{found} mutants");
    }

    #[test]
    fn what_a_template_calls_and_is_not_there_is_found_without_a_sample() {
        let dir = tempfile::tempdir().unwrap();
        let code = "apiVersion: herald.dev/v1alpha1\nkind: NotificationTemplate\nmetadata: {name: code}\nspec:\n  \
                    category: account\n  routing: {channels: [{name: log}]}\n  content:\n    sms:\n      text: |\n        \
                    Hello\n        {{ code | uper }}\n";
        let log = "---\napiVersion: herald.dev/v1alpha1\nkind: Channel\nmetadata: {name: log}\nspec:\n  medium: sms\n  \
                   providers: [{name: log, log: {}}]\n";
        fs::write(dir.path().join("code.yaml"), format!("{code}{log}")).unwrap();
        let (code, out) = lint(dir.path(), Format::Text);
        assert_eq!(code, ExitCode::from(1));
        let expected = format!(
            "{}:9: NotificationTemplate default/code /spec/content/sms/text: line 2: there is no filter \"uper\"",
            dir.path().join("code.yaml").display()
        );
        assert_eq!(out.lines().next(), Some(&*expected), "{out}");
    }

    /// What lint says about a folder that holds `document` alone: path, line and message of each.
    fn problems_of(document: &Value) -> Vec<(String, u64, String)> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("it.yaml"), yaml::write(document)).unwrap();
        let (_, out) = lint(dir.path(), Format::Json);
        let report: Value = serde_json::from_str(&out).unwrap();
        let problems = report["problems"].as_array().unwrap().iter();
        problems
            .map(|p| {
                let words = |field: &str| p[field].as_str().unwrap().to_owned();
                (words("path"), p["line"].as_u64().unwrap(), words("message"))
            })
            .collect()
    }

    #[test]
    fn people_read_a_line_for_each_problem_and_the_sum() {
        let dir = wrong();
        let (code, out) = lint(dir.path(), Format::Text);
        assert_eq!(code, ExitCode::from(1));
        let lines: Vec<_> = out.lines().collect();
        let mail = dir.path().join("mail.yaml");
        let begins = format!(
            "{}:6: Channel default/mail /spec/concurrency: ",
            mail.display()
        );
        assert!(lines[0].starts_with(&begins), "{out}");
        let begins = format!(
            "{}:1: /a/0: not YAML: ",
            dir.path().join("x,y.yaml").display()
        );
        assert!(lines[1].starts_with(&begins), "{out}");
        assert_eq!(lines[2..], ["2 problems in 1 resource, 2 files"]);
    }

    #[test]
    fn workflows_mark_the_lines() {
        let dir = wrong();
        let (code, out) = lint(dir.path(), Format::Github);
        assert_eq!(code, ExitCode::from(1));
        let lines: Vec<_> = out.lines().collect();
        let begins = format!(
            "::error file={},line=6,title=Channel default/mail /spec/concurrency::",
            dir.path().join("mail.yaml").display()
        );
        assert!(lines[0].starts_with(&begins), "{out}");
        assert!(
            lines[1].contains("/x%2Cy.yaml,line=1,title=/a/0::not YAML"),
            "{out}"
        );
        assert_eq!(escape("50 %\nof\r"), "50 %25%0Aof%0D");
    }

    #[test]
    fn programs_read_json() {
        let dir = wrong();
        let (_, out) = lint(dir.path(), Format::Json);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&report["files"], &report["resources"]),
            (&json!(2), &json!(1))
        );
        let first = &report["problems"][0];
        assert_eq!(first["file"], "mail.yaml");
        assert_eq!(first["line"], 6);
        assert_eq!(first["resource"], "Channel default/mail");
        assert_eq!(first["path"], "/spec/concurrency");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_not_a_clean_bill() {
        let args = Args {
            dir: PathBuf::from("/nowhere/at/all"),
            format: Format::Text,
            namespace: "default".to_owned(),
        };
        let error = run(&args, &mut Vec::new()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the folder /nowhere/at/all cannot be read: ")
        );
    }
}
