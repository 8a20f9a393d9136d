//! The topology against this host, and the daemon that keeps it.

use super::{Code, Facts, Findings};

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    if let Some(why) = &facts.rejected {
        let held =
            if facts.accepted.is_some() { "the last accepted one stays in force" } else { "nothing is in force" };
        let what = format!("the topology isn't accepted; {held}:\n{why}");
        out.error(Code::TopologyRejected, None, what, "see `tunnel-mesh validate` for the lines");
    }
    if let Some(why) = &facts.unreadable {
        out.error(
            Code::RecordUnreadable,
            None,
            format!("{why}: after a restart the files are compared with what is live instead"),
            "run `tunnel-mesh apply` to write it anew",
        );
    }
    let (Some(live), Some(desired)) = (&facts.live, facts.desired()) else { return };
    for tunnel in desired.tunnels.values() {
        let used = desired.mappings.values().filter(|m| m.key.tunnel == tunnel.name.as_str());
        let mut sources: Vec<_> = used.map(|m| m.local).collect();
        sources.sort_unstable();
        sources.dedup();
        for source in sources {
            if !live.observed.addresses.iter().any(|a| a.address == source) {
                let what = format!("tunnel {} sends from {source}, which no interface of this host has", tunnel.name);
                let remedy = format!("add the address, or correct `local` or the node's address ({})", tunnel.origin);
                out.error(Code::NoLocalAddress, Some(&tunnel.name), what, remedy);
            }
        }
    }
    for problem in &live.plan.problems {
        out.error(
            Code::UnusableDevice,
            Some(&problem.address),
            problem.what.clone(),
            "change the device or the topology",
        );
    }
    for pending in &live.plan.pending {
        let what = format!("mapping {} isn't in force: {}", pending.address, pending.why);
        out.note(Code::Pending, Some(&pending.address), what, "nothing needs doing if the interface is yet to come");
    }
}

pub(super) fn check_daemon(facts: &Facts, out: &mut Findings) {
    if let Some(why) = &facts.daemon_error {
        out.error(Code::DaemonSilent, None, why.clone(), "see the daemon's log; restart it");
    }
    let Some(status) = &facts.daemon else {
        if facts.accepted.is_some() && facts.daemon_error.is_none() {
            let what = "no daemon runs: the data plane works, but nothing follows files, links and drift";
            out.warning(Code::NoDaemon, None, what, "systemctl start tunnel-mesh, or `tunnel-mesh run`");
            let waiting = facts.live.as_ref().map_or(0, |live| live.plan.operations.len());
            if waiting > 0 {
                let needed =
                    if waiting == 1 { "1 operation is".to_owned() } else { format!("{waiting} operations are") };
                let what = format!("the live state isn't what the topology says: {needed} needed");
                out.warning(Code::NotInForce, None, what, "see `tunnel-mesh plan`; run `tunnel-mesh apply`");
            }
        }
        return;
    };
    for error in &status.errors {
        out.error(Code::PassFailed, None, format!("the last pass failed: {error}"), "see the daemon's log");
    }
    if let Some(error) = &status.daemon.watch_error {
        let what = format!("changes of the files are seen by the rescan every second only: {error}");
        out.warning(Code::WatchFailed, None, what, "raise fs.inotify.max_user_watches and max_user_instances");
    }
}
