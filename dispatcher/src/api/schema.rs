//! Schemas of what `herald-crds` declares, for OpenAPI: one description for YAML and HTTP.

use herald_crds::{Address, Priority, RecipientRef};
use schemars::generate::SchemaSettings;
use serde_json::Value;
use utoipa::openapi::{ArrayBuilder, Ref, RefOr, Schema};

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
    let items = ArrayBuilder::new()
        .items(reference("RecipientRef"))
        .min_items(Some(1))
        .max_items(Some(10_000));
    RefOr::T(Schema::Array(items.build()))
}

fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(name))
}

/// Every schema that the functions above refer to.
pub(super) fn declared() -> Vec<(String, RefOr<Schema>)> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    // Types with CEL rules are inlined wherever they are used: their names are given here.
    let inlined = [
        ("Address", generator.subschema_for::<Address>()),
        ("RecipientRef", generator.subschema_for::<RecipientRef>()),
    ];
    generator.subschema_for::<Priority>();
    let inlined = inlined.map(|(name, schema)| (name.to_owned(), schema.to_value()));
    generator
        .take_definitions(true)
        .into_iter()
        .chain(inlined)
        .filter_map(|(name, mut schema)| {
            tidy(&mut schema);
            Some((name, serde_json::from_value(schema).ok()?))
        })
        .collect()
}

/// Leaves out what is meant for the API server alone.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.retain(|name, _| !name.starts_with("x-kubernetes"));
            members.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
