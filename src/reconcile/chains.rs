//! The chains of TC hooks, ours and foreign programs alike, read for people: `status` and `doctor` show them.

use super::live::LiveKernel;
use crate::bpf::{ForeignPrograms, tcx_programs};
use crate::model::*;
use crate::netlink::ListedFilter;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// What is at hooks, and how much of it could be seen.
#[derive(Debug, Clone, Default)]
pub struct Chains {
    /// Hooks with something on them, by link and direction.
    pub chains: Vec<Chain>,
    /// Whether some programs could not be opened for want of CAP_SYS_ADMIN: they have no name then.
    pub refused: bool,
}

impl Chains {
    /// The chain of that hook.
    pub fn of(&self, ifindex: u32, direction: Direction) -> Option<&Chain> {
        let place =
            self.chains.binary_search_by_key(&(ifindex, direction.side()), |c| (c.ifindex, c.direction)).ok()?;
        self.chains.get(place)
    }
}

impl LiveKernel {
    /// Names in the pin directory that aren't ours.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn foreign_pins(&self) -> Result<Vec<String>> {
        self.dataplane.foreign_pins()
    }

    /// Whether a growth of the maps was interrupted and is yet to be finished.
    pub fn is_half_grown(&self) -> bool {
        self.dataplane.is_half_grown()
    }

    /// The chains of these hooks. `observed` says which of what is there is ours.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub async fn chains(&self, hooks: &[(u32, Direction)], observed: &Observed) -> Result<Chains> {
        let mut programs = ForeignPrograms::default();
        // On an underlay device our place is beside that of others.
        let sides: BTreeSet<_> = hooks.iter().map(|(ifindex, direction)| (*ifindex, direction.side())).collect();
        let hooks: Vec<_> = sides.into_iter().collect();
        let mut chains: BTreeMap<(u32, Direction), Vec<ChainMember>> = BTreeMap::new();
        let ours: BTreeMap<(u32, Direction), u32> = observed
            .attachments
            .iter()
            .filter(|a| a.kind == HookKind::Tcx && a.program.is_some())
            .map(|a| ((a.ifindex, a.direction.side()), a.position))
            .collect();
        for &(ifindex, direction) in &hooks {
            let own = ours.get(&(ifindex, direction));
            let members: Vec<_> = (0u32..)
                .zip(tcx_programs(ifindex, direction)?)
                .map(|(place, id)| tcx_member(&mut programs, id, own == Some(&place)))
                .collect();
            if !members.is_empty() {
                chains.insert((ifindex, direction), members);
            }
        }
        for (ifindex, direction, filters) in self.netlink.filter_chains(&hooks).await? {
            let members = filters.into_iter().map(|f| clsact_member(&mut programs, f));
            chains.entry((ifindex, direction)).or_default().extend(members);
        }
        let chains = chains.into_iter().map(|((ifindex, direction), members)| Chain { ifindex, direction, members });
        Ok(Chains { chains: chains.collect(), refused: programs.refused() })
    }
}

fn tcx_member(programs: &mut ForeignPrograms, id: u32, ours: bool) -> ChainMember {
    let (name, tc_index) = if ours {
        (None, TcIndex::Stored)
    } else {
        let found = programs.look_at(id);
        (found.name, found.tc_index)
    };
    ChainMember { kind: HookKind::Tcx, ours, program: Some(id), name, tc_index }
}

fn clsact_member(programs: &mut ForeignPrograms, filter: ListedFilter) -> ChainMember {
    let ListedFilter { ours, kind, priority, program, name } = filter;
    let (name, tc_index) = match program {
        _ if ours => (name, TcIndex::Stored),
        Some(id) => (name, programs.look_at(id).tc_index),
        // Whether its actions end with "ok" isn't told by the kind.
        None => (Some(format!("{kind} filter, priority {priority}")), TcIndex::Untold),
    };
    ChainMember { kind: HookKind::Clsact, ours, program, name, tc_index }
}
