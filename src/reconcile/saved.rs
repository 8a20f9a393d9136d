//! A plan that was written down to be applied later, if the live state is then still the one that it was made from.

use crate::model::{Desired, Intent, Observed};
use crate::plan::{FORMAT_VERSION, Plan, fingerprint};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// A saved plan: the plan's JSON, and what it needs to be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SavedPlan {
    /// Version of the format.
    pub format_version: u32,
    /// Fingerprint of the live state that it was made from.
    pub fingerprint: String,
    /// What changes and what is done.
    #[serde(flatten)]
    pub plan: Plan,
    /// What is to be in force.
    pub saved: Saved,
}

/// What a saved plan has beside what is shown of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Digest of the state that was accepted when it was made.
    pub accepted: String,
    /// Whether it was made with deletions allowed.
    pub allow_deletes: bool,
    /// What is to be in force.
    pub intent: Intent,
}

/// What must hold when a plan is applied: small enough to be sent to a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Topology revision.
    pub revision: String,
    /// Digest of the state that was accepted before.
    pub accepted: String,
    /// Fingerprint of the live state.
    pub fingerprint: String,
    /// Digest of the operations.
    pub operations: String,
}

/// The plan isn't the one that would be made now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; make a new plan and look at it again")]
pub struct Stale(pub String);

fn digest(value: &impl Serialize) -> String {
    let digest = Sha256::digest(serde_json::to_vec(value).unwrap_or_default());
    digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// Digest of an accepted state; of none where nothing was accepted.
pub fn accepted(before: Option<&Intent>) -> String {
    before.map_or_else(|| "none".to_owned(), digest)
}

impl Expected {
    /// What holds now.
    pub fn now(before: Option<&Intent>, desired: &Desired, observed: &Observed, plan: &Plan) -> Self {
        Self {
            revision: desired.revision.clone(),
            accepted: accepted(before),
            fingerprint: fingerprint(desired, observed),
            operations: digest(&plan.operations),
        }
    }

    /// Compares what a plan was made for with what holds now.
    ///
    /// # Errors
    ///
    /// [`Stale`], with what moved on.
    pub fn check(&self, now: &Self) -> Result<(), Stale> {
        let moved = if self.revision != now.revision {
            format!("the plan is for topology revision {}, while the files say {} now", self.revision, now.revision)
        } else if self.accepted != now.accepted {
            "another topology was accepted since the plan was made".to_owned()
        } else if self.fingerprint != now.fingerprint || self.operations != now.operations {
            "the live state has moved on since the plan was made".to_owned()
        } else {
            return Ok(());
        };
        Err(Stale(moved))
    }
}

impl SavedPlan {
    /// Reads one, whatever the bytes are.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let version: Version = serde_json::from_slice(text).map_err(|e| format!("not a saved plan: {e}"))?;
        if version.format_version != FORMAT_VERSION {
            return Err(format!("the plan has format {}, this version reads {FORMAT_VERSION}", version.format_version));
        }
        let plan: Self =
            serde_json::from_slice(text).map_err(|e| format!("not a saved plan (those of `plan --out` are): {e}"))?;
        let desired = &plan.saved.intent.desired;
        let named = desired.mappings.iter().all(|(name, m)| *name == m.interface);
        let tunnels = desired.tunnels.iter().all(|(name, t)| *name == t.name);
        if !named || !tunnels || !desired.bridges.iter().all(|(name, b)| *name == b.name) {
            return Err("not a saved plan: something has two names".to_owned());
        }
        Ok(plan)
    }

    /// What must hold when it is applied.
    pub fn expected(&self) -> Expected {
        Expected {
            revision: self.saved.intent.desired.revision.clone(),
            accepted: self.saved.accepted.clone(),
            fingerprint: self.fingerprint.clone(),
            operations: digest(&self.plan.operations),
        }
    }

    /// What the plan made now says otherwise: addresses of changes.
    pub fn differences(&self, now: &Plan) -> BTreeSet<String> {
        let mut out = BTreeSet::new();
        for (one, other) in [(&self.plan, now), (now, &self.plan)] {
            let missing = one.changes.iter().filter(|c| !other.changes.contains(c)).map(|c| c.address.clone());
            out.extend(missing);
        }
        out
    }
}
