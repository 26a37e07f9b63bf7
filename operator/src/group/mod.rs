//! Groups: whether what is in them is there, and no group is in itself.

mod dereference;
mod validate;

use std::sync::Arc;

use herald_crds::RecipientGroup;
use kube::runtime::controller::Action;

use crate::context::Context;
use crate::error::Error;
use crate::queue::{Guard, resync};
use crate::status::{self, Because, Verdict};

use dereference::dereference;
use validate::validate;

/// Looks at one group. Nothing is made for it: what is found is told.
pub async fn reconcile(
    group: Arc<Guard<RecipientGroup>>,
    ctx: Arc<Context>,
) -> Result<Action, Error> {
    let Ok(group) = &group.0 else {
        return Ok(Action::await_change());
    };
    if group.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let set = dereference(&ctx.stores, group);
    let verdict = validate(group, &set)
        .unwrap_or_else(|| Verdict::Ready(Because::new("Resolved", "every group in it is there")));
    status::tell(&ctx, group, &verdict, Vec::new(), |_| {}).await?;
    Ok(resync())
}

#[cfg(test)]
mod tests;
