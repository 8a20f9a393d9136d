//! Other people's programs on the TC hooks that tunnel-mesh uses, and what they do to `tc_index`.

use super::{Code, Facts, Findings, Live};
use crate::model::{Desired, TcIndex};
use std::collections::BTreeSet;

pub(super) fn check_programs(facts: &Facts, out: &mut Findings) {
    let Some(live) = &facts.live else { return };
    for chain in &live.chains.chains {
        let Some(link) = live.observed.link_by_index(chain.ifindex) else { continue };
        let Some(ours) = chain.ours() else { continue };
        for (place, member) in chain.foreign() {
            let hook = format!("{} {}", link.name, chain.direction);
            if place < ours {
                let what = format!(
                    "{member} runs before tunnel-mesh at {hook}: what it drops or redirects never gets to the tunnel"
                );
                let remedy = if facts.daemon.is_some() {
                    "the next pass puts tunnel-mesh first again; if it comes back, attach that program behind"
                } else {
                    "start the daemon, or run `tunnel-mesh apply`: both put tunnel-mesh first again"
                };
                out.warning(Code::ForeignProgramFirst, Some(&hook), what, remedy);
            } else {
                let what =
                    format!("{member} runs at {hook} too, behind tunnel-mesh: it sees only what isn't a tenant's");
                out.note(Code::ForeignProgram, Some(&hook), what, "nothing needs doing if it is meant to be there");
            }
        }
    }
}

pub(super) fn check_tc_index(facts: &Facts, out: &mut Findings) {
    let (Some(live), Some(desired)) = (&facts.live, facts.desired()) else { return };
    if desired.tunnels.values().all(|t| t.mark == 0) {
        return;
    }
    let ports = passed(live, desired);
    for chain in &live.chains.chains {
        let Some(link) = live.observed.link_by_index(chain.ifindex) else { continue };
        if !ports.contains(&chain.ifindex) {
            continue;
        }
        for (_, member) in chain.foreign() {
            let hook = format!("{} {}", link.name, chain.direction);
            let remedy = "tunnel-mesh doesn't rely on tc_index; filters of yours that do must not: use `mark: 0` to stop setting it";
            match member.tc_index {
                TcIndex::Kept => {}
                TcIndex::Stored => {
                    let what = format!(
                        "{member} at {hook} has an instruction that writes tc_index: the mark of tunnel packets may be lost there"
                    );
                    out.warning(Code::TcIndexWritten, Some(&hook), what, remedy);
                }
                TcIndex::Reset => {
                    let what = format!(
                        "{member} at {hook} can end with TC_ACT_OK, at which the kernel overwrites tc_index: the mark of tunnel packets is lost there"
                    );
                    out.warning(Code::TcIndexReset, Some(&hook), what, remedy);
                }
                TcIndex::Untold => {
                    let what = format!(
                        "whether {member} at {hook} changes tc_index can't be told: its instructions aren't to be read"
                    );
                    let remedy = if live.chains.refused { "run `tunnel-mesh doctor` as root" } else { remedy };
                    out.note(Code::TcIndexUntold, Some(&hook), what, remedy);
                }
            }
        }
    }
}

/// The links that a marked packet passes: ports, their bridges and the other ports of those, and tunnels.
fn passed(live: &Live, desired: &Desired) -> BTreeSet<u32> {
    let observed = &live.observed;
    let mapped: Vec<_> = desired.mappings.values().filter_map(|m| observed.link(&m.interface)).collect();
    let bridges: BTreeSet<u32> = mapped.iter().filter_map(|l| l.master).collect();
    let tunnels = desired.tunnels.values().filter_map(|t| observed.link(&t.name)).map(|l| l.ifindex);
    let beside = observed.links.iter().filter(|l| l.master.is_some_and(|m| bridges.contains(&m))).map(|l| l.ifindex);
    mapped.iter().map(|l| l.ifindex).chain(bridges.iter().copied()).chain(beside).chain(tunnels).collect()
}
