//! What every broker promises.

use crate::subject::Tenant;

herald_dispatcher::broker_contract!(Tenant::new());
