use std::path::PathBuf;
use std::sync::Mutex;

use async_trait::async_trait;
use tempfile::TempDir;

use super::*;
use crate::broker::contract::Subject;

struct Embedded {
    folder: TempDir,
    open: Mutex<Option<EmbeddedBroker>>,
}

impl Embedded {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            open: Mutex::new(None),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("broker.sqlite")
    }
}

#[async_trait]
impl Subject for Embedded {
    async fn open(&self) -> Arc<dyn Broker> {
        let broker = EmbeddedBroker::open(&self.path(), Options::default())
            .await
            .unwrap();
        *self.open.lock().unwrap() = Some(broker.clone());
        Arc::new(broker)
    }

    async fn crash(&self) {
        let broker = self.open.lock().unwrap().take().unwrap();
        broker.abort().await;
    }
}

mod contract {
    use super::*;

    crate::broker_contract!(Embedded::new());
}
