use super::*;
use crate::store::contract::history::history_contract;
use crate::store::contract::people::people_contract;
use crate::store::contract::stages::store_contract;

/// A store in a folder of its own.
pub(super) struct Opened {
    pub(super) store: SqliteStore,
    /// Deleted with it.
    _folder: tempfile::TempDir,
}

pub(super) async fn open() -> Opened {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        synchronous: false,
        ..Options::default()
    };
    let store = SqliteStore::open(&folder.path().join("store.db"), options)
        .await
        .unwrap();
    Opened {
        store,
        _folder: folder,
    }
}

store_contract!(open);
history_contract!(open);
people_contract!(open);
