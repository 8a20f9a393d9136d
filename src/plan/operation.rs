//! Operations as JSON: each says its slot, whether the step itself does or not.

use super::{Operation, Step};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

impl Step {
    /// The slot that the step names: that of a mapping, or the index of a tunnel.
    pub fn slot(&self) -> Option<u32> {
        match self {
            Self::SetTunkey { value, .. } => Some(value.slot),
            Self::SetIf { value, .. } => Some(value.slot),
            Self::SetConf { index, .. } | Self::ClearConf { index } => Some(*index),
            _ => self.told_slot(),
        }
    }

    /// The slot, where it is a field of the step in JSON.
    fn told_slot(&self) -> Option<u32> {
        match self {
            Self::ResetCounters { slot }
            | Self::SetDev { slot, .. }
            | Self::ClearDev { slot }
            | Self::DeleteTunkey { slot, .. }
            | Self::DeleteIf { slot, .. } => Some(*slot),
            _ => None,
        }
    }
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Told<'a> {
            change: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            slot: Option<u32>,
            #[serde(flatten)]
            step: &'a Step,
        }
        let slot = self.slot.filter(|_| self.step.told_slot().is_none());
        Told { change: &self.change, slot, step: &self.step }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Operation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Told {
            change: String,
            #[serde(flatten)]
            step: Map<String, Value>,
        }
        let Told { change, step } = Told::deserialize(deserializer)?;
        let slot = match step.get("slot") {
            None | Some(Value::Null) => None,
            Some(slot) => Some(u32::deserialize(slot).map_err(D::Error::custom)?),
        };
        let step = serde_json::from_value(Value::Object(step)).map_err(D::Error::custom)?;
        Ok(Self { change, slot, step })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::{Direction, HookKind, Program};
    use crate::plan::LinkRef;

    #[test]
    fn operations_say_their_slot_and_come_back() {
        let link = LinkRef { name: "eth1".to_owned(), ifindex: Some(7) };
        let attach = Step::Attach {
            program: Program::HandleEgress,
            link: link.clone(),
            direction: Direction::Egress,
            kind: HookKind::Tcx,
            replace: false,
        };
        let of = |slot, step| Operation { change: "red/eth1".to_owned(), slot, step };
        let all = [
            of(Some(64), attach.clone()),
            of(None, attach),
            of(Some(65), Step::SetDev { slot: 65, link }),
            of(Some(1), Step::ClearConf { index: 1 }),
        ];
        for operation in &all {
            let json = serde_json::to_string(operation).unwrap();
            assert_eq!(json.matches("\"slot\"").count(), usize::from(operation.slot.is_some()), "{json}");
            assert_eq!(&serde_json::from_str::<Operation>(&json).unwrap(), operation, "{json}");
        }
    }
}
