//! Everything that is declared, as it is kept: what an upgrade must not touch.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::Stage;

/// What somebody declared, by kind, namespace and name: its uid and generation.
#[derive(Debug, PartialEq, Eq)]
pub struct Declared(BTreeMap<String, (String, i64)>);

impl Declared {
    /// All of it. An error if that is nothing.
    pub fn read(stage: &Stage) -> anyhow::Result<Self> {
        let asked = ["get", "herald", "--all-namespaces", "--output", "json"];
        let listed: Value = serde_json::from_str(&stage.kubernetes()?.kubectl(&asked)?)
            .context("what is declared is no JSON")?;
        let listed = listed["items"].as_array().context("it is no list")?;
        let declared = listed.iter().map(|one| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let metadata = &one["metadata"];
            let name = [&one["kind"], &metadata["namespace"], &metadata["name"]].map(text);
            let generation = metadata["generation"].as_i64().unwrap_or_default();
            (name.join("/"), (text(&metadata["uid"]), generation))
        });
        let declared = Self(declared.collect());
        ensure!(!declared.0.is_empty(), "nothing is declared");
        Ok(declared)
    }

    /// How much that is.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// An error unless all of it is as it was.
    pub fn unchanged(&self, stage: &Stage) -> anyhow::Result<()> {
        let now = Self::read(stage)?;
        let changed = |(name, was): (&String, &(String, i64))| {
            let is = now.0.get(name);
            (is != Some(was)).then(|| format!("{name}: {was:?} became {is:?}"))
        };
        let changed: Vec<_> = self.0.iter().filter_map(changed).collect();
        ensure!(changed.is_empty(), "{}", changed.join("; "));
        let new = now.len() - self.len();
        ensure!(new == 0, "{new} came from nowhere");
        Ok(())
    }
}
