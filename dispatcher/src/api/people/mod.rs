//! People: recipients, members of managed groups, suppressed addresses.
//!
//! - `recipients`: the directory, one by one. `import`: many at once.
//! - `members`: who is in a managed group. `suppressions`: addresses to which nothing is sent.

mod import;
mod members;
mod recipients;
mod suppressions;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use herald_crds::address::check_recipient_id;
use utoipa_axum::router::OpenApiRouter;

use super::{Api, FieldError, Kind, Problem};

/// The calls about people.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(import::routes())
        .merge(recipients::routes())
        .merge(members::routes())
        .merge(suppressions::routes())
}

/// Refuses an id in the path that nobody can have.
fn check_id(id: &str) -> Result<(), Problem> {
    check_recipient_id(id).map_err(|words| {
        let detail = format!("the recipient's id in the path must be {words}");
        Problem::new(Kind::InvalidRequest, detail)
    })
}

/// Refuses groups that are not declared, and those whose members are not kept here.
fn check_managed(api: &Api, namespace: &str, group: &str) -> Result<(), Problem> {
    let snapshot = api.catalog.current();
    let name = format!("{namespace}/{group}");
    match snapshot.groups.get(name.as_str()) {
        None => Err(Problem::not_found(&format!("group {group:?}"))),
        Some(group) if group.spec.managed => Ok(()),
        Some(_) => Err(Problem::new(
            Kind::Conflict,
            format!(
                "group {group:?} is not managed: its members are declared in YAML; \
                 set spec.managed: true to add members over HTTP"
            ),
        )),
    }
}

/// What is wrong with a body, in the form of the API.
fn invalid(problems: Vec<herald_crds::Problem>) -> Problem {
    let errors = problems
        .into_iter()
        .map(|problem| FieldError::new(problem.path, problem.message))
        .collect();
    Problem::invalid(errors)
}
