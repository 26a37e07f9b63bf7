//! Schemas of what `herald-crds` declares, for OpenAPI: one description for YAML and HTTP.

use utoipa::openapi::{Ref, RefOr, Schema};

/// `Priority`.
pub fn priority() -> RefOr<Schema> {
    reference("Priority")
}

/// `Address`.
pub fn address() -> RefOr<Schema> {
    reference("Address")
}

/// 1 to 10,000 `RecipientRef`s.
pub fn recipients() -> RefOr<Schema> {
    let items = utoipa::openapi::ArrayBuilder::new()
        .items(reference("RecipientRef"))
        .min_items(Some(1))
        .max_items(Some(10_000));
    RefOr::T(Schema::Array(items.build()))
}

fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(name))
}
