//! Lists: pages, cursors, filters.

use axum::extract::FromRequestParts;
use axum::extract::Query;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::{FieldError, Problem};
use crate::store::{Page, Paging};

/// Items on a page unless asked otherwise.
const USUAL: usize = 100;

/// Most items on a page.
const MOST: usize = 1000;

/// Longest cursor that is looked at: the longest address fits into one.
const LONGEST_CURSOR: usize = 4096;

/// Most terms of a label or metadata filter.
const MOST_TERMS: usize = 16;

/// One page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PageOf<T> {
    /// What is on this page.
    pub items: Vec<T>,
    /// Give it as `cursor` to get the next page; absent: this was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> PageOf<T> {
    /// A page of the store, each item in its HTTP form.
    pub fn from_store<S>(page: Page<S>, form: impl FnMut(S) -> T) -> Self {
        let Page { items, next } = page.map(form);
        Self { items, next }
    }
}

/// The query of a list that has no filter.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Most items on the page: 1 to 1,000. Default: 100.
    pub limit: Option<usize>,
    /// `next` of the page before.
    pub cursor: Option<String>,
}

/// What `limit` and `cursor` of a query ask for: 100 items unless given, 1 to 1,000.
pub fn paging(limit: Option<usize>, cursor: Option<String>) -> Result<Paging, Problem> {
    let limit = limit.unwrap_or(USUAL);
    if !(1..=MOST).contains(&limit) {
        return Err(Problem::query(
            "limit",
            format!("must be from 1 to {MOST} (got {limit})"),
        ));
    }
    if cursor.as_ref().is_some_and(|c| c.len() > LONGEST_CURSOR) {
        return Err(Problem::query(
            "cursor",
            "is not one that this list answered",
        ));
    }
    Ok(Paging { limit, cursor })
}

/// Reads a filter such as `team=logistics,tier=vip` of the query's parameter `name`; `None` and empty: no terms.
pub fn terms(name: &str, text: Option<&str>) -> Result<Vec<(String, String)>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(Vec::new());
    };
    let terms: Option<Vec<_>> = text
        .split(',')
        .map(|term| {
            let (key, value) = term.split_once('=')?;
            let (key, value) = (key.trim(), value.trim());
            (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
        })
        .collect();
    match terms {
        Some(terms) if terms.len() <= MOST_TERMS => Ok(terms),
        Some(_) => Err(Problem::query(
            name,
            format!("has more than {MOST_TERMS} terms"),
        )),
        None => Err(Problem::query(
            name,
            "must have the form key=value, several of them separated by commas",
        )),
    }
}

/// The query's parameters. Like axum's `Query`, with a [`Problem`] that names the parameter when one is wrong.
///
/// Give `T` `#[serde(deny_unknown_fields)]`, so that a misspelt filter is refused rather than ignored.
#[derive(Debug, Clone, Copy)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                // axum puts the parameter's name in front where it knows it.
                let text = std::error::Error::source(&rejection)
                    .map_or_else(|| rejection.to_string(), ToString::to_string);
                let (name, detail) = match text.split_once(": ") {
                    Some((name, detail)) if !name.contains(' ') => (name.to_owned(), detail),
                    _ => (quoted(&text).unwrap_or_default().to_owned(), text.as_str()),
                };
                Err(Problem::invalid(vec![FieldError::new(
                    format!("?{name}"),
                    detail,
                )]))
            }
        }
    }
}

/// The first thing between backticks: how serde names an unknown field.
fn quoted(text: &str) -> Option<&str> {
    text.split('`').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_out_of_range_is_refused_and_a_missing_one_is_a_hundred() {
        assert_eq!(paging(None, None).unwrap().limit, 100);
        assert_eq!(paging(Some(1000), None).unwrap().limit, 1000);
        for wrong in [0, 1001] {
            assert!(paging(Some(wrong), None).is_err());
        }
    }

    #[test]
    fn terms_are_read_apart_and_what_is_no_term_is_refused() {
        let terms = |text| terms("label", Some(text)).ok();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(terms(""), Some(vec![]));
        assert_eq!(
            terms("a=b, c=d=e"),
            Some(vec![pair("a", "b"), pair("c", "d=e")])
        );
        assert_eq!(terms("a"), None);
        assert_eq!(terms("=b"), None);
        assert_eq!(terms(&"a=b,".repeat(20)), None);
    }
}
