//! Templates: whether they compile, render their samples, and have somewhere to go.

mod dereference;
mod validate;

use std::sync::Arc;

use herald_crds::{NotificationTemplate, ResourceSet};
use kube::ResourceExt as _;
use kube::runtime::controller::Action;

use crate::context::Context;
use crate::error::Error;
use crate::queue::{Guard, resync};
use crate::status::{self, Because, Verdict};
use crate::watch::Stores;

pub use dereference::{add_channels, add_owners};

use dereference::dereference;
use validate::{Outcome, validate};

/// Looks at one template. Nothing is made for it: what is found is told.
pub async fn reconcile(
    template: Arc<Guard<NotificationTemplate>>,
    ctx: Arc<Context>,
) -> Result<Action, Error> {
    let Ok(template) = &template.0 else {
        return Ok(Action::await_change());
    };
    if template.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let outcome = compile(&ctx.stores, template, dereference);
    tell(&ctx, template, outcome).await?;
    Ok(resync())
}

/// Compiles it with what is there, as `read` finds it, and notes which templates it includes.
fn compile(
    stores: &Stores,
    template: &NotificationTemplate,
    read: impl FnOnce(&Stores, &NotificationTemplate) -> ResourceSet,
) -> Outcome {
    let (namespace, name) = (
        template.namespace().unwrap_or_default(),
        template.name_any(),
    );
    // Until it is known: whatever comes once the stores have been read wakes it.
    stores.includes.set(&namespace, &name, None);
    let outcome = validate(template, &read(stores, template));
    let includes = outcome.includes.clone();
    stores.includes.set(&namespace, &name, includes);
    outcome
}

async fn tell(
    ctx: &Context,
    template: &NotificationTemplate,
    outcome: Outcome,
) -> Result<(), Error> {
    let Outcome {
        compiled,
        verdict,
        includes: _,
    } = outcome;
    let verdict = verdict.unwrap_or_else(|| {
        Verdict::Ready(Because::new(
            "Compiled",
            "it compiles, its samples render, and its channels are there",
        ))
    });
    status::tell(ctx, template, &verdict, Vec::new(), |status| {
        // What does not compile never comes into force: the definition before it stays.
        if let Some(compiled) = compiled {
            status.definition = Some(compiled.hash);
            status.mediums = compiled.mediums;
            status.locales = compiled.locales;
        }
    })
    .await
}

#[cfg(test)]
mod tests;
