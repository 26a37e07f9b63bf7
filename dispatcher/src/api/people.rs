//! People: recipients, members of managed groups, suppressed addresses.

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use super::Api;

/// The calls about people.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
}
